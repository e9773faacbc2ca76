//! What the data-plane tests share: packets, tables in user space, and a thread with namespaces of its own.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this, and none exports it")]

pub mod cases;
pub mod full_nat;
pub mod matching;
pub mod memory;
pub mod packets;
pub mod persistence;
pub mod routes;
pub mod shadow;

use std::path::PathBuf;
use std::process::Command;

use director::dataplane::{Dataplane, Options, TunnelSources};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `body` in a thread with a network and a mount namespace of its own: interfaces, mounts and pins made in
/// it vanish with it, however it ends.
pub fn isolated<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: it loads XDP programs");
    let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("new namespaces");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("own /run");
        run("ip", "link set lo up");
        body()
    });
    match thread.expect("thread").join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs a command in the thread's namespaces; it must succeed. Returns what it prints.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Connections that the tests' data planes can pin.
pub const PINS: usize = 4_096;

/// Options with the folder of pins in the thread's own /run.
pub fn options() -> Options {
    let (std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)) = (cases::TUNNEL_V4, cases::TUNNEL_V6) else {
        panic!("one of each family");
    };
    let tunnel_sources = TunnelSources { v4: Some(v4), v6: Some(v6) };
    Options {
        pin_dir: PathBuf::from("/run/director/bpf"),
        tunnel_sources,
        icmp_rate: cases::ICMP_RATE,
        pins: PINS as u32,
        ..Options::default()
    }
}

/// A new data plane.
pub fn open(options: &Options) -> Dataplane {
    Dataplane::open(options).expect("opening the data plane").0
}
