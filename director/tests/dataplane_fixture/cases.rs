//! One table of cases for both sides: description, packet, expected outcome.

use std::net::IpAddr;

use director::dataplane::{
    Dataplane, Forwarding, HashInput, NextHop, Protocol, RealSpec, ServiceAddress, ServiceSpec,
};
use director_common::SLOTS;
use director_common::tables::{Interface, ServiceKey};
use director_common::verdict::{DropReason, Outcome, PassReason};

use super::memory::Memory;
use super::packets::{ACK, OUR_MAC, Packet, SYN};

/// Packets of `BPF_PROG_TEST_RUN` come in by the loopback interface.
pub const INGRESS: u32 = 1;
pub const KEY: [u8; 16] = *b"a cluster secret";

const VIP: &str = "203.0.113.10";
const WHOLE: &str = "203.0.113.11";
const CLIENT: &str = "198.51.100.7";
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
        "10.0.2.11" => Some(HERE),
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
    let service = |name, vip: &str, protocol, port, hash, reals: &[&str], slots| ServiceSpec {
        name,
        addresses: vec![ServiceAddress { address: ip(vip), protocol, port }],
        hash,
        forwarding: Forwarding::DirectReturn,
        reals: reals.iter().map(|address| RealSpec { address: ip(address), port }).collect(),
        slots,
    };
    use HashInput::{Source, SourcePort};
    use Protocol::{Tcp, Udp};
    let both: &[&str] = &["10.0.2.11", "10.0.2.12"];
    vec![
        service("here", VIP, Tcp, 80, Source, both, &slots.first),
        service("there", VIP, Tcp, 81, Source, both, &slots.second),
        service("spread", VIP, Tcp, 82, Source, both, &slots.both),
        service("spread-port", VIP, Tcp, 83, SourcePort, both, &slots.both),
        service("empty", VIP, Tcp, 84, Source, &[], &slots.none),
        service("unreachable", VIP, Tcp, 85, Source, &["10.0.2.13"], &slots.first),
        service("dns", VIP, Udp, 53, SourcePort, both, &slots.first),
        service("all-ports", WHOLE, Udp, 0, Source, both, &slots.first),
    ]
}

/// The kernel's data plane with these services.
pub fn fill(dataplane: &mut Dataplane) {
    let slots = Slots::new();
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    dataplane.apply(&services(&slots)).expect("apply");
    for address in ["10.0.2.11", "10.0.2.12"] {
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
    let only = memory.services[&ServiceKey::service(vip(WHOLE), 17, 0)];
    memory.services.insert(ServiceKey::fragment(vip(WHOLE), 17), only);
    let dns = memory.services[&ServiceKey::service(vip(VIP), 17, 53)];
    memory.services.insert(ServiceKey::fragment(vip(VIP), 17), dns);
    memory.interfaces.insert(INGRESS, Interface { mac: OUR_MAC, flags: Interface::FLAG_NATIVE });
    memory
}

fn vip(text: &str) -> director_common::tables::Address {
    director_common::tables::Address::from_ipv4(text.parse::<std::net::Ipv4Addr>().expect("vip").octets())
}

/// What a case expects.
pub type Case = (&'static str, Vec<u8>, Outcome);

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = ordinary();
    cases.extend(malformed());
    cases.extend(fragments());
    cases
}

fn tcp(port: u16) -> Packet {
    Packet::tcp((CLIENT, 40_000), (VIP, port), ACK)
}

fn dns() -> Packet {
    Packet::udp((CLIENT, 40_000), (VIP, 53), b"a question")
}

fn ordinary() -> Vec<Case> {
    use Outcome::{Dropped, Passed, Redirected, Transmitted};
    vec![
        ("real server on the same link", tcp(80).bytes(), Transmitted),
        ("real server on another link", tcp(81).bytes(), Redirected),
        ("a SYN", Packet::tcp((CLIENT, 1), (VIP, 80), SYN).bytes(), Transmitted),
        ("a datagram", dns().bytes(), Transmitted),
        ("a datagram without data", Packet::udp((CLIENT, 9), (VIP, 53), b"").bytes(), Transmitted),
        (
            "any port of a service of all ports",
            Packet::udp((CLIENT, 9), (WHOLE, 4_711), b"x").bytes(),
            Transmitted,
        ),
        ("header with options", tcp(80).with(|p| p.options = vec![1; 40]).bytes(), Transmitted),
        ("padded to the shortest frame", dns().with(|p| p.padding = 18).bytes(), Transmitted),
        ("largest packet", Packet::udp((CLIENT, 9), (VIP, 53), &[7; 1472]).bytes(), Transmitted),
        (
            "one byte too large",
            Packet::udp((CLIENT, 9), (VIP, 53), &[7; 1473]).bytes(),
            Dropped(DropReason::TooBig),
        ),
        ("last hop of its life", tcp(80).with(|p| p.ttl = 1).bytes(), Dropped(DropReason::TtlExpired)),
        ("no life at all", tcp(80).with(|p| p.ttl = 0).bytes(), Dropped(DropReason::TtlExpired)),
        ("second to last hop", tcp(80).with(|p| p.ttl = 2).bytes(), Transmitted),
        ("service without real servers", tcp(84).bytes(), Dropped(DropReason::NoRealServer)),
        ("no way to the real server", tcp(85).bytes(), Dropped(DropReason::NoNextHop)),
        ("another port of the VIP", tcp(443).bytes(), Passed(PassReason::NoService)),
        (
            "port of the other protocol",
            Packet::udp((CLIENT, 9), (VIP, 80), b"x").bytes(),
            Passed(PassReason::NoService),
        ),
        (
            "another address",
            Packet::tcp((CLIENT, 9), ("203.0.113.12", 80), ACK).bytes(),
            Passed(PassReason::NoService),
        ),
        (
            "ICMP to the VIP",
            Packet::new(1, CLIENT, VIP, vec![8, 0, 0, 0]).bytes(),
            Passed(PassReason::IcmpToVip),
        ),
        (
            "ICMP elsewhere",
            Packet::new(1, CLIENT, "10.0.0.1", vec![8, 0, 0, 0]).bytes(),
            Passed(PassReason::NoService),
        ),
        (
            "OSPF to the VIP",
            Packet::new(89, CLIENT, VIP, vec![0; 24]).bytes(),
            Passed(PassReason::ProtocolToVip),
        ),
        (
            "OSPF to its group",
            Packet::new(89, CLIENT, "224.0.0.5", vec![0; 24]).bytes(),
            Passed(PassReason::NoService),
        ),
        ("IPv6", tcp(80).with(|p| p.ethertype = 0x86dd).bytes(), Passed(PassReason::NotIpv4)),
        ("ARP", tcp(80).with(|p| p.ethertype = 0x0806).bytes(), Passed(PassReason::NotIpv4)),
        (
            "flooded: for another station",
            tcp(80).with(|p| p.destination_mac = [2, 0, 0, 0, 0, 0x55]).bytes(),
            Passed(PassReason::OtherStation),
        ),
        (
            "broadcast",
            tcp(80).with(|p| p.destination_mac = [0xff; 6]).bytes(),
            Passed(PassReason::OtherStation),
        ),
    ]
}

/// `packet` with the bytes at `offset` replaced, and the header checksum made right again or not.
fn patched(packet: &Packet, offset: usize, bytes: &[u8], fix_checksum: bool) -> Vec<u8> {
    let mut frame = packet.bytes();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    if fix_checksum {
        let end = 14 + usize::from(frame[14] & 15) * 4;
        frame[24..26].fill(0);
        let sum = super::packets::checksum(&frame[14..end]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

fn malformed() -> Vec<Case> {
    use Outcome::{Dropped, Passed};
    let truncated = |length: usize| tcp(80).bytes()[..length].to_vec();
    vec![
        ("frame of a bare header", truncated(14), Passed(PassReason::ShortHeader)),
        ("ends within the IP header", truncated(33), Passed(PassReason::ShortHeader)),
        ("ends before the ports", truncated(37), Dropped(DropReason::ShortTransport)),
        ("ends within the TCP header", truncated(53), Dropped(DropReason::BadLength)),
        ("ends within the data", truncated(58), Dropped(DropReason::BadLength)),
        (
            "version 6 in a frame of version 4",
            patched(&tcp(80), 14, &[0x65], true),
            Passed(PassReason::BadVersion),
        ),
        ("header of 16 bytes", patched(&tcp(80), 14, &[0x44], false), Passed(PassReason::BadHeaderLength)),
        (
            "wrong header checksum",
            patched(&tcp(80), 24, &[0xab, 0xcd], false),
            Dropped(DropReason::BadChecksum),
        ),
        (
            "wrong checksum of options",
            patched(&tcp(80).with(|p| p.options = vec![1; 8]), 38, &[7], false),
            Dropped(DropReason::BadChecksum),
        ),
        ("longer than its frame", patched(&tcp(80), 16, &[0xff, 0xff], true), Dropped(DropReason::BadLength)),
        ("shorter than its header", patched(&tcp(80), 16, &[0, 19], true), Dropped(DropReason::BadLength)),
        ("too short for TCP", patched(&tcp(80), 16, &[0, 39], true), Dropped(DropReason::ShortTransport)),
        ("too short for UDP", patched(&dns(), 16, &[0, 27], true), Dropped(DropReason::ShortTransport)),
        ("TCP header of 16 bytes", patched(&tcp(80), 46, &[0x40], false), Dropped(DropReason::BadTransport)),
        (
            "TCP header beyond the packet",
            patched(&tcp(80), 46, &[0xf0], false),
            Dropped(DropReason::BadTransport),
        ),
        ("UDP length of 7", patched(&dns(), 38, &[0, 7], false), Dropped(DropReason::BadTransport)),
        (
            "UDP longer than its packet",
            patched(&dns(), 38, &[0, 99], false),
            Dropped(DropReason::BadTransport),
        ),
    ]
}

fn fragments() -> Vec<Case> {
    use Outcome::{Dropped, Passed, Transmitted};
    let whole = || Packet::udp((CLIENT, 9), (WHOLE, 53), &[5; 64]);
    vec![
        (
            "first fragment, hash of source",
            tcp(80).with(|p| p.fragment = MORE_FRAGMENTS).bytes(),
            Transmitted,
        ),
        (
            "first fragment of a long datagram",
            patched(&whole().with(|p| p.fragment = MORE_FRAGMENTS), 38, &[8, 0], false),
            Transmitted,
        ),
        ("later fragment, the only service", whole().with(|p| p.fragment = 9).bytes(), Transmitted),
        (
            "later fragment too short for ports",
            Packet::new(17, CLIENT, WHOLE, vec![1]).with(|p| p.fragment = 9).bytes(),
            Transmitted,
        ),
        (
            "later fragment, several services",
            tcp(80).with(|p| p.fragment = 9).bytes(),
            Dropped(DropReason::Fragment),
        ),
        (
            "first fragment, hash of source and port",
            dns().with(|p| p.fragment = MORE_FRAGMENTS).bytes(),
            Dropped(DropReason::FragmentNeedsPort),
        ),
        (
            "later fragment, hash of source and port",
            dns().with(|p| p.fragment = 9).bytes(),
            Dropped(DropReason::FragmentNeedsPort),
        ),
        (
            "later fragment elsewhere",
            Packet::new(17, CLIENT, "10.0.0.1", vec![0; 32]).with(|p| p.fragment = 9).bytes(),
            Passed(PassReason::NoService),
        ),
    ]
}
