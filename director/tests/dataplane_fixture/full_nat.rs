//! Services with full NAT, and packets to and from them.

use std::net::{IpAddr, SocketAddr};

use director::dataplane::{
    Datagrams, Forwarding, HashInput, LocalAddresses, Method, NextHop, Ports, Protocol, RealSpec,
    ServiceAddress, ServiceSpec, Timeouts, Tracking, WhenFull,
};
use director_common::tables::Interface;
use director_common::verdict::ReplyReason;
use director_common::{SLOTS, Verdict};

use super::cases::{Family, HERE, INGRESS, KEY, V4, V6};
use super::memory::Memory;
use super::packets::{OUR_MAC, Packet};
use super::routes::UPLINK;

/// The service's port, and the one that it has on the real servers.
pub const PORT: u16 = 80;
pub const MAPPED: u16 = 8_100;
pub const LOCALS: [&str; 3] = ["10.0.9.1", "10.0.9.2", "2001:db8:9::1"];
pub const PORTS: Ports = Ports { first: 2_000, last: 2_999 };

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// Another real server of a family.
pub fn second(f: &Family) -> &'static str {
    if f.name == "IPv4" { "10.0.2.12" } else { "2001:db8:2::12" }
}

pub fn locals(addresses: &[&str], ports: Ports) -> LocalAddresses {
    LocalAddresses { addresses: addresses.iter().map(|address| ip(address)).collect(), ports }
}

/// A service for each family, in TCP and UDP, with two real servers.
pub fn services(slots: &[u16], method: Method) -> Vec<ServiceSpec<'_>> {
    let of = |name, f: Family| ServiceSpec {
        name,
        addresses: [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| ServiceAddress { prefix: ip(f.vip).into(), protocol, ports: Ports::one(PORT) })
            .to_vec(),
        hash: HashInput::Source,
        forwarding: Forwarding::FullNat,
        reals: [f.real, second(&f)].map(|real| RealSpec::new(ip(real), MAPPED)).to_vec(),
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: Some(Tracking { method, when_full: WhenFull::Refuse }),
    };
    vec![of("full", V4), of("full-6", V6)]
}

pub fn way(_: IpAddr) -> Option<NextHop> {
    Some(HERE)
}

/// Tables in user space; with slots that are all the first real server's.
pub fn memory(method: Method, addresses: &[&str], ports: Ports) -> Memory {
    let (mut memory, slots) = (Memory::new(KEY), vec![0; SLOTS]);
    for service in services(&slots, method) {
        memory.add(&service, way);
    }
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| ip(address)).collect();
    memory.set_locals(&addresses, (ports.first, ports.last));
    for (index, mac) in [(INGRESS, OUR_MAC), UPLINK] {
        let flags = Interface::FLAG_NATIVE | Interface::FLAG_KNOWN;
        memory.interfaces.insert(index, Interface { mac, flags });
    }
    memory
}

pub fn tcp(f: &Family, port: u16, flags: u8) -> Packet {
    Packet::tcp((f.client, port), (f.vip, PORT), flags).summed()
}

/// Source and destination of what left.
pub fn ends(f: &Family, frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let (at, length, start) = if f.name == "IPv4" { (26, 4, 34) } else { (22, 16, 54) };
    let end = |number: usize| {
        let bytes = &frame[at + number * length..at + (number + 1) * length];
        let address = match length {
            4 => IpAddr::from(<[u8; 4]>::try_from(bytes).expect("four")),
            _ => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("sixteen")),
        };
        let port = &frame[start + 2 * number..start + 2 * number + 2];
        SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]]))
    };
    (end(0), end(1))
}

/// Sends a packet through user space's tables; what leaves, behind the link addresses.
pub fn sent(memory: &Memory, packet: &Packet, expected: Verdict) -> Vec<u8> {
    let mut out = packet.bytes();
    let verdict = memory.run(INGRESS, &mut out).verdict;
    assert_eq!(verdict, expected, "{packet:?}");
    out.split_off(12)
}

/// Begins a connection; what stands for the client, as text and port.
pub fn begin(memory: &Memory, f: &Family, packet: &Packet) -> (String, u16) {
    let mut out = packet.bytes();
    assert_eq!(memory.run(INGRESS, &mut out).verdict, Verdict::Transmit, "{packet:?}");
    let (local, real) = ends(f, &out);
    assert_eq!(real, SocketAddr::new(ip(f.real), MAPPED));
    (local.ip().to_string(), local.port())
}

pub const ANSWERED: Verdict = Verdict::Reply(ReplyReason::Redirected);
