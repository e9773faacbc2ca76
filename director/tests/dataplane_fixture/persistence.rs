//! A persistent service, its clients, and where their connections go.

use std::net::IpAddr;
use std::time::Duration;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use director::dataplane::{
    Datagrams, Dataplane, Forwarding, HashInput, Method, NextHop, Options, Persistence, Ports, Protocol,
    RealSpec, ServiceAddress, ServiceSpec, Timeouts, Tracking, WhenFull, monotonic_seconds,
};
use director_common::SLOTS;

use super::cases::{HERE, INGRESS, KEY};
use super::open;
use super::packets::{ACK, OUR_MAC, Packet, SYN};

pub const VIPS: [&str; 2] = ["203.0.113.10", "203.0.113.11"];
/// Seconds for which templates live in these tests, unless they say something else.
pub const TIMEOUT: u32 = 300;

pub fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 2, last])
}

pub fn way(real: IpAddr) -> NextHop {
    let IpAddr::V4(real) = real else { panic!("IPv4") };
    NextHop { destination_mac: [2, 0, 0, 0, 9, real.octets()[3]], ..HERE }
}

pub fn server(last: u8, weight: u32) -> RealSpec {
    RealSpec { weight, ..RealSpec::new(address(last), 0) }
}

pub fn persistence() -> Persistence {
    Persistence {
        timeout: Duration::from_secs(TIMEOUT.into()),
        prefix_v4: 24,
        prefix_v6: 64,
        expire_quiescent: false,
    }
}

pub fn tracking(method: Method, persistence: Persistence) -> Option<Tracking> {
    Some(Tracking { method, when_full: WhenFull::Forward, persistence: Some(persistence) })
}

pub fn by_turns() -> Option<Tracking> {
    tracking(Method::RoundRobin, persistence())
}

/// A group of two addresses, in TCP and UDP. All slots are the first server's.
pub fn spec<'a>(tracking: Option<Tracking>, reals: &[RealSpec], slots: &'a [u16]) -> ServiceSpec<'a> {
    let of = |vip: &str, protocol, ports| ServiceAddress {
        prefix: vip.parse::<IpAddr>().expect("vip").into(),
        protocol,
        ports,
    };
    ServiceSpec {
        name: "web",
        addresses: vec![
            of(VIPS[0], Protocol::Tcp, Ports::one(80)),
            of(VIPS[0], Protocol::Udp, Ports::one(80)),
            of(VIPS[1], Protocol::Tcp, Ports::one(443)),
        ],
        hash: HashInput::Source,
        forwarding: Forwarding::DirectReturn,
        reals: reals.to_vec(),
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking,
    }
}

pub fn ready(options: &Options) -> Dataplane {
    let mut dataplane = open(options);
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    for last in 1..=255 {
        dataplane.set_next_hop(address(last), Some(way(address(last)))).expect("next hop");
    }
    dataplane
}

pub fn apply(dataplane: &mut Dataplane, tracking: Option<Tracking>, reals: &[RealSpec]) {
    dataplane.apply(&[spec(tracking, reals, &vec![0; SLOTS])]).expect("apply");
}

/// Which server the program sends a frame to; 0 if to none.
pub fn run(dataplane: &Dataplane, frame: &[u8]) -> u8 {
    let mut out = vec![0; frame.len()];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(options).expect("run");
    if result.return_value == 3 { out[5] } else { 0 }
}

pub fn sent(dataplane: &Dataplane, client: &str, port: u16, flags: u8) -> u8 {
    run(dataplane, &Packet::tcp((client, port), (VIPS[0], 80), flags).bytes())
}

/// Begins a connection and goes on with it; which server it is at.
pub fn connect(dataplane: &Dataplane, client: &str, port: u16) -> u8 {
    let [first, second] = [SYN, ACK].map(|flags| sent(dataplane, client, port, flags));
    assert_eq!(first, second, "{client} port {port}");
    first
}

pub fn datagram(dataplane: &Dataplane, client: &str, port: u16) -> u8 {
    run(dataplane, &Packet::udp((client, port), (VIPS[0], 80), b"question").bytes())
}

/// Clients that have a template, each with the last byte of its server and whether a connection has gone on.
pub fn templates(dataplane: &Dataplane) -> Vec<(String, u8, bool)> {
    let records = dataplane.templates(monotonic_seconds()).expect("templates");
    let last = |real: IpAddr| if let IpAddr::V4(real) = real { real.octets()[3] } else { 0 };
    records.iter().map(|it| (it.client.to_string(), last(it.real.ip()), it.is_assured)).collect()
}
