//! The runner on real namespaces: what a node sees, what it does not, and that nothing is left. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::Topology;
use lab::deploy::{self, Lab, Options};

/// A topology file of its own in a folder of its own.
struct File {
    folder: tempfile::TempDir,
    name: String,
}

impl File {
    fn new(test: &str, body: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces: run it as root");
        let folder = tempfile::tempdir().unwrap();
        let name = format!("lab-{test}-{}", std::process::id());
        std::fs::write(folder.path().join("t.clab.yml"), format!("name: {name}\n{body}")).unwrap();
        Self { folder, name }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("t.clab.yml")
    }

    fn topology(&self) -> Topology {
        Topology::load(self.path()).unwrap()
    }

    /// What is left of the lab on this machine: namespaces, files, mounts.
    fn leftovers(&self) -> Vec<String> {
        let long = format!("clab-{}", self.name);
        let netns = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let mut found: Vec<_> = netns
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|n| n.starts_with(&long))
            .collect();
        found.extend(Path::new("/run/clab").join(&self.name).exists().then(|| "state folder".to_owned()));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(&self.name)).map(str::to_owned));
        found
    }
}

/// Inodes of all network namespaces that processes are in.
fn namespaces_in_use() -> BTreeSet<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| std::fs::read_link(entry.path().join("ns/net")).ok()).collect()
}

const PAIR: &str = r#"
topology:
  defaults: {kind: linux, image: debian}
  nodes:
    a:
      hostname: alpha
      env: {GREETING: "hello world"}
      sysctls: {net.ipv4.ip_forward: 1, net.ipv4.conf.default.forwarding: 1}
      binds: ["t.clab.yml:/var/run/x/in.yml:ro", ".:/deep/er/folder"]
      exec:
        - ip address add 10.99.0.1/24 dev eth1
        - sh -c 'echo "$GREETING" >/etc/lab-greeting; sleep 600 & exec sleep 0'
    b: {exec: ["ip address add 10.99.0.2/24 dev left"]}
  links:
    - type: veth
      mtu: 1400
      endpoints: [{node: a, interface: eth1, mac: "02:00:00:00:00:aa"}, {node: b, interface: left}]
"#;

#[test]
fn a_node_is_what_its_file_says_and_nothing_is_left() {
    let file = File::new("pair", PAIR);
    let lab = Lab::up(&file.topology(), &Options::default()).unwrap();
    let sh = |node: &str, script: &str| lab.sh(node, script).unwrap().trim().to_owned();
    assert_eq!(
        sh("a", "hostname; cat /proc/sys/net/ipv4/ip_forward /etc/lab-greeting"),
        "alpha\n1\nhello world"
    );
    assert_eq!(sh("a", "cat /sys/class/net/eth1/address /sys/class/net/eth1/mtu"), "02:00:00:00:00:aa\n1400");
    assert!(sh("a", "cat /run/x/in.yml").contains("topology:"));
    assert!(
        !lab.exec("a", &["sh", "-c", "echo >>/run/x/in.yml"]).unwrap().status.success(),
        "a read-only bind"
    );
    sh("a", "echo from-node >/deep/er/folder/out; touch /run/mine /tmp/mine /dev/shm/mine");
    assert_eq!(std::fs::read_to_string(file.folder.path().join("out")).unwrap(), "from-node\n");
    for outside in ["/etc/lab-greeting", "/deep", "/run/mine", "/tmp/mine", "/dev/shm/mine"] {
        assert!(!Path::new(outside).exists(), "{outside} must stay in the node");
    }
    assert_eq!(sh("b", "ls /run/mine /tmp/mine 2>/dev/null | wc -l; stat -f -c %T /sys/fs/bpf"), "0\nbpf_fs");
    assert!(sh("b", "ping -c 1 -W 5 10.99.0.1").contains(" 0% packet loss"));
    let long = format!("clab-{}-a", file.name);
    let mut by_name = Command::new("ip");
    by_name.args(["netns", "exec", &long, "ping", "-c", "1", "-W", "5", "10.99.0.2"]).stdout(Stdio::null());
    assert!(by_name.status().unwrap().success(), "ip netns knows the node");

    let inspected = lab.inspect().unwrap();
    assert!(inspected[0].processes.iter().any(|(_, command)| command == "sleep 600"), "{inspected:?}");
    let again = Lab::up(&file.topology(), &Options::default()).unwrap_err().to_string();
    assert!(again.contains("is there already") && again.contains("--reconfigure"), "{again}");
    let pid = inspected[0].processes[0].0;

    let start = Instant::now();
    lab.down().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(file.leftovers(), Vec::<String>::new());
    assert!(std::fs::read_link(format!("/proc/{pid}/ns/net")).is_err(), "process {pid} lives on");
    assert!(deploy::down(&file.name).unwrap_err().to_string().contains("is not running"));
}

#[test]
fn a_bridge_joins_its_links() {
    let node = |n| format!("    n{n}: {{kind: linux, exec: ['ip address add 10.98.0.{n}/24 dev eth1']}}\n");
    let links = "    - endpoints: ['n1:eth1', 'sw:p1']\n    - endpoints: ['n2:eth1', 'sw:p2']\n";
    let body =
        format!("topology:\n  nodes:\n{}{}    sw: {{kind: bridge}}\n  links:\n{links}", node(1), node(2));
    let file = File::new("bridge", &body);
    let lab = Lab::up(&file.topology(), &Options::default()).unwrap();
    assert!(lab.sh("n1", "ping -c 3 -i 0.2 -W 5 10.98.0.2").unwrap().contains("bytes from"));
    // Dropping the guard is enough.
    drop(lab);
    assert_eq!(file.leftovers(), Vec::<String>::new());
}

#[test]
fn a_failing_command_is_named_and_undoes_the_lab() {
    let file = File::new(
        "fail",
        "topology:\n  nodes:\n    good: {kind: linux}\n    bad: {kind: linux, exec: ['sh -c \"echo oh no >&2; exit 3\"']}\n",
    );
    let error = format!("{:#}", Lab::up(&file.topology(), &Options::default()).unwrap_err());
    for part in ["node bad", "exit status: 3", "oh no"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(file.leftovers(), Vec::<String>::new());
    let missing = File::new("miss", "topology:\n  nodes: {a: {kind: linux, binds: ['nothing-here:/x']}}\n");
    let error = format!("{:#}", Lab::up(&missing.topology(), &Options::default()).unwrap_err());
    assert!(error.contains("nothing-here does not exist"), "{error}");
    assert_eq!(missing.leftovers(), Vec::<String>::new());
}

/// Kills the runner at many moments of its work; `down` must leave nothing each time.
#[test]
fn a_killed_runner_leaves_nothing_that_down_does_not_remove() {
    let nodes: String = (0..6)
        .map(|n| format!("    n{n}: {{kind: linux, exec: ['sh -c \"sleep 600 &\"', 'sleep 0.05']}}\n"))
        .collect();
    let links: String = (0..5).map(|n| format!("    - endpoints: ['n{n}:r', 'n{}:l']\n", n + 1)).collect();
    let file = File::new("kill", &format!("topology:\n  nodes:\n{nodes}  links:\n{links}"));
    let before = namespaces_in_use();
    let mut interrupted = 0;
    for moment in (0..24).map(|n| Duration::from_millis(n * 6)) {
        let mut runner = Command::new(env!("CARGO_BIN_EXE_lab"))
            .arg("up")
            .arg(file.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(moment);
        interrupted += u32::from(runner.try_wait().unwrap().is_none());
        runner.kill().unwrap();
        runner.wait().unwrap();
        // Its lock is gone with it; what it had not written down it had not made.
        if let Err(error) = deploy::down(&file.name) {
            assert!(error.to_string().contains("is not running"), "{moment:?}: {error:#}");
        }
        assert_eq!(file.leftovers(), Vec::<String>::new(), "after {moment:?}");
    }
    assert!(interrupted > 5, "only {interrupted} runs were cut short: the moments are wrong");
    let start = Instant::now();
    // Other tests make namespaces as well: only ours, with a sleeper in it, would stay.
    while namespaces_in_use().difference(&before).any(|namespace| has_sleeper(namespace)) {
        assert!(start.elapsed() < Duration::from_secs(5), "processes of killed labs are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn has_sleeper(namespace: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let inside =
        |path: &PathBuf| std::fs::read_link(path.join("ns/net")).is_ok_and(|found| found == namespace);
    let sleeps =
        |path: PathBuf| std::fs::read(path.join("cmdline")).is_ok_and(|c| c.starts_with(b"sleep\x00600"));
    processes.filter(inside).any(sleeps)
}
