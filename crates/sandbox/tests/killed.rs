//! A process with sandboxes is killed by SIGKILL: nothing that ran in them outlives it.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "the whole file is a test")]

mod ground;

use std::process::{Command as StdCommand, Stdio};

use regatta_sandbox::{Cancel, Session, run};

use crate::ground::{Trace, env, fence};

/// One in the group, one in a session of its own that is deaf to SIGTERM, one that lost its parent as well, and one
/// that cleared its environment but not its session.
const TREE: &str = "
    sleep 1000 &
    setsid sh -c 'trap \"\" TERM; echo s >&9; sleep 1000; sleep 1000' &
    (setsid sh -c 'echo d >&9; sleep 1000; sleep 1000' &)
    env -i PATH=\"$PATH\" sh -c 'echo e >&9; sleep 1000; sleep 1000' &
    echo m >&9
    wait";

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("host") => host(&args.next().unwrap()),
        _ => the_tree_dies_with_its_host(),
    }
}

fn the_tree_dies_with_its_host() {
    for kind in ["command", "session"] {
        let mut trace = Trace::new();
        let script = trace.script(TREE).args.pop().unwrap();
        let mut host = StdCommand::new(std::env::current_exe().unwrap());
        host.args(["host", kind]).env("SCRIPT", script).stdin(Stdio::piped());
        let mut host = host.spawn().unwrap();
        let mut began = trace.await_bytes(8);
        began.retain(u8::is_ascii_alphabetic);
        began.sort_unstable();
        assert_eq!(began, b"dems", "all of the tree began");
        host.kill().unwrap();
        host.wait().unwrap();
        trace.await_end();
        assert!(trace.has_ended());
        println!("test the_tree_dies_with_its_host ({kind}) ... ok");
    }
}

/// Works until it is killed.
fn host(kind: &str) {
    let command = ground::sh(&std::env::var("SCRIPT").unwrap());
    let cancel = Cancel::new().unwrap();
    let fence = regatta_sandbox::Fence { env: env(), ..fence() };
    match kind {
        "command" => drop(run(&command, &fence, &cancel).unwrap()),
        _ => drop(Session::start(&command, &fence).unwrap().wait(&cancel, None)),
    }
}
