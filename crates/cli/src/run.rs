//! `regatta run`: wires listing, dispatcher, a worker where there is no fleet, the ledger and the face together.

mod conclusion;
mod recorder;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regatta_celery::{Broker, BrokerUrl};
use regatta_console::node_name;
use regatta_dispatch::{Input, Ledger};
use regatta_model::{Knowledge, Policy, RunId, RunOrder, RunRecord, Stamped, TeardownFailed, Time};
use regatta_store::{EVENTS_FILE, JUNIT_FILE, RUN_FILE, RUNS_KEPT_MAX, RunFolder, State, Store, read_events};
use regatta_worker::{Ahead, Cancel, Fence, RunError, Worked, WorkerConfig};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::face::{Face, Words};
use crate::listing::{LIST_TIMEOUT, Listing, fence};
use crate::project::{self, Project, Trees};
use crate::signals::{Sent, Signals};
use crate::surroundings::{base_env, broker_url, connect, cores};
use conclusion::Concluding;
use recorder::Recorder;
use regatta_console::Color;

/// This program's version, for records.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The limit for a test, unless something else is said.
const TEST_TIMEOUT: Duration = Duration::from_secs(600);
/// The first wait before a retry.
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest wait before a retry.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How often a worker says that it lives; it is given up after three misses.
const BEAT: Duration = Duration::from_secs(2);
/// How often a test may be lost with its worker.
const LOSSES_MAX: u32 = 2;
/// For how long a queue may have no worker.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);
/// How many inputs may wait for the dispatcher.
const INPUTS_MAX: usize = 256;
/// How often facts are handed to the operating system, and the view is drawn.
const TICK: Duration = Duration::from_millis(50);

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Runs a project's tests.
pub(crate) async fn run(args: RunArgs, color: Color) -> Result<Exit, CliError> {
    let mut signals = Signals::listen();
    let begun = Time::default().after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    // What was typed wrong is said before anything is looked for.
    let url = broker_url(&args.broker)?;
    let mut project =
        Project::open(&args.selection.place, if url.is_some() { Trees::Many } else { Trees::One })?;
    project.select(&args.selection.suite)?;
    if project.suites.is_empty() {
        return Err(project.nothing_here());
    }
    let id = new_run_id();
    let (state, path) = place(&project, &args, &id)?;
    let store = open_store(&state);
    let known = knowledge(&store);
    let base = base_env(&project::pairs(&project.config.env));
    let cancel =
        Cancel::new().map_err(|error| CliError::from_error(Exit::Fault, "the run can't start", &error))?;
    let listing = Listing {
        filter: Arc::new(project.filter(&args.selection, &known)?),
        store: Arc::new(Mutex::new(store)),
        fence: fence(project.config.list_timeout.unwrap_or(LIST_TIMEOUT), base.clone()),
        cancel: cancel.clone(),
        by_name: false,
        digests: Arc::default(),
    };
    let (inputs, taken) = mpsc::channel(INPUTS_MAX);
    let mut listers = start_listing(&project, &listing, &inputs);

    let slots = args.workers.or(project.config.workers).map_or_else(cores, usize::from);
    let broker = match &url {
        None => Broker::embedded(),
        Some(url) => connect(url, &args.broker, "regatta run").await.inspect_err(|_| cancel.kill())?,
    };
    // Not before: a run that can't start must not look like the newest, nor take an earlier one's files away.
    let folder =
        RunFolder::create(&path).map_err(|error| refused(&path, &error)).inspect_err(|_| cancel.kill())?;
    let face = Face::new(args.format, color, args.verbose, &known);
    let recorder = RefCell::new(Recorder::new(&folder, face).map_err(|error| unwritable(&folder, &error))?);
    let order = order(&project, &args, id, slots, url.as_ref(), known);
    let stops = Stops { quiet: CancellationToken::new(), kill: CancellationToken::new(), cancel, inputs };
    let worker = url.is_none().then(|| {
        let fence = Fence::new(TEST_TIMEOUT, base);
        let concluding = concluding(&project, &listing, begun);
        start_worker(&broker, &project, &order, slots, fence, &stops, concluding)
    });
    let mut worker = OwnWorker { task: worker, shown: Vec::new() };
    let record = drive(&broker, order, taken, &recorder, &stops, &mut signals, &mut worker).await;
    stops.cancel.kill();
    let record = match record {
        Ok(record) => record,
        Err(error) => {
            stops.quiet.cancel();
            stops.kill.cancel();
            // The first error is the one that counts.
            let _ended = worker.end().await;
            if let Some(record) = known_so_far(&recorder, &folder) {
                let words = words(&project, worker);
                let _kept =
                    keep(&record, Exit::Fault, recorder.into_inner(), &folder, &state, &listing, &words);
            }
            return Err(error);
        }
    };
    // It has ended already, unless it was killed.
    let ended = worker.end().await;
    while listers.join_next().await.is_some() {}
    broker.close().await;
    let exit = Exit::of(&record);
    let words = words(&project, worker);
    let kept = keep(&record, exit, recorder.into_inner(), &folder, &state, &listing, &words);
    ended?;
    kept?;
    tests_or_words(&record, exit, args.selection.failed)
}

/// What stops what.
struct Stops {
    quiet: CancellationToken,
    kill: CancellationToken,
    /// Ends listing processes.
    cancel: Cancel,
    inputs: mpsc::Sender<Input>,
}

/// The time to the quarter of a millisecond, so that names sort as runs began, and a little chance.
fn new_run_id() -> RunId {
    let now = jiff::Timestamp::now();
    let chance = uuid::Uuid::new_v4().simple().to_string();
    let fraction = i64::from(now.subsec_nanosecond().abs()) * 4_096 / 1_000_000_000;
    RunId(format!("{}-{fraction:03x}{}", now.strftime("%Y%m%d-%H%M%S"), &chance[..3]))
}

fn unwritable(folder: &RunFolder, error: &std::io::Error) -> CliError {
    let text = format!("{} can't be written", folder.path().display());
    CliError::from_error(Exit::Fault, text, error).hint("name another folder with --results DIR")
}

fn refused(path: &Path, error: &std::io::Error) -> CliError {
    if error.kind() == std::io::ErrorKind::ResourceBusy {
        return CliError::from_error(Exit::Usage, format!("{} is in use", path.display()), error)
            .hint("wait for its end, or name another folder with --results DIR");
    }
    CliError::from_error(Exit::Usage, format!("{} can't be written", path.display()), error)
        .hint("name a folder that can be written with --results DIR")
}

/// What the tree keeps, and where the run's files go.
fn place(project: &Project, args: &RunArgs, id: &RunId) -> Result<(Option<State>, PathBuf), CliError> {
    match (State::open(&project.tree), &args.results) {
        (Ok(state), None) => {
            let path = state.run_folder(id);
            Ok((Some(state), path))
        }
        (state, Some(results)) => Ok((state.ok(), results.clone())),
        (Err(error), None) => Err(refused(&project.tree.join(".regatta"), &error)),
    }
}

/// The history, if it can be used: a run is as good without it.
fn open_store(state: &Option<State>) -> Option<Store> {
    let opened = Store::open(&state.as_ref()?.store_file());
    opened.map_err(|error| tracing::error!(%error, "the run goes on without history")).ok()
}

fn knowledge(store: &Option<Store>) -> Knowledge {
    let known = store.as_ref().map(Store::knowledge).transpose().unwrap_or_else(|error| {
        tracing::error!(%error, "the run goes on without history");
        None
    });
    known.unwrap_or_default()
}

fn start_listing(project: &Project, listing: &Listing, inputs: &mpsc::Sender<Input>) -> JoinSet<()> {
    let mut listers = JoinSet::new();
    for suite in &project.suites {
        let (adapter, routes) = (Arc::clone(&suite.adapter), suite.order.routes.clone());
        let (listing, inputs) = (listing.clone(), inputs.clone());
        listers.spawn_blocking(move || {
            // When nobody listens any more the run is over.
            let mut emit = |input| drop(inputs.blocking_send(input));
            listing.list(adapter.as_ref(), &routes, &mut emit);
        });
    }
    listers
}

fn order(
    project: &Project,
    args: &RunArgs,
    run: RunId,
    slots: usize,
    url: Option<&BrokerUrl>,
    known: Knowledge,
) -> RunOrder {
    let broker = url.map_or_else(|| "the embedded broker".to_owned(), ToString::to_string);
    let config = &project.config;
    let policy = Policy {
        retries: args.retries.or(config.retries).unwrap_or(0),
        backoff_ms: ms(config.backoff.unwrap_or(BACKOFF)),
        backoff_max_ms: ms(config.backoff_max.unwrap_or(BACKOFF_MAX)),
        fail_fast: args.fail_fast || config.fail_fast.unwrap_or(false),
        test_timeout_ms: ms(args.timeout.or(config.timeout).unwrap_or(TEST_TIMEOUT)),
        beat_ms: ms(BEAT),
        losses_max: LOSSES_MAX,
    };
    RunOrder {
        run,
        regatta: VERSION.to_owned(),
        tree: project.tree.display().to_string(),
        broker,
        suites: project.suites.iter().map(|suite| suite.order.clone()).collect(),
        filtered: project.is_filtered(&args.selection),
        policy,
        slots_hint: slots,
        known,
        nobody_after_ms: ms(config.give_up_after.unwrap_or(GIVE_UP_AFTER)),
        own_worker: url.is_none(),
    }
}

/// The worker's end, and what there is to show of the whole.
type WorkerTask = JoinHandle<Result<(Worked, Vec<String>), RunError>>;

fn worker_name() -> String {
    node_name(&format!("regatta-{}", std::process::id()))
}

fn concluding(project: &Project, listing: &Listing, begun: Time) -> Concluding {
    Concluding {
        adapters: project.suites.iter().map(|suite| Arc::clone(&suite.adapter)).collect(),
        begun,
        worker: worker_name().as_str().into(),
        fence: listing.fence.clone(),
        cancel: listing.cancel.clone(),
    }
}

/// What there is to say to people, besides what became of tests.
fn words(project: &Project, worker: OwnWorker) -> Words {
    let notes = project.suites.iter().flat_map(|suite| suite.adapter.notes());
    Words { reports: worker.shown, notes: notes.collect() }
}

fn start_worker(
    broker: &Broker,
    project: &Project,
    order: &RunOrder,
    slots: usize,
    fence: Fence,
    stops: &Stops,
    concluding: Concluding,
) -> WorkerTask {
    let mut queues: Vec<String> =
        order.suites.iter().flat_map(regatta_model::SuiteOrder::queues).map(str::to_owned).collect();
    queues.sort();
    queues.dedup();
    let config = WorkerConfig {
        name: worker_name(),
        queues,
        tree: project.tree.clone(),
        adapters: project.suites.iter().map(|suite| Arc::clone(&suite.adapter)).collect(),
        slots,
        own: true,
        // The other cores list.
        ahead: Some(Ahead { run: order.run.clone(), slots: (cores() / 2).clamp(1, slots.max(1)) }),
        fence,
    };
    let (broker, quiet, kill) = (broker.clone(), stops.quiet.clone(), stops.kill.clone());
    tokio::spawn(async move {
        let mut worked = Box::pin(regatta_worker::run(&broker, config, quiet, kill)).await?;
        let concluded = tokio::task::spawn_blocking(move || concluding.conclude()).await;
        let (failed, shown) = concluded.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        worked.teardowns_failed.extend(failed);
        Ok((worked, shown))
    })
}

/// The recorder, as the dispatcher has it beside the clock that draws.
struct Shared<'a>(&'a RefCell<Recorder>);

impl Ledger for Shared<'_> {
    fn write(&mut self, fact: &Stamped) -> std::io::Result<()> {
        self.0.borrow_mut().on(fact)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// The worker of this process.
struct OwnWorker {
    /// None once it has ended, or where a fleet works.
    task: Option<WorkerTask>,
    /// What it left to show.
    shown: Vec<String>,
}

impl OwnWorker {
    /// Waits for its end. What went wrong as it took down what tests shared is no error of the worker's.
    async fn end(&mut self) -> Result<Vec<TeardownFailed>, CliError> {
        let Some(worker) = &mut self.task else { return Ok(Vec::new()) };
        let ended = worker.await;
        self.task = None;
        let early = "the worker in this process ended early";
        match ended {
            Ok(Ok((worked, shown))) => {
                self.shown = shown;
                Ok(worked.teardowns_failed)
            }
            Ok(Err(error)) => Err(CliError::from_error(Exit::Fault, early, &error)),
            Err(error) => Err(CliError::from_error(Exit::Fault, early, &error)),
        }
    }
}

/// The dispatcher's run, with the worker of this process, the clock that flushes and draws, and the user's signals.
async fn drive(
    broker: &Broker,
    order: RunOrder,
    taken: mpsc::Receiver<Input>,
    recorder: &RefCell<Recorder>,
    stops: &Stops,
    signals: &mut Signals,
    worker: &mut OwnWorker,
) -> Result<RunRecord, CliError> {
    let mut ledger = Shared(recorder);
    let release = stops.quiet.clone();
    let mut run = std::pin::pin!(regatta_dispatch::run(broker, order, taken, &mut ledger, release));
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut interrupted = false;
    // What the dispatcher has not taken in yet.
    let mut asked = VecDeque::new();
    loop {
        let signal = tokio::select! {
            done = &mut run => {
                return done.map_err(|error| CliError::from_error(Exit::Fault, "the run could not go on", &error));
            }
            _ = ticks.tick() => {
                let ticked = recorder.borrow_mut().tick();
                let unwritten = "the run's ledger can't be written";
                ticked.map_err(|error| CliError::from_error(Exit::Fault, unwritten, &error))?;
                None
            }
            released = worker.end(), if worker.task.is_some() => {
                asked.push_back(Input::Released { failed: released? });
                None
            }
            sent = signals.next() => Some(sent),
        };
        if let Some(sent) = signal {
            stops.cancel.kill();
            if sent == Sent::Interrupt && !interrupted {
                interrupted = true;
                asked.push_back(Input::Interrupt);
            } else {
                asked.push_back(Input::Kill);
                stops.kill.cancel();
            }
        }
        while let Some(input) = asked.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(input)) = stops.inputs.try_send(input) {
                // It is tried again at the next tick.
                asked.push_front(input);
                break;
            }
        }
    }
}

/// What the ledger has of a run that could not go on; none if it never began.
fn known_so_far(recorder: &RefCell<Recorder>, folder: &RunFolder) -> Option<RunRecord> {
    // What can't be written now is not known either.
    let _ = recorder.borrow_mut().flush();
    let facts = read_events(&folder.path().join(EVENTS_FILE)).ok()?;
    let mut record = RunRecord::default();
    facts.iter().for_each(|fact| record.apply(fact));
    record.run.is_some().then_some(record)
}

/// Writes what is kept of the run, and shows its end. One of them failing keeps none of the others from being tried.
///
/// # Errors
/// The first thing that can't be written.
fn keep(
    record: &RunRecord,
    exit: Exit,
    recorder: Recorder,
    folder: &RunFolder,
    state: &Option<State>,
    listing: &Listing,
    words: &Words,
) -> Result<(), CliError> {
    let (face, collected, ledger) = recorder.close();
    let run = folder.write(RUN_FILE, |out| regatta_report::write_run(out, record, VERSION, exit.code()));
    let junit = folder.write(JUNIT_FILE, |out| regatta_report::write_junit(out, record));
    listing.remember(&collected);
    let mut store = listing.store.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = store.as_mut().map(|store| {
        store.keep(record)?;
        if listing.filter.is_whole() { store.forget_gone(record) } else { Ok(()) }
    });
    if let Some(Err(error)) = kept {
        tracing::error!(%error, "the run's durations are not kept");
    }
    drop(store);
    if let Some(Err(error)) = state.as_ref().map(|state| state.prune(RUNS_KEPT_MAX)) {
        tracing::warn!(%error, "old runs can't be removed");
    }
    let shown = face.end(record, relative(folder), words);
    ledger.and(run).and(junit).map_err(|error| unwritable(folder, &error))?;
    // A terminal that was closed takes nothing more, and has told so by a signal.
    shown.or_else(|error| if exit == Exit::Interrupted { Ok(()) } else { Err(error) })
}

/// How the process ends, with words where there were no tests: nothing else that was shown says what to do.
fn tests_or_words(record: &RunRecord, exit: Exit, failed: bool) -> Result<Exit, CliError> {
    if exit == Exit::NoTests {
        let empty = record.suites_empty().next().filter(|_| record.totals().tests > 0);
        return Err(CliError::no_tests(empty, failed));
    }
    Ok(exit)
}

/// The run's folder, as short as it can be said.
fn relative(folder: &RunFolder) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    folder.path().strip_prefix(here).unwrap_or(folder.path()).display().to_string()
}
