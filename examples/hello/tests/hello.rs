//! The program as its users see it: its words, its records, its exit codes, with and without RabbitMQ.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use regatta_testbed::shared_node;
use serde_json::Value;

const FIRST_LINES: [&str; 3] = [
    "Dispatching tasks...",
    "Result from task_a: Hello from Task A",
    "Result from task_b: Hello from Task B",
];

/// The program, with nothing of the caller's environment that could lead it to a broker.
fn hello() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hello"));
    for variable in ["REGATTA_BROKER", "REGATTA_BROKER_PASSWORD_FILE", "REGATTA_BROKER_CA_FILE"] {
        command.env_remove(variable);
    }
    command
}

/// Runs `hello dispatch` with a folder of its own for records; gives its output and the only record.
fn dispatch(arguments: &[&str]) -> (Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let output =
        hello().arg("dispatch").arg("--results").arg(folder.path()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let files: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("not one record: {files:?}") };
    let record = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    (output, record)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A worker's node name, as Celery forms it.
fn on_this_host(worker: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    format!("{worker}@{}", host.trim())
}

fn first_lines(output: &Output) -> Vec<String> {
    text(&output.stdout).lines().take(3).map(str::to_owned).collect()
}

/// A worker process that is ready; killed with its handle.
struct Worker {
    child: Child,
    log: BufReader<ChildStderr>,
    seen: String,
}

impl Worker {
    fn start(broker: &str, queue: &str) -> Self {
        Self::start_with(broker, queue, &["--log-level", "trace"])
    }

    fn start_with(broker: &str, queue: &str, arguments: &[&str]) -> Self {
        let mut command = hello();
        command.args(["worker", "--queue", queue, "--broker", broker]).args(arguments);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut worker = Self { child, log, seen: String::new() };
        loop {
            let from = worker.seen.len();
            assert!(worker.log.read_line(&mut worker.seen).unwrap() > 0, "it ended: {}", worker.seen);
            if worker.seen[from..].contains("regatta_celery::worker") && worker.seen[from..].contains("ready")
            {
                return worker;
            }
        }
    }

    /// Kills it and gives all that it ever logged.
    fn end(mut self) -> String {
        self.child.kill().unwrap();
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        std::mem::take(&mut self.seen) + &rest
    }
}

impl Worker {
    /// Tells it to stop, as a container's runtime does, and gives its exit code.
    fn stop(mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.log.read_to_string(&mut self.seen).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn without_a_broker_the_words_are_exact() {
    let (output, record) = dispatch(&[]);
    assert_eq!(first_lines(&output), FIRST_LINES);
    assert!(!output.stdout.contains(&0x1b), "colours in a pipe");
    assert_eq!(record["schema"], 1);
    assert_eq!(record["broker"], "embedded");
}

#[test]
fn two_waiting_tasks_overlap() {
    let (_, record) = dispatch(&["--wait", "1"]);
    let time = |task: usize, what: &str| -> jiff::Timestamp {
        record["tasks"][task][what].as_str().unwrap().parse().unwrap()
    };
    assert!(time(0, "started") < time(1, "finished") && time(1, "started") < time(0, "finished"), "{record}");
    let statistics = &record["statistics"];
    assert!(statistics["run_sum_s"].as_f64().unwrap() >= 2.0, "{statistics}");
    assert!(statistics["wall_s"].as_f64().unwrap() < 1.9, "{statistics}");
}

#[test]
fn a_reader_that_goes_away_costs_no_record() {
    for format in ["human", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = hello();
        command.args(["dispatch", "--wait", "0.3", "--format", format, "--results"]).arg(folder.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{format}: {output:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "{format}");
    }
}

#[test]
fn nothing_is_sent_whose_record_would_have_no_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = hello().args(["dispatch", "--results"]).arg(file.join("results")).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("can't make the folder"), "{}", text(&output.stderr));
}

#[test]
fn an_output_that_can_not_be_written_is_an_error_after_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = hello().args(["dispatch", "--results"]).arg(folder.path()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("can't write to the standard output"), "{output:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_late_task_is_named_with_its_queue_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let late = |arguments: &[&str]| {
        let output =
            hello().args(["dispatch", "--results"]).arg(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        text(&output.stdout)
    };
    let json: Value =
        serde_json::from_str(&late(&["--wait", "5", "--timeout", "0.3", "--format", "json"])).unwrap();
    for (task, queue) in [(0, "queue_a"), (1, "queue_b")] {
        let task = &json["tasks"][task];
        let (id, error) = (task["id"].as_str().unwrap(), task["error"].as_str().unwrap());
        assert_eq!(task["state"], "UNKNOWN");
        for word in [
            &*format!("task {id} on queue {queue} within 300.0 ms"),
            "consumers of the queue: 1",
            "--timeout",
        ] {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
    let node = shared_node();
    node.ctl(&["add_vhost", "idle"]);
    node.ctl(&["set_permissions", "-p", "idle", "guest", ".*", ".*", ".*"]);
    let said = late(&["--timeout", "0.3", "--broker", &node.url().replace("/%2f", "/idle")]);
    for queue in ["queue_a", "queue_b"] {
        let advice = format!("nobody consumes it; it runs when a worker comes: hello worker --queue {queue}");
        assert!(said.contains(&advice), "{said}");
    }
}

#[test]
fn an_interrupted_dispatch_leaves_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = hello();
    command.args(["dispatch", "--wait", "60", "--results"]).arg(folder.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said.trim_end(), FIRST_LINES[0]);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(text(&output.stderr).contains("interrupted"), "{output:?}");
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let record: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for task in record["tasks"].as_array().unwrap() {
        let error = task["error"].as_str().unwrap();
        assert!(task["state"] == "UNKNOWN" && error.contains("may still run"), "{task}");
    }
}

#[test]
fn what_can_not_be_sent_is_an_error_after_the_record() {
    let node = shared_node();
    node.ctl(&["add_vhost", "unsent"]);
    node.add_user("reader", "pa55-of-reader", "^$", "^$", "^$");
    node.ctl(&["set_permissions", "-p", "unsent", "reader", ".*", "^$", ".*"]);
    let broker = node.url_of("reader", "pa55-of-reader").replace("/%2f", "/unsent");
    let folder = tempfile::tempdir().unwrap();
    let output =
        hello().args(["dispatch", "--broker", &broker, "--results"]).arg(folder.path()).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("the broker refused access"), "{output:?}");
    assert!(!said.contains("pa55-of-reader"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn json_is_the_record_alone() {
    let (output, record) = dispatch(&["--format", "json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, record);
}

#[test]
fn over_rabbitmq_each_task_runs_on_its_own_worker_and_no_password_comes_out() {
    let node = shared_node();
    node.add_user("chief", "pa55-of-chief", ".*", ".*", ".*");
    let broker = node.url_of("chief", "pa55-of-chief");
    let setup = hello().args(["setup", "--broker", &broker]).output().unwrap();
    assert!(setup.status.success(), "{setup:?}");
    let (a, b) = (Worker::start(&broker, "queue_a"), Worker::start(&broker, "queue_b"));

    let folder = tempfile::tempdir().unwrap();
    let (login, secret) = (node.url_of("chief", "wrong"), folder.path().join("secret").display().to_string());
    std::fs::write(&secret, "pa55-of-chief\n").unwrap();
    let (output, record) =
        dispatch(&["--broker", &login, "--password-file", &secret, "--log-level", "trace"]);
    assert_eq!(first_lines(&output), FIRST_LINES);
    for (task, worker) in [(0, "worker-a"), (1, "worker-b")] {
        assert_eq!(record["tasks"][task]["worker"], on_this_host(worker), "{record}");
    }
    let status =
        |arguments: &[&str]| hello().args(["status", "--broker", &broker]).args(arguments).output().unwrap();
    let well = status(&[]);
    assert!(well.status.success(), "{well:?}");
    let named = status(&["--worker", "worker-a", "--worker", &(on_this_host("worker-b") + "=queue_b")]);
    assert!(named.status.success(), "{named:?}");
    let ill = status(&["--worker", "worker-a=queue_b"]);
    assert_eq!(ill.status.code(), Some(1));
    assert!(text(&ill.stdout).contains("start it anew: hello worker --queue queue_b"), "{ill:?}");
    let away = status(&["--worker", "worker-a@elsewhere", "--timeout", "0.5"]);
    assert_eq!(away.status.code(), Some(1));
    assert!(text(&away.stdout).contains("worker-a@elsewhere doesn't answer"), "{away:?}");

    let json = status(&["--format", "json"]);
    let printed: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&printed["schema"], &printed["ok"], &printed["asked"]),
        (&2.into(), &true.into(), &true.into())
    );
    assert!(printed["latency_s"].as_f64().unwrap() > 0.0, "{printed}");
    assert_eq!(
        printed["queues"][1],
        serde_json::json!({"queue": "queue_b", "ready": 0, "consumers": 1, "ok": true})
    );
    let worker = serde_json::json!(
        {"worker": on_this_host("worker-a"), "alive": true, "queues": ["queue_a"], "ok": true});
    assert_eq!(printed["workers"][0], worker);

    let mut all = a.end() + &b.end() + &record.to_string();
    for output in [setup, output, well, named, ill, away, json] {
        all += &(text(&output.stdout) + &text(&output.stderr));
    }
    assert!(!all.contains("pa55-of-chief"));
}

#[test]
fn a_log_for_machines_says_of_each_task_who_ran_it_and_for_how_long() {
    let node = shared_node();
    node.ctl(&["add_vhost", "logs"]);
    node.ctl(&["set_permissions", "-p", "logs", "guest", ".*", ".*", ".*"]);
    let broker = node.url().replace("/%2f", "/logs");
    let workers =
        ["queue_a", "queue_b"].map(|queue| Worker::start_with(&broker, queue, &["--log-format", "json"]));
    let (_, record) = dispatch(&["--broker", &broker, "--wait", "0.2"]);
    for ((worker, name), task) in workers.into_iter().zip(["worker-a", "worker-b"]).zip([0, 1]) {
        let (log, task) = (worker.end(), &record["tasks"][task]);
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &lines {
            line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
            assert!(line["level"] == "INFO" && line["target"].is_string(), "{line}");
        }
        let ended: Vec<_> = lines.iter().filter(|line| line["message"] == "task ended").collect();
        let [ended] = ended.as_slice() else { panic!("not one task: {log}") };
        assert_eq!(ended["worker"], on_this_host(name));
        assert_eq!(
            (&ended["task"], &ended["task_id"], &ended["queue"]),
            (&task["task"], &task["id"], &task["queue"])
        );
        assert_eq!((&ended["attempt"], &ended["state"]), (&1.into(), &"SUCCESS".into()), "{ended}");
        let (logged, recorded) = (ended["duration_s"].as_f64().unwrap(), task["run_s"].as_f64().unwrap());
        // The record's times went through a message as seconds since 1970, so their last digits are gone.
        assert!(logged >= 0.2 && (logged - recorded).abs() < 1e-4, "{logged} {recorded}");
    }
}

#[test]
fn a_worker_can_not_consume_the_queue_of_another() {
    let node = shared_node();
    let virtual_host = "apart";
    node.ctl(&["add_vhost", virtual_host]);
    node.ctl(&["set_permissions", "-p", virtual_host, "guest", ".*", ".*", ".*"]);
    let place = |url: String| url.replace("/%2f", "/apart");
    assert!(hello().args(["setup", "--broker", &place(node.url())]).output().unwrap().status.success());
    // RabbitMQ asks for the right to configure even where an exchange exists already and is declared again.
    let own = r"^(queue_a|worker-a(@.*)?|celeryev|celery\.pidbox|reply\.celery\.pidbox|amq\.default)(\..*)?$";
    node.add_user("worker-a", "pa55-of-a", "^$", "^$", "^$");
    node.ctl(&["set_permissions", "-p", virtual_host, "worker-a", own, own, own]);
    let broker = place(node.url_of("worker-a", "pa55-of-a"));
    let mut intruder = hello();
    intruder.args(["worker", "--queue", "queue_b", "--name", "worker-a", "--broker", &broker]);
    let output = intruder.output().unwrap();
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("refused access") && said.contains("can't consume queue queue_b"), "{said}");
    assert!(!said.contains("pa55-of-a"), "{said}");
    // The same rights are enough for its own queue, and to be looked at.
    let worker = Worker::start(&broker, "queue_a");
    let status = |arguments: &[&str]| {
        let output = hello().args(["status", "--broker", &broker]).args(arguments).output().unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        (output.status.code(), text(&output.stdout))
    };
    let (code, said) = status(&["--worker", "worker-a=queue_a"]);
    assert!(code == Some(0) && said.contains("may not ask them"), "{said}");
    let (code, said) = status(&["--worker", "worker-a=queue_a", "--no-ask", "--format", "json"]);
    let printed: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &printed["asked"], &printed["workers"][0]["alive"]),
        (Some(0), &false.into(), &Value::Null)
    );
    let (code, said) = status(&["--worker", "worker-a"]);
    assert!(code == Some(1) && said.contains("--worker worker-a=QUEUE"), "{said}");
    let (code, said) = status(&[]);
    assert!(code == Some(1) && said.contains("nobody consumes queue_b"), "{said}");
    assert_eq!(worker.stop(), Some(0));
}

#[test]
fn a_user_who_may_read_answers_but_not_ask_lets_consumers_decide() {
    let node = shared_node();
    node.ctl(&["add_vhost", "mute"]);
    node.ctl(&["set_permissions", "-p", "mute", "guest", ".*", ".*", ".*"]);
    node.add_user("mute", "pa55-of-mute", "^$", "^$", "^$");
    let all_but_to_ask = r"^([0-9a-f-]{36}.*|reply\.celery\.pidbox)$";
    node.ctl(&["set_permissions", "-p", "mute", "mute", ".*", all_but_to_ask, ".*"]);
    let place = |url: String| url.replace("/%2f", "/mute");
    let _worker = Worker::start(&place(node.url()), "queue_a");
    let broker = place(node.url_of("mute", "pa55-of-mute"));
    let arguments = ["status", "--worker", "worker-a=queue_a", "--broker", &broker];
    let output = hello().args(arguments).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("may not ask them"), "{output:?}");
}

#[test]
fn what_is_not_there_is_said_with_what_to_do() {
    let broker = shared_node().url();
    let status = |broker: &str| {
        let arguments = ["--queue", "nowhere", "--no-ask", "--format", "json", "--broker", broker];
        let output = hello().arg("status").args(arguments).output().unwrap();
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &printed["ok"]), (Some(1), &false.into()), "{output:?}");
        printed
    };
    let advice = status(&broker)["advice"].to_string();
    assert!(
        advice.contains("queue nowhere is not there") && advice.contains("hello worker --queue nowhere"),
        "{advice}"
    );
    let printed = status("amqp://guest:guest@127.0.0.1:1/");
    assert_eq!(printed["latency_s"], Value::Null);
    assert!(printed["advice"].to_string().contains("can't be reached"), "{printed}");
}

/// Checks a dispatch of a hundred tasks of 0.1 s over two workers with four slots each, by the record's own timestamps.
fn check_the_arithmetic(record: &Value) {
    let tasks = record["tasks"].as_array().unwrap();
    assert_eq!((tasks.len(), &record["statistics"]["succeeded"]), (100, &100.into()));
    for queue in ["queue_a", "queue_b"] {
        let time =
            |task: &Value, what: &str| task[what].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let own: Vec<_> = tasks.iter().filter(|task| task["queue"] == queue).collect();
        let mut steps: Vec<_> =
            own.iter().flat_map(|task| [(time(task, "started"), 1), (time(task, "finished"), -1)]).collect();
        // What ends when another begins is over before it.
        steps.sort_unstable();
        let mut running = 0;
        let most = steps
            .iter()
            .map(|(_, step)| {
                running += step;
                running
            })
            .max();
        assert_eq!((own.len(), most), (50, Some(4)), "{queue}");
        let span = steps[99].0.duration_since(steps[0].0).as_secs_f64();
        // Thirteen rounds of four; with half the slots it would take more than 2.5 s.
        assert!((1.3..2.5).contains(&span), "{queue}: {span} s");
    }
    let wall = record["statistics"]["wall_s"].as_f64().unwrap();
    assert!((1.3..2.5).contains(&wall), "{wall} s");
}

#[test]
fn a_hundred_tasks_share_two_times_four_slots() {
    let hundred = ["--count", "50", "--wait", "0.1"];
    check_the_arithmetic(&dispatch(&[&hundred[..], &["--slots", "4"]].concat()).1);
    let node = shared_node();
    node.ctl(&["add_vhost", "slots"]);
    node.ctl(&["set_permissions", "-p", "slots", "guest", ".*", ".*", ".*"]);
    let broker = node.url().replace("/%2f", "/slots");
    let _workers = ["queue_a", "queue_b"].map(|queue| Worker::start_with(&broker, queue, &["--slots", "4"]));
    check_the_arithmetic(&dispatch(&[&hundred[..], &["--broker", &broker]].concat()).1);
}

#[test]
fn a_last_word_for_machines_is_an_object_too() {
    let broker = ["--broker", "amqp://u:pa55-of-u@127.0.0.1:1/", "--log-format", "json"];
    let output = hello().args(["worker", "--queue", "queue_a"]).args(broker).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last: Value = serde_json::from_str(said.trim_end()).unwrap();
    assert_eq!(last["level"], "ERROR");
    assert!(
        last["message"].as_str().unwrap().contains("can't be reached") && !said.contains("pa55"),
        "{said}"
    );
}

#[test]
fn an_unknown_place_is_refused_without_its_password() {
    for broker in ["http://u:pa55-of-u@host", "amqp://u:pa55-of-u@127.0.0.1:1/"] {
        for command in ["dispatch", "status", "setup"] {
            let output =
                hello().args([command, "--broker", broker, "--log-level", "trace"]).output().unwrap();
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(!said.contains("pa55-of-u") && !said.is_empty(), "{said}");
        }
    }
}
