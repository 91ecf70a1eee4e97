//! How the tests of a file are spread over processes and queues.

use crate::project::Project;

/// Six tests that share what is dear to set up: it takes longer than all of them.
const SHARED: &str = "
import time
import pytest

@pytest.fixture(scope='module')
def dear(request):
    with open('set-ups', 'a') as file:
        file.write(request.node.nodeid + '\\n')
    time.sleep(0.5)

@pytest.mark.parametrize('number', range(6))
def test_it(dear, number):
    time.sleep(0.05)
";

/// Tests that build on each other.
const STEPS: &str = "
import time

made = []

def step(number):
    time.sleep(0.05)
    assert made == list(range(number))
    made.append(number)

def test_0(): step(0)
def test_1(): step(1)
def test_2(): step(2)
def test_3(): step(3)
";

#[test]
fn what_is_dear_to_set_up_is_set_up_once_for_each_file_in_every_run() {
    let project = Project::new(&[("test_x.py", SHARED), ("test_y.py", SHARED)]);
    for _ in 0..3 {
        project.write("set-ups", "");
        project.python(&["run", "-j2"]).expect(0);
        let set_ups = std::fs::read_to_string(project.path().join("set-ups")).unwrap();
        let mut set_ups: Vec<&str> = set_ups.lines().collect();
        set_ups.sort_unstable();
        assert_eq!(set_ups, ["test_x.py", "test_y.py"]);
    }
    let shared: u64 = project.run_json()["tests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|test| test["attempts"][0]["record"]["shared_us"].as_u64().unwrap_or_default())
        .sum();
    assert!(shared >= 1_000_000, "the record says what was shared: {shared} us");
}

#[test]
fn files_stay_whole_where_the_project_says_so() {
    for (file, text) in [
        ("regatta.toml", "[suite.steps]\nadapter = \"pytest\"\nsplit-files = false\n"),
        ("pytest.ini", "[pytest]\naddopts = -n 2 --dist loadfile\n"),
    ] {
        let project = Project::new(&[("test_steps.py", STEPS), ("test_other.py", STEPS), (file, text)]);
        for _ in 0..3 {
            project.python(&["run", "-j2"]).expect(0);
        }
        // One that failed last takes the others of its file along.
        project.write(
            "test_steps.py",
            &format!("{STEPS}\ndef test_4():\n    step(4)\n    assert not open('bad').read()\n"),
        );
        project.write("bad", "bad");
        project.python(&["run", "-j2"]).expect(1);
        project.write("bad", "");
        project.python(&["run", "-j2"]).expect(0);
    }
}

/// What nobody has seen is handed out as a file, and a file goes to one queue.
#[test]
fn routes_hold_for_tests_that_nobody_has_seen() {
    let config = "[suite.fruit]\nadapter = \"pytest\"\n[[suite.fruit.route]]\ntests = \"*plum*\"\nqueue = \"garden\"\n";
    let test = "def test_apple(): pass\ndef test_plum(): pass\n";
    let project = Project::new(&[("regatta.toml", config), ("test_fruit.py", test)]);
    for _ in 0..2 {
        project.python(&["run"]).expect(0);
        let sent = project.facts("batch_sent");
        let mut sent: Vec<String> = sent
            .iter()
            .flat_map(|batch| {
                let items = batch["items"].as_array().unwrap().iter();
                items.map(|item| format!("{} {}", batch["queue"], item[0]))
            })
            .collect();
        sent.sort_unstable();
        assert_eq!(
            sent,
            [
                r#""garden" {"test":"test_fruit.py::test_plum"}"#,
                r#""regatta" {"test":"test_fruit.py::test_apple"}"#
            ]
        );
    }
}
