//! Services with full NAT, and packets to and from them.

use std::net::{IpAddr, SocketAddr};

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use director::dataplane::{
    Datagrams, Dataplane, Forwarding, HashInput, LocalAddresses, Method, NextHop, Options, Ports, Protocol,
    RealSpec, ServiceAddress, ServiceSpec, Timeouts, Tracking, WhenFull,
};
use director_common::tables::Interface;
use director_common::verdict::{DropReason, Outcome, ReplyReason};
use director_common::{SLOTS, Verdict};

use super::cases::{Family, HERE, INGRESS, KEY, V4, V6};
use super::memory::Memory;
use super::open;
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
        tracking: Some(Tracking { method, when_full: WhenFull::Refuse, persistence: None }),
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

/// The same in the kernel, and its second real server of either family.
pub fn kernel(options: &Options, method: Method) -> Dataplane {
    let mut dataplane = open(options);
    let slots = vec![0; SLOTS];
    dataplane.set_hash_key(KEY).expect("key");
    for (index, mac) in [(INGRESS, OUR_MAC), UPLINK] {
        dataplane.declare_interface(index, mac, true).expect("interface");
    }
    dataplane.apply(&services(&slots, method)).expect("apply");
    for real in [V4.real, V6.real, second(&V4), second(&V6)] {
        dataplane.set_next_hop(ip(real), Some(HERE)).expect("next hop");
    }
    dataplane
}

/// Runs the program on a frame: what it returns, and what becomes of the frame.
pub fn run(dataplane: &Dataplane, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(options).expect("test run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// Packets dropped for a reason.
pub fn drops(dataplane: &Dataplane, reason: DropReason) -> u64 {
    let counters = dataplane.counters().expect("counters");
    let wanted = Outcome::Dropped(reason);
    counters.outcomes.iter().find(|(outcome, _)| *outcome == wanted).expect("outcome").1
}
