//! Starts a process in a session of its own, tied to the thread that started it, in the time of a `posix_spawn`.
//!
//! The child shares our memory and our thread is stopped until it has executed its program (`CLONE_VM | CLONE_VFORK`,
//! as glibc's `posix_spawn` does it): nothing is copied, however large the worker is, and the child's error comes back
//! through the stack. It allocates nothing, takes no lock and calls the kernel alone.

#![expect(unsafe_code, reason = "the child's side between clone and exec has no safe form")]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{AccessFlags, Pid, access, getpid};

use crate::SandboxError;
use crate::command::{BaseEnv, Command, Entry};

/// The child's stack until it executes its program. It holds a few frames of this file.
const STACK_BYTES: usize = 64 << 10;

/// The descriptors of a session's pipes in its process, and their names in its environment.
const EXTRA: [(RawFd, &str); 2] = [(3, "REGATTA_REQUEST_FD"), (4, "REGATTA_RECORD_FD")];

/// The first descriptor that is for neither.
const ABOVE_EXTRA: RawFd = 5;

/// The search path where the environment has none.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// What becomes the child's descriptors.
pub(crate) struct Streams<'a> {
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// The child's ends of the request and the record pipe.
    pub(crate) extra: Option<[BorrowedFd<'a>; 2]>,
}

/// A process that was started and not reaped yet: until then its number can't be given to another one.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// The steps of the child, to say which one failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Setup,
    Cwd,
    Exec,
}

/// All that the child needs, made ready by the parent.
struct Child {
    program: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    cwd: *const c_char,
    streams: [RawFd; 3],
    extra: Option<[RawFd; 2]>,
    parent: libc::pid_t,
    step: Step,
    errno: c_int,
}

/// Starts `command` with its environment and `token`, a variable by which its descendants can be told.
pub(crate) fn spawn(
    command: &Command,
    base: &BaseEnv,
    token: Entry,
    streams: &Streams<'_>,
) -> Result<Spawned, SandboxError> {
    let nul = |what| move |_| SandboxError::Nul { program: command.program.clone(), what };
    let own = environment(command, token, streams.extra.is_some());
    let has = |entries: &[Entry], name: &[u8]| entries.iter().any(|entry| entry.name() == name);
    let mut defaults = entries(&command.env_defaults);
    defaults.retain(|entry| !has(base.entries(), entry.name()) && !has(&own, entry.name()));
    let inherited = base.entries().iter().filter(|entry| !has(&own, entry.name()));
    let env: Vec<&Entry> = inherited.chain(&defaults).chain(&own).collect();
    let path = env.iter().find(|entry| entry.name() == b"PATH").copied();
    let program = resolve(&command.program, path.map(Entry::value))?;
    let args = command.args.iter().map(|arg| CString::new(arg.as_bytes()));
    let args: Vec<CString> = args.collect::<Result<_, _>>().map_err(nul("an argument"))?;
    let cwd = CString::new(command.cwd.as_os_str().as_bytes()).map_err(nul("the directory"))?;
    let name = CString::new(command.program.as_os_str().as_bytes()).map_err(nul("the name"))?;
    let argv = pointers(std::iter::once(name.as_c_str()).chain(args.iter().map(CString::as_c_str)));
    let envp = pointers(env.iter().map(|entry| entry.text.as_c_str()));
    let mut child = Child {
        program: program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        cwd: cwd.as_ptr(),
        streams: [&streams.stdin, &streams.stdout, &streams.stderr].map(AsRawFd::as_raw_fd),
        extra: streams.extra.as_ref().map(|pipes| [pipes[0].as_raw_fd(), pipes[1].as_raw_fd()]),
        parent: getpid().as_raw(),
        step: Step::Setup,
        errno: 0,
    };
    let spawned = clone(&mut child).map_err(SandboxError::system("a process"))?;
    if child.errno == 0 {
        return Ok(spawned);
    }
    let source = std::io::Error::from_raw_os_error(child.errno);
    // It has left with a code of its own already.
    let _ = nix::sys::wait::waitpid(spawned.pid, None);
    let program = command.program.clone();
    Err(match child.step {
        Step::Setup => SandboxError::System { what: "a session or a descriptor", source },
        Step::Cwd => SandboxError::Cwd { program, cwd: command.cwd.clone(), source },
        Step::Exec if child.errno == libc::ENOENT => SandboxError::NotFound { program },
        Step::Exec => SandboxError::Exec { program, source },
    })
}

/// Variables as `execve` wants them; of two with one name the last. What can't be one is left out, as a shell does.
fn entries(vars: &[(String, String)]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::with_capacity(vars.len());
    for entry in vars.iter().filter_map(|(name, value)| Entry::new(name.into(), value.into())) {
        entries.retain(|other| other.name() != entry.name());
        entries.push(entry);
    }
    entries
}

/// The variables of this command alone.
fn environment(command: &Command, token: Entry, session: bool) -> Vec<Entry> {
    let set = entries(&command.env).into_iter();
    let extra = EXTRA.iter().filter_map(|(fd, name)| Entry::new(name.into(), fd.to_string().into()));
    set.chain(extra.filter(|_| session)).chain([token]).collect()
}

fn pointers<'a>(texts: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    texts.map(CStr::as_ptr).chain([std::ptr::null()]).collect()
}

/// A name without a slash is looked for along `path`; anything else is taken as it is, from the command's directory.
fn resolve(program: &Path, path: Option<&[u8]>) -> Result<CString, SandboxError> {
    let bytes = program.as_os_str().as_bytes();
    let not_found = || SandboxError::NotFound { program: program.to_owned() };
    if bytes.is_empty() {
        return Err(not_found());
    }
    if bytes.contains(&b'/') {
        return CString::new(bytes).map_err(|_| not_found());
    }
    let path = path.unwrap_or(PATH_DEFAULT.as_bytes());
    let candidates = path.split(|&byte| byte == b':').filter(|folder| !folder.is_empty());
    let mut candidates = candidates.filter_map(|folder| CString::new([folder, b"/", bytes].concat()).ok());
    candidates.find(|path| access(path.as_c_str(), AccessFlags::X_OK).is_ok()).ok_or_else(not_found)
}

thread_local! {
    static STACK: RefCell<Vec<u128>> = RefCell::new(vec![0; STACK_BYTES / size_of::<u128>()]);
}

fn clone(child: &mut Child) -> nix::Result<Spawned> {
    let mut before = SigSet::empty();
    // A handler of ours must not run in the child, which has our memory.
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before))?;
    let result = STACK.with_borrow_mut(|stack| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut pidfd: RawFd = -1;
        // SAFETY: the stack is ours alone (thread-local, borrowed), aligned, and grows down from its end. The child
        // uses it and `child` only until it has executed or left, and CLONE_VFORK stops us until then. With
        // CLONE_PIDFD the kernel writes one descriptor to `pidfd`.
        let pid = unsafe {
            let top = stack.as_mut_ptr_range().end.cast::<c_void>();
            libc::clone(enter, top, flags, std::ptr::from_mut(child).cast(), &raw mut pidfd)
        };
        let pid = nix::errno::Errno::result(pid)?;
        // SAFETY: the kernel just made this descriptor for us (with close-on-exec), and nobody else knows of it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Spawned { pid: Pid::from_raw(pid), pidfd })
    });
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    result
}

/// The child. It has our memory and its own stack, signal table and descriptors; it must only call the kernel.
extern "C" fn enter(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passed a pointer to its `Child` and is stopped while we use it; every pointer in it is to a
    // C string or a null-terminated array of them that outlives the parent's call.
    unsafe {
        let child = &mut *argument.cast::<Child>();
        if prepare(child).is_some() {
            libc::execve(child.program, child.argv, child.envp);
            child.step = Step::Exec;
        }
        child.errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        libc::_exit(127)
    }
}

/// None where a call failed; `errno` says why.
///
/// # Safety
/// Only for the child, before it executes.
unsafe fn prepare(child: &mut Child) -> Option<()> {
    let done = |result: c_int| (result >= 0).then_some(());
    // SAFETY: plain system calls on values, on C strings that are valid (see `enter`), and on locals.
    unsafe {
        done(libc::setsid())?;
        done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        if libc::getppid() != child.parent {
            libc::_exit(127);
        }
        for (target, &source) in (0..).zip(&child.streams) {
            done(libc::dup2(source, target))?;
        }
        if let Some([request, record]) = child.extra {
            // Either may have the other's number: first both go out of the way.
            let request = libc::fcntl(request, libc::F_DUPFD_CLOEXEC, ABOVE_EXTRA);
            let record = libc::fcntl(record, libc::F_DUPFD_CLOEXEC, ABOVE_EXTRA);
            done(libc::dup2(request, EXTRA[0].0))?;
            done(libc::dup2(record, EXTRA[1].0))?;
        }
        // Whatever else is open, such as what we were started with, is not for it. A kernel before 5.11 doesn't know
        // this call; there, what isn't marked close-on-exec stays.
        let first = if child.extra.is_some() { ABOVE_EXTRA } else { EXTRA[0].0 };
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        child.step = Step::Cwd;
        done(libc::chdir(child.cwd))?;
        child.step = Step::Setup;
        reset_signals();
    }
    Some(())
}

/// Handlers back to their defaults (they are ours, and not the program's), SIGPIPE too, which Rust ignores; what else
/// is ignored stays so, as `nohup` wants it. Then nothing is blocked.
///
/// # Safety
/// Only for the child, before it executes.
unsafe fn reset_signals() {
    // SAFETY: `action` and `set` are locals that the kernel fills and reads; zero is a valid value of both.
    unsafe {
        for signal in 1..=64 {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
                continue;
            }
            let ignored = action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE;
            if action.sa_sigaction != libc::SIG_DFL && !ignored {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// A descriptor that becomes readable when the process ends. That the number is still that process's is known of a
/// child of ours that isn't reaped; of another it must be looked at afterwards.
pub(crate) fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: a call on two numbers; it returns a new descriptor (with close-on-exec) or an error.
    let fd = nix::errno::Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| nix::errno::Errno::EBADF)?;
    // SAFETY: the kernel just made it for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process of such a descriptor, and never to one that has got its number since.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> nix::Result<()> {
    let (fd, none) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a call on three numbers; the null pointer asks for what `kill` would send.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as c_int, none, 0) };
    nix::errno::Errno::result(sent).map(drop)
}
