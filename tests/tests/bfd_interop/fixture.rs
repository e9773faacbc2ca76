//! Two network namespaces on one cable, and what runs in them: ours, FRR or BIRD, and a sniffer.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Group, User};
use routing::bfd::packet::{LENGTH, Packet};
use tempfile::TempDir;

/// The interface at both ends.
pub(crate) const INTERFACE: &str = "bf0";

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Waits until `probe` yields something.
pub(crate) fn wait_for<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that ends with the test.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    /// SIGKILL: no farewell of any kind.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// The lines of its standard output, as they come.
    pub(crate) fn lines(&mut self) -> Result<Receiver<String>> {
        let output = self.0.stdout.take().context("standard output is not piped")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

/// A network namespace that is removed with this value.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    fn create(role: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bf-{role}-{}-{count}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.run("ip", &["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command inside to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run("ip", &[&["netns", "exec", &self.name, program], arguments].concat())
    }

    /// Calls `inside` on a thread of this namespace; threads it starts live there too.
    pub(crate) fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(Path::new("/run/netns").join(&self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(inside())
            });
            thread.join().map_err(|_| anyhow::anyhow!("the thread in {} panicked", self.name))?
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// Our end (192.0.2.1, fe80::1) and theirs (192.0.2.2, fe80::2).
pub(crate) struct Cable {
    pub(crate) ours: Namespace,
    pub(crate) theirs: Namespace,
    pub(crate) directory: TempDir,
}

impl Cable {
    pub(crate) fn lay() -> Result<Self> {
        let (ours, theirs) = (Namespace::create("o")?, Namespace::create("t")?);
        let ends = ["netns", &ours.name, "type", "veth", "peer", "name", INTERFACE, "netns", &theirs.name];
        run("ip", &[&["link", "add", INTERFACE], ends.as_slice()].concat())?;
        for (namespace, host) in [(&ours, 1), (&theirs, 2)] {
            let addresses = [format!("192.0.2.{host}/30"), format!("fe80::{host}/64")];
            for address in &addresses {
                let family = if address.contains(':') { ["nodad"].as_slice() } else { &[] };
                namespace.run("ip", &[&["address", "add", address, "dev", INTERFACE], family].concat())?;
            }
            namespace.run("ip", &["link", "set", INTERFACE, "up"])?;
        }
        Ok(Self { ours, theirs, directory: tempfile::tempdir()? })
    }

    /// Writes a file into the cable's directory.
    fn write(&self, name: &str, content: &str) -> Result<String> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.to_str().context("temporary directory is not UTF-8")?.to_owned())
    }

    /// BFD packets on the wire from now on.
    pub(crate) fn sniff(&self) -> Result<Sniffer> {
        let mut command = self.theirs.command("tcpdump");
        command.args(["-l", "-n", "-tt", "-x", "--immediate-mode", "-i", INTERFACE, "ip and udp port 3784"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command)?;
        let errors = process.0.stderr.take().context("standard error is not piped")?;
        let mut errors = BufReader::new(errors).lines();
        ensure!(
            errors.by_ref().map_while(Result::ok).any(|line| line.contains("listening on")),
            "tcpdump does not listen"
        );
        std::thread::spawn(move || errors.map_while(Result::ok).for_each(drop));
        let lines = process.lines()?;
        Ok(Sniffer { _process: process, lines, reading: None })
    }
}

/// A packet on the wire.
#[derive(Debug)]
pub(crate) struct Sniffed {
    /// Seconds since the epoch.
    pub(crate) time: f64,
    /// Whether our end sent it.
    pub(crate) is_ours: bool,
    pub(crate) packet: Packet,
}

/// A running tcpdump. Only its time stamps and octets are used: it takes packets from source port 49152, FRR's first,
/// for another protocol.
pub(crate) struct Sniffer {
    _process: Process,
    lines: Receiver<String>,
    /// The time and the octets so far of the packet that is being read.
    reading: Option<(f64, Vec<u8>)>,
}

impl Sniffer {
    /// The next packet that `wanted` accepts.
    pub(crate) fn next(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Sniffed) -> bool,
    ) -> Result<Sniffed> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { bail!("not on the wire: {what}") };
            if let Some(found) = self.read(&line)?.filter(|found| wanted(found)) {
                return Ok(found);
            }
        }
    }

    /// Takes a line; the last one of a packet completes it.
    fn read(&mut self, line: &str) -> Result<Option<Sniffed>> {
        if let Some((time, _)) = line.split_once(" IP ") {
            self.reading = Some((time.parse()?, Vec::new()));
        }
        let Some((_, hexadecimal)) = line.trim().strip_prefix("0x").and_then(|line| line.split_once(':'))
        else {
            return Ok(None);
        };
        let (time, octets) = self.reading.as_mut().context("octets of no packet")?;
        let digits: String = hexadecimal.split_whitespace().collect();
        for at in (0..digits.len()).step_by(2) {
            octets.push(u8::from_str_radix(&digits[at..at + 2], 16)?);
        }
        // An IPv4 header without options, and the UDP header.
        if octets.len() < 28 + LENGTH {
            return Ok(None);
        }
        let packet = Packet::parse(&octets[28..])?;
        Ok(Some(Sniffed { time: *time, is_ours: octets[12..16] == [192, 0, 2, 1], packet }))
    }
}

/// Whether a test may go on: root, and the tools it needs. With `DIRECTOR_TESTS_REQUIRE` set, a lack is a failure.
pub(crate) fn ready(tools: &[&str]) -> bool {
    let missing = tools.iter().find(|tool| !Path::new(tool).exists());
    let lack = match missing {
        Some(tool) => format!("{tool} is not installed"),
        None if !nix::unistd::geteuid().is_root() => "not root".to_owned(),
        None => return true,
    };
    assert!(std::env::var_os("DIRECTOR_TESTS_REQUIRE").is_none(), "{lack}");
    eprintln!("skipped: {lack}");
    false
}

/// FRR's zebra and bfdd at the far end.
pub(crate) struct Frr<'a> {
    cable: &'a Cable,
    directory: String,
    pub(crate) bfdd: Process,
    _zebra: Process,
}

impl<'a> Frr<'a> {
    pub(crate) const TOOLS: [&'static str; 3] = ["/usr/lib/frr/bfdd", "/usr/lib/frr/zebra", "/usr/bin/vtysh"];

    pub(crate) fn start(cable: &'a Cable, configuration: &str) -> Result<Self> {
        let path = cable.directory.path();
        let directory = path.to_str().context("temporary directory is not UTF-8")?.to_owned();
        let user = User::from_name("frr")?.context("no user frr")?;
        let group = Group::from_name("frrvty")?.context("no group frrvty")?;
        chown(path, Some(user.uid.as_raw()), Some(group.gid.as_raw()))?;
        let zebra_configuration = cable.write("zebra.conf", "")?;
        let zebra = Self::daemon(cable, &directory, "zebra", &zebra_configuration, &[])?;
        wait_for("zebra's socket", Duration::from_secs(10), || path.join("zserv").exists().then_some(()))?;
        let bfdd_configuration = cable.write("bfdd.conf", configuration)?;
        let control = format!("{directory}/bfdd.sock");
        let bfdd = Self::daemon(cable, &directory, "bfdd", &bfdd_configuration, &["--bfdctl", &control])?;
        Ok(Self { cable, directory, bfdd, _zebra: zebra })
    }

    fn daemon(
        cable: &Cable,
        directory: &str,
        name: &str,
        configuration: &str,
        more: &[&str],
    ) -> Result<Process> {
        let mut command = cable.theirs.command(format!("/usr/lib/frr/{name}"));
        command.args(["--vty_socket", directory, "-z", &format!("{directory}/zserv")]);
        command.args(["-i", &format!("{directory}/{name}.pid"), "-f", configuration, "-P", "0"]);
        command.args(more).stdout(Stdio::null()).stderr(Stdio::null());
        Process::spawn(&mut command)
    }

    /// Runs commands of the configuration mode, or of the top if the list begins with "show".
    pub(crate) fn vtysh(&self, commands: &[&str]) -> Result<String> {
        let mut arguments = vec!["--vty_socket", &self.directory, "-d", "bfdd"];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        self.cable.theirs.run("vtysh", &arguments)
    }

    /// What FRR says of its only session.
    pub(crate) fn peer(&self) -> Option<serde_json::Value> {
        let peers: serde_json::Value =
            serde_json::from_str(&self.vtysh(&["show bfd peers json"]).ok()?).ok()?;
        peers.get(0).cloned()
    }
}

/// BIRD at the far end.
pub(crate) struct Bird {
    socket: String,
    pub(crate) bird: Process,
}

impl Bird {
    pub(crate) const TOOLS: [&'static str; 2] = ["/usr/sbin/bird", "/usr/sbin/birdc"];

    pub(crate) fn start(cable: &Cable, configuration: &str) -> Result<Self> {
        let configuration = cable.write("bird.conf", configuration)?;
        let socket = configuration.replace("bird.conf", "bird.ctl");
        let mut command = cable.theirs.command("/usr/sbin/bird");
        command.args(["-f", "-c", &configuration, "-s", &socket]);
        let bird = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        wait_for("BIRD's socket", Duration::from_secs(10), || Path::new(&socket).exists().then_some(()))?;
        Ok(Self { socket, bird })
    }

    pub(crate) fn birdc(&self, command: &str) -> Result<String> {
        run("/usr/sbin/birdc", &["-s", &self.socket, command])
    }
}
