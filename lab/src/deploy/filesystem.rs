//! What a node sees as its file system: the host's, through an overlay whose writes go to memory and vanish with the
//! node, with `/run`, `/tmp`, `/sys` and bpffs of its own and the topology's binds on top.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;

use crate::topology::{Bind, Node};

/// Where the host's root stands while binds are made.
const OLD_ROOT: &str = "run/.old-root";

/// Folders that get a mount of their own; host mounts below them are not carried over.
const OWN: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// Builds the node's root in `stage` (an existing or new folder) and makes it this thread's root.
/// The thread must be alone in a new mount namespace.
pub(super) fn prepare(stage: &Path, node: &Node) -> Result<()> {
    let host_mounts = other_host_mounts()?;
    let binds = resolve_sources(&node.binds)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    fs::create_dir_all(stage).with_context(|| format!("creating {}", stage.display()))?;
    mount(Some("tmpfs"), stage, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("mounting the node's tmpfs")?;
    let root = overlay(stage)?;
    own_mounts(&root)?;
    for point in &host_mounts {
        let target = root.join(point.strip_prefix("/").unwrap_or(point));
        mount(Some(point), &target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("carrying {} over", point.display()))?;
    }
    fs::create_dir(root.join(OLD_ROOT)).context("creating the place of the old root")?;
    pivot_root(&root, &root.join(OLD_ROOT)).context("pivot_root")?;
    std::env::set_current_dir("/").context("entering the new root")?;
    for bind in &binds {
        apply(bind)
            .with_context(|| format!("bind {} -> {}", bind.source.display(), bind.target.display()))?;
    }
    let old = Path::new("/").join(OLD_ROOT);
    umount2(&old, MntFlags::MNT_DETACH).context("detaching the host's root")?;
    fs::remove_dir(&old).context("removing the place of the old root")?;
    name_files(&node.hostname)
}

fn overlay(stage: &Path) -> Result<PathBuf> {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| stage.join(name));
    for folder in [&upper, &work, &root] {
        fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str())).context(
        "mounting an overlay over the root (needs overlayfs: CONFIG_OVERLAY_FS or `modprobe overlay`)",
    )?;
    Ok(root)
}

fn own_mounts(root: &Path) -> Result<()> {
    let none = None::<&str>;
    for shared in ["proc", "dev"] {
        let source = Path::new("/").join(shared);
        mount(Some(&source), &root.join(shared), none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .with_context(|| format!("binding /{shared}"))?;
    }
    for (target, kind, options) in [
        ("sys", "sysfs", None),
        ("sys/fs/bpf", "bpf", Some("mode=700")),
        ("dev/shm", "tmpfs", Some("mode=1777")),
        ("run", "tmpfs", Some("mode=755")),
        ("tmp", "tmpfs", Some("mode=1777")),
    ] {
        mount(Some(kind), &root.join(target), Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mounting {kind} on /{target}"))?;
    }
    fs::create_dir(root.join("run/lock")).context("creating /run/lock")
}

/// File systems of the host besides the root that a node should see where they are.
fn other_host_mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
    let mut points: Vec<PathBuf> = Vec::new();
    for line in table.lines() {
        let Some(point) = line.split(' ').nth(4) else { continue };
        let point = PathBuf::from(unescape(point));
        let own = OWN.iter().any(|own| point.starts_with(own));
        // A mount hidden below a later one would fail to bind; each path is bound once, as it is seen now.
        if point != Path::new("/") && !own && !points.contains(&point) && point.exists() {
            points.push(point);
        }
    }
    Ok(points)
}

/// Undoes the octal escapes of mountinfo (space, tab, line feed, backslash).
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}

/// Follows links in the sources while the host's view is still there.
fn resolve_sources(binds: &[Bind]) -> Result<Vec<Bind>> {
    let resolve = |bind: &Bind| {
        let source = bind.source.canonicalize().with_context(|| {
            format!("bind {}: source {} does not exist", bind.target.display(), bind.source.display())
        })?;
        Ok(Bind { source, ..bind.clone() })
    };
    binds.iter().map(resolve).collect()
}

/// Mounts one bind; runs inside the new root, so links in the target stay inside as well.
fn apply(bind: &Bind) -> Result<()> {
    let mut source = Path::new("/").join(OLD_ROOT);
    source.extend(bind.source.components().filter(|part| !matches!(part, Component::RootDir)));
    let target = &bind.target;
    if source.is_dir() {
        fs::create_dir_all(target).context("creating the mount point")?;
    } else {
        let folder = target.parent().context("the target has no folder")?;
        fs::create_dir_all(folder).context("creating the mount point's folder")?;
        if target.is_dir() {
            bail!("a file cannot cover a folder");
        }
        fs::OpenOptions::new().create(true).append(true).open(target).context("creating the mount point")?;
    }
    let none = None::<&str>;
    mount(Some(&source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).context("mounting")?;
    if bind.read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, target, none, flags, none).context("remounting read-only")?;
    }
    Ok(())
}

fn name_files(hostname: &str) -> Result<()> {
    fs::write("/etc/hostname", format!("{hostname}\n")).context("writing the node's /etc/hostname")?;
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost\n");
    fs::write("/etc/hosts", hosts).context("writing the node's /etc/hosts")
}
