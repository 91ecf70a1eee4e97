//! A run over RabbitMQ, with workers that are processes of their own.

use nix::sys::signal::Signal;
use regatta_celery::transport::{Broker, ConnectOptions, Properties, Publishing, Queue, Topology};
use regatta_testbed::shared_node;

use crate::project::{Project, Running};

#[test]
fn two_workers_share_a_run_and_status_sees_them() {
    let url = shared_node().url();
    let names: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
    let commands: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "sleep 0.1")).collect();
    let project = Project::of_commands(&commands);
    let queue = "cli-two-workers";
    let configuration =
        format!("[suite.smoke]\nadapter = \"commands\"\nfile = \"list.txt\"\nqueue = \"{queue}\"\n");
    project.write("regatta.toml", &configuration);

    let mut run = Running::start(project.command(&["run", "--broker", &url, "--format", "json", "-j", "2"]));
    run.wait_for("\"batch_sent\"");
    let worker = |name: &str| {
        Running::start(
            project.command(&["worker", "-Q", queue, "--broker", &url, "--name", name, "--slots", "1"]),
        )
    };
    let workers = [worker("one@here"), worker("two@here")];
    run.wait_for("\"attempt_finished\"");
    let mut status = project
        .regatta(&["status", "--broker", &url, "-Q", queue, "--worker", "one@here", "--worker", "two@here"]);
    // Both may not have come up yet.
    let deadline = std::time::Instant::now() + crate::project::DEADLINE;
    while status.code != Some(0) && std::time::Instant::now() < deadline {
        status = project.regatta(&[
            "status", "--broker", &url, "-Q", queue, "--worker", "one@here", "--worker", "two@here",
        ]);
    }
    let status = status.expect(0);
    assert!(
        status.stdout.contains("one@here") && !status.stdout.contains("guest:guest"),
        "{}",
        status.stdout
    );
    let anybody = project.regatta(&["status", "--broker", &url, "-Q", queue, "--format", "json"]).expect(0);
    for word in ["\"ok\":true", "\"asked\":true", "two@here"] {
        assert!(anybody.stdout.contains(word), "{word}: {}", anybody.stdout);
    }
    let ended = run.wait().expect(0);
    assert!(!ended.stdout.contains(":guest@"), "a password is shown");
    assert_eq!(project.verdicts().len(), names.len());
    for worker in workers {
        worker.signal(Signal::SIGTERM);
        worker.wait().expect(0);
    }
}

#[test]
fn nobody_who_works_is_said_with_what_to_do_and_ends_with_3() {
    let url = shared_node().url();
    let project = Project::of_commands(&[("a", "true")]);
    project.write(
        "regatta.toml",
        "give-up-after = \"1s\"\n[suite.smoke]\nadapter = \"commands\"\nfile = \"list.txt\"\nqueue = \"cli-nobody\"\n",
    );
    let ended = project.regatta(&["run", "--broker", &url]).expect(3);
    assert!(ended.stdout.contains("NOBODY WORKS") && ended.stdout.contains("regatta worker -Q"), "{ended:?}");
    assert_eq!(ended.stderr, "", "what went as expected is no error");
    assert_eq!(project.verdicts(), ["a unjudged"]);
}

#[test]
fn what_a_stopped_run_left_at_its_queue_is_not_run_by_a_worker_that_starts_later() {
    let url = shared_node().url();
    let queue = "cli-left";
    let project = Project::of_commands(&[("left", "touch executed"), ("next", "true")]);
    let configuration =
        format!("[suite.smoke]\nadapter = \"commands\"\nfile = \"list.txt\"\nqueue = \"{queue}\"\n");
    project.write("regatta.toml", &configuration);
    let run = |test| {
        Running::start(project.command(&["run", "--broker", &url, "--format", "json", "--filter", test]))
    };
    let mut stopped = run("left");
    stopped.wait_for("\"nobody_works\"");
    stopped.signal(Signal::SIGINT);
    stopped.wait().expect(130);
    // In the same queue, behind it.
    let mut next = run("next");
    next.wait_for("\"batch_sent\"");
    let _working =
        Running::start(project.command(&["worker", "-Q", queue, "--broker", &url, "--slots", "1"]));
    next.wait().expect(0);
    assert_eq!(project.verdicts(), ["next passed"]);
    assert!(!project.path().join("executed").exists());
}

#[test]
fn status_of_a_queue_that_nobody_made_is_3_and_says_how_to_make_it() {
    let project = Project::of_commands(&[("a", "true")]);
    let ended = project.regatta(&["status", "--broker", &shared_node().url(), "-Q", "cli-nowhere"]).expect(3);
    assert!(ended.stdout.contains("regatta worker -Q cli-nowhere --broker amqp://"), "{ended:?}");
    assert!(!ended.stdout.contains("guest:guest"), "{ended:?}");
}

#[test]
fn a_broker_that_can_not_be_understood_is_2_and_shows_no_password() {
    let project = Project::of_commands(&[("a", "true")]);
    for command in ["run", "worker", "status"] {
        let ended = project.regatta(&[command, "--broker", "http://guest:secret-word@host"]).expect(2);
        assert!(ended.stderr.contains("scheme http is unknown"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("secret-word"), "{}", ended.stderr);
    }
}

#[test]
fn a_broker_that_is_not_there_is_3() {
    let project = Project::of_commands(&[("a", "true")]);
    let ended = project.regatta(&["run", "--broker", "amqp://guest:secret-word@127.0.0.1:1"]).expect(3);
    assert!(ended.stderr.contains("can't be reached"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("secret-word"), "{}", ended.stderr);
    let machine = ["run", "--broker", "amqp://guest:secret-word@127.0.0.1:1", "--log-format", "json"];
    let ended = project.regatta(&machine).expect(3);
    assert!(ended.stderr.starts_with('{') && ended.stderr.contains("\"hints\":\"is it running"), "{ended:?}");
    assert!(!ended.stderr.contains("secret-word"), "{}", ended.stderr);
}

#[test]
fn no_log_tells_the_password_whoever_is_asked_to_speak() {
    let project = Project::of_commands(&[("a", "true")]);
    let user = regatta_testbed::unique("teller");
    let node = shared_node();
    node.add_user(&user, "s3cretpw", ".*", ".*", ".*");
    let url = node.url_of(&user, "s3cretpw");
    let as_numbers = format!("{:?}", b"s3cretpw").trim_matches(['[', ']']).to_owned();
    for log in ["trace", "lapin=trace", "lapin::connection=trace,amq_protocol=trace"] {
        for format in ["human", "json"] {
            let options = ["--log", log, "--log-format", format, "status", "--broker", &url, "--no-ask"];
            let ended = project.regatta(&options);
            for told in [&ended.stdout, &ended.stderr] {
                assert!(!told.contains("s3cretpw") && !told.contains(&as_numbers), "{log}: {told}");
            }
        }
    }
}

/// The rights that docs/fleet.md gives to a worker of its example, for another name and queue.
fn add_worker(node: &regatta_testbed::Node, name: &str, queue: &str) -> String {
    let page = include_str!("../../../../docs/fleet.md");
    let command = page.split("set_permissions").nth(1).unwrap();
    let rights: Vec<String> = command.split('\'').skip(1).step_by(2).take(3).map(str::to_owned).collect();
    let own = |right: &String| right.replace("gpu-1", name).replace("(gpu|", &format!("({queue}|"));
    let [configure, write, read] = [0, 1, 2].map(|n| own(&rights[n]));
    node.add_user(name, "pass", &configure, &write, &read);
    node.url_of(name, "pass")
}

#[test]
fn a_worker_with_the_least_rights_runs_batches_and_is_not_held_up_by_what_is_none() {
    let node = shared_node();
    let queue = "cli-least-rights";
    let name = "cli-least";
    let url = add_worker(node, name, queue);
    let project = Project::of_commands(&[("a", "true"), ("b", "true")]);
    let configuration =
        format!("[suite.smoke]\nadapter = \"commands\"\nfile = \"list.txt\"\nqueue = \"{queue}\"\n");
    project.write("regatta.toml", &configuration);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let nonsense = async {
        let owner = Broker::connect(&node.url().parse().unwrap(), ConnectOptions::default()).await.unwrap();
        owner.declare(&Topology::default().queue(Queue::celery(queue))).await.unwrap();
        for body in ["no task", "[]", "{}"] {
            let (exchange, routing_key) = ("".into(), queue.to_owned());
            let (properties, body) = (Properties::json(2), body.into());
            let message = Publishing { exchange, routing_key, properties, body, mandatory: true };
            owner.publish(message).await.unwrap();
        }
        owner.close().await;
    };
    runtime.block_on(nonsense);
    let worker =
        |queue| project.command(&["worker", "-Q", queue, "--broker", &url, "--name", name, "--slots", "2"]);
    let working = Running::start(worker(queue));
    project.regatta(&["run", "--broker", &node.url()]).expect(0);
    assert_eq!(project.verdicts(), ["a passed", "b passed"]);
    working.signal(Signal::SIGTERM);
    working.wait().expect(0);
    // What it may not read is refused by the broker.
    runtime.block_on(async {
        let owner = Broker::connect(&node.url().parse().unwrap(), ConnectOptions::default()).await.unwrap();
        owner.declare(&Topology::default().queue(Queue::celery("cli-of-another"))).await.unwrap();
        owner.close().await;
    });
    let refused = Running::start(worker("cli-of-another")).wait().expect(3);
    assert!(
        refused.stderr.contains("cli-of-another") && refused.stderr.contains("refused"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_worker_with_another_tree_gives_no_verdict() {
    let url = shared_node().url();
    let queue = "cli-other-tree";
    let configuration = format!("[suite.py]\nadapter = \"pytest\"\nqueue = \"{queue}\"\n");
    let files = |sound: bool| {
        let code = format!("def sound(): return {}\n", if sound { "True" } else { "False" });
        Project::new(&[
            ("regatta.toml", &configuration),
            ("code.py", &code),
            ("test_a.py", "from code import sound\ndef test_a(): assert sound()\n"),
        ])
    };
    let (here, older) = (files(false), files(true));
    let worker = |project: &Project| {
        Running::start(project.python_command(&["worker", "-Q", queue, "--broker", &url, "--slots", "1"]))
    };
    let stale = worker(&older);
    let ended = here.python(&["run", "--broker", &url]).expect(3);
    assert_eq!(here.verdicts(), ["test_a.py unjudged"], "what is in it was never known");
    assert!(ended.stdout.contains("are not those of the run"), "{}", ended.stdout);
    drop(stale);
    let _fresh = worker(&here);
    here.python(&["run", "--broker", &url]).expect(1);
    assert_eq!(here.verdicts(), ["test_a.py::test_a failed"]);
}
