//! The worker's slots: who is free, and who knows the suite already.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use regatta_adapters::Adapter;
use regatta_model::{BatchEnd, RunId, TeardownFailed};
use regatta_sandbox::Cancel;
use tokio::sync::{Semaphore, oneshot};

use crate::slot::{Assignment, Ground, RUNNERS_MAX, RunnerKey, Slot, cannot_run};

/// Slots on threads of their own. They end when the pool is dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<Vec<TeardownFailed>>>>,
    kill: Cancel,
}

struct Shared {
    /// As many permits as there are idle slots.
    free: Semaphore,
    /// None once the pool is closed.
    idle: Mutex<Option<Vec<Handle>>>,
}

/// A slot as those see it who have a batch for it.
struct Handle {
    tasks: SyncSender<Task>,
    /// The runners that it keeps, the last used one last.
    knows: Vec<RunnerKey>,
}

/// What a slot is to do. It puts its handle back when it can do something else.
struct Task {
    handle: Handle,
    kind: TaskKind,
}

enum TaskKind {
    /// Run a batch.
    Batch { assignment: Assignment, done: oneshot::Sender<BatchEnd> },
    /// Start a suite's process, so that it is warm when a batch comes.
    Ahead { run: RunId, adapter: Arc<dyn Adapter> },
}

impl Pool {
    /// Starts the slots' threads.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(ground: &Ground) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { free: Semaphore::new(0), idle: Mutex::new(Some(Vec::new())) });
        let pool = Self { shared, threads: Mutex::default(), kill: ground.kill.clone() };
        for number in 0..ground.slots {
            let (tasks, received) = sync_channel(1);
            let (shared, ground) = (Arc::clone(&pool.shared), ground.clone());
            let thread = std::thread::Builder::new()
                .name(format!("slot-{number}"))
                .spawn(move || work(Slot::new(ground, number), &received, &shared))?;
            pool.threads().push(thread);
            let _ = pool.shared.put_back(Handle { tasks, knows: Vec::new() });
        }
        Ok(pool)
    }

    /// Gives a batch to an idle slot, and waits for one if there is none; gives its end. A dropped future
    /// doesn't end the batch, but its `cancel` does.
    pub(crate) async fn run(&self, assignment: Assignment) -> BatchEnd {
        let (done, end) = oneshot::channel();
        // It is never closed.
        if let Ok(permit) = self.shared.free.acquire().await {
            permit.forget();
        }
        let Some(handle) = self.shared.take(&RunnerKey::of(&assignment.order)) else {
            return BatchEnd::Cancelled;
        };
        handle.give(TaskKind::Batch { assignment, done });
        // Without an answer the pool was closed, and the batch never began.
        end.await.unwrap_or(BatchEnd::Cancelled)
    }

    /// Lets an idle slot start a suite's process; none when all are at work.
    pub(crate) fn start_ahead(&self, run: &RunId, adapter: &Arc<dyn Adapter>) {
        let Ok(permit) = self.shared.free.try_acquire() else { return };
        permit.forget();
        if let Some(handle) = self.shared.take_new(&RunnerKey::ahead(run, adapter.as_ref())) {
            handle.give(TaskKind::Ahead { run: run.clone(), adapter: Arc::clone(adapter) });
        }
    }

    /// Ends the threads and waits for them, and with them for the end in good order of every process that they keep. What
    /// they run must be cancelled before, or else is waited for. Gives what went wrong.
    pub(crate) fn join(&self) -> Vec<TeardownFailed> {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads());
        // A panic of theirs was reported when it happened.
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    }

    /// Ends every process at once.
    pub(crate) fn kill(&self) {
        self.kill.kill();
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<Vec<TeardownFailed>>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.kill();
        self.shared.close();
    }
}

impl Handle {
    fn give(self, kind: TaskKind) {
        let tasks = self.tasks.clone();
        // An idle slot's channel is empty, and its thread waits on it. If the thread should be gone, so is whoever would
        // be told of the end.
        let _ = tasks.send(Task { handle: self, kind });
    }
}

impl Shared {
    /// Takes out an idle slot that knows the suite, or else the one that knows the fewest.
    fn take(&self, key: &RunnerKey) -> Option<Handle> {
        self.take_by(key, |handle| (!handle.knows.contains(key), handle.knows.len()))
    }

    /// Takes out the idle slot that knows the fewest suites, and this one last.
    fn take_new(&self, key: &RunnerKey) -> Option<Handle> {
        self.take_by(key, |handle| (handle.knows.contains(key), handle.knows.len()))
    }

    /// Takes out the idle slot of the lowest rank, and notes that it knows the suite.
    fn take_by(&self, key: &RunnerKey, rank: impl Fn(&Handle) -> (bool, usize)) -> Option<Handle> {
        let mut idle = self.idle();
        let idle = idle.as_mut()?;
        let best = idle.iter().enumerate().min_by_key(|(_, handle)| rank(handle));
        let at = best.map(|(at, _)| at)?;
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
fn work(mut slot: Slot, tasks: &Receiver<Task>, shared: &Shared) -> Vec<TeardownFailed> {
    loop {
        let next = match slot.patience() {
            None => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => tasks.recv_timeout(patience),
        };
        let Task { handle, kind } = match next {
            Ok(task) => task,
            Err(RecvTimeoutError::Timeout) => {
                slot.let_go();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return slot.end(),
        };
        let (assignment, done) = match kind {
            TaskKind::Batch { assignment, done } => (assignment, done),
            TaskKind::Ahead { run, adapter } => {
                if catch_unwind(AssertUnwindSafe(|| slot.start_ahead(&run, adapter.as_ref()))).is_err() {
                    slot.forget();
                }
                if shared.put_back(handle) {
                    continue;
                }
                return slot.end();
            }
        };
        // A panic in an adapter costs the batch, and what it left half-done, but not the slot.
        let end = catch_unwind(AssertUnwindSafe(|| slot.run(&assignment))).unwrap_or_else(|_| {
            slot.forget();
            let suite = &assignment.order.suite;
            BatchEnd::Faulted(cannot_run(format!(
                "the adapter of {suite} panicked; this worker's log says where"
            )))
        });
        let goes_on = shared.put_back(handle);
        // Nobody waits any more where the batch was dropped.
        let _ = done.send(end);
        if !goes_on {
            return slot.end();
        }
    }
}
