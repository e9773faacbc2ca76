//! Two switches, FRR and BIRD, and two directors of one brand, each linked to both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cluster_tests::{daemons::Daemons, netns::Namespace};

use crate::{
    monitor::Monitor,
    place::{As, Brand, Director, Wish, bird_bfd, bird_links, frr_bfd, frr_links},
};

/// The virtual IP.
pub(crate) const VIP: &str = "203.0.113.10";
/// Another one that comes and goes.
pub(crate) const OTHER_VIP: &str = "203.0.113.11";

/// Longer than MinLSInterval of all three: what was originated before delays nothing.
const QUIET: Duration = Duration::from_millis(6500);

/// A switch with its kernel's routes. What is first goes first.
pub(crate) struct Switch {
    pub(crate) brand: Brand,
    pub(crate) daemons: Daemons,
    pub(crate) monitor: Monitor,
    namespace: Namespace,
}

/// All of it.
pub(crate) struct Rig {
    pub(crate) place: Brand,
    /// In the order of [`Brand::SWITCHES`].
    pub(crate) switches: Vec<Switch>,
    /// The second one is who events happen to.
    pub(crate) directors: Vec<Director>,
}

/// A director's address on its link to a switch.
pub(crate) fn gateway(switch: usize, director: usize) -> String {
    format!("{}.2", link(switch, director))
}

/// The first three parts of the addresses of a link.
fn link(switch: usize, director: usize) -> String {
    format!("10.9.{}", 10 * switch + director + 1)
}

impl Rig {
    /// Builds the network and starts everything. BFD's interval is in milliseconds.
    ///
    /// # Errors
    /// Whatever of it fails.
    pub(crate) fn new(place: Brand, bfd: Option<u64>, kind: As, wishes: [Wish; 2]) -> Result<Self> {
        let namespaces = [Namespace::new("cv-d")?, Namespace::new("cv-d")?];
        let mut switches = Vec::new();
        for (at, brand) in Brand::SWITCHES.into_iter().enumerate() {
            let namespace = Namespace::new("cv-s")?;
            for (number, director) in namespaces.iter().enumerate() {
                let there = gateway(at, number);
                let here = format!("{}.1/30", link(at, number));
                let (device, uplink) = (format!("s{}", number + 1), format!("eth{}", at + 1));
                namespace.veth(&device, &here, director, &uplink, &format!("{there}/30"))?;
            }
            let monitor = Monitor::new(&namespace)?;
            let daemons = start_switch(brand, &namespace, bfd, at + 1)?;
            switches.push(Switch { brand, daemons, monitor, namespace });
        }
        let mut directors = Vec::new();
        for ((at, namespace), wish) in namespaces.into_iter().enumerate().zip(wishes) {
            let mut director = Director::new(place, at + 1, bfd, kind, wish, namespace)?;
            director.start()?;
            directors.push(director);
        }
        Ok(Self { place, switches, directors })
    }

    /// The director that events happen to.
    pub(crate) fn victim(&mut self) -> &mut Director {
        &mut self.directors[1]
    }

    /// Waits until both switches have both directors for next hops, and have had them for long enough that nothing is
    /// held back any more.
    ///
    /// # Errors
    /// Not within 90 seconds.
    pub(crate) fn until_steady(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(90) {
            let both = |(at, switch): (usize, &Switch)| {
                let hops = switch.monitor.hops(VIP);
                hops.contains(&gateway(at, 0)) && hops.contains(&gateway(at, 1))
            };
            if self.switches.iter().enumerate().all(both) {
                let since = Instant::now();
                let lost = |(at, switch): (usize, &Switch)| {
                    // Waits for the whole span, unless a next hop goes.
                    let legs = [gateway(at, 0), gateway(at, 1)];
                    let left = QUIET.saturating_sub(since.elapsed());
                    let loses =
                        |hops: &_| legs.iter().any(|leg| !std::collections::BTreeSet::contains(hops, leg));
                    switch.monitor.until(VIP, since, since.elapsed() + left, loses).is_some()
                };
                if !self.switches.iter().enumerate().any(lost) {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let hops: Vec<_> = self.switches.iter().map(|switch| switch.monitor.hops(VIP)).collect();
        bail!("{} in our place: the switches never had both next hops for long: {hops:?}", self.place)
    }

    /// Puts the switches' daemons into the real-time class, as if the load were on another machine.
    ///
    /// # Errors
    /// `chrt` fails.
    pub(crate) fn spare_the_switches(&self) -> Result<()> {
        for switch in &self.switches {
            for pid in switch.daemons.pids() {
                let mut command = switch.namespace.command("chrt");
                let status =
                    command.args(["--all-tasks", "--fifo", "--pid", "40", &pid.to_string()]).status();
                anyhow::ensure!(status.context("chrt")?.success(), "chrt");
            }
        }
        Ok(())
    }
}

fn start_switch(brand: Brand, namespace: &Namespace, bfd: Option<u64>, number: usize) -> Result<Daemons> {
    let devices = ["s1", "s2"];
    let mut daemons = Daemons::new(namespace)?;
    let router = format!("10.255.1.{number}");
    if brand == Brand::Frr {
        let links = frr_links(&devices, bfd.is_some());
        let ospf = format!("{links}router ospf\n ospf router-id {router}\n");
        // FRR 8.4.4 loses a leg of a next hop group for good when its link flaps.
        let zebra = ("zebra", "no zebra nexthop kernel enable\n".to_owned());
        let bfdd = bfd.map(|interval| ("bfdd", frr_bfd(interval)));
        let all: Vec<_> = [zebra].into_iter().chain(bfdd).chain([("ospfd", ospf)]).collect();
        daemons.start_frr(&all)?;
    } else {
        let (lines, links) = (bfd.map(bird_bfd).unwrap_or_default(), bird_links(&devices, bfd.is_some()));
        daemons.start_bird(
            &format!(
                "router id {router};\nprotocol device {{ scan time 1; }}\n{lines}\
                 protocol kernel {{ merge paths yes; ipv4 {{ export all; import none; }}; }}\n\
                 protocol ospf v2 {{ tick 1; merge external yes; ipv4 {{ import all; export none; }};\n\
                 area 0.0.0.0 {{ {links} }}; }}\n"
            ),
            &[],
        )?;
    }
    Ok(daemons)
}
