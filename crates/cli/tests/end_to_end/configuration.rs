//! What is wrong in `regatta.toml` is shown where it is.

use crate::project::Project;

fn wrong(text: &str) -> String {
    let project = Project::new(&[("regatta.toml", text)]);
    let ended = project.regatta(&["run", "--config", "regatta.toml"]).expect(2);
    assert_eq!(ended.stdout, "");
    ended.stderr.trim_end().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[test]
fn an_unknown_key_and_what_was_meant() {
    insta::assert_snapshot!(wrong("workers = 2\nretrys = 1\n"), @"");
}

#[test]
fn an_unknown_key_of_a_suite() {
    insta::assert_snapshot!(wrong("[suite.unit]\nadapter = \"pytest\"\npath = [\"t\"]\n"), @"");
}

#[test]
fn a_wrong_type_and_a_wrong_word() {
    insta::assert_snapshot!(wrong("retries = \"two\"\n"), @"");
    insta::assert_snapshot!(wrong("[suite.unit]\nadapter = \"nose\"\n"), @"");
}

#[test]
fn a_span_of_time() {
    insta::assert_snapshot!(wrong("timeout = \"soon\"\n"), @"");
}

#[test]
fn no_toml_at_all() {
    insta::assert_snapshot!(wrong("retries = \n"), @"");
}

#[test]
fn a_key_of_another_adapter() {
    insta::assert_snapshot!(wrong("[suite.unit]\nadapter = \"cargo\"\npaths = [\"t\"]\n"), @"");
}

#[test]
fn usage_errors_are_2() {
    let project = Project::new(&[]);
    for arguments in
        [&["run", "--workers", "0"][..], &["walk"], &["run", "--broker", "http://a"], &["worker"]]
    {
        project.regatta(arguments).expect(2);
    }
    project.regatta(&["--help"]).expect(0);
}
