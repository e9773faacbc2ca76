//! The command as a user meets it: exit codes, and messages that name the place and the remedy.

use std::process::{Command, Output};

fn director(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_director")).args(arguments).output().expect("the director command runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const GOOD: &str = "[node]\nrouter_id = \"10.255.0.1\"\ninterfaces = [\"eth1\"]\n";

fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("director.toml");
    std::fs::write(&path, text).expect("written");
    let path = path.to_str().expect("UTF-8").to_owned();
    (folder, path)
}

#[test]
fn a_good_configuration_passes_the_check() {
    let (_folder, path) = file(GOOD);
    let output = director(&["check", "--config", &path]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("good: 0 services"));
}

#[test]
fn a_bad_configuration_fails_with_file_line_and_column() {
    let (_folder, path) = file(&format!("{GOOD}xdp = \"native\"\n"));
    for command in [["check", "--config", &path], ["run", "--config", &path]] {
        let output = director(&command);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(&format!("{path}:4:1: unknown field `xdp`")), "{}", stderr(&output));
    }
}

#[test]
fn a_missing_file_is_named() {
    let output = director(&["check", "--config", "/nonexistent/director.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/director.toml: cannot read"), "{}", stderr(&output));
}

#[test]
fn asking_where_no_director_runs_says_so_and_what_to_do() {
    for command in ["status", "services", "neighbors", "peers", "connections", "reload"] {
        let socket = format!("@director-test-{}", std::process::id());
        let output = director(&[command, "--json", "--socket", &socket]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(stderr(&output).contains("start one with `director run`"), "{command}: {}", stderr(&output));
    }
}

#[test]
fn questions_that_make_no_sense_are_refused_before_anybody_is_asked() {
    let explain = ["explain", "--src", "192.0.2.1:1", "--dst", "192.0.2.2:80"];
    for (arguments, expected) in [
        (&["--proto", "udp", "--syn"][..], "flags of TCP"),
        (&["--syn", "--ack"], "cannot be used with"),
        (&["--proto", "sctp"], "possible values: tcp, udp"),
    ] {
        let output = director(&[&explain, arguments].concat());
        assert!(!output.status.success() && stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let socket = format!("@director-test-{}", std::process::id());
    let output = director(&["capture", "-w", "/dev/null", "--socket", &socket]);
    assert!(stderr(&output).contains("start one with `director run`"), "{}", stderr(&output));
}

#[test]
fn every_subcommand_has_help_and_shells_can_complete() {
    for command in [
        "run",
        "check",
        "status",
        "services",
        "neighbors",
        "peers",
        "connections",
        "reload",
        "agent",
        "explain",
        "capture",
    ] {
        let output = director(&[command, "--help"]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{command}");
    }
    let output = director(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("neighbors"));
}
