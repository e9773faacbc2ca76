//! Network namespaces for tests of sockets and routes as the kernel treats them. They need root, and without it are
//! skipped, or fail where `DIRECTOR_TESTS_REQUIRE=1` says that nothing may be missing.

use std::process::Command;

use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

/// Runs a test in a network namespace of its own, which ends with it.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !geteuid().is_root() {
        let strict = std::env::var_os("DIRECTOR_TESTS_REQUIRE").is_some_and(|value| value == "1");
        assert!(!strict, "it needs root; run the tests as root");
        eprintln!("skipped: it needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of this thread; what it printed.
pub(crate) fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The index of a device in the namespace of this thread.
pub(crate) fn index_of(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).expect("it is there")
}

/// Makes a device that is up in the namespace of this thread; what is sent on it is heard by nobody.
pub(crate) fn device(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-peer"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {name}-peer up"));
}
