//! The worker's slots: who is free, and who knows the suite already.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use regatta_model::BatchEnd;
use tokio::sync::{Semaphore, oneshot};

use crate::slot::{Ground, Job, RUNNERS_MAX, RunnerKey, Slot, cannot_run};

/// Slots on threads of their own. They end when the pool is dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    /// As many permits as there are idle slots.
    free: Semaphore,
    /// None once the pool is closed.
    idle: Mutex<Option<Vec<Handle>>>,
}

/// A slot as those see it who have a batch for it.
struct Handle {
    jobs: SyncSender<Task>,
    /// The runners that it keeps, the last used one last.
    knows: Vec<RunnerKey>,
}

struct Task {
    job: Job,
    handle: Handle,
    done: oneshot::Sender<BatchEnd>,
}

impl Pool {
    /// Starts the slots' threads.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(slots: usize, ground: &Ground) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { free: Semaphore::new(0), idle: Mutex::new(Some(Vec::new())) });
        let pool = Self { shared, threads: Mutex::default() };
        for number in 1..=slots {
            let (jobs, received) = sync_channel(1);
            let (shared, ground) = (Arc::clone(&pool.shared), ground.clone());
            let thread = std::thread::Builder::new()
                .name(format!("slot-{number}"))
                .spawn(move || work(Slot::new(ground), &received, &shared))?;
            pool.threads().push(thread);
            let _ = pool.shared.put_back(Handle { jobs, knows: Vec::new() });
        }
        Ok(pool)
    }

    /// Gives a batch to an idle slot, and waits for one if there is none; gives its end. A dropped future
    /// doesn't end the batch, but its `cancel` does.
    pub(crate) async fn run(&self, job: Job) -> BatchEnd {
        let (done, end) = oneshot::channel();
        // It is never closed.
        if let Ok(permit) = self.shared.free.acquire().await {
            permit.forget();
        }
        let Some(handle) = self.shared.take(&RunnerKey::of(&job.order)) else { return BatchEnd::Cancelled };
        let jobs = handle.jobs.clone();
        // An idle slot's channel is empty, and its thread waits on it. If the thread should be gone, so is `done`.
        let _ = jobs.send(Task { job, handle, done });
        // Without an answer the pool was closed, and the batch never began.
        end.await.unwrap_or(BatchEnd::Cancelled)
    }

    /// Ends the threads and waits for them, and with them for the end of every process that they keep. What they run
    /// must be cancelled before, or else is waited for.
    pub(crate) fn join(&self) {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            // A panic of theirs was reported when it happened.
            let _ = thread.join();
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// Takes out an idle slot that knows the suite, or else the one that knows the fewest.
    fn take(&self, key: &RunnerKey) -> Option<Handle> {
        let mut idle = self.idle();
        let idle = idle.as_mut()?;
        let knowing = idle.iter().position(|handle| handle.knows.contains(key));
        let at = knowing.or_else(|| {
            let least = idle.iter().enumerate().min_by_key(|(_, handle)| handle.knows.len());
            least.map(|(at, _)| at)
        })?;
        let mut handle = idle.swap_remove(at);
        handle.knows.retain(|known| known != key);
        if handle.knows.len() >= RUNNERS_MAX {
            handle.knows.remove(0);
        }
        handle.knows.push(key.clone());
        Some(handle)
    }

    /// False when the pool is closed, and the slot must end.
    fn put_back(&self, handle: Handle) -> bool {
        let mut idle = self.idle();
        let Some(idle) = idle.as_mut() else { return false };
        idle.push(handle);
        self.free.add_permits(1);
        true
    }

    /// Lets go of all handles: a slot that is idle ends now, one that works when it would put itself back.
    fn close(&self) {
        *self.idle() = None;
    }

    fn idle(&self) -> MutexGuard<'_, Option<Vec<Handle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot's life.
fn work(mut slot: Slot, jobs: &Receiver<Task>, shared: &Shared) {
    while let Ok(Task { job, handle, done }) = jobs.recv() {
        // A panic in an adapter costs the batch, and what it left half-done, but not the slot.
        let end = catch_unwind(AssertUnwindSafe(|| slot.run(&job))).unwrap_or_else(|_| {
            slot.forget();
            let suite = &job.order.suite;
            BatchEnd::Faulted(cannot_run(format!(
                "the adapter of {suite} panicked; this worker's log says where"
            )))
        });
        let goes_on = shared.put_back(handle);
        // Nobody waits any more where the batch was dropped.
        let _ = done.send(end);
        if !goes_on {
            return;
        }
    }
}
