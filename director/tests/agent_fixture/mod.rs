//! A client, a director and a real server around a router, in namespaces of the test's thread.
//!
//! ```text
//! client (192.0.2.2) c0 --- rc router rr --- r0 real server (10.0.2.11, and the VIPs)
//!                              rd  re
//!                               |   |
//!                              d0  d1 director (192.0.3.2; the test's own namespace)
//! ```
//! The director has two links, since veth is slow to tell its peer of what a program sends back by the same one.
//! The router sends VIPs to the director, as a switch does, and the real server answers by the router.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this, and none exports it")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use director::agent::{Agent, Options as AgentOptions, Tunnel};
use director::dataplane::{
    Datagrams, Dataplane, Forwarding, HashInput, Options, Ports, Protocol, RealSpec, ServiceAddress,
    ServiceSpec, Timeouts, TunnelSources,
};
use director::next_hop::Resolver;
use director_common::SLOTS;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{getsockopt, sockopt::TcpMaxSeg};

use super::dataplane_fixture::{options, run};

/// One of each family.
pub const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
/// The real server's own addresses.
pub const REALS: [&str; 2] = ["10.0.2.11", "2001:db8:2::11"];
const REAL_PREFIXES: [&str; 2] = ["10.0.2.0/24", "2001:db8:2::/64"];
/// Bytes that are asked for, and those that are sent for them.
pub const CHUNK: usize = 64 * 1024;
/// Whatever is expected comes well within this, also on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `body` in a thread inside a named namespace.
pub fn within<T: Send + 'static>(
    namespace: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let file = File::open(format!("/run/netns/{namespace}")).expect("namespace");
    std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("enter namespace");
        body()
    })
}

/// Connects and starts everything but director and agent.
pub fn build() {
    for name in ["client", "router", "real"] {
        run("ip", &format!("netns add {name}"));
        run("ip", &format!("-n {name} link set lo up"));
    }
    // What VIPs send comes from the real server's side, and what they get goes to the director's.
    for setting in [
        "ipv4.ip_forward=1",
        "ipv6.conf.all.forwarding=1",
        "ipv4.conf.all.rp_filter=0",
        "ipv4.conf.default.rp_filter=0",
    ] {
        run("ip", &format!("netns exec router sysctl -q -w net.{setting}"));
    }
    for (near, host, far, [v4, v6], last) in [
        ("rc", "client", "c0", ["192.0.2", "2001:db8:c::"], ["2", "2"]),
        ("rr", "real", "r0", ["10.0.2", "2001:db8:2::"], ["11", "11"]),
        ("rd", "", "d0", ["192.0.3", "2001:db8:d::"], ["2", "2"]),
        ("re", "", "d1", ["192.0.4", "2001:db8:e::"], ["2", "2"]),
    ] {
        run("ip", &format!("link add {far} type veth peer name {near} netns router"));
        let inside = if host.is_empty() { String::new() } else { format!("-n {host} ") };
        if !host.is_empty() {
            run("ip", &format!("link set {far} netns {host}"));
        }
        run("ip", &format!("-n router addr add {v4}.1/24 dev {near}"));
        run("ip", &format!("-n router addr add {v6}1/64 dev {near} nodad"));
        run("ip", &format!("-n router link set {near} up"));
        run("ip", &format!("{inside}addr add {v4}.{}/24 dev {far}", last[0]));
        run("ip", &format!("{inside}addr add {v6}{}/64 dev {far} nodad", last[1]));
        run("ip", &format!("{inside}link set {far} up"));
        let prefixes = if near == "re" { REAL_PREFIXES } else { ["default", "default"] };
        if near != "rd" {
            run("ip", &format!("{inside}route add {} via {v4}.1", prefixes[0]));
            run("ip", &format!("{inside}-6 route add {} via {v6}1", prefixes[1]));
        }
        // Partial checksums do not survive XDP; a redirect's target needs NAPI, which GRO turns on.
        run("ip", &format!("netns exec router ethtool -K {near} tx off gro on"));
        let there = if host.is_empty() { String::new() } else { format!("ip netns exec {host} ") };
        let command = format!("{there}ethtool -K {far} tx off gro off");
        let (program, arguments) = command.split_once(' ').expect("a program and arguments");
        run(program, arguments);
    }
    run("ip", &format!("-n router route add {}/32 via 192.0.3.2", VIPS[0]));
    run("ip", &format!("-n router -6 route add {}/128 via 2001:db8:d::2", VIPS[1]));
    // Tunnels may come and answers go by different ways: the agent must see to that.
    run("ip", "netns exec real sysctl -q -w net.ipv4.conf.all.rp_filter=1");
    for host in ["client", "real"] {
        // Others take the delays of a busy machine for those of a narrow link, and creep.
        run("ip", &format!("netns exec {host} sysctl -q -w net.ipv4.tcp_congestion_control=reno"));
    }
    for (host, link) in [("client", "c0"), ("real", "r0"), ("router", "rd"), ("router", "re")] {
        let begin = Instant::now();
        while run("ip", &format!("-n {host} -br link show {link}")).contains("NO-CARRIER") {
            assert!(begin.elapsed() < PATIENCE, "{link} has no carrier");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    serve();
}

/// On the real server, answers each connection with `CHUNK` times the byte that it has sent as often.
fn serve() {
    within("real", || {
        let listener = TcpListener::bind(("::", 80)).expect("listen");
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            std::thread::spawn(move || {
                let mut bytes = vec![0; CHUNK];
                while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
            });
        }
    });
}

/// A connection from the client to the VIP, and the largest segment it may send.
pub fn connect(vip: &str) -> (TcpStream, u32) {
    let address = SocketAddr::new(vip.parse().expect("vip"), 80);
    let connecting =
        within("client", move || TcpStream::connect_timeout(&address, PATIENCE).expect("connect"));
    let stream = connecting.join().expect("client");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    let segment = getsockopt(&stream, TcpMaxSeg).expect("segment size");
    (stream, segment)
}

/// `CHUNK` bytes there and back again.
pub fn exchange(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte; CHUNK]).expect("question");
    let mut answer = vec![0; CHUNK];
    stream.read_exact(&mut answer).expect("answer");
    assert!(answer.iter().all(|got| *got == byte), "wrong bytes");
}

/// How a director makes the tunnel that the agent ends.
pub fn forwarding(tunnel: Tunnel) -> Forwarding {
    match tunnel {
        Tunnel::Ipip => Forwarding::Ipip,
        Tunnel::Gre => Forwarding::Gre,
        Tunnel::Gue { port } => Forwarding::Gue { port },
    }
}

/// The director: both VIPs to the real server's address of one family.
pub fn director(forwarding: Forwarding, over_v6: bool) -> Dataplane {
    let real: IpAddr = REALS[usize::from(over_v6)].parse().expect("real server");
    let slots = vec![0; SLOTS];
    let addresses = VIPS.iter().map(|vip| ServiceAddress {
        prefix: vip.parse::<IpAddr>().expect("vip").into(),
        protocol: Protocol::Tcp,
        ports: Ports::one(80),
    });
    let service = ServiceSpec {
        name: "web",
        addresses: addresses.collect(),
        hash: HashInput::SourcePort,
        forwarding,
        reals: vec![RealSpec::new(real, 80)],
        slots: &slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    };
    let tunnel_sources = TunnelSources {
        v4: Some("192.0.3.2".parse().expect("address")),
        v6: Some("2001:db8:d::2".parse().expect("address")),
    };
    let options =
        Options { interfaces: vec!["d0".to_owned()], discard_pins: true, tunnel_sources, ..options() };
    let (mut dataplane, _) = Dataplane::open(&options).expect("open");
    dataplane.apply(&[service]).expect("apply");
    let change = block_on(async {
        let (resolver, mut changes) = Resolver::start([]).expect("resolver");
        resolver.watch([real]);
        let found = async {
            loop {
                let change = changes.recv().await.expect("resolver runs");
                if change.next_hop.is_some() {
                    return change;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("a way to the real server")
    });
    dataplane.set_next_hop(change.address, change.next_hop).expect("next hop");
    dataplane.attach().expect("attach");
    dataplane
}

pub fn block_on<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(body)
}

/// The agent's options for both VIPs and this tunnel.
pub fn agent_options(tunnel: Tunnel) -> AgentOptions {
    let mut options = AgentOptions::new(VIPS.map(|vip| vip.parse().expect("vip")));
    options.tunnels.insert(tunnel);
    options.from = ["192.0.3.0/24", "2001:db8:d::/64"].map(|text| text.parse().expect("prefix")).to_vec();
    options
}

/// Runs `body` while an agent is at work on the real server; then it undoes everything.
pub fn with_agent<T>(options: AgentOptions, body: impl FnOnce(&Agent) -> T + Send + 'static) -> T
where
    T: Send + 'static,
{
    let working = within("real", move || {
        block_on(async {
            let agent = Agent::prepare(options).await.expect("agent");
            let result = body(&agent);
            agent.undo().await.expect("undo");
            result
        })
    });
    working.join().expect("agent's thread")
}
