//! The data plane under the oldest kernel supported, Debian 12's 6.1: the director's own tests of it, run there
//! by `tests/stock-kernel.sh`. Nothing here knows what they check; it makes sure that they ran, and where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use cluster_tests::requirement::{Requirement, met};

const SUITES: [&str; 16] = [
    "dataplane_kernel",
    "dataplane_nat",
    "dataplane_full_nat",
    "dataplane_full_nat_replicas",
    "dataplane_apply",
    "dataplane_forwarding",
    "dataplane_pins",
    "dataplane_services",
    "dataplane_tracking",
    "dataplane_persistence",
    "dataplane_persistence_replicas",
    "ipvs_oracle",
    "dataplane_explain",
    "seeing",
    "agent_kernel",
    "agent_tunnels",
];

/// A suite takes about a minute of a free machine; this one may have other work.
const TIMEOUT_SECONDS: &str = "900";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

fn tool(arguments: &[&str]) -> Output {
    let mut tool = Command::new(repository().join("tests/stock-kernel.sh"));
    tool.current_dir(repository()).args(arguments).output().expect("tests/stock-kernel.sh runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether this machine can boot the kernel; the tool itself says what it lacks.
fn can_boot() -> bool {
    let check = tool(&["--check"]);
    let finding = if check.status.success() { Ok(()) } else { Err(text(&check.stderr).trim().to_owned()) };
    met(&[Requirement::Finding(finding)])
}

/// The director's test executables by suite, built if they are not up to date.
fn executables() -> &'static BTreeMap<String, PathBuf> {
    static BUILT: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // The whole workspace, as the test runner builds it: one package alone would be built anew, with its own
        // choice of its dependencies' features.
        cargo.current_dir(repository());
        cargo.args(["test", "--workspace", "--locked", "--no-run", "--message-format=json"]);
        let output = cargo.output().expect("cargo runs");
        assert!(output.status.success(), "cargo test --no-run: {}", text(&output.stderr));
        let messages = text(&output.stdout);
        messages.lines().filter_map(|line| executable(&serde_json::from_str(line).ok()?)).collect()
    })
}

/// The suite and its executable that a message of cargo's announces, if it does.
fn executable(message: &serde_json::Value) -> Option<(String, PathBuf)> {
    let suite = message["target"]["name"].as_str().filter(|name| SUITES.contains(name))?;
    Some((suite.to_owned(), PathBuf::from(message["executable"].as_str()?)))
}

/// The number of tests that passed, from libtest's last line; none if that does not say "ok".
fn passed(output: &str) -> Option<u32> {
    let summary = output.lines().filter_map(|line| line.strip_prefix("test result: ok. ")).next_back()?;
    summary.split_once(" passed;")?.0.parse().ok()
}

/// Runs one suite in the guest; every test of it passes, under 6.1.
fn passes_under_stock_kernel(suite: &str) {
    if !can_boot() {
        return;
    }
    let executable = executables().get(suite).expect("cargo builds every suite asked for");
    let program = executable.to_str().expect("a path in UTF-8");
    let script = r#"uname -r && exec "$0" --test-threads=1"#;
    let output = tool(&["--timeout", TIMEOUT_SECONDS, "bash", "-c", script, program]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    println!("{stdout}{stderr}");
    assert!(output.status.success(), "{suite}: {}", output.status);
    let release = stdout.lines().next().unwrap_or_default();
    assert!(release.starts_with("6.1."), "{suite} ran under '{release}'");
    assert!(passed(&stdout).is_some_and(|count| count > 0), "{suite}: no test ran");
}

#[test]
fn program_decides_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_kernel");
}

#[test]
fn addresses_are_translated_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_nat");
}

#[test]
fn both_ends_are_translated_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_full_nat");
}

#[test]
fn connections_with_both_ends_translated_go_on_elsewhere_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_full_nat_replicas");
}

#[test]
fn tables_are_fed_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_apply");
}

#[test]
fn connections_are_pinned_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_pins");
}

#[test]
fn prefixes_ranges_and_groups_are_told_apart_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_services");
}

#[test]
fn connections_are_tracked_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_tracking");
}

#[test]
fn clients_stay_with_their_servers_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_persistence");
}

#[test]
fn directors_keep_each_others_clients_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_persistence_replicas");
}

/// This kernel has IPVS, which gives the same answers as when they were recorded.
#[test]
fn schedulers_choose_as_ipvs_does_under_stock_kernel() {
    passes_under_stock_kernel("ipvs_oracle");
}

#[test]
fn packets_are_forwarded_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_forwarding");
}

#[test]
fn explanations_hold_under_stock_kernel() {
    passes_under_stock_kernel("dataplane_explain");
}

#[test]
fn captures_are_taken_under_stock_kernel() {
    passes_under_stock_kernel("seeing");
}

#[test]
fn tunnels_end_by_our_program_under_stock_kernel() {
    passes_under_stock_kernel("agent_kernel");
}

/// This kernel has tunnel devices, too.
#[test]
fn tunnels_carry_traffic_under_stock_kernel() {
    passes_under_stock_kernel("agent_tunnels");
}

#[test]
fn tool_hands_back_all_of_a_command_and_leaves_the_host_alone() {
    if !can_boot() {
        return;
    }
    let mark = repository().join("target/written-in-the-guest");
    let script = r#"echo mark >"$0" && cat "$0"; echo "$1" >/dev/stderr; sleep 1000 & exit 7"#;
    let output = tool(&["bash", "-c", script, mark.to_str().expect("a path in UTF-8"), "it's  \"quoted\""]);
    assert_eq!(text(&output.stdout), "mark\n");
    assert_eq!(text(&output.stderr), "it's  \"quoted\"\n");
    assert_eq!(output.status.code(), Some(7));
    assert!(!mark.exists(), "{} was written on the host", mark.display());
}

#[test]
fn tool_ends_a_command_whose_time_is_up() {
    if !can_boot() {
        return;
    }
    let output = tool(&["--timeout", "1", "sleep", "1000"]);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("not done after 1 s"));
}

#[test]
fn only_a_good_result_counts() {
    assert_eq!(passed("running 2 tests\n\ntest result: ok. 12 passed; 0 failed; 0 ignored\n"), Some(12));
    assert_eq!(passed("test result: FAILED. 11 passed; 1 failed; 0 ignored"), None);
    assert_eq!(passed("running 2 tests"), None);
}
