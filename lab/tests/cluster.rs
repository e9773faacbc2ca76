//! The whole lab with stand-ins for the directors: real switches, real web servers, the load and the demo's judgement.
//! Needs root, bird2, frr, nginx, nftables and jq.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Runs a small demo under a lab name of its own and returns what it said and its results.
fn demo(name: &str, director: &Path, folder: &Path) -> (Output, serde_json::Value) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces: run it as root");
    let prepare = format!("{HERE}/ecmp/prepare.sh");
    assert!(Command::new(prepare).arg(folder.join("data")).env("LAB", LAB).status().unwrap().success());
    let results = folder.join("results.json");
    let output = Command::new(LAB)
        .args(["demo", "--connections", "150", "--rate", "20", "--name", name])
        .args(["--topology", &format!("{HERE}/ecmp.clab.yml")])
        .arg("--director")
        .arg(director)
        .arg("--data")
        .arg(folder.join("data"))
        .arg("--json")
        .arg(&results)
        .output()
        .unwrap();
    let text = std::fs::read(&results).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, serde_json::from_slice(&text).unwrap())
}

/// One figure of a step, over all services.
fn of(step: &serde_json::Value, field: &str) -> u64 {
    step["services"].as_array().unwrap().iter().map(|service| service[field].as_u64().unwrap()).sum()
}

fn nothing_left(name: &str) {
    let long = format!("clab-{name}-");
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let left: Vec<_> = names.filter(|n| n.file_name().to_string_lossy().starts_with(&long)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn directors_that_agree_pass_the_demo() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("agree-{}", std::process::id());
    let (output, results) = demo(&name, &PathBuf::from(HERE).join("standin/director"), folder.path());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("PASSED: 0 resets"), "{said}\n{output:?}");
    let steps = results["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 7);
    assert!(steps.iter().all(|step| step["services"].as_array().unwrap().len() == 3), "{said}");
    assert!(steps.iter().all(|step| of(step, "alive") == 150), "{said}");
    // Only the clients of the real server that is drained begin anew.
    assert!(steps.iter().enumerate().all(|(n, step)| (of(step, "held") == 150) == (n != 5)), "{said}");
    // A quiet cluster moves no flow; losing one of three directors must move some, or the counters are blind.
    assert_eq!(of(&steps[0], "changed"), 0, "{said}");
    assert!(of(&steps[1], "changed") > 20, "{said}");
    let real = |step: usize, name: &str, field: &str| steps[step]["reals"][name][field].as_u64().unwrap();
    assert_eq!((real(4, "real4", "held"), real(4, "real4", "opened") > 10), (0, true), "added: {said}");
    assert!(real(5, "real4", "opened") > 10 && real(5, "real1", "held") == 0, "drained: {said}");
    assert_eq!((real(6, "real1", "held"), real(6, "real1", "opened")), (0, 0), "removed: {said}");
    nothing_left(&name);
}

#[test]
fn directors_that_disagree_fail_the_demo() {
    let folder = tempfile::tempdir().unwrap();
    let director = folder.path().join("director");
    let script = format!(
        "#!/bin/sh\nexport STANDIN_ONLY=1$(hostname | tr -dc 0-9)\nexec {HERE}/standin/director \"$@\"\n"
    );
    std::fs::write(&director, script).unwrap();
    std::fs::set_permissions(&director, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let name = format!("disagree-{}", std::process::id());
    let (output, results) = demo(&name, &director, folder.path());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("FAILED"), "{said}");
    let resets: u64 = results["steps"].as_array().unwrap().iter().map(|step| of(step, "reset")).sum();
    assert!(resets > 10, "flows that moved to another server must have been reset: {said}");
    nothing_left(&name);
}
