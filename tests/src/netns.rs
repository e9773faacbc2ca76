//! Network namespaces for tests: made by name, gone with the value, also when the test fails.

use std::{
    ffi::OsStr,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace with `lo` up. Dropping it kills what still runs in it and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose name begins with `prefix` and is used by nobody else.
    ///
    /// # Errors
    /// `ip` fails: not root, or no network namespaces.
    pub fn new(prefix: &str) -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{number}", std::process::id());
        ip(["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` with these words in the namespace and returns what it printed.
    ///
    /// # Errors
    /// `ip` fails; its complaint is in the error.
    pub fn ip(&self, words: &str) -> Result<String> {
        ip(["-n", &self.name].into_iter().chain(words.split_whitespace()))
    }

    /// A command that will run in the namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Connects `device` here with `peer_device` of another namespace, addresses them (`10.0.0.1/30`) and
    /// brings them up.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn veth(&self, device: &str, address: &str, peer: &Self, peer_device: &str, at: &str) -> Result<()> {
        let (here, there) = (&self.name, &peer.name);
        let add = format!("link add {device} netns {here} type veth peer name {peer_device} netns {there}");
        ip(add.split_whitespace())?;
        for (namespace, device, address) in [(self, device, address), (peer, peer_device, at)] {
            if !address.is_empty() {
                namespace.ip(&format!("addr add {address} dev {device}"))?;
            }
            namespace.ip(&format!("link set {device} up"))?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Ok(pids) = ip(["netns", "pids", &self.name]) {
            for pid in pids.split_whitespace() {
                let _ = Command::new("kill").args(["-9", pid]).status(); // it may be gone already
            }
        }
        if let Err(error) = ip(["netns", "del", &self.name]) {
            eprintln!("namespace {} stays behind: {error:#}", self.name);
        }
    }
}

/// A process that dies with its value.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    /// Starts a command with nothing on its standard input and output.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn quiet(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    /// Kills the process as by `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `ip` and returns what it printed.
///
/// # Errors
/// It fails; its complaint is in the error.
pub fn ip<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let words: Vec<_> = words.into_iter().collect();
    let output = Command::new("ip").args(&words).output().context("ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until `holds`, looking every 20 ms, and returns how long it took.
///
/// # Errors
/// It does not hold within `limit`, or looking fails; `what` is in the error.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !holds().with_context(|| what.to_owned())? {
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(start.elapsed())
}

/// Whether the test may make namespaces; says aloud that it skips if not.
#[must_use]
pub fn is_root(test: &str) -> bool {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|self_| std::os::unix::fs::MetadataExt::uid(&self_) == 0);
    if !root {
        eprintln!("SKIPPED {test}: it needs root to make network namespaces");
    }
    root
}
