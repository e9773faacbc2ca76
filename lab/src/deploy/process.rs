//! The processes of a node, known by the namespaces they are in and by nothing else: a daemon may have forked,
//! renamed itself or lost its parent.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Processes that are in one of the namespaces with these inode numbers.
pub(super) fn members(inodes: &BTreeSet<u64>) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| {
            pid != own
                && ["net", "mnt", "uts"]
                    .iter()
                    .any(|kind| inode(pid, kind).is_some_and(|i| inodes.contains(&i)))
        })
        .collect()
}

/// The inode behind `/proc/PID/ns/KIND`, from a link text such as `net:[4026531840]`.
fn inode(pid: i32, kind: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    link.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// The command line of a process, for people.
pub(super) fn command_line(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).split('\0').collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// Kills all members and waits until they are gone: they may fork while they are being killed.
pub(super) fn kill_members(inodes: &BTreeSet<u64>, deadline: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let found = members(inodes);
        if found.is_empty() {
            return Ok(());
        }
        if start.elapsed() > deadline {
            let names: Vec<_> = found.iter().map(|&pid| format!("{pid} ({})", command_line(pid))).collect();
            bail!("processes that do not die: {}", names.join(", "));
        }
        for pid in found {
            // One that went by itself meanwhile is what we wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}
