//! One table of cases for both sides: description, packet, expected outcome.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use director::dataplane::{
    Dataplane, Forwarding, HashInput, NextHop, Ports, Protocol, RealSpec, ServiceAddress, ServiceSpec,
};
use director_common::SLOTS;
use director_common::tables::{Address, Interface};
use director_common::verdict::{AnswerReason, DropReason, Outcome, PassReason};

use super::memory::Memory;
use super::packets::{ACK, OUR_MAC, Packet, SYN};

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
    pub client: &'static str,
    /// Where an error comes from.
    pub router: &'static str,
    /// An address that is no VIP.
    pub elsewhere: &'static str,
    icmp: u8,
    /// Length of Ethernet and IP header.
    headers: usize,
}

pub const V4: Family = Family {
    name: "IPv4",
    vip: "203.0.113.10",
    whole: "203.0.113.11",
    dead: "203.0.113.13",
    client: "198.51.100.7",
    router: "192.0.2.254",
    elsewhere: "203.0.113.12",
    icmp: 1,
    headers: 34,
};
pub const V6: Family = Family {
    name: "IPv6",
    vip: "2001:db8:113::10",
    whole: "2001:db8:113::11",
    dead: "2001:db8:113::13",
    client: "2001:db8:51::7",
    router: "2001:db8:2::fe",
    elsewhere: "2001:db8:113::12",
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
        REAL_V4 | REAL_V6 => Some(HERE),
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
        reals: reals.iter().map(|address| RealSpec { address: ip(address), port }).collect(),
        slots,
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
    services
}

/// The kernel's data plane with these services.
pub fn fill(dataplane: &mut Dataplane) {
    let slots = Slots::new();
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    dataplane.apply(&services(&slots)).expect("apply");
    for address in [REAL_V4, REAL_V6, "10.0.2.12"] {
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
            ordinary(&family),
            malformed(&family),
            fragments(&family),
            tagged(&family),
            tunnels(&family),
            icmp(&family),
        ]
        .concat();
        let named = |(what, frame, outcome)| (format!("{}: {what}", family.name), frame, outcome);
        cases.extend(rows.into_iter().map(named));
    }
    let rows = [only_v4(), only_v6()].concat();
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

fn ordinary(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed, Redirected, Transmitted};
    let tcp = |port| f.tcp(port);
    let largest = vec![7; 1500 - (f.headers - 14) - 8];
    let larger = vec![7; largest.len() + 1];
    vec![
        ("real server on the same link", tcp(80).bytes(), Transmitted),
        ("real server on another link", tcp(81).bytes(), Redirected),
        ("a SYN", Packet::tcp((f.client, 1), (f.vip, 80), SYN).bytes(), Transmitted),
        ("a datagram", f.dns().bytes(), Transmitted),
        ("a datagram without data", f.udp(f.vip, b"").bytes(), Transmitted),
        ("any port of a service of all ports", f.udp(f.whole, b"x").bytes(), Transmitted),
        ("padded to the shortest frame", f.dns().with(|p| p.padding = 18).bytes(), Transmitted),
        ("marked traffic", tcp(80).with(|p| p.traffic_class = 0xbb).bytes(), Transmitted),
        ("largest packet", f.udp(f.vip, &largest).bytes(), Transmitted),
        ("one byte too large", f.udp(f.vip, &larger).bytes(), f.too_big()),
        ("last hop of its life", tcp(80).with(|p| p.ttl = 1).bytes(), Dropped(DropReason::TtlExpired)),
        ("no life at all", tcp(80).with(|p| p.ttl = 0).bytes(), Dropped(DropReason::TtlExpired)),
        ("second to last hop", tcp(80).with(|p| p.ttl = 2).bytes(), Transmitted),
        ("service without real servers", tcp(84).bytes(), Dropped(DropReason::NoRealServer)),
        ("no way to the real server", tcp(85).bytes(), Dropped(DropReason::NoNextHop)),
        ("another port of the VIP", tcp(443).bytes(), Passed(PassReason::NoService)),
        (
            "port of the other protocol",
            Packet::udp((f.client, 9), (f.vip, 80), b"x").bytes(),
            Passed(PassReason::NoService),
        ),
        (
            "another address",
            Packet::tcp((f.client, 9), (f.elsewhere, 80), ACK).bytes(),
            Passed(PassReason::NoService),
        ),
        ("ICMP elsewhere", f.of(f.icmp, f.elsewhere).bytes(), Passed(PassReason::NoService)),
        ("the other ICMP to the VIP", f.of(59 - f.icmp, f.vip).bytes(), Passed(PassReason::ProtocolToVip)),
        ("OSPF to the VIP", f.of(89, f.vip).bytes(), Passed(PassReason::ProtocolToVip)),
        ("OSPF elsewhere", f.of(89, f.elsewhere).bytes(), Passed(PassReason::NoService)),
        ("ARP", tcp(80).with(|p| p.ethertype = 0x0806).bytes(), Passed(PassReason::NotIp)),
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
        super::packets::fix_checksum(&mut frame);
    }
    frame
}

/// `packet` with its length field that many bytes from the truth.
fn mistaken(packet: &Packet, by: i32) -> Vec<u8> {
    let frame = packet.bytes();
    let at = if packet.version == 4 { 16 } else { 18 };
    let length = i32::from(u16::from_be_bytes([frame[at], frame[at + 1]])) + by;
    patched(packet, at, &(length as u16).to_be_bytes(), packet.version == 4)
}

fn malformed(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed};
    let (tcp, dns) = (f.tcp(80), f.dns());
    let truncated = |length: usize| tcp.bytes()[..length].to_vec();
    let (data, end) = (f.headers, f.headers + 25);
    vec![
        ("frame of a bare header", truncated(14), Passed(PassReason::ShortHeader)),
        ("ends within the IP header", truncated(data - 1), Passed(PassReason::ShortHeader)),
        ("ends before the ports", truncated(data + 3), Dropped(DropReason::ShortTransport)),
        ("ends within the TCP header", truncated(data + 19), Dropped(DropReason::BadLength)),
        ("ends within the data", truncated(end - 1), Dropped(DropReason::BadLength)),
        ("another version than its frame", patched(&tcp, 14, &[0x75], false), Passed(PassReason::BadVersion)),
        ("longer than its frame", mistaken(&tcp, 30_000), Dropped(DropReason::BadLength)),
        ("too short for TCP", mistaken(&tcp, -6), Dropped(DropReason::ShortTransport)),
        ("too short for UDP", mistaken(&dns, -11), Dropped(DropReason::ShortTransport)),
        (
            "TCP header of 16 bytes",
            patched(&tcp, data + 12, &[0x40], false),
            Dropped(DropReason::BadTransport),
        ),
        (
            "TCP header beyond the packet",
            patched(&tcp, data + 12, &[0xf0], false),
            Dropped(DropReason::BadTransport),
        ),
        ("UDP length of 7", patched(&dns, data + 4, &[0, 7], false), Dropped(DropReason::BadTransport)),
        (
            "UDP longer than its packet",
            patched(&dns, data + 4, &[0, 99], false),
            Dropped(DropReason::BadTransport),
        ),
    ]
}

/// What is remembered of one row meets the next: each datagram has an identification of its own.
fn fragments(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed, Redirected, Transmitted};
    let whole = || f.udp(f.whole, &[5; 64]);
    let first = |packet: Packet, id| packet.with(|p| (p.fragment, p.identification) = (MORE_FRAGMENTS, id));
    let later = |packet: Packet, id| packet.with(|p| (p.fragment, p.identification) = (9, id));
    let at = |packet: Packet, id, unit| packet.with(|p| (p.fragment, p.identification) = (unit, id));
    let length_of_udp = f.headers + 4 + if f.name == "IPv6" { 8 } else { 0 };
    let options = |packet: Packet| packet.with(|p| p.payload[12] = 0xf0);
    let overlap = Dropped(DropReason::FragmentOverlap);
    let tiny = Dropped(DropReason::FragmentTiny);
    vec![
        ("first fragment, hash of source", first(f.tcp(80), 1).bytes(), Transmitted),
        ("its later one", later(f.tcp(80), 1).bytes(), Transmitted),
        ("its last one, to another link", first(f.tcp(81), 2).bytes(), Redirected),
        ("follows to another link", later(f.tcp(81), 2).bytes(), Redirected),
        ("a later fragment of another datagram", later(f.tcp(81), 3).bytes(), Dropped(DropReason::Fragment)),
        (
            "a later fragment of another client",
            later(f.tcp(81), 2).with(|p| p.source = ip(f.router)).bytes(),
            Dropped(DropReason::Fragment),
        ),
        (
            "first fragment of a long datagram",
            patched(&first(whole(), 4), length_of_udp, &[8, 0], false),
            Transmitted,
        ),
        ("overtaking, the only service", later(whole(), 5).bytes(), Transmitted),
        (
            "overtaking, too short for ports",
            later(Packet::new(17, f.client, f.whole, vec![1]), 6).bytes(),
            Transmitted,
        ),
        ("overtaking, several services", later(f.tcp(80), 7).bytes(), Dropped(DropReason::Fragment)),
        (
            "overtaking, hash of source and port",
            later(f.dns(), 8).bytes(),
            Dropped(DropReason::FragmentNeedsPort),
        ),
        ("first fragment, hash of source and port", first(f.dns(), 8).bytes(), Transmitted),
        ("its later one, hash of source and port", later(f.dns(), 8).bytes(), Transmitted),
        ("first fragment into a tunnel", first(f.tcp(91), 9).bytes(), Transmitted),
        ("its later one into the tunnel", later(f.tcp(91), 9).bytes(), Transmitted),
        (
            "first fragment without all of TCP",
            first(f.tcp(80), 10).with(|p| p.payload.truncate(16)).bytes(),
            tiny,
        ),
        ("first fragment without all options of TCP", options(first(f.tcp(80), 11)).bytes(), tiny),
        (
            "first fragment without all of UDP",
            first(f.dns(), 12).with(|p| p.payload.truncate(6)).bytes(),
            tiny,
        ),
        ("its later one has not been let in", later(f.tcp(80), 10).bytes(), Dropped(DropReason::Fragment)),
        ("first fragment, to be overlapped", first(f.tcp(80), 13).bytes(), Transmitted),
        ("later fragment over the ports of TCP", at(f.tcp(80), 13, 1).bytes(), overlap),
        ("later fragment over the flags of TCP", at(f.tcp(80), 13, 2).bytes(), overlap),
        ("later fragment right behind TCP", at(f.tcp(80), 13, 3).bytes(), Transmitted),
        ("later fragment of UDP right behind the header", first(f.dns(), 14).bytes(), Transmitted),
        ("follows right behind UDP", at(f.dns(), 14, 1).bytes(), Transmitted),
        (
            "later fragment elsewhere",
            later(f.udp(f.elsewhere, &[0; 32]), 15).bytes(),
            Passed(PassReason::NoService),
        ),
    ]
}

fn tagged(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed, Transmitted};
    let tagged = |port| f.tcp(port).with(|p| p.vlan = Some(0x6064));
    let twice = |mut frame: Vec<u8>| {
        frame.splice(12..12, [0x81, 0, 0, 7]);
        frame
    };
    vec![
        ("tagged: the tag stays on the same link", tagged(80).bytes(), Transmitted),
        ("tagged: not to another link", tagged(81).bytes(), Dropped(DropReason::VlanRedirect)),
        ("tagged: no service", tagged(443).bytes(), Passed(PassReason::NoService)),
        ("tagged: ends within the tag", tagged(80).bytes()[..17].to_vec(), Passed(PassReason::ShortFrame)),
        ("tagged twice", twice(tagged(80).bytes()), Passed(PassReason::NotIp)),
    ]
}

fn tunnels(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Transmitted};
    let tcp = |port| f.tcp(port);
    let sized =
        |port, total: usize| tcp(port).with(|p| p.payload.resize(total - (f.headers - 14), 7)).bytes();
    let too_big = f.too_big();
    vec![
        ("IP in IPv4", tcp(90).bytes(), Transmitted),
        ("IP in IPv6", tcp(91).bytes(), Transmitted),
        ("GRE over IPv4", tcp(92).bytes(), Transmitted),
        ("GRE over IPv6", tcp(93).bytes(), Transmitted),
        ("GUE over IPv4", tcp(94).bytes(), Transmitted),
        ("GUE over IPv6", tcp(95).bytes(), Transmitted),
        (
            "tunnel: DSCP and congestion experienced",
            tcp(90).with(|p| p.traffic_class = 0xbb).bytes(),
            Transmitted,
        ),
        ("tunnel: DSCP and ECT(0) over IPv6", tcp(91).with(|p| p.traffic_class = 0x2a).bytes(), Transmitted),
        ("tunnel: padding", tcp(94).with(|p| p.padding = 9).bytes(), Transmitted),
        ("tunnel: tagged", tcp(90).with(|p| p.vlan = Some(7)).bytes(), Transmitted),
        ("tunnel: tagged, over IPv6", tcp(95).with(|p| p.vlan = Some(7)).bytes(), Transmitted),
        ("tunnel: first fragment", tcp(90).with(|p| p.fragment = MORE_FRAGMENTS).bytes(), Transmitted),
        (
            "tunnel: last hop of its life",
            tcp(90).with(|p| p.ttl = 1).bytes(),
            Dropped(DropReason::TtlExpired),
        ),
        ("IP in IPv4, largest", sized(90, 1500 - 20), Transmitted),
        ("IP in IPv4, too large", sized(90, 1500 - 19), too_big),
        ("IP in IPv6, largest", sized(91, 1500 - 40), Transmitted),
        ("IP in IPv6, too large", sized(91, 1500 - 39), too_big),
        ("GRE over IPv4, largest", sized(92, 1500 - 24), Transmitted),
        ("GRE over IPv4, too large", sized(92, 1500 - 23), too_big),
        ("GUE over IPv6, largest", sized(95, 1500 - 52), Transmitted),
        ("GUE over IPv6, too large", sized(95, 1500 - 51), too_big),
    ]
}

impl Family {
    /// What becomes of a packet that is too big and says nothing about fragmenting.
    fn too_big(&self) -> Outcome {
        if self.icmp == 1 {
            Outcome::Dropped(DropReason::TooBig)
        } else {
            Outcome::Answered(AnswerReason::TooBig)
        }
    }

    /// An echo request with a right checksum.
    pub fn echo(&self, destination: &str) -> Packet {
        let kind = if self.icmp == 1 { 8 } else { 128 };
        self.message(self.client, destination, &[kind, 0, 0, 0, 0x12, 0x34, 0, 1, 7, 7, 7, 7])
    }

    /// An ICMP message with the checksum made right.
    pub fn message(&self, source: &str, destination: &str, message: &[u8]) -> Packet {
        let mut packet = Packet::new(self.icmp, source, destination, message.to_vec());
        packet.payload[2..4].fill(0);
        let sum = packet.icmp_checksum();
        packet.payload[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// Every error, by type and code, about a packet of which it shows `inner`.
    fn errors(&self) -> &'static [(u8, u8)] {
        if self.icmp == 1 { &[(3, 1), (3, 4), (11, 0), (12, 0)] } else { &[(1, 4), (2, 0), (3, 0), (4, 1)] }
    }

    pub fn error(&self, (kind, code): (u8, u8), inner: &[u8]) -> Packet {
        let message = [&[kind, code, 0, 0, 0, 0, 5, 0], inner].concat();
        self.message(self.router, self.vip, &message)
    }

    /// A packet from the VIP's `port` to the client, as an error shows it.
    pub fn answer(&self, port: u16) -> Packet {
        Packet::tcp((self.vip, port), (self.client, 40_000), ACK)
    }

    /// The first bytes of `packet` that an error shows: the IP header and as many bytes behind it.
    pub fn shown(&self, packet: &Packet, bytes: usize) -> Vec<u8> {
        let end = packet.bytes().len() - packet.payload.len() + bytes;
        packet.bytes()[14..end].to_vec()
    }
}

fn icmp(f: &Family) -> Vec<Row> {
    use Outcome::{Answered, Dropped, Passed, Redirected, Transmitted};
    let error = |inner: &[u8]| f.error(f.errors()[0], inner);
    let about = |port, bytes| error(&f.shown(&f.answer(port), bytes)).bytes();
    let other = f.answer(80).with(|p| p.source = ip(f.whole));
    let echo = |vip| f.echo(vip);
    let unreadable = Dropped(DropReason::IcmpInner);
    let mut rows = vec![
        ("echo request", echo(f.vip).bytes(), Answered(AnswerReason::Echo)),
        (
            "echo request, tagged",
            echo(f.vip).with(|p| p.vlan = Some(7)).bytes(),
            Answered(AnswerReason::Echo),
        ),
        (
            "echo request on its last hop",
            echo(f.vip).with(|p| p.ttl = 1).bytes(),
            Answered(AnswerReason::Echo),
        ),
        ("echo request without real server", echo(f.dead).bytes(), Dropped(DropReason::EchoUnserved)),
        ("echo request longer than its frame", mistaken(&echo(f.vip), 9), Dropped(DropReason::BadLength)),
        (
            "echo request to another station",
            echo(f.vip).with(|p| p.destination_mac = [2, 0, 0, 0, 0, 0x55]).bytes(),
            Passed(PassReason::OtherStation),
        ),
        (
            "echo request in fragments",
            echo(f.vip).with(|p| p.fragment = MORE_FRAGMENTS).bytes(),
            Dropped(DropReason::IcmpFragment),
        ),
        ("echo request elsewhere", echo(f.elsewhere).bytes(), Passed(PassReason::NoService)),
        (
            "echo reply to the VIP",
            f.of(f.icmp, f.vip).with(|p| p.payload[0] = 129).bytes(),
            Passed(PassReason::IcmpToVip),
        ),
        (
            "cut within the ICMP header",
            f.of(f.icmp, f.vip).with(|p| p.payload.truncate(7)).bytes(),
            Dropped(DropReason::ShortTransport),
        ),
        ("error with 8 bytes of the header", about(80, 8), Transmitted),
        ("error with the ports only", about(80, 4), Transmitted),
        ("error without the ports", about(80, 3), unreadable),
        ("error, real server on another link", about(81, 8), Redirected),
        ("error into a tunnel", about(90, 8), Transmitted),
        ("error into a tunnel over IPv6", about(95, 8), Transmitted),
        ("error cut within the inner header", about(80, 8)[..f.headers + 8 + 19].to_vec(), unreadable),
        (
            "error about a later fragment",
            error(&f.shown(&f.answer(80).with(|p| p.fragment = 9), 8)).bytes(),
            unreadable,
        ),
        (
            "error about a first fragment",
            error(&f.shown(&f.answer(80).with(|p| p.fragment = MORE_FRAGMENTS), 8)).bytes(),
            Transmitted,
        ),
        (
            "error about another VIP's packet",
            error(&f.shown(&other, 8)).bytes(),
            Dropped(DropReason::IcmpMismatch),
        ),
        ("error about a port of no service", about(443, 8), Dropped(DropReason::IcmpNoService)),
        (
            "error about another protocol",
            error(&f.shown(&f.answer(80).with(|p| p.protocol = 132), 8)).bytes(),
            Passed(PassReason::IcmpToVip),
        ),
    ];
    for error in f.errors() {
        rows.push(("every error", f.error(*error, &f.shown(&f.answer(80), 8)).bytes(), Transmitted));
    }
    rows
}

/// The frame that shall come of `inner` (the packet in a frame without tag) in the tunnel of service port `port`,
/// and the bits in it that only have to be the same for one flow.
pub fn tunnelled(port: u16, inner: &Packet) -> (Vec<u8>, Vec<(usize, u8)>) {
    let over_v6 = port % 2 == 1;
    let (source, real) = if over_v6 { (TUNNEL_V6, REAL_V6) } else { (TUNNEL_V4, REAL_V4) };
    let (ethertype, number) = if inner.version == 4 { ([0x08, 0x00], 4) } else { ([0x86, 0xdd], 41) };
    let packet = inner.clone().with(|p| (p.vlan, p.padding) = (None, 0)).bytes()[14..].to_vec();
    let (protocol, shim) = match port {
        90 | 91 => (number, vec![]),
        92 | 93 => (47, [vec![0, 0], ethertype.to_vec()].concat()),
        _ => {
            let length = (12 + packet.len()) as u16;
            let udp = [vec![0xc0, 0], GUE_PORT.to_be_bytes().to_vec(), length.to_be_bytes().to_vec()];
            (17, [udp.concat(), vec![0, 0, 0, number, 0, 0]].concat())
        }
    };
    let mut free = Vec::new();
    let start = if inner.vlan.is_some() { 18 } else { 14 };
    if over_v6 {
        free.extend([(start + 1, 0x0f), (start + 2, 0xff), (start + 3, 0xff)]);
    }
    if port >= 94 {
        let udp = start + if over_v6 { 40 } else { 20 };
        free.extend([(udp, 0x3f), (udp + 1, 0xff)]);
    }
    let outer = Packet::new(protocol, &source.to_string(), real, [shim, packet].concat()).with(|p| {
        p.traffic_class = inner.traffic_class;
        p.vlan = inner.vlan;
        p.padding = inner.padding;
        // Atomic where the inner one may not be fragmented; these cases have no flag to say so in IPv4.
        p.fragment = if inner.version == 6 { 0x4000 } else { 0 };
        p.identification = 0;
    });
    let mut frame = if over_v6 { outer.with(|p| p.fragment = 0).bytes() } else { outer.bytes() };
    frame[..6].copy_from_slice(&HERE.destination_mac);
    frame[6..12].copy_from_slice(&HERE.source_mac);
    (frame, free)
}

fn only_v4() -> Vec<Row> {
    use Outcome::Answered;
    use Outcome::{Dropped, Passed, Transmitted};
    let tcp = V4.tcp(80);
    let large = || V4.udp(V4.vip, &[7; 1473]).with(|p| p.fragment = 0x4000);
    vec![
        ("too large, don't fragment", large().bytes(), Answered(AnswerReason::TooBig)),
        ("too large, tagged", large().with(|p| p.vlan = Some(7)).bytes(), Answered(AnswerReason::TooBig)),
        (
            "too large, with options",
            large().with(|p| p.options = vec![1; 4]).bytes(),
            Dropped(DropReason::TooBig),
        ),
        (
            "too large, from a group",
            large().with(|p| p.source = ip("224.0.0.9")).bytes(),
            Dropped(DropReason::TooBig),
        ),
        ("header with options", tcp.clone().with(|p| p.options = vec![1; 40]).bytes(), Transmitted),
        ("header of 16 bytes", patched(&tcp, 14, &[0x44], false), Passed(PassReason::BadHeaderLength)),
        ("wrong header checksum", patched(&tcp, 24, &[0xab, 0xcd], false), Dropped(DropReason::BadChecksum)),
        (
            "wrong checksum of options",
            patched(&tcp.clone().with(|p| p.options = vec![1; 8]), 38, &[7], false),
            Dropped(DropReason::BadChecksum),
        ),
        ("shorter than its header", patched(&tcp, 16, &[0, 19], true), Dropped(DropReason::BadLength)),
    ]
}

fn only_v6() -> Vec<Row> {
    use Outcome::{Dropped, Passed, Transmitted};
    let extended = |chain: &[(u8, usize)]| {
        let body = |units: usize| [vec![units as u8], vec![0; 6 + 8 * units]].concat();
        let chain = chain.iter().map(|(kind, units)| (*kind, body(*units))).collect();
        V6.tcp(80).with(|p| p.extensions = chain)
    };
    // Length in units of 4 bytes: 24 bytes of authentication header are 4.
    let authentication = V6.tcp(80).with(|p| p.extensions = vec![(51, [vec![4], vec![0; 22]].concat())]);
    let left = V6.tcp(80).with(|p| p.extensions = vec![(43, vec![0, 0, 1, 0, 0, 0, 0])]);
    let elsewhere = |packet: Packet| packet.with(|p| p.destination = ip(V6.elsewhere));
    let mapped = |packet: Packet, at: usize| {
        let mut frame = packet.bytes();
        frame[at..at + 16].copy_from_slice(&vip("203.0.113.10").0);
        frame
    };
    let broken = Dropped(DropReason::BadExtension);
    vec![
        ("hop-by-hop options", extended(&[(0, 0)]).bytes(), Transmitted),
        ("every extension header", extended(&[(0, 0), (60, 1), (43, 2), (60, 3)]).bytes(), Transmitted),
        ("an authentication header", authentication.bytes(), Transmitted),
        ("as many extension headers as are walked", extended(&[(60, 0); 6]).bytes(), Transmitted),
        ("one extension header more", extended(&[(60, 0); 7]).bytes(), broken),
        ("extension headers as long as are walked", extended(&[(60, 63)]).bytes(), Transmitted),
        ("longer extension headers", extended(&[(60, 80)]).bytes(), broken),
        ("ends within an extension header", extended(&[(0, 0)]).bytes()[..58].to_vec(), broken),
        (
            "ends behind an extension header",
            extended(&[(0, 0)]).bytes()[..62].to_vec(),
            Dropped(DropReason::ShortTransport),
        ),
        (
            "extension headers beyond the length",
            mistaken(&extended(&[(0, 3)]), -30),
            Dropped(DropReason::BadLength),
        ),
        ("segments left", left.bytes(), Dropped(DropReason::RoutingHeader)),
        ("segments left, elsewhere", elsewhere(left).bytes(), Passed(PassReason::NoService)),
        (
            "too many extension headers elsewhere",
            elsewhere(extended(&[(60, 0); 7])).bytes(),
            Passed(PassReason::NoService),
        ),
        ("an encrypted packet", V6.of(50, V6.vip).bytes(), Passed(PassReason::ProtocolToVip)),
        ("destination maps the IPv4 VIP", mapped(V6.tcp(80), 38), Passed(PassReason::MappedAddress)),
        ("source maps an IPv4 address", mapped(V6.tcp(80), 22), Passed(PassReason::MappedAddress)),
    ]
}
