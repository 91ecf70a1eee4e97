//! A handle that ends what runs, from any thread.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::SandboxError;

/// Ends the commands that were started with it. Clones are the same handle; it can't be taken back.
#[derive(Debug, Clone)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    killed: AtomicBool,
    /// Readable once it is killed; nobody ever reads it, so that every waiter sees it.
    event: EventFd,
}

impl Cancel {
    /// A handle that nobody has used yet.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> Result<Self, SandboxError> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(SandboxError::system("an event descriptor"))?;
        Ok(Self { inner: Arc::new(Inner { killed: AtomicBool::new(false), event }) })
    }

    /// Kills what runs under it, and what would be started with it later.
    pub fn kill(&self) {
        self.inner.killed.store(true, Ordering::Release);
        // It can only fail when the counter is full, and then it is readable already.
        let _ = self.inner.event.write(1);
    }

    /// Whether [`Cancel::kill`] was called.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.inner.killed.load(Ordering::Acquire)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }
}
