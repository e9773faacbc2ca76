//! One table of cases for both sides: description, packet, expected outcome. This file has the services they meet;
//! the rows are by topic in the files below.

mod changing;
mod families;
mod fragments;
mod icmp;
pub mod nat;
mod ordinary;
pub mod tunnels;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use director::dataplane::{
    Datagrams, Dataplane, Forwarding, HashInput, NextHop, Ports, Protocol, RealSpec, ServiceAddress,
    ServiceSpec, Timeouts,
};
use director_common::tables::{Address, Interface, ServiceKey};
use director_common::verdict::Outcome;
use director_common::{SLOTS, Slot, SlotState};

use super::memory::Memory;
use super::packets::{ACK, OUR_MAC, Packet};
use super::routes;

/// Packets of `BPF_PROG_TEST_RUN` come in by the loopback interface.
pub const INGRESS: u32 = 1;
pub const KEY: [u8; 16] = *b"a cluster secret";

/// The addresses of one family.
pub struct Family {
    pub name: &'static str,
    /// A VIP of several services.
    pub vip: &'static str,
    /// A VIP of one service, for all ports.
    pub whole: &'static str,
    /// A VIP whose only service has no real server.
    pub dead: &'static str,
    /// A VIP of services whose slots change, and of QUIC.
    pub changing: &'static str,
    pub client: &'static str,
    /// A real server of services with NAT.
    pub real: &'static str,
    /// A VIP that has all its ports by NAT, and the real server of those.
    pub translated: &'static str,
    pub hidden: &'static str,
    /// Where an error comes from.
    pub router: &'static str,
    /// An address that is no VIP.
    pub elsewhere: &'static str,
    /// Addresses that no packet comes from: one of a multicast group, and the unspecified one.
    group: &'static str,
    nowhere: &'static str,
    icmp: u8,
    /// Length of Ethernet and IP header.
    headers: usize,
}

pub const V4: Family = Family {
    name: "IPv4",
    vip: "203.0.113.10",
    whole: "203.0.113.11",
    dead: "203.0.113.13",
    changing: "203.0.113.14",
    client: "198.51.100.7",
    real: REAL_V4,
    translated: "203.0.113.15",
    hidden: "10.0.2.14",
    router: "192.0.2.254",
    elsewhere: "203.0.113.12",
    group: "224.0.0.9",
    nowhere: "0.0.0.0",
    icmp: 1,
    headers: 34,
};
pub const V6: Family = Family {
    name: "IPv6",
    vip: "2001:db8:113::10",
    whole: "2001:db8:113::11",
    dead: "2001:db8:113::13",
    changing: "2001:db8:113::14",
    client: "2001:db8:51::7",
    real: REAL_V6,
    translated: "2001:db8:113::15",
    hidden: "2001:db8:2::14",
    router: "2001:db8:2::fe",
    elsewhere: "2001:db8:113::12",
    group: "ff02::9",
    nowhere: "::",
    icmp: 58,
    headers: 54,
};
/// The director's ends of tunnels.
pub const TUNNEL_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 1));
pub const TUNNEL_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 255, 0, 0, 0, 0, 1));
const REAL_V4: &str = "10.0.2.11";
const REAL_V6: &str = "2001:db8:2::11";
/// More than any test sends: what the limit does has a test of its own.
pub const ICMP_RATE: u32 = 1_000_000;
const GUE_PORT: u16 = 6080;
const MORE_FRAGMENTS: u16 = 0x2000;

pub const HERE: NextHop =
    NextHop { ifindex: INGRESS, source_mac: OUR_MAC, destination_mac: [2, 0, 0, 0, 1, 1], mtu: 1500 };
pub const THERE: NextHop =
    NextHop { ifindex: 77, source_mac: [2, 0, 0, 0, 0, 2], destination_mac: [2, 0, 0, 0, 1, 2], mtu: 1500 };

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// Ways to the real servers of [`services`].
pub fn next_hop(address: IpAddr) -> Option<NextHop> {
    match address.to_string().as_str() {
        REAL_V4 | REAL_V6 | "10.0.2.14" | "2001:db8:2::14" => Some(HERE),
        "10.0.2.12" => Some(THERE),
        _ => None,
    }
}

/// The slots of the services below.
pub struct Slots {
    both: Vec<u16>,
    first: Vec<u16>,
    second: Vec<u16>,
    none: Vec<u16>,
}

impl Slots {
    pub fn new() -> Self {
        Self {
            both: (0..SLOTS).map(|slot| (slot % 2) as u16).collect(),
            first: vec![0; SLOTS],
            second: vec![1; SLOTS],
            none: vec![u16::MAX; SLOTS],
        }
    }
}

/// Services that between them have every property a case asks for.
pub fn services(slots: &Slots) -> Vec<ServiceSpec<'_>> {
    services_of_round(slots, ROUNDS - 1)
}

/// Specifications that are applied one after the other, for some slots to change.
const ROUNDS: usize = 3;

fn services_of_round(slots: &Slots, round: usize) -> Vec<ServiceSpec<'_>> {
    let moving = [&slots.first, &slots.first, &slots.second][round];
    let pinned = [&slots.first, &slots.second, &slots.first][round];
    let service = |name, vips: [&str; 2], protocol, port, hash, reals: &[&str], slots| ServiceSpec {
        name,
        addresses: vips
            .map(|vip| ServiceAddress {
                prefix: ip(vip).into(),
                protocol,
                ports: if port == 0 { Ports::ALL } else { Ports::one(port) },
            })
            .to_vec(),
        hash,
        forwarding: Forwarding::DirectReturn,
        reals: reals.iter().map(|address| RealSpec::new(ip(address), port)).collect(),
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    };
    use HashInput::{Source, SourcePort};
    use Protocol::{Tcp, Udp};
    let (vip, whole) = ([V4.vip, V6.vip], [V4.whole, V6.whole]);
    let both: &[&str] = &["10.0.2.11", "10.0.2.12"];
    let tunnel = |name, port, forwarding, real: &str| {
        let service = service(name, vip, Tcp, port, Source, &[real], &slots.first);
        ServiceSpec { forwarding, ..service }
    };
    let dead = [V4.dead, V6.dead];
    let gue = Forwarding::Gue { port: GUE_PORT };
    let mut services = vec![
        service("here", vip, Tcp, 80, Source, both, &slots.first),
        service("there", vip, Tcp, 81, Source, both, &slots.second),
        service("spread", vip, Tcp, 82, Source, both, &slots.both),
        service("spread-port", vip, Tcp, 83, SourcePort, both, &slots.both),
        service("empty", vip, Tcp, 84, Source, &[], &slots.none),
        service("unreachable", vip, Tcp, 85, Source, &["10.0.2.13"], &slots.first),
        service("dns", vip, Udp, 53, SourcePort, both, &slots.first),
        service("all-ports", whole, Udp, 0, Source, both, &slots.first),
    ];
    services.extend([
        service("dead", dead, Tcp, 80, Source, &[], &slots.none),
        tunnel("ipip-4", 90, Forwarding::Ipip, REAL_V4),
        tunnel("ipip-6", 91, Forwarding::Ipip, REAL_V6),
        tunnel("gre-4", 92, Forwarding::Gre, REAL_V4),
        tunnel("gre-6", 93, Forwarding::Gre, REAL_V6),
        tunnel("gue-4", 94, gue, REAL_V4),
        tunnel("gue-6", 95, gue, REAL_V6),
    ]);
    services.extend(nat::services(&slots.first));
    let changing = [V4.changing, V6.changing];
    let datagrams = |kind, service| ServiceSpec { datagrams: kind, ..service };
    let quic = |name, port, slots| {
        let mut quic = service(name, changing, Udp, port, Source, both, slots);
        for (real, id) in quic.reals.iter_mut().zip([7, 0x0109]) {
            real.quic_id = Some(id);
        }
        datagrams(Datagrams::Quic { offset: 1, length: 2 }, quic)
    };
    services.extend([
        service("moving", changing, Tcp, 96, Source, both, moving),
        service("pinned", vip, Tcp, 97, Source, both, pinned),
        service("moving-udp", changing, Udp, 98, Source, both, moving),
        datagrams(Datagrams::OnePacket, service("one-packet", changing, Udp, 99, Source, both, moving)),
        quic("quic", 443, &slots.first),
        quic("moving-quic", 444, moving),
    ]);
    services
}

/// The kernel's data plane with these services.
pub fn fill(dataplane: &mut Dataplane) {
    let slots = Slots::new();
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    routes::make();
    dataplane.declare_interface(routes::UPLINK.0, routes::UPLINK.1, true).expect("interface");
    for round in 0..ROUNDS {
        dataplane.apply(&services_of_round(&slots, round)).expect("apply");
    }
    for address in [REAL_V4, REAL_V6, "10.0.2.12", V4.hidden, V6.hidden] {
        dataplane.set_next_hop(ip(address), next_hop(ip(address))).expect("next hop");
    }
}

/// The same in user space.
pub fn memory() -> Memory {
    let slots = Slots::new();
    let mut memory = Memory::new(KEY);
    for spec in services(&slots) {
        memory.add(&spec, next_hop);
    }
    for (address, protocol, port, slot) in [
        (V4.changing, 6, 96, Slot::new(SlotState::Moving, 1, 0)),
        (V4.changing, 17, 98, Slot::new(SlotState::Moving, 1, 0)),
        (V4.changing, 17, 444, Slot::new(SlotState::Moving, 1, 0)),
        (V4.vip, 6, 97, Slot::new(SlotState::Pinned, 0, 0)),
    ] {
        let entry = memory.services[&ServiceKey::service(vip(address), protocol, port)];
        memory.slots[entry.table as usize].fill(slot);
    }
    memory
        .interfaces
        .insert(routes::UPLINK.0, Interface { mac: routes::UPLINK.1, flags: Interface::FLAG_NATIVE });
    memory.interfaces.insert(INGRESS, Interface { mac: OUR_MAC, flags: Interface::FLAG_NATIVE });
    memory
}

fn vip(text: &str) -> Address {
    super::memory::mapped(ip(text))
}

/// What a case expects.
pub type Case = (String, Vec<u8>, Outcome);

/// The cases: the same for both families, and those of one.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        let rows = [
            ordinary::ordinary(&family),
            ordinary::malformed(&family),
            fragments::fragments(&family),
            tunnels::tagged(&family),
            tunnels::tunnels(&family),
            icmp::icmp(&family),
            icmp::expired(&family),
            changing::changing(&family),
            changing::quic(&family),
            nat::requests(&family),
            nat::answers(&family),
            nat::errors(&family),
        ]
        .concat();
        let named = |(what, frame, outcome)| (format!("{}: {what}", family.name), frame, outcome);
        cases.extend(rows.into_iter().map(named));
    }
    let rows = [families::only_v4(), families::only_v6()].concat();
    cases.extend(rows.into_iter().map(|(what, frame, outcome)| (what.to_owned(), frame, outcome)));
    cases
}

type Row = (&'static str, Vec<u8>, Outcome);

impl Family {
    fn tcp(&self, port: u16) -> Packet {
        Packet::tcp((self.client, 40_000), (self.vip, port), ACK)
    }

    fn dns(&self) -> Packet {
        self.udp(self.vip, b"a question")
    }

    fn udp(&self, destination: &str, data: &[u8]) -> Packet {
        Packet::udp((self.client, 40_000), (destination, 53), data)
    }

    fn of(&self, protocol: u8, destination: &str) -> Packet {
        Packet::new(protocol, self.client, destination, vec![8, 0, 0, 0, 0, 0, 0, 0])
    }
}
