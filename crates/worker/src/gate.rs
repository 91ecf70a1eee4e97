//! How many processes may start at once. A framework's process works hard until its first test (an interpreter starts,
//! a project is imported); more of them than there are cores would all be late, and the first result with them.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How often a waiting slot looks whether its batch is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Lets in as many as have room.
#[derive(Debug)]
pub(crate) struct Gate {
    room: Mutex<usize>,
    changed: Condvar,
}

/// Room for one, given back when dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
}

impl Gate {
    /// With room for as many as there are cores.
    pub(crate) fn of_cores() -> Arc<Self> {
        Self::with_room(std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn with_room(room: usize) -> Arc<Self> {
        Arc::new(Self { room: Mutex::new(room), changed: Condvar::new() })
    }

    /// Comes in if there is room.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        *room = room.checked_sub(1)?;
        Some(Pass { gate: Arc::clone(self) })
    }

    /// Waits for room; none when the wait is `over` before.
    pub(crate) fn enter(self: &Arc<Self>, over: impl Fn() -> bool) -> Option<Pass> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        while *room == 0 {
            if over() {
                return None;
            }
            let woken = self.changed.wait_timeout(room, LOOK_EVERY);
            room = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        *room -= 1;
        Some(Pass { gate: Arc::clone(self) })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *self.gate.room.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.gate.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_waits_until_somebody_leaves_or_nobody_wants_it() {
        let gate = Gate::with_room(1);
        let first = gate.enter(|| false).expect("there is room");
        assert!(gate.enter(|| true).is_none(), "nobody wants it any more");
        let (told, entered) = std::sync::mpsc::sync_channel(1);
        let waiting = Arc::clone(&gate);
        let second = std::thread::spawn(move || {
            let pass = waiting.enter(|| false);
            told.send(()).expect("somebody listens");
            pass.is_some()
        });
        assert!(entered.try_recv().is_err(), "there is no room yet");
        drop(first);
        entered.recv().expect("it comes in");
        assert!(second.join().expect("no panic"));
        assert!(gate.enter(|| true).is_some(), "room comes back with a thread's end");
    }
}
