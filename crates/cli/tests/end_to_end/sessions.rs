//! pytest projects that ask something of a whole session: coverage, a report, one folder for all temporary files.

use crate::project::Project;

/// `what` is covered by the test of another file each.
const PACKAGE: &str = "
def one():
    return 1

def two():
    return 2

def three():
    return 3
";

fn covering(name: &str) -> String {
    // Both processes have one: the second waits for the first.
    format!(
        "import os, time, pkg
def test_it():
    open('began-{name}', 'w').close()
    end = time.monotonic() + 20
    while sum(name.startswith('began-') for name in os.listdir('.')) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    pkg.{name}()
"
    )
}

fn covered(addopts: &str) -> Project {
    let project = Project::new(&[
        ("pkg.py", PACKAGE),
        ("test_one.py", &covering("one")),
        ("test_two.py", &covering("two")),
    ]);
    project.write("pytest.ini", &format!("[pytest]\naddopts = --cov=pkg {addopts}\n"));
    project
}

fn data_files(project: &Project) -> Vec<String> {
    let names = std::fs::read_dir(project.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".coverage")).collect()
}

#[test]
fn what_all_processes_covered_is_one_report_and_meets_one_threshold() {
    let project = covered("--cov-report=term-missing --cov-report=xml --cov-fail-under=80 -n 2");
    // Of an earlier run that was killed, and would be taken for data of this one.
    project.write(".coverage.vm.pid1.Xold", "");
    let old = std::fs::File::open(project.path().join(".coverage.vm.pid1.Xold")).unwrap();
    old.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60)).unwrap();
    let run = || {
        for name in ["began-one", "began-two"] {
            let _ = std::fs::remove_file(project.path().join(name));
        }
        project.python(&["run", "--workers", "2"])
    };
    let ended = run().expect(0);
    // One line of six is left: the body of `three`.
    for words in ["pkg.py       6      1    83%   9", "Passed: 2 tests"] {
        assert!(ended.stdout.contains(words), "{words} is not in\n{}", ended.stdout);
    }
    assert_eq!(data_files(&project), [".coverage"]);
    let xml = std::fs::read_to_string(project.path().join("coverage.xml")).unwrap();
    assert!(xml.contains("lines-covered=\"5\""), "{xml}");

    // As pytest-cov has it, a run forgets what an earlier one covered; and too little fails it.
    project.write("test_two.py", &covering("one").replace("began-one", "began-two"));
    let ended = run().expect(1);
    for words in ["pkg.py       6      2    67%   6, 9", "66.67 % is covered", "Failed: 2 tests", "2 passed"]
    {
        assert!(ended.stdout.contains(words), "{words} is not in\n{}", ended.stdout);
    }
    assert_eq!(project.facts("teardown_failed").len(), 1);

    // Listing measures nothing and forgets nothing.
    let before = std::fs::read(project.path().join(".coverage")).unwrap();
    project.python(&["list"]).expect(0);
    assert!(before == std::fs::read(project.path().join(".coverage")).unwrap());
    assert_eq!(data_files(&project), [".coverage"]);
}

#[test]
fn a_file_of_all_tests_is_not_written_by_each_process_and_the_run_says_so() {
    let project = Project::new(&[
        ("pytest.ini", "[pytest]\naddopts = --junitxml=all.xml\n"),
        ("test_a.py", "def test_it(record_property): record_property('a', 1)\n"),
    ]);
    let ended = project.python(&["run"]).expect(0);
    assert!(ended.stdout.contains("NOTE pytest's --junitxml was not followed"), "{}", ended.stdout);
    assert!(!project.path().join("all.xml").exists());
}
