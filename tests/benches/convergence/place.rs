//! A director: its namespace, and in it our speaker, BIRD or FRR doing the same job.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    daemons::Daemons,
    netns::{Namespace, Process, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::speaker::Speaker;

/// Cost of a VIP that is served, and of one that is drained.
const METRICS: [u16; 2] = [10, 1010];

/// What speaks OSPF somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Brand {
    Ours,
    Bird,
    Frr,
}

impl Brand {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Bird, Self::Frr];
    /// What can be a switch, in the order of the directors' interfaces.
    pub(crate) const SWITCHES: [Self; 2] = [Self::Frr, Self::Bird];
}

impl fmt::Display for Brand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "this project",
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
        })
    }
}

/// How prefixes are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    Stub,
    External,
}

/// What a director shall announce.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) vips: Vec<String>,
    pub(crate) drained: bool,
}

impl Wish {
    pub(crate) fn of(vips: &[&str]) -> Self {
        Self { vips: vips.iter().map(|vip| (*vip).to_owned()).collect(), drained: false }
    }

    fn metric(&self) -> u16 {
        METRICS[usize::from(self.drained)]
    }
}

/// The lines of BFD in FRR's `bfdd`, for whoever plays whichever role.
pub(crate) fn frr_bfd(interval: u64) -> String {
    format!(
        "bfd\n profile fast\n  receive-interval {interval}\n  transmit-interval {interval}\n  detect-multiplier 3\n"
    )
}

/// The lines of BFD in BIRD.
pub(crate) fn bird_bfd(interval: u64) -> String {
    format!(
        "protocol bfd {{ interface \"*\" {{ min rx interval {interval} ms; min tx interval {interval} ms; \
         idle tx interval 1 s; multiplier 3; }}; }}\n"
    )
}

/// The lines of point-to-point interfaces of FRR.
pub(crate) fn frr_links(devices: &[&str], bfd: bool) -> String {
    let link = |device: &&str| {
        let bfd = if bfd { " ip ospf bfd\n ip ospf bfd profile fast\n" } else { "" };
        format!(
            "interface {device}\n ip ospf network point-to-point\n ip ospf hello-interval 1\n \
             ip ospf dead-interval 4\n ip ospf area 0.0.0.0\n{bfd}"
        )
    };
    devices.iter().map(link).collect()
}

/// The lines of point-to-point interfaces of BIRD.
pub(crate) fn bird_links(devices: &[&str], bfd: bool) -> String {
    let bfd = if bfd { "bfd yes;" } else { "" };
    let link = |device: &&str| format!("interface \"{device}\" {{ type ptp; hello 1; dead 4; {bfd} }};\n");
    devices.iter().map(link).collect()
}

enum Running {
    Nothing,
    Speaker(Box<Speaker>),
    Daemons(Daemons),
}

/// One director. Its processes go before its namespace.
pub(crate) struct Director {
    brand: Brand,
    running: Running,
    number: usize,
    bfd: Option<u64>,
    kind: As,
    wish: Wish,
    /// Addresses on `vip0`, from which FRR announces.
    addresses: Vec<String>,
    pub(crate) namespace: Namespace,
}

impl Director {
    /// A director whose links `eth1` and `eth2` are there, with nothing running yet.
    ///
    /// # Errors
    /// The device for its VIPs cannot be made.
    pub(crate) fn new(
        brand: Brand,
        number: usize,
        bfd: Option<u64>,
        kind: As,
        wish: Wish,
        namespace: Namespace,
    ) -> Result<Self> {
        if brand == Brand::Frr {
            namespace.ip("link add vip0 type veth peer name vip1")?;
            namespace.ip("link set vip0 up")?;
            namespace.ip("link set vip1 up")?;
        }
        let (running, addresses) = (Running::Nothing, Vec::new());
        Ok(Self { brand, running, number, bfd, kind, wish, addresses, namespace })
    }

    fn router(&self) -> String {
        format!("10.255.0.{}", self.number)
    }

    /// Starts what speaks OSPF, with what was wished last.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.running = match self.brand {
            Brand::Ours => {
                let bfd = self.bfd.map(|interval| format!(":bfd={interval}*3")).unwrap_or_default();
                let link = |number| format!("eth{number}:p2p:hello=1:dead=4{bfd}");
                let (router, links) = (self.router(), [link(1), link(2)]);
                let mut speaker = Speaker::start(&self.namespace, &[&router, &links[0], &links[1]])?;
                speaker.tell(&self.announcement())?;
                Running::Speaker(Box::new(speaker))
            }
            Brand::Bird => {
                let mut daemons = Daemons::new(&self.namespace)?;
                daemons.start_bird(&self.bird_configuration(), &[])?;
                Running::Daemons(daemons)
            }
            Brand::Frr => {
                self.set_addresses()?;
                let mut daemons = Daemons::new(&self.namespace)?;
                daemons.start_frr(&self.frr_configurations())?;
                Running::Daemons(daemons)
            }
        };
        Ok(())
    }

    /// A line for our speaker.
    fn announcement(&self) -> String {
        let external = if self.kind == As::External { "e" } else { "" };
        let vip = |vip: &String| format!(" {vip}/32={}{external}", self.wish.metric());
        format!("announce{}", self.wish.vips.iter().map(vip).collect::<String>())
    }

    fn bird_configuration(&self) -> String {
        let (bfd, links) = (self.bfd.map(bird_bfd), bird_links(&["eth1", "eth2"], self.bfd.is_some()));
        let each = |line: &dyn Fn(&String) -> String| self.wish.vips.iter().map(line).collect::<String>();
        let metric = self.wish.metric();
        let (statics, stubs, export) = match self.kind {
            As::Stub => {
                (String::new(), each(&|vip| format!("stubnet {vip}/32 {{ cost {metric}; }};\n")), "none")
            }
            As::External => (
                each(&|vip| format!("route {vip}/32 blackhole;\n")),
                String::new(),
                "where source = RTS_STATIC",
            ),
        };
        format!(
            "router id {};\nprotocol device {{ scan time 1; }}\n{}\
             protocol kernel {{ merge paths yes; ipv4 {{ export where source != RTS_STATIC; import none; }}; }}\n\
             protocol static {{ ipv4;\n{statics} }}\n\
             protocol ospf v2 {{ tick 1; ipv4 {{ import all; export {export}; }};\n\
             area 0.0.0.0 {{ {links} {stubs} }}; }}\n",
            self.router(),
            bfd.unwrap_or_default(),
        )
    }

    fn frr_configurations(&self) -> Vec<(&'static str, String)> {
        let links = frr_links(&["eth1", "eth2"], self.bfd.is_some());
        let (vips, redistribute) = match self.kind {
            As::Stub => {
                let metric = self.wish.metric();
                let lines = "interface vip0\n ip ospf area 0.0.0.0\n ip ospf passive\n ip ospf cost";
                (format!("{lines} {metric}\n"), "")
            }
            As::External => (String::new(), " redistribute connected\n"),
        };
        let ospf = format!("{links}{vips}router ospf\n ospf router-id {}\n{redistribute}", self.router());
        let zebra = ("zebra", "no zebra nexthop kernel enable\n".to_owned());
        let bfdd = self.bfd.map(|interval| ("bfdd", frr_bfd(interval)));
        [zebra].into_iter().chain(bfdd).chain([("ospfd", ospf)]).collect()
    }

    /// Makes the addresses of `vip0` what is wished.
    fn set_addresses(&mut self) -> Result<()> {
        let gone = self.addresses.iter().filter(|vip| !self.wish.vips.contains(vip));
        let come = self.wish.vips.iter().filter(|vip| !self.addresses.contains(vip));
        let gone = gone.map(|vip| format!("addr del {vip}/32 dev vip0\n"));
        let batch: String = gone.chain(come.map(|vip| format!("addr add {vip}/32 dev vip0\n"))).collect();
        let file = std::env::temp_dir().join(format!("{}.batch", self.namespace.name()));
        std::fs::write(&file, batch)?;
        let done = self.namespace.ip(&format!("-batch {}", file.to_str().context("utf-8")?));
        std::fs::remove_file(&file)?;
        done?;
        self.addresses.clone_from(&self.wish.vips);
        Ok(())
    }

    /// Announces something else from now on.
    ///
    /// # Errors
    /// What runs does not take it.
    pub(crate) fn announce(&mut self, wish: Wish) -> Result<()> {
        let other_metric = wish.metric() != self.wish.metric();
        self.wish = wish;
        let line = self.announcement();
        let configuration = self.bird_configuration();
        match (&mut self.running, self.brand) {
            (Running::Speaker(speaker), _) => speaker.tell(&line),
            (Running::Daemons(daemons), Brand::Bird) => daemons.configure_bird(&configuration),
            (Running::Daemons(daemons), _) if other_metric => {
                let cost = format!("ip ospf cost {}", self.wish.metric());
                daemons.vtysh(&["configure terminal", "interface vip0", &cost]).map(drop)
            }
            (Running::Daemons(_), _) => self.set_addresses(),
            (Running::Nothing, _) => Ok(()),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Running::Daemons(daemons) = &self.running else { return Ok(()) };
        for pid in daemons.pids() {
            kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
        }
        Ok(())
    }

    /// Kills all of it at once, without a farewell.
    ///
    /// # Errors
    /// It is not there any more.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        match std::mem::replace(&mut self.running, Running::Nothing) {
            Running::Speaker(mut speaker) => speaker.kill(),
            other => {
                drop(other);
                Ok(())
            }
        }
    }

    /// Lets it end by itself.
    ///
    /// # Errors
    /// It does not end within ten seconds.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let ten = Duration::from_secs(10);
        self.signal(Signal::SIGTERM)?;
        match std::mem::replace(&mut self.running, Running::Nothing) {
            Running::Speaker(mut speaker) => {
                speaker.tell("stop")?;
                until("the speaker ends", ten, || speaker.has_ended()).map(drop)
            }
            Running::Daemons(mut daemons) => {
                let ended = |all: &mut Daemons| all.processes().all(has_ended);
                until("the daemons end", ten, || Ok(ended(&mut daemons))).map(drop)
            }
            Running::Nothing => Ok(()),
        }
    }

    /// How often BFD sessions of our speaker went down, as it counts them; nothing of others.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn downs(&mut self) -> Result<Option<u64>> {
        let Running::Speaker(speaker) = &mut self.running else { return Ok(None) };
        let status = speaker.status()?;
        let neighbors = status["neighbors"].as_array().context("neighbors")?;
        ensure!(neighbors.len() <= 2, "{status}");
        let downs = |neighbor: &Value| neighbor["bfd"]["downs"].as_u64();
        Ok(Some(neighbors.iter().filter_map(downs).sum()))
    }
}

fn has_ended(process: &mut Process) -> bool {
    !matches!(process.0.try_wait(), Ok(None))
}
