//! What is measured: each path is a link with a program on it, and packets that take one way through that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap};
use director::dataplane::{
    Datagrams, Dataplane, Forwarding, HashInput, Method, NextHop, Options, Ports, Protocol, RealSpec,
    ServiceAddress, ServiceSpec, Timeouts, Tracking, TunnelSources, WhenFull, XdpMode,
};
use director::slots::{Member, Scheduler, deal};
use director_common::tables::MAX_SERVICES;
use director_common::{SLOTS, SMALL_SLOTS};

use crate::rig::{Link, Plain, Rig};
use crate::shared::{self, REALS, Real, Vip, VipKey, kind};
use crate::stream::{Family, Flows, PORT, PREFIX_V6};

/// Real servers of each service.
pub(crate) const REAL_SERVERS: u8 = 100;
/// Exponents of the numbers of flows.
pub(crate) const FLOWS: u32 = 16;
const MANY_FLOWS: u32 = 20;

/// Groups of real servers, which the sink tells apart by their link addresses.
const GROUP: u8 = 1;
const OTHER_GROUP: u8 = 3;
/// What the floor sends back comes to the sender's own address.
const FLOOR_GROUP: u8 = 0xa;

const TCP: u8 = 6;
const IPIP: u8 = 4;

/// First VIPs of the services.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const VIP_IPIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const VIP_MOVING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
const VIP_TRACKED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 4);
const VIP_RANGE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const PREFIX: &str = "203.0.113.16/28";
const VIP_PREFIX: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 24);
const VIP_MANY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const VIP_V6: u32 = 0xffff_0001;
const TUNNEL_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

/// One row of measurements.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// Its name in the results.
    pub(crate) name: &'static str,
    /// What it is, for people.
    pub(crate) title: String,
    pub(crate) link: Link,
    pub(crate) flows: Flows,
    /// What the sink must see of every packet: see [`kind`].
    pub(crate) kind: u32,
    /// Name of the path whose cost is subtracted; its own for a floor.
    pub(crate) floor: &'static str,
    /// Path it is compared with, and the most it may cost as a multiple of that.
    pub(crate) target: Option<(&'static str, f64)>,
}

/// A path that this data plane does not have, and why.
#[derive(Clone, Debug)]
pub(crate) struct Absent {
    pub(crate) title: &'static str,
    pub(crate) why: String,
}

/// Everything that is measured. The data planes are pinned and on their links: no handle of them is kept.
pub(crate) struct Paths {
    pub(crate) paths: Vec<Path>,
    pub(crate) absent: Vec<Absent>,
    /// Services of the data plane with many.
    pub(crate) services: usize,
}

/// Folder of a data plane's pins.
pub(crate) fn pins(name: &str) -> PathBuf {
    PathBuf::from("/run/director").join(name)
}

impl Paths {
    /// Builds every link, program and table, so many services among them.
    pub(crate) fn build(rig: &mut Rig, services: usize) -> Result<Self> {
        fill_references(rig)?;
        let v4 = |vip: Ipv4Addr| Flows { family: Family::V4, bits: FLOWS, vip: vip.to_bits(), vips: 1 };
        let v6 = Flows { family: Family::V6, bits: FLOWS, vip: VIP_V6, vips: 1 };
        let mut paths = Vec::new();
        let mut add = |name, title: &str, link: &Link, flows, kind, floor, target| {
            paths.push(Path {
                name,
                title: title.to_owned(),
                link: link.clone(),
                flows,
                kind,
                floor,
                target,
            });
        };
        let floor = rig.link()?;
        rig.attach("floor", &floor)?;
        add("floor", "floor, IPv4", &floor, v4(VIP), kind(FLOOR_GROUP, TCP), "floor", None);
        add("floor-v6", "floor, IPv6", &floor, v6, kind(FLOOR_GROUP, TCP), "floor-v6", None);
        for (name, program, title) in [
            ("reference", "reference", "reference"),
            ("lru-reference", "lru_reference", "reference with a look-up in an LRU hash of 2 M"),
        ] {
            let link = rig.link()?;
            rig.attach(program, &link)?;
            add(name, title, &link, v4(VIP), kind(GROUP, TCP), "floor", None);
        }

        let link = rig.link()?;
        let moving = few_services(rig, &link)?;
        let tcp = kind(GROUP, TCP);
        add("dr", "DR, IPv4 TCP, settled", &link, v4(VIP), tcp, "floor", Some(("reference", 1.4)));
        let ipip = kind(GROUP, IPIP);
        add("ipip", "IPIP, IPv4, settled", &link, v4(VIP_IPIP), ipip, "floor", Some(("reference", 2.2)));
        add("dr-v6", "DR, IPv6", &link, v6, tcp, "floor-v6", Some(("dr", 1.3)));
        let mut absent = Vec::new();
        if moving {
            let target = Some(("lru-reference", 1.3));
            add("moving", "slot in moving", &link, v4(VIP_MOVING), tcp, "floor", target);
        } else {
            let why = "this data plane settles a slot at once".to_owned();
            absent.push(Absent { title: "slot in moving", why });
        }
        let target = Some(("lru-reference", 1.3));
        add(
            "tracked",
            "full tracking: every packet looks for its entry",
            &link,
            v4(VIP_TRACKED),
            tcp,
            "floor",
            target,
        );
        let flows = Flows { bits: MANY_FLOWS, ..v4(VIP) };
        add("dr-1m-flows", "1,048,576 flows, settled", &link, flows, tcp, "floor", Some(("dr", 1.3)));

        let wide = rig.link()?;
        let services = many_services(&wide, services)?;
        let title = format!("{services} services instead of 1, traffic of one of them");
        add("dr-services", &title, &wide, v4(VIP_MANY), tcp, "floor", Some(("dr", 1.2)));
        // No shortcut leads to these: there are few of them.
        add("range", "DR, by a range of ports", &link, v4(VIP_RANGE), tcp, "floor", None);
        add("prefix", "DR, by a prefix, all ports", &link, v4(VIP_PREFIX), tcp, "floor", None);
        // What this takes is what the caches do not hold: each service has a table, and they are read evenly.
        let flows = Flows { vips: services as u32, ..v4(VIP_MANY) };
        let title = format!("{services} services, traffic of all of them");
        add("dr-all-services", &title, &wide, flows, tcp, "floor", None);
        Ok(Self { paths, absent, services })
    }
}

/// Link address of a real server.
pub(crate) const fn real_mac(group: u8, number: u8) -> [u8; 6] {
    [2, 0, 0, 0, group, number]
}

/// The references' VIP, slots and real servers.
pub(crate) fn fill_references(rig: &mut Rig) -> Result<()> {
    ensure!(usize::from(REAL_SERVERS) <= REALS, "more real servers than the references have room for");
    let mut take = |name| rig.programs.take_map(name).with_context(|| format!("no map {name}"));
    let mut vips: HashMap<_, Plain<VipKey>, Plain<Vip>> = HashMap::try_from(take("VIPS")?)?;
    let key =
        VipKey { address: u32::from_ne_bytes(VIP.octets()), port: PORT.to_be(), protocol: u16::from(TCP) };
    vips.insert(Plain(key), Plain(Vip { seed: 0x5eed, base: 0 }), 0)?;
    let mut reals: Array<_, Plain<Real>> = Array::try_from(take("REAL_SERVERS")?)?;
    for number in 0..REAL_SERVERS {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&real_mac(GROUP, number));
        bytes[6..].copy_from_slice(&[2, 0, 0, 0, 0xd, 0]);
        let mut addresses = [0; 6];
        for (word, pair) in addresses.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *word = u16::from_ne_bytes(*pair);
        }
        reals.set(u32::from(number), Plain(Real { addresses }), 0)?;
    }
    let mut slots: Array<_, u32> = Array::try_from(take("SLOT_TABLE")?)?;
    let dealt = dealt(REAL_SERVERS, SLOTS)?;
    for (slot, position) in (0..shared::SLOTS as u32).zip(&dealt) {
        slots.set(slot, u32::from(*position), 0)?;
    }
    Ok(())
}

/// A table of slots as the director deals it.
fn dealt(reals: u8, size: usize) -> Result<Vec<u16>> {
    let member = |number| Member { address: real_v4(0, number), port: PORT, weight: 100, dead: false };
    let members: Vec<Member> = (0..reals).map(member).collect();
    let table = deal(Scheduler::Maglev, size, None, &members);
    ensure!(table.slots.len() == size, "a table of {} slots", table.slots.len());
    Ok(table.slots.to_vec())
}

/// A real server's address, in one of several networks.
pub(crate) fn real_v4(network: u8, number: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, network, number).into()
}

fn real_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, u16::from(number)).into()
}

/// A new data plane on a link, with the way to real servers of these addresses.
pub(crate) fn open(
    name: &str,
    link: &Link,
    reals: impl IntoIterator<Item = (IpAddr, [u8; 6])>,
) -> Result<Dataplane> {
    let options = Options {
        pin_dir: pins(name),
        interfaces: vec![link.name.clone()],
        mode: XdpMode::Native,
        tunnel_sources: TunnelSources { v4: Some(TUNNEL_SOURCE), v6: None },
        ..Options::default()
    };
    let (mut dataplane, _) = Dataplane::open(&options)?;
    dataplane.set_hash_key(*b"benchmark's key.")?;
    for (address, destination_mac) in reals {
        let way = NextHop { ifindex: link.ifindex, source_mac: link.mac, destination_mac, mtu: 1500 };
        dataplane.set_next_hop(address, Some(way))?;
    }
    dataplane.attach()?;
    Ok(dataplane)
}

/// A service on one VIP.
pub(crate) fn service<'a>(
    name: &'a str,
    vip: IpAddr,
    forwarding: Forwarding,
    reals: impl IntoIterator<Item = IpAddr>,
    slots: &'a [u16],
) -> ServiceSpec<'a> {
    ServiceSpec {
        name,
        addresses: vec![ServiceAddress {
            prefix: vip.into(),
            protocol: Protocol::Tcp,
            ports: Ports::one(PORT),
        }],
        hash: HashInput::SourcePort,
        forwarding,
        reals: reals.into_iter().map(|address| RealSpec::new(address, PORT)).collect(),
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    }
}

/// Sets up the data plane with one service for each way; whether the slots of the last one are moving.
fn few_services(rig: &mut Rig, link: &Link) -> Result<bool> {
    let numbers = || 0..REAL_SERVERS;
    let ways = numbers()
        .flat_map(|number| {
            [
                (real_v4(0, number), GROUP),
                (real_v4(1, number), GROUP),
                (real_v4(2, number), OTHER_GROUP),
                (real_v6(number), GROUP),
            ]
            .map(|(address, group)| (address, real_mac(group, number)))
        })
        .collect::<Vec<_>>();
    let mut few = open("few", link, ways)?;
    let slots = dealt(REAL_SERVERS, SLOTS)?;
    let mut low = VIP_V6.to_be_bytes().into_iter();
    let vip_v6: [u8; 16] =
        std::array::from_fn(|at| PREFIX_V6.get(at).copied().unwrap_or_else(|| low.next().unwrap_or(0)));
    // The same slots for other servers: every slot changes its owner.
    let moved: Vec<u16> = slots.iter().map(|position| position + u16::from(REAL_SERVERS)).collect();
    for last in [&slots, &moved] {
        let both = numbers().map(|n| real_v4(1, n)).chain(numbers().map(|n| real_v4(2, n)));
        let direct = Forwarding::DirectReturn;
        let direct_of =
            |name, vip: Ipv4Addr| service(name, vip.into(), direct, numbers().map(|n| real_v4(0, n)), &slots);
        let round_robin =
            Tracking { method: Method::RoundRobin, when_full: WhenFull::Forward, persistence: None };
        let mut range = direct_of("range", VIP_RANGE);
        range.addresses[0].ports = Ports { first: PORT - 10, last: PORT + 10 };
        let mut prefix = direct_of("prefix", VIP_PREFIX);
        (prefix.addresses[0].prefix, prefix.addresses[0].ports) = (PREFIX.parse()?, Ports::ALL);
        range.reals.iter_mut().chain(&mut prefix.reals).for_each(|real| real.port = 0);
        few.apply(&[
            // A connection that exists gets an entry where slots move, without a handshake.
            ServiceSpec {
                tracking: Some(round_robin),
                ..service("tracked", VIP_TRACKED.into(), direct, both.clone(), last)
            },
            range,
            prefix,
            service("dr", VIP.into(), direct, numbers().map(|n| real_v4(0, n)), &slots),
            service("ipip", VIP_IPIP.into(), Forwarding::Ipip, numbers().map(|n| real_v4(0, n)), &slots),
            service("dr-v6", Ipv6Addr::from(vip_v6).into(), direct, numbers().map(real_v6), &slots),
            service("moving", VIP_MOVING.into(), direct, both, last),
        ])?;
    }
    let tracked = Flows { family: Family::V4, bits: FLOWS, vip: VIP_TRACKED.to_bits(), vips: 1 };
    rig.send(link, &tracked, 0, 1 << FLOWS)?;
    let counted: u32 = few.loads().values().map(|(active, inactive)| active + inactive).sum();
    ensure!(counted == 1 << FLOWS, "{counted} connections of {} are tracked", 1 << FLOWS);
    // A connection that exists stays with the server it had, where slots move.
    let flows = Flows { family: Family::V4, bits: FLOWS, vip: VIP_MOVING.to_bits(), vips: 1 };
    let kinds = [kind(GROUP, TCP), kind(OTHER_GROUP, TCP)];
    let before = [rig.arrived(kinds[0])?, rig.arrived(kinds[1])?];
    rig.send(link, &flows, 0, 1_000)?;
    let came = [rig.arrived(kinds[0])? - before[0], rig.arrived(kinds[1])? - before[1]];
    match came {
        [1_000, 0] => Ok(true),
        [0, 1_000] => Ok(false),
        [previous, current] => bail!(
            "of 1000 packets to slots that change {previous} went to the previous and {current} to the current \
             real server:{}",
            rig.arrivals()?
        ),
    }
}

/// A link with a data plane that has one service on [`VIP`].
pub(crate) fn alone(rig: &mut Rig) -> Result<Link> {
    let link = rig.link()?;
    let reals = || (0..REAL_SERVERS).map(|number| (real_v4(0, number), real_mac(GROUP, number)));
    let mut dataplane = open("alone", &link, reals())?;
    let slots = dealt(REAL_SERVERS, SLOTS)?;
    let addresses = reals().map(|(address, _)| address);
    dataplane.apply(&[service("dr", VIP.into(), Forwarding::DirectReturn, addresses, &slots)])?;
    Ok(link)
}

/// Sets up the data plane with so many services, or as many as it can have; their number.
fn many_services(link: &Link, wanted: usize) -> Result<usize> {
    const EACH: u8 = 4;
    let count = wanted.clamp(1, MAX_SERVICES);
    let ways = (0..EACH).map(|number| (real_v4(0, number), real_mac(GROUP, number)));
    let mut many = open("many", link, ways)?;
    // What a service of many is for.
    let slots = dealt(EACH, SMALL_SLOTS)?;
    let names: Vec<String> = (0..count).map(|number| format!("service-{number}")).collect();
    let specs: Vec<ServiceSpec<'_>> = names
        .iter()
        .zip(VIP_MANY.to_bits()..)
        .map(|(name, vip)| {
            let reals = (0..EACH).map(|number| real_v4(0, number));
            service(name, Ipv4Addr::from_bits(vip).into(), Forwarding::DirectReturn, reals, &slots)
        })
        .collect();
    many.apply(&specs)?;
    Ok(count)
}
