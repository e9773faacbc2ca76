//! What a running director shows of its packets: `explain` and `capture` as a user meets them.

mod dataplane_fixture;

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dataplane_fixture::{isolated, run};

const CLIENT: &str = "192.0.2.2";
const VIP: &str = "203.0.113.10";
/// Enough for an emulated machine, where the kernel checks the program for a minute or two.
const PATIENCE: Duration = Duration::from_secs(240);

/// client (192.0.2.2) --- d0 director d1 --- real server (10.0.2.11). `gone` has an address nobody answers for.
fn build() {
    for (name, ours, theirs, our_address, address) in [
        ("client", "d0", "c0", "192.0.2.1/24", "192.0.2.2/24"),
        ("real", "d1", "r0", "10.0.2.1/24", "10.0.2.11/24"),
    ] {
        run("ip", &format!("netns add {name}"));
        run("ip", &format!("link add {ours} type veth peer name {theirs} netns {name}"));
        run("ip", &format!("addr add {our_address} dev {ours}"));
        run("ip", &format!("link set {ours} up"));
        run("ip", &format!("-n {name} addr add {address} dev {theirs}"));
        run("ip", &format!("-n {name} link set {theirs} up"));
    }
    run("ip", "-n client route add default via 192.0.2.1");
    run("ip", "netns exec real ethtool -K r0 gro on");
    // Found at once, and kept: no test of resolving.
    let mac = run("ip", "netns exec client cat /sys/class/net/c0/address");
    run("ip", &format!("neigh replace {CLIENT} lladdr {} dev d0 nud permanent", mac.trim()));
}

/// A director that runs, killed when dropped.
struct Director {
    process: Child,
    folder: tempfile::TempDir,
}

impl Drop for Director {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn director(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_director")).args(arguments).output().expect("the director command runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Director {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let state = folder.path().join("state").display().to_string();
        let config = format!(
            r#"
[node]
router_id = "10.255.0.1"
interfaces = ["d0", "d1"]
state_dir = "{state}"
[cluster]
name = "alone"
grace_ms = 100
[[service]]
name = "dns"
vip = "{VIP}"
protocol = "udp"
port = 53
[[service.real]]
address = "10.0.2.11"
[[service]]
name = "lost"
vip = "{VIP}"
protocol = "udp"
port = 54
[[service.real]]
address = "10.0.2.99"
"#
        );
        let path = folder.path().join("director.toml");
        std::fs::write(&path, config).expect("written");
        Self { process: Self::spawn(&path, folder.path()), folder }
    }

    fn spawn(config: &Path, folder: &Path) -> Child {
        let log = std::fs::File::create(folder.join("log")).expect("log");
        let process = Command::new(env!("CARGO_BIN_EXE_director"))
            .args(["run", "--config", config.to_str().expect("UTF-8")])
            .stderr(log)
            .spawn()
            .expect("director");
        wait_for("a way to the real server", || {
            let services = text(&director(&["services", "--json"]).stdout);
            services.contains(" on d1\"")
        });
        process
    }

    /// Kills it without warning and starts another.
    fn restart(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
        self.process = Self::spawn(&self.folder.path().join("director.toml"), self.folder.path());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Sends `count` datagrams of `size` bytes from the client's port to the VIP.
fn send(port: u16, to: u16, count: usize, size: usize) {
    let file = std::fs::File::open("/run/netns/client").expect("namespace");
    let sending = std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter namespace");
        let socket = UdpSocket::bind((CLIENT, port)).expect("bind");
        for _ in 0..count {
            socket.send_to(&vec![b'x'; size], (VIP, to)).expect("send");
        }
    });
    sending.join().expect("client");
}

/// A capture that has begun.
fn capture(arguments: &[&str]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_director"))
        .arg("capture")
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .expect("capture");
    let mut said = [0; 9];
    let stderr = child.stderr.as_mut().expect("piped");
    std::io::Read::read_exact(stderr, &mut said).expect("it says that it runs");
    assert_eq!(text(&said), "capturing");
    child
}

/// Waits for a capture to end by itself; what it said.
fn ended(mut child: Child) -> String {
    wait_for("the end of the capture", || child.try_wait().expect("wait").is_some());
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// The enhanced packets of a pcapng file: length of the frame, its bytes, and the whole block as text.
fn packets(file: &Path) -> Vec<(u32, Vec<u8>, String)> {
    let bytes = std::fs::read(file).expect("file");
    let mut packets = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("word"));
        let length = word(4) as usize;
        if word(0) == 6 {
            let captured = word(20) as usize;
            let options = text(&rest[28 + captured.next_multiple_of(4)..length - 4]);
            packets.push((word(24), rest[28..28 + captured].to_vec(), options));
        }
        rest = &rest[length..];
    }
    packets
}

/// What tcpdump, which knows nothing of us, finds in a file.
fn tcpdump(file: &Path) -> Vec<String> {
    let output =
        Command::new("tcpdump").args(["-tt", "-nn", "-e", "-r"]).arg(file).output().expect("tcpdump");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn captures_hold_what_was_asked_for_and_end_without_a_trace() {
    isolated(|| {
        build();
        let mut running = Director::start();

        // By service and count: the very bytes that were sent, when and where they came in.
        let file = running.file("dns.pcapng");
        let name = file.to_str().expect("UTF-8");
        let child = capture(&["--service", "dns", "--count", "5", "-w", name]);
        let second = director(&["capture", "-w", "/dev/null"]);
        assert!(text(&second.stderr).contains("one at a time"), "{}", text(&second.stderr));
        send(1_111, 54, 3, 10);
        send(2_222, 53, 5, 900);
        assert!(ended(child).contains("5 packets captured, 0 lost"));
        let found = packets(&file);
        assert_eq!(found.len(), 5);
        for (length, bytes, options) in &found {
            assert_eq!((*length, bytes.len()), (14 + 28 + 900, 14 + 28 + 900));
            assert_eq!(bytes[42..], [b'x'; 900], "payload");
            assert_eq!(bytes[22], 64, "as it came: the hop limit is not spent yet");
            assert!(options.contains("service=dns real=10.0.2.11:53 verdict=redirected"), "{options}");
        }
        let lines = tcpdump(&file);
        assert_eq!(lines.len(), 5);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock");
        for line in &lines {
            assert!(line.contains("192.0.2.2.2222 > 203.0.113.10.53"), "{line}");
            let seconds: f64 = line.split(' ').next().and_then(|time| time.parse().ok()).expect("time");
            assert!((now.as_secs_f64() - seconds).abs() < 60.0, "{line}: wall clock");
        }

        // By reason, in the words of `director status`; cut short; on standard output; ended by a signal.
        let mut child = Command::new(env!("CARGO_BIN_EXE_director"))
            .args(["capture", "--reason", "dropped: no-next-hop", "--snaplen", "60", "-w", "-"])
            .stdout(std::fs::File::create(running.file("lost.pcapng")).expect("file"))
            .spawn()
            .expect("capture");
        // Until it runs, packets are not seen: send until one is.
        wait_for("a dropped packet in the file", || {
            send(3_333, 53, 1, 100);
            send(3_333, 54, 1, 100);
            std::fs::metadata(running.file("lost.pcapng")).expect("file").len() > 400
        });
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("signal");
        assert!(child.wait().expect("wait").success());
        let found = packets(&running.file("lost.pcapng"));
        assert!(!found.is_empty());
        for (length, bytes, options) in &found {
            assert_eq!((*length, bytes.len()), (142, 60));
            assert!(options.contains("service=lost verdict=dropped: no-next-hop"), "{options}");
        }

        // A client that dies takes its capture with it: the next one may begin. After the rewrite.
        let mut child = capture(&["-w", running.file("dead.pcapng").to_str().expect("UTF-8")]);
        child.kill().expect("kill");
        child.wait().expect("wait");
        let file = running.file("after.pcapng");
        let name = file.to_str().expect("UTF-8");
        let arguments = ["--reason", "redirected", "--after", "--count", "1", "-w", name];
        let mut child = None;
        wait_for("the next capture", || {
            let probe = director(&["capture", "--reason", "bad-table", "--duration", "1", "-w", "/dev/null"]);
            probe.status.success() && child.replace(capture(&arguments)).is_none()
        });
        send(4_444, 53, 1, 10);
        ended(child.expect("begun"));
        let found = packets(&file);
        assert_eq!(found[0].1[22], 63, "as it leaves: the hop limit is spent");

        // What a director that was killed left behind is not taken up by the next.
        let mut child = capture(&["-w", running.file("old.pcapng").to_str().expect("UTF-8")]);
        running.restart();
        wait_for("the end of the orphan", || child.try_wait().expect("wait").is_some());
        let child = capture(&["--count", "2", "--reason", "redirected", "-w", name]);
        send(5_555, 53, 2, 10);
        assert!(ended(child).contains("2 packets captured"));

        // Names that are none are answered by those there are.
        let unknown = director(&["capture", "--reason", "no-such-thing", "-w", "/dev/null"]);
        let said = text(&unknown.stderr);
        assert!(said.contains("dropped: no-next-hop") && said.contains("passed: no-service"), "{said}");
        let unknown = director(&["capture", "--service", "nobody", "-w", "/dev/null"]);
        assert!(text(&unknown.stderr).contains("there are: dns, lost"), "{}", text(&unknown.stderr));
    });
}

#[test]
fn explain_tells_the_whole_decision() {
    isolated(|| {
        build();
        let _running = Director::start();
        let explain = |arguments: &[&str]| {
            let output = director(&[&["explain", "--src", "192.0.2.2:4000"], arguments].concat());
            (output.status.success(), text(&output.stdout) + &text(&output.stderr))
        };
        let (good, said) = explain(&["--dst", "203.0.113.10:53", "--proto", "udp"]);
        assert!(good, "{said}");
        for expected in [
            "udp 192.0.2.2:4000 -> 203.0.113.10:53, 28 bytes",
            "comes in by  d0",
            "verdict      redirected",
            "service      dns (matched by udp 203.0.113.10:53)",
            ", settled",
            "real server  10.0.2.11:53 (position 0)",
            " on d1 (from ",
            "look-ups",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let (_, said) = explain(&["--dst", "203.0.113.10:54", "--proto", "udp"]);
        assert!(said.contains("dropped: no-next-hop") && said.contains("10.0.2.99:54"), "{said}");
        let (_, said) = explain(&["--dst", "203.0.113.10:80", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(json["verdict"], "passed: no-service");
        assert_eq!(json["service"], serde_json::Value::Null);
        for (arguments, expected) in [
            (["--dst", "[2001:db8::1]:80", "--interface", "d0"], "not of the same family"),
            (["--dst", "203.0.113.10:80", "--interface", "d7"], "it is on: d0, d1"),
            (["--dst", "203.0.113.10:80", "--length", "30"], "does not hold its headers"),
        ] {
            let (good, said) = explain(&arguments);
            assert!(!good && said.contains(expected), "{said}");
        }
        // Asking was not a packet.
        let services: serde_json::Value =
            serde_json::from_str(&text(&director(&["services", "--json"]).stdout)).expect("JSON");
        assert_eq!(services["services"][0]["traffic"]["packets_in"], 0, "{services}");
        assert_eq!(services["services"][0]["slots"]["settled"], 65_537, "{services}");
        assert_eq!(services["services"][0]["slots"]["moving"], 0, "{services}");
    });
}
