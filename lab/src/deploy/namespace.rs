//! A node's namespaces: network (named, so that `ip netns` knows it), mounts and host name, all kept alive by bind
//! mounts of their files. No process of ours stays behind to hold them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::filesystem;
use super::state::Lock;
use crate::topology::Node;

/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";

/// Paths of one node's namespace files.
#[derive(Debug, Clone)]
pub(super) struct Namespaces {
    /// Name of the network namespace.
    pub(super) name: String,
    folder: PathBuf,
}

impl Namespaces {
    /// The namespaces of the node whose long name is `name`, with its files in `folder`.
    pub(super) fn new(name: String, folder: PathBuf) -> Self {
        Self { name, folder }
    }

    pub(super) fn net(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    fn mounts(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    fn uts(&self) -> PathBuf {
        self.folder.join("uts")
    }

    /// Creates the namespaces and everything in them but links.
    pub(super) fn create(&self, node: &Node, lock: &Lock) -> Result<()> {
        if self.net().exists() {
            bail!(
                "a network namespace {} exists already; if it is a leftover: ip netns del {}",
                self.name,
                self.name
            );
        }
        fs::create_dir_all(&self.folder).with_context(|| format!("creating {}", self.folder.display()))?;
        let mut add = Command::new("ip");
        lock.share(add.args(["netns", "add", &self.name]));
        super::run(&mut add)?;
        for file in [self.mounts(), self.uts()] {
            File::create(&file).with_context(|| format!("creating {}", file.display()))?;
        }
        std::thread::scope(|scope| {
            let (ready, made) = mpsc::channel::<i32>();
            let (release, released) = mpsc::channel::<()>();
            let inside = scope.spawn(move || {
                self.make_inside(node)?;
                ready.send(nix::unistd::gettid().as_raw()).context("the other thread is gone")?;
                // The namespaces live as long as this thread until their files are bound.
                let _ = released.recv();
                anyhow::Ok(())
            });
            if let Ok(thread) = made.recv() {
                for (kind, target) in [("mnt", self.mounts()), ("uts", self.uts())] {
                    bind_file(Path::new(&format!("/proc/{thread}/ns/{kind}")), &target)?;
                }
            }
            drop(release);
            inside
                .join()
                .map_err(|_| anyhow::anyhow!("the thread making namespace {} panicked", self.name))?
        })
    }

    fn make_inside(&self, node: &Node) -> Result<()> {
        let flags = CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
        unshare(flags).context("unshare of mount and uts namespaces")?;
        let net = File::open(self.net()).context("opening the network namespace")?;
        setns(net.as_fd(), CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
        for (key, value) in &node.sysctls {
            let path = format!("/proc/sys/{}", key.replace('.', "/"));
            fs::write(&path, value).with_context(|| format!("sysctl {key} = {value}"))?;
        }
        fs::write("/proc/sys/kernel/hostname", &node.hostname).context("setting the host name")?;
        filesystem::prepare(&self.folder.join("root"), node)
    }

    /// Makes `command` run inside; it must not have been given another `pre_exec` that needs the host's view.
    pub(super) fn enter(&self, command: &mut Command, new_session: bool) -> Result<()> {
        let open = |path: PathBuf| File::open(&path).with_context(|| format!("opening {}", path.display()));
        let files = [
            (open(self.net())?, CloneFlags::CLONE_NEWNET),
            (open(self.uts())?, CloneFlags::CLONE_NEWUTS),
            (open(self.mounts())?, CloneFlags::CLONE_NEWNS),
        ];
        // SAFETY: between fork and exec the closure makes only system calls (setns, setsid) on descriptors it owns and
        // allocates nothing; setns to a mount namespace also moves root and working directory to its root.
        unsafe {
            command.pre_exec(move || {
                for (file, kind) in &files {
                    setns(file.as_fd(), *kind)?;
                }
                if new_session {
                    nix::unistd::setsid()?;
                }
                Ok(())
            });
        }
        Ok(())
    }

    /// Inode numbers of the namespaces that exist, by which processes are known as members.
    pub(super) fn inodes(&self) -> Vec<u64> {
        let Ok(own) = fs::metadata("/proc/self/ns/net") else { return Vec::new() };
        let is_namespace = |path: PathBuf| fs::metadata(path).ok().filter(|found| found.dev() == own.dev());
        [self.net(), self.mounts(), self.uts()]
            .into_iter()
            .filter_map(is_namespace)
            .map(|found| found.ino())
            .collect()
    }

    /// Gives the network namespace's name back; what is not there is no error.
    pub(super) fn remove(&self) -> Result<()> {
        let path = self.net();
        if path.exists() {
            // EINVAL: the file is there, but `ip netns add` was interrupted before it mounted.
            match umount2(&path, MntFlags::MNT_DETACH) {
                Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
                Err(error) => return Err(error).with_context(|| format!("unmounting {}", path.display())),
            }
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

/// Binds the file `source` over `target`.
fn bind_file(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {} to {}", source.display(), target.display()))
}
