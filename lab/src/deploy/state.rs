//! What is written down about a running lab, so that another process can find and remove it: one folder
//! `/run/clab/LAB`, a private tmpfs with the topology and the nodes' namespace files.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::namespace::Namespaces;
use crate::topology::Topology;

const BASE: &str = "/run/clab";

/// How long to wait for a lock: helpers take milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(3);

/// Held while a lab is put up or taken down. An abstract socket: it needs no file and dies with its last holder.
///
/// Holders are the runner, its forks until they have entered a node and call exec, and the helpers it starts on the
/// host ([`Lock::share`]). So after `kill -9` of a runner, whoever gets the lock knows that nothing is still being
/// made.
#[derive(Debug)]
pub(super) struct Lock {
    socket: UnixListener,
}

impl Lock {
    /// Takes the lock, waiting a little for helpers of a killed runner.
    pub(super) fn take(lab: &str) -> Result<Self> {
        let address = SocketAddr::from_abstract_name(format!("clab-lock-{lab}"))?;
        let start = Instant::now();
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(socket) => return Ok(Self { socket }),
                Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                    return Err(error).with_context(|| format!("locking lab {lab}"));
                }
                Err(_) if start.elapsed() > LOCK_LIMIT => {
                    bail!("another lab command is putting {lab} up or down; wait for it to end");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Lets `command`, a helper on the host, hold the lock until it ends.
    pub(super) fn share(&self, command: &mut Command) {
        let socket = self.socket.as_raw_fd();
        // SAFETY: the closure makes one system call and allocates nothing. The descriptor is open in the child, a copy
        // of this process that holds `self` borrowed while it spawns.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(socket, libc::F_SETFD, 0) < 0 {
                    Err(std::io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
    }
}

/// The folder of lab `name`.
pub(super) fn folder(name: &str) -> PathBuf {
    Path::new(BASE).join(name)
}

/// Whether anything of the lab is there, complete or not.
pub(super) fn exists(name: &str) -> bool {
    folder(name).exists()
}

/// Makes the folder and writes the topology into it, before anything else is created.
pub(super) fn create(topology: &Topology) -> Result<()> {
    let folder = folder(&topology.name);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let none = None::<&str>;
    mount(Some("clab"), &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("mounting the lab's tmpfs")?;
    // Files of mount namespaces can be bound only where mounts do not propagate.
    mount(none, &folder, none, MsFlags::MS_PRIVATE, none).context("making the lab's tmpfs private")?;
    let text = serde_json::to_vec_pretty(topology)?;
    // In one step: a half-written file would hide what has to be removed.
    fs::write(folder.join("lab.json.new"), text).context("writing lab.json")?;
    fs::rename(folder.join("lab.json.new"), folder.join("lab.json")).context("writing lab.json")
}

/// Reads what `create` wrote; `None` when it was interrupted before it had written anything.
pub(super) fn read(name: &str) -> Result<Option<Topology>> {
    let path = folder(name).join("lab.json");
    match fs::read(&path) {
        Ok(text) => {
            Ok(Some(serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Removes the folder and all mounts on and below it.
pub(super) fn remove(name: &str) -> Result<()> {
    let folder = folder(name);
    match umount2(&folder, MntFlags::MNT_DETACH) {
        // EINVAL: not mounted (yet); ENOENT: not there.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmounting {}", folder.display())),
    }
    match fs::remove_dir(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("removing {}", folder.display())),
    }
    // Other labs may be running beside this one.
    let _ = fs::remove_dir(BASE);
    Ok(())
}

/// Names of the labs that are there.
pub(super) fn list() -> Vec<String> {
    let Ok(entries) = fs::read_dir(BASE) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The namespaces of one node.
pub(super) fn namespaces(topology: &Topology, node: &str) -> Namespaces {
    Namespaces::new(topology.long_name(node), folder(&topology.name).join(node))
}
