//! A switch with FRR or BIRD, and two directors' namespaces beside it for speakers to run in.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cluster_tests::netns::{Namespace, Process, until};
use serde_json::Value;

use crate::speaker::Speaker;

/// The version of IP, and with it that of OSPF.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// What the directors announce.
    pub(crate) fn vip(self) -> &'static str {
        match self {
            Self::V4 => "203.0.113.10",
            Self::V6 => "2001:db8:ffff::10",
        }
    }

    /// The VIP as a prefix.
    pub(crate) fn vip_prefix(self) -> String {
        match self {
            Self::V4 => format!("{}/32", self.vip()),
            Self::V6 => format!("{}/128", self.vip()),
        }
    }

    /// A prefix behind the switch, which the directors learn.
    pub(crate) fn behind(self) -> &'static str {
        match self {
            Self::V4 => "198.18.0.1",
            Self::V6 => "2001:db8:198:18::1",
        }
    }

    /// A prefix that the switch redistributes, and an address in it.
    pub(crate) fn outside(self) -> (&'static str, &'static str) {
        match self {
            Self::V4 => ("198.19.0.0/24", "198.19.0.1/24"),
            Self::V6 => ("2001:db8:198:19::/64", "2001:db8:198:19::1/64"),
        }
    }

    /// Addresses of a link: the switch's and the director's end.
    fn link(self, net: Net, number: usize) -> (String, String) {
        match (self, net) {
            (Self::V4, Net::PointToPoint) => (format!("10.9.{number}.1/30"), format!("10.9.{number}.2/30")),
            (Self::V4, Net::Broadcast) => (String::new(), format!("10.9.0.{number}/24")),
            (Self::V6, Net::PointToPoint) => {
                (format!("2001:db8:9:{number}::1/64"), format!("2001:db8:9:{number}::2/64"))
            }
            (Self::V6, Net::Broadcast) => (String::new(), format!("2001:db8:9::{number}/64")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Brand {
    Frr,
    Bird,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Net {
    PointToPoint,
    Broadcast,
}

/// The area of all links, and how it treats externals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Area {
    /// The backbone, where the switch redistributes nothing.
    Backbone,
    Normal,
    Stub,
    Nssa,
}

impl Area {
    /// Its id.
    fn id(self) -> &'static str {
        if self == Self::Backbone { "0.0.0.0" } else { "0.0.0.1" }
    }

    /// The parts of an interface of ours that say so.
    pub(crate) fn parts(self) -> &'static str {
        match self {
            Self::Backbone => "",
            Self::Normal => ":area=0.0.0.1",
            Self::Stub => ":area=0.0.0.1:stub",
            Self::Nssa => ":area=0.0.0.1:nssa",
        }
    }
}

/// What the interfaces say beyond their timers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extra<'a> {
    /// Lines in the configuration of each interface of the switch, as its brand spells them.
    pub(crate) switch: &'a str,
    /// Parts of the directors' interface, as the speaker takes them.
    pub(crate) speaker: &'a str,
    /// Whether switch and directors watch each other by BFD, 50 ms x 3.
    pub(crate) bfd: bool,
    pub(crate) area: Area,
    /// Whether the switch can restart gracefully.
    pub(crate) graceful: bool,
}

impl Extra<'_> {
    pub(crate) const NONE: Self =
        Self { switch: "", speaker: "", bfd: false, area: Area::Backbone, graceful: false };
}

/// A switch with its routing daemons, and the directors' namespaces. Devices: `s1`, `s2` on the switch, or
/// `br0` over both; `eth1` on the directors.
pub(crate) struct Lab {
    pub(crate) family: Family,
    pub(crate) net: Net,
    /// Whether switch and directors watch each other by BFD, 50 ms x 3.
    bfd: bool,
    area: Area,
    brand: Brand,
    graceful: bool,
    daemons: Vec<Process>,
    pub(crate) switch: Namespace,
    pub(crate) directors: Vec<Namespace>,
    folder: PathBuf,
    /// Parts of the directors' interface.
    speaker: String,
}

impl Lab {
    pub(crate) fn new(brand: Brand, net: Net) -> Result<Self> {
        Self::of(Family::V4, brand, net)
    }

    pub(crate) fn of(family: Family, brand: Brand, net: Net) -> Result<Self> {
        Self::with(family, brand, net, Extra::NONE)
    }

    pub(crate) fn with(family: Family, brand: Brand, net: Net, extra: Extra<'_>) -> Result<Self> {
        let switch = Namespace::new("rt-s")?;
        let directors = vec![Namespace::new("rt-d")?, Namespace::new("rt-d")?];
        if net == Net::Broadcast {
            switch.ip("link add br0 type bridge")?;
            let address = if family == Family::V4 { "10.9.0.254/24" } else { "2001:db8:9::254/64" };
            switch.ip(&format!("addr add {address} dev br0"))?;
            switch.ip("link set br0 up")?;
        }
        for (at, director) in directors.iter().enumerate() {
            let number = at + 1;
            let device = format!("s{number}");
            let (here, there) = family.link(net, number);
            switch.veth(&device, &here, director, "eth1", &there)?;
            if net == Net::Broadcast {
                switch.ip(&format!("link set {device} master br0"))?;
            }
        }
        switch.ip(&format!("addr add {} dev lo", family.behind()))?;
        switch.ip("link add ext0 type veth peer name ext1")?;
        switch.ip(&format!("addr add {} dev ext0", family.outside().1))?;
        for end in ["ext0", "ext1"] {
            switch.ip(&format!("link set {end} up"))?;
        }
        let folder = std::env::temp_dir().join(switch.name());
        std::fs::create_dir_all(&folder)?;
        let Extra { bfd, area, speaker, graceful, .. } = extra;
        let (daemons, speaker) = (Vec::new(), speaker.to_owned());
        let mut lab =
            Self { family, net, bfd, area, brand, graceful, daemons, switch, directors, folder, speaker };
        match brand {
            Brand::Frr => lab.start_frr(extra.switch)?,
            Brand::Bird => lab.start_bird(extra.switch)?,
        }
        Ok(lab)
    }

    fn devices(&self) -> Vec<String> {
        match self.net {
            Net::PointToPoint => vec!["s1".into(), "s2".into()],
            Net::Broadcast => vec!["br0".into()],
        }
    }

    fn start_frr(&mut self, extra: &str) -> Result<()> {
        let kind = if self.net == Net::Broadcast { "broadcast" } else { "point-to-point" };
        let (daemon, word, router) = match self.family {
            Family::V4 => ("ospfd", "ip ospf", "router ospf\n ospf router-id"),
            Family::V6 => ("ospf6d", "ipv6 ospf6", "router ospf6\n ospf6 router-id"),
        };
        let area = self.area.id();
        let mut ospf = String::new();
        for device in self.devices() {
            ospf += &format!(
                "interface {device}\n {word} network {kind}\n {word} hello-interval 1\n \
                 {word} dead-interval 4\n {word} area {area}\n{extra}"
            );
            if self.bfd {
                ospf += &format!(" {word} bfd\n {word} bfd profile fast\n");
            }
        }
        ospf += &format!("interface lo\n {word} area {area}\n{router} 10.255.1.1\n");
        match self.area {
            Area::Backbone | Area::Normal => {}
            Area::Stub => ospf += &format!(" area {area} stub\n"),
            Area::Nssa => ospf += &format!(" area {area} nssa\n"),
        }
        if matches!(self.area, Area::Normal | Area::Nssa) {
            ospf += " redistribute connected\n";
        }
        if self.graceful {
            ospf += " capability opaque\n graceful-restart grace-period 60\n";
        }
        std::fs::write(self.folder.join(format!("{daemon}.conf")), ospf)?;
        // FRR 8.4.4 loses a leg of a next hop group for good when its link flaps.
        std::fs::write(self.folder.join("zebra.conf"), "no zebra nexthop kernel enable\n")?;
        let profile =
            "bfd\n profile fast\n  receive-interval 50\n  transmit-interval 50\n  detect-multiplier 3\n";
        std::fs::write(self.folder.join("bfdd.conf"), profile)?;
        let folder = self.folder.to_str().context("utf-8")?;
        let chown = Command::new("chown").args(["-R", "frr:frr", folder]).status()?;
        ensure!(chown.success(), "chown frr:frr: is FRR installed?");
        // In this order: `kill_bfd` counts on it.
        let bfd = self.bfd;
        for daemon in ["zebra", "bfdd", daemon].into_iter().filter(|daemon| bfd || *daemon != "bfdd") {
            self.start_frr_daemon(daemon)?;
        }
        Ok(())
    }

    fn start_frr_daemon(&mut self, daemon: &str) -> Result<()> {
        let folder = self.folder.to_str().context("utf-8")?;
        let mut command = self.switch.command(format!("/usr/lib/frr/{daemon}"));
        command.args(["-u", "frr", "-g", "frr", "-f", &format!("{folder}/{daemon}.conf")]);
        command.args(["--vty_socket", folder, "-i", &format!("{folder}/{daemon}.pid"), "-P", "0"]);
        command.args(["-z", &format!("{folder}/zserv.api")]);
        if daemon == "bfdd" {
            command.args(["--bfdctl", &format!("{folder}/bfdd.sock")]);
        }
        self.daemons.push(Process::quiet(command)?);
        let socket = self.folder.join(format!("{daemon}.vty"));
        until("FRR listens", Duration::from_secs(10), || Ok(socket.exists())).map(drop)
    }

    /// Tells the switch to restart its OSPF gracefully: BIRD ends by that, FRR waits to be ended.
    pub(crate) fn prepare_restart(&self) -> Result<()> {
        let command = match self.brand {
            Brand::Frr => {
                let mut command = self.switch.command("vtysh");
                command.arg("--vty_socket").arg(&self.folder);
                command.args(["-c", "graceful-restart prepare ip ospf"]);
                command
            }
            Brand::Bird => {
                let mut command = self.switch.command("birdc");
                command.arg("-s").arg(self.folder.join("ctl")).args(["graceful", "restart"]);
                command
            }
        };
        let output = { command }.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && !said.contains('%'), "{:?}: {said}", self.brand);
        Ok(())
    }

    /// Kills what speaks OSPF on the switch, which is the last that was started.
    pub(crate) fn kill_ospf(&mut self) {
        drop(self.daemons.pop());
    }

    /// Starts again what [`Self::kill_ospf`] ended, to take over what it left.
    pub(crate) fn restart_ospf(&mut self) -> Result<()> {
        match self.brand {
            Brand::Frr => {
                let daemon = if self.family == Family::V4 { "ospfd" } else { "ospf6d" };
                std::fs::remove_file(self.folder.join(format!("{daemon}.vty")))?;
                self.start_frr_daemon(daemon)
            }
            Brand::Bird => self.start_bird_process(&self.folder.join("bird.conf"), &["-R"]),
        }
    }

    fn start_bird(&mut self, extra: &str) -> Result<()> {
        let path = self.configure_bird(extra)?;
        self.start_bird_process(&path, &[])
    }

    fn start_bird_process(&mut self, path: &Path, options: &[&str]) -> Result<()> {
        let mut command = self.switch.command("bird");
        command.arg("-f").args(options).arg("-c").arg(path).arg("-s").arg(self.folder.join("ctl"));
        command.arg("-P").arg(self.folder.join("pid"));
        self.daemons.push(Process::quiet(command)?);
        Ok(())
    }

    /// Gives a running BIRD other lines for its interfaces.
    pub(crate) fn reconfigure_bird(&self, extra: &str) -> Result<()> {
        self.configure_bird(extra)?;
        let mut command = self.switch.command("birdc");
        let output = command.arg("-s").arg(self.folder.join("ctl")).arg("configure").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            said.contains("Reconfigured") || said.contains("Reconfiguration in progress"),
            "birdc: {said}"
        );
        Ok(())
    }

    fn configure_bird(&self, extra: &str) -> Result<PathBuf> {
        let kind = if self.net == Net::Broadcast { "broadcast" } else { "ptp" };
        let (bfd, protocol) = match self.bfd {
            true => (
                "bfd yes;",
                "protocol bfd { interface \"*\" { min rx interval 50 ms; min tx interval 50 ms; \
                 idle tx interval 1 s; multiplier 3; }; }\n",
            ),
            false => ("", ""),
        };
        let interface = |device: &String| {
            format!("interface \"{device}\" {{ type {kind}; hello 1; dead 4; wait 2; {bfd} {extra} }};\n")
        };
        let interfaces: String = self.devices().iter().map(interface).collect();
        let (version, channel, behind) = match self.family {
            Family::V4 => ("v2", "ipv4", "interface \"lo\" { stub yes; };".to_owned()),
            // `lo` has no link-local address, without which BIRD does not speak OSPFv3 of it.
            Family::V6 => ("v3", "ipv6", format!("stubnet {}/128;", self.family.behind())),
        };
        let graceful = if self.graceful { "graceful restart yes;" } else { "" };
        let (area, outside) = (self.area.id(), self.family.outside().0);
        // An AS boundary router cannot be in a stub area, and BIRD says so.
        let redistributes = matches!(self.area, Area::Normal | Area::Nssa);
        let export = if !redistributes { "none" } else { "where source = RTS_STATIC" };
        let kind_of_area = match self.area {
            Area::Backbone | Area::Normal => "",
            Area::Stub => "stub;",
            Area::Nssa => "nssa;",
        };
        let config = format!(
            "router id 10.255.1.1;\nprotocol device {{ scan time 1; }}\n{protocol}\
             protocol kernel {{ merge paths yes; {graceful} {channel} {{ export all; import none; }}; }}\n\
             protocol static {{ {channel}; route {outside} blackhole; }}\n\
             protocol ospf {version} {{ tick 1; {graceful} merge external yes; {channel} {{ import all; export {export}; }};\n\
             area {area} {{ {kind_of_area} {interfaces} {behind} }}; }}\n"
        );
        let path = self.folder.join("bird.conf");
        std::fs::write(&path, config)?;
        Ok(path)
    }

    /// Kills what speaks BFD on the switch: FRR's bfdd alone, or BIRD, which is one process.
    pub(crate) fn kill_bfd(&mut self) {
        let at = self.daemons.len().saturating_sub(2).min(1);
        self.daemons[at].kill();
    }

    /// Next hops of the VIP in the switch's kernel.
    pub(crate) fn next_hops(&self) -> Result<BTreeSet<String>> {
        let routes: Value =
            serde_json::from_str(&self.switch.ip(&format!("{} -j route show", self.option()))?)?;
        let routes = routes.as_array().context("routes")?;
        let Some(route) = routes.iter().find(|route| route["dst"] == self.family.vip()) else {
            return Ok(BTreeSet::new());
        };
        let gateway = |hop: &Value| hop["gateway"].as_str().map(str::to_owned);
        let many = route["nexthops"].as_array().into_iter().flatten().filter_map(gateway);
        Ok(many.chain(gateway(route)).collect())
    }

    pub(crate) fn until_next_hops(&self, what: &str, count: usize, seconds: u64) -> Result<Duration> {
        let took = until(what, Duration::from_secs(seconds), || Ok(self.next_hops()?.len() == count))?;
        eprintln!("{}: {what}: {took:?}", self.switch.name());
        Ok(took)
    }

    /// Fails if the number of next hops changes within `span`.
    pub(crate) fn stays(&self, count: usize, span: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < span {
            let hops = self.next_hops()?;
            ensure!(hops.len() == count, "{hops:?} after {:?}, expected {count}", start.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub(crate) fn speaker(&self, director: usize) -> Result<Speaker> {
        let kind = if self.net == Net::Broadcast { "broadcast" } else { "p2p" };
        let bfd = if self.bfd { ":bfd=50*3" } else { "" };
        let interface = format!("eth1:{kind}:hello=1:dead=4{bfd}{}{}", self.area.parts(), self.speaker);
        let router = format!("10.255.0.{}", director + 1);
        let announced = format!("{}=10", self.family.vip_prefix());
        Speaker::start(&self.directors[director], &[&router, self.option(), &interface, &announced])
    }

    /// Routes of our protocol in a director's kernel.
    pub(crate) fn learned(&self, director: usize) -> Result<String> {
        self.directors[director].ip(&format!("{} route show proto 201", self.option()))
    }

    /// The family as `ip` and the speaker take it.
    pub(crate) fn option(&self) -> &'static str {
        match self.family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.daemons.clear();
        let _ = std::fs::remove_dir_all(&self.folder); // in the temporary folder anyway
    }
}
