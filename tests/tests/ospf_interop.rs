//! The speaker against FRR and BIRD as they are in Debian 12: adjacency, ECMP on the switch's kernel table,
//! withdrawal, link loss, crash and restart, clean stop, and learned routes on our side.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cluster_tests::netns::{Namespace, Process, is_root, until};
use serde_json::Value;

const VIP: &str = "203.0.113.10";
/// A prefix behind the switch, which the directors learn.
const BEHIND: &str = "198.18.0.1";

/// The example program of the routing crate, built once.
fn speaker_program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status =
            Command::new(cargo).args(["build", "-q", "-p", "routing", "--example", "speaker"]).status();
        assert!(status.expect("cargo runs").success(), "the example builds");
        let own = std::env::current_exe().expect("a test has a path");
        own.parent().and_then(|deps| deps.parent()).expect("in target").join("examples/speaker")
    };
    PROGRAM.get_or_init(build).clone()
}

/// A running speaker with its controls.
struct Speaker {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Speaker {
    fn start(namespace: &Namespace, arguments: &[&str]) -> Result<Self> {
        let mut command = namespace.command(speaker_program());
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        if std::env::var_os("OSPF_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        let mut process = command.spawn()?;
        let input = process.stdin.take().context("piped")?;
        let output = BufReader::new(process.stdout.take().context("piped")?);
        Ok(Self { process, input, output })
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("the speaker is gone")
    }

    fn status(&mut self) -> Result<Value> {
        self.tell("status")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context(line)
    }

    fn full(&mut self) -> Result<usize> {
        let status = self.status()?;
        let neighbors = status["neighbors"].as_array().context("neighbors")?;
        Ok(neighbors.iter().filter(|neighbor| neighbor["state"] == "Full").count())
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.kill(); // it may have ended
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Brand {
    Frr,
    Bird,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Net {
    PointToPoint,
    Broadcast,
}

/// A switch with its routing daemons, and the directors' namespaces. Devices: `s1`, `s2` on the switch, or
/// `br0` over both; `eth1` on the directors.
struct Lab {
    net: Net,
    daemons: Vec<Process>,
    switch: Namespace,
    directors: Vec<Namespace>,
    folder: PathBuf,
}

impl Lab {
    fn new(brand: Brand, net: Net) -> Result<Self> {
        let switch = Namespace::new("rt-s")?;
        let directors = vec![Namespace::new("rt-d")?, Namespace::new("rt-d")?];
        if net == Net::Broadcast {
            switch.ip("link add br0 type bridge")?;
            switch.ip("addr add 10.9.0.254/24 dev br0")?;
            switch.ip("link set br0 up")?;
        }
        for (at, director) in directors.iter().enumerate() {
            let number = at + 1;
            let device = format!("s{number}");
            match net {
                Net::PointToPoint => {
                    let (here, there) = (format!("10.9.{number}.1/30"), format!("10.9.{number}.2/30"));
                    switch.veth(&device, &here, director, "eth1", &there)?;
                }
                Net::Broadcast => {
                    switch.veth(&device, "", director, "eth1", &format!("10.9.0.{number}/24"))?;
                    switch.ip(&format!("link set {device} master br0"))?;
                }
            }
        }
        switch.ip(&format!("addr add {BEHIND}/32 dev lo"))?;
        let folder = std::env::temp_dir().join(switch.name());
        std::fs::create_dir_all(&folder)?;
        let mut lab = Self { net, switch, directors, daemons: Vec::new(), folder };
        match brand {
            Brand::Frr => lab.start_frr()?,
            Brand::Bird => lab.start_bird()?,
        }
        Ok(lab)
    }

    fn devices(&self) -> Vec<String> {
        match self.net {
            Net::PointToPoint => vec!["s1".into(), "s2".into()],
            Net::Broadcast => vec!["br0".into()],
        }
    }

    fn start_frr(&mut self) -> Result<()> {
        let kind = if self.net == Net::Broadcast { "broadcast" } else { "point-to-point" };
        let mut ospf = String::new();
        for device in self.devices() {
            ospf += &format!(
                "interface {device}\n ip ospf network {kind}\n ip ospf hello-interval 1\n \
                 ip ospf dead-interval 4\n ip ospf area 0\n"
            );
        }
        ospf += "interface lo\n ip ospf area 0\nrouter ospf\n ospf router-id 10.255.1.1\n";
        std::fs::write(self.folder.join("ospfd.conf"), ospf)?;
        // FRR 8.4.4 loses a leg of a next hop group for good when its link flaps.
        std::fs::write(self.folder.join("zebra.conf"), "no zebra nexthop kernel enable\n")?;
        let folder = self.folder.to_str().context("utf-8")?.to_owned();
        let chown = Command::new("chown").args(["-R", "frr:frr", &folder]).status()?;
        ensure!(chown.success(), "chown frr:frr: is FRR installed?");
        for daemon in ["zebra", "ospfd"] {
            let mut command = self.switch.command(format!("/usr/lib/frr/{daemon}"));
            command.args(["-u", "frr", "-g", "frr", "-f", &format!("{folder}/{daemon}.conf")]);
            command.args(["--vty_socket", &folder, "-i", &format!("{folder}/{daemon}.pid"), "-P", "0"]);
            command.args(["-z", &format!("{folder}/zserv.api")]);
            self.daemons.push(Process::quiet(command)?);
            let socket = self.folder.join(format!("{daemon}.vty"));
            until("FRR listens", Duration::from_secs(10), || Ok(socket.exists()))?;
        }
        Ok(())
    }

    fn start_bird(&mut self) -> Result<()> {
        let kind = if self.net == Net::Broadcast { "broadcast" } else { "ptp" };
        let interface = |device: &String| {
            format!("interface \"{device}\" {{ type {kind}; hello 1; dead 4; wait 2; }};\n")
        };
        let interfaces: String = self.devices().iter().map(interface).collect();
        let config = format!(
            "router id 10.255.1.1;\nprotocol device {{ scan time 1; }}\n\
             protocol kernel {{ merge paths yes; ipv4 {{ export all; import none; }}; }}\n\
             protocol ospf v2 {{ tick 1; ipv4 {{ import all; export none; }};\n\
             area 0 {{ {interfaces} interface \"lo\" {{ stub yes; }}; }}; }}\n"
        );
        let path = self.folder.join("bird.conf");
        std::fs::write(&path, config)?;
        let mut command = self.switch.command("bird");
        command.arg("-f").arg("-c").arg(path).arg("-s").arg(self.folder.join("ctl"));
        command.arg("-P").arg(self.folder.join("pid"));
        self.daemons.push(Process::quiet(command)?);
        Ok(())
    }

    /// Next hops of the VIP in the switch's kernel.
    fn next_hops(&self) -> Result<BTreeSet<String>> {
        let routes: Value = serde_json::from_str(&self.switch.ip("-j route show")?)?;
        let routes = routes.as_array().context("routes")?;
        let Some(route) = routes.iter().find(|route| route["dst"] == VIP) else { return Ok(BTreeSet::new()) };
        let gateway = |hop: &Value| hop["gateway"].as_str().map(str::to_owned);
        let many = route["nexthops"].as_array().into_iter().flatten().filter_map(gateway);
        Ok(many.chain(gateway(route)).collect())
    }

    fn until_next_hops(&self, what: &str, count: usize, seconds: u64) -> Result<Duration> {
        let took = until(what, Duration::from_secs(seconds), || Ok(self.next_hops()?.len() == count))?;
        eprintln!("{}: {what}: {took:?}", self.switch.name());
        Ok(took)
    }

    /// Fails if the number of next hops changes within `span`.
    fn stays(&self, count: usize, span: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < span {
            let hops = self.next_hops()?;
            ensure!(hops.len() == count, "{hops:?} after {:?}, expected {count}", start.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn speaker(&self, director: usize) -> Result<Speaker> {
        let kind = if self.net == Net::Broadcast { "broadcast" } else { "p2p" };
        let interface = format!("eth1:{kind}:hello=1:dead=4");
        let router = format!("10.255.0.{}", director + 1);
        Speaker::start(&self.directors[director], &[&router, &interface, &format!("{VIP}/32=10")])
    }

    /// Routes of our protocol in a director's kernel.
    fn learned(&self, director: usize) -> Result<String> {
        self.directors[director].ip("route show proto 201")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.daemons.clear();
        let _ = std::fs::remove_dir_all(&self.folder); // in the temporary folder anyway
    }
}

/// The whole life of two directors beside a switch.
fn life_of_two_directors(test: &str, brand: Brand, net: Net) -> Result<()> {
    if !is_root(test) {
        return Ok(());
    }
    let lab = Lab::new(brand, net)?;
    let mut one = lab.speaker(0)?;
    let mut two = lab.speaker(1)?;
    until("both are full", Duration::from_secs(30), || Ok(one.full()? == 1 && two.full()? == 1))?;
    lab.until_next_hops("ECMP of both", 2, 20)?;
    until("route learned", Duration::from_secs(10), || Ok(lab.learned(0)?.contains(BEHIND)))?;
    ensure!(!lab.learned(0)?.contains(VIP), "a director must not install the VIP of another");
    lab.stays(2, Duration::from_secs(2))?;
    change_the_announcement(&lab, &mut two)?;
    lose_the_link(&lab)?;

    two.kill()?;
    lab.until_next_hops("killed, dead interval", 1, 6)?;
    let mut two = lab.speaker(1)?;
    lab.until_next_hops("restarted", 2, 20)?;
    lab.stays(2, Duration::from_secs(8)).context("the restart must not flap")?;

    let start = Instant::now();
    two.tell("stop")?;
    lab.until_next_hops("clean stop", 1, 2)?;
    until("process ends", Duration::from_secs(3), || two.has_ended())?;
    ensure!(start.elapsed() < Duration::from_millis(2300), "a stop took {:?}", start.elapsed());
    ensure!(lab.learned(1)?.is_empty(), "learned routes go with a clean stop");
    ensure!(!lab.learned(0)?.is_empty(), "and stay where no one stopped");
    Ok(())
}

fn change_the_announcement(lab: &Lab, speaker: &mut Speaker) -> Result<()> {
    speaker.tell("announce")?;
    lab.until_next_hops("withdrawn", 1, 2)?;
    speaker.tell(&format!("announce {VIP}/32=10"))?;
    lab.until_next_hops("announced again within a second", 2, 4)?;
    lab.stays(2, Duration::from_secs(2))?;
    speaker.tell(&format!("announce {VIP}/32=1010"))?;
    lab.until_next_hops("drained by metric", 1, 2)?;
    ensure!(speaker.full()? == 1, "draining keeps the adjacency");
    speaker.tell(&format!("announce {VIP}/32=10"))?;
    lab.until_next_hops("back from drain", 2, 4)?;
    Ok(())
}

fn lose_the_link(lab: &Lab) -> Result<()> {
    lab.switch.ip("link set s2 down")?;
    lab.until_next_hops("link down", 1, if lab.net == Net::Broadcast { 6 } else { 2 })?;
    lab.switch.ip("link set s2 up")?;
    lab.until_next_hops("link up", 2, 20)?;
    Ok(())
}

#[test]
fn frr_over_point_to_point_links() -> Result<()> {
    life_of_two_directors("frr_over_point_to_point_links", Brand::Frr, Net::PointToPoint)
}

#[test]
fn bird_over_point_to_point_links() -> Result<()> {
    life_of_two_directors("bird_over_point_to_point_links", Brand::Bird, Net::PointToPoint)
}

#[test]
fn frr_over_a_broadcast_segment() -> Result<()> {
    life_of_two_directors("frr_over_a_broadcast_segment", Brand::Frr, Net::Broadcast)
}

#[test]
fn bird_over_a_broadcast_segment() -> Result<()> {
    life_of_two_directors("bird_over_a_broadcast_segment", Brand::Bird, Net::Broadcast)
}

#[test]
fn mismatches_are_counted_and_shown() -> Result<()> {
    if !is_root("mismatches_are_counted_and_shown") {
        return Ok(());
    }
    let lab = Lab::new(Brand::Frr, Net::PointToPoint)?;
    let counted = |speaker: &mut Speaker, name: &str| {
        Ok(speaker.status()?["counters"][name].as_u64().is_some_and(|count| count > 0))
    };
    let ten = Duration::from_secs(10);
    let mut slow = Speaker::start(&lab.directors[0], &["10.255.0.1", "eth1:p2p:hello=2:dead=8"])?;
    until("hello interval counted", ten, || counted(&mut slow, "hello_interval"))?;
    let mut twin = Speaker::start(&lab.directors[1], &["10.255.1.1", "eth1:p2p:hello=1:dead=4"])?;
    until("router id counted", ten, || counted(&mut twin, "duplicate_router_id"))?;
    slow.kill()?;
    lab.directors[0].ip("link set eth1 mtu 1400")?;
    let mut small = lab.speaker(0)?;
    until("MTU shown", ten, || Ok(small.status()?["neighbors"][0]["reason"] == "MTU: peer 1500, ours 1400"))?;
    lab.directors[0].ip("link set eth1 mtu 1500")?;
    until("full once the MTU is right", Duration::from_secs(20), || Ok(small.full()? == 1))?;
    Ok(())
}

#[test]
fn suspended_speaker_leaves_routes_and_its_successor_adopts_them() -> Result<()> {
    if !is_root("suspended_speaker_leaves_routes_and_its_successor_adopts_them") {
        return Ok(());
    }
    let lab = Lab::new(Brand::Frr, Net::PointToPoint)?;
    let mut one = lab.speaker(0)?;
    lab.until_next_hops("announced", 1, 20)?;
    until("route learned", Duration::from_secs(10), || Ok(lab.learned(0)?.contains(BEHIND)))?;
    lab.directors[0].ip("route add 198.18.99.0/24 via 10.9.1.1 proto 201 metric 110")?;
    one.tell("keep")?;
    until("process ends", Duration::from_secs(2), || one.has_ended())?;
    ensure!(lab.learned(0)?.contains(BEHIND), "routes stay");
    ensure!(lab.next_hops()?.len() == 1, "the switch has heard nothing");
    let mut successor = lab.speaker(0)?;
    until("successor full", Duration::from_secs(10), || {
        ensure!(lab.learned(0)?.contains(BEHIND), "the route must not flap");
        Ok(successor.full()? == 1)
    })?;
    until("stale route goes", Duration::from_secs(25), || Ok(!lab.learned(0)?.contains("198.18.99.0")))?;
    ensure!(lab.learned(0)?.contains(BEHIND), "the live one stays");
    Ok(())
}

#[test]
fn two_uplinks_make_a_multipath_route_that_is_kept_right() -> Result<()> {
    if !is_root("two_uplinks_make_a_multipath_route_that_is_kept_right") {
        return Ok(());
    }
    let (director, left, right) = (Namespace::new("rt-d")?, Namespace::new("rt-l")?, Namespace::new("rt-r")?);
    director.veth("eth1", "10.9.1.1/30", &left, "eth1", "10.9.1.2/30")?;
    director.veth("eth2", "10.9.2.1/30", &right, "eth1", "10.9.2.2/30")?;
    let prefix = "198.51.100.0/24";
    let switch = |namespace, router| {
        Speaker::start(namespace, &[router, "eth1:p2p:hello=1:dead=4", &format!("{prefix}=5")])
    };
    let _left = switch(&left, "10.255.1.1")?;
    let mut right_switch = switch(&right, "10.255.1.2")?;
    let uplinks = ["10.255.0.1", "eth1:p2p:hello=1:dead=4", "eth2:p2p:hello=1:dead=4"];
    let mut one = Speaker::start(&director, &uplinks)?;
    let hops = || Ok::<_, anyhow::Error>(director.ip("route show 198.51.100.0/24")?.matches("via").count());
    let ten = Duration::from_secs(10);
    until("two next hops", ten, || Ok(hops()? == 2))?;
    director.ip("route del 198.51.100.0/24 proto 201")?;
    until("a removed route comes back", Duration::from_secs(15), || Ok(hops()? == 2))?;
    right.ip("link set eth1 down")?;
    until("one next hop after the loss of a link", Duration::from_secs(2), || Ok(hops()? == 1))?;
    right.ip("link set eth1 up")?;
    until("two again", ten, || Ok(hops()? == 2))?;
    right_switch.tell("stop")?;
    until("one next hop after a stop", Duration::from_secs(3), || Ok(hops()? == 1))?;
    one.kill()?;
    ensure!(hops()? == 1, "a killed speaker leaves its routes");
    let mut again = Speaker::start(&director, &uplinks)?;
    until("full again", ten, || Ok(again.full()? == 1))?;
    again.tell("stop")?;
    until("a clean stop removes them", Duration::from_secs(3), || Ok(hops()? == 0))?;
    Ok(())
}
