//! What a packet meets on its way, on the deployed topology and over both families: every hop of a traceroute answers,
//! a datagram in forty fragments arrives whole, and a path MTU that shrinks in the middle of a download does not stop
//! it. Needs what the lab needs, and the director beside the lab command (`cargo build --workspace`), or the one that
//! `LAB_DIRECTOR` names.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::Topology;
use lab::demo::{REALS, SERVICES, SWITCHES};
use lab::deploy::{Lab, Options};
use lab::load::{Load, Plan, Target, content};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// Port of the UDP services.
const UDP_PORT: u16 = 4000;
/// Length of a datagram that makes more than forty fragments.
const DATAGRAM: usize = 60_000;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn routers_fragments_and_a_small_path_mtu_do_not_surprise_the_fast_path() {
    assert!(nix::unistd::geteuid().is_root(), "this test makes namespaces: run it as root");
    let folder = tempfile::tempdir().unwrap();
    let lab = up(&format!("fast-{}", std::process::id()), folder.path());
    for (name, vip) in SERVICES {
        let connects = || inside(&lab, "client", || connect(vip, 64).0);
        until(&format!("{name} answers"), || connects().then_some(()));
        every_hop_answers(&lab, name, vip);
    }
    datagrams_arrive_whole(&lab);
    a_smaller_path_mtu_does_not_stop_downloads(&lab);
    lab.down().unwrap();
}

fn up(name: &str, folder: &Path) -> Lab {
    let director = std::env::var_os("LAB_DIRECTOR")
        .map_or_else(|| Path::new(LAB).with_file_name("director"), PathBuf::from)
        .canonicalize()
        .expect("no director: cargo build --workspace --bins first");
    let data = folder.join("data");
    let prepare = format!("{HERE}/ecmp/prepare.sh");
    assert!(Command::new(prepare).arg(&data).env("LAB", LAB).status().unwrap().success());
    let variables = |variable: &str| match variable {
        "DIRECTOR" => Some(director.display().to_string()),
        "ECMP_DATA" => Some(data.display().to_string()),
        other => std::env::var(other).ok(),
    };
    let topology = Topology::load_with(format!("{HERE}/ecmp.clab.yml"), &variables).unwrap();
    Lab::up(&topology.renamed(name).unwrap(), &Options::default()).unwrap()
}

/// Runs `work` on a thread of its own in the network namespace of `node`.
fn inside<T: Send>(lab: &Lab, node: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(lab.network_namespace(node).unwrap()).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Polls until there is a value.
fn until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A raw socket; the standard library's type for datagrams reads from it what it needs.
fn raw_icmp(vip: IpAddr) -> UdpSocket {
    let (domain, protocol) =
        if vip.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.into()
}

/// Tries a connection to port 80 whose packets live for `hops`: whether it came about, and who said that a packet of
/// it lived too long.
fn connect(vip: IpAddr, hops: u32) -> (bool, Option<IpAddr>) {
    let errors = raw_icmp(vip);
    let socket = Socket::new(Domain::for_address(SocketAddr::new(vip, 80)), Type::STREAM, None).unwrap();
    if vip.is_ipv4() {
        socket.set_ttl_v4(hops).unwrap();
    } else {
        socket.set_unicast_hops_v6(hops).unwrap();
    }
    let any: IpAddr = if vip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    socket.bind(&SocketAddr::new(any, 0).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let reached =
        socket.connect_timeout(&SocketAddr::new(vip, 80).into(), Duration::from_millis(500)).is_ok();
    let mut buffer = [0; 2048];
    while let Ok((count, from)) = errors.recv_from(&mut buffer) {
        let packet = &buffer[..count];
        // IPv4 hands over its own header too, 20 bytes; the quoted packet follows 8 bytes of ICMP.
        let (kind, exceeded) = if vip.is_ipv4() { (20, 11) } else { (0, 3) };
        // The quoted source port: after 20 + 8 + 20 bytes of IPv4, or 8 + 40 of IPv6.
        let quoted = packet.get(48..50).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        if packet.get(kind) == Some(&exceeded) && quoted == Some(port) {
            return (reached, Some(from.ip()));
        }
    }
    (reached, None)
}

/// Switch, director, real server: the first two answer that a packet lived too long, the third one answers it.
fn every_hop_answers(lab: &Lab, name: &str, vip: IpAddr) {
    for hops in 1..=2 {
        // A router may answer less often than asked.
        let (_, from) = until(&format!("{name}: an answer of hop {hops}"), || {
            Some(inside(lab, "client", || connect(vip, hops))).filter(|(_, from)| from.is_some())
        });
        assert_ne!(from, Some(vip), "{name}: hop {hops} is a router, not the VIP");
    }
    // The real server behind a slot may be the last one to come up.
    let (_, from) = until(&format!("{name}: the VIP as the third hop"), || {
        Some(inside(lab, "client", || connect(vip, 3))).filter(|(reached, _)| *reached)
    });
    assert!(from.is_none(), "{name}: the VIP is the third hop, but {from:?} answered");
}

/// Sends datagrams of 60,000 bytes to the UDP services and waits for the name of the real server that got each whole.
fn datagrams_arrive_whole(lab: &Lab) {
    let mut whole = vec![0; DATAGRAM];
    content::fill(0, &mut whole);
    let stop = AtomicBool::new(false);
    let vips = [SERVICES[0].1, SERVICES[2].1];
    std::thread::scope(|scope| {
        for (real, _) in REALS {
            for vip in vips {
                let (stop, whole) = (&stop, &whole);
                scope.spawn(move || {
                    inside(lab, real, || serve(SocketAddr::new(vip, UDP_PORT), real, whole, stop))
                });
            }
        }
        let sent = std::panic::catch_unwind(|| {
            for vip in vips {
                let servers = inside(lab, "client", || send(SocketAddr::new(vip, UDP_PORT), &whole));
                assert!(
                    servers.len() == 20 && servers.iter().any(|s| *s != servers[0]),
                    "{vip}: {servers:?}"
                );
            }
        });
        stop.store(true, Ordering::Relaxed);
        sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Answers each datagram that is as it must be with the server's name.
fn serve(at: SocketAddr, name: &str, whole: &[u8], stop: &AtomicBool) {
    let socket = UdpSocket::bind(at).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = vec![0; DATAGRAM + 1];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((count, from)) = socket.recv_from(&mut buffer)
            && &buffer[..count] == whole
        {
            socket.send_to(name.as_bytes(), from).unwrap();
        }
    }
}

/// One datagram from each of twenty ports; who answered.
fn send(to: SocketAddr, whole: &[u8]) -> Vec<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let one = |_| {
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.connect(to).unwrap();
        until(&format!("a datagram to {to} in fragments is answered"), || {
            socket.send(whole).unwrap();
            let mut name = [0; 64];
            let count = socket.recv(&mut name).ok()?;
            Some(String::from_utf8_lossy(&name[..count]).into_owned())
        })
    };
    (0..20).map(one).collect()
}

/// The link to the client shrinks while real servers send full packets: they must hear of it, through the directors.
fn a_smaller_path_mtu_does_not_stop_downloads(lab: &Lab) {
    let targets = SERVICES.map(|(name, vip)| Target {
        name: name.into(),
        address: (vip, 80).into(),
        connections: 6,
        rate: 0,
    });
    let mut plan = Plan::new(targets.into());
    // Full packets, and many of them.
    (plan.receive_buffer, plan.read_bytes, plan.read_every) = (None, 64 << 10, Duration::from_millis(20));
    plan.piece_bytes = 16 << 20;
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    inside(lab, "client", || {
        runtime().block_on(async {
            let load = Load::start(plan);
            progress(&load, "before").await;
            for switch in SWITCHES {
                lab.sh(switch, "ip link set eth5 mtu 1280").unwrap();
            }
            // What was under way comes in the first turn; the second one has to be sent in small packets.
            progress(&load, "after the path MTU shrank").await;
            progress(&load, "in small packets").await;
            let report = load.stop().await;
            assert!(report.total.clean(), "{report:?}");
        });
    });
    // The switches told the VIPs what fits, and without that nothing would have come in small packets: nobody else says
    // so, and nobody probes. (What a server's kernel remembers of it goes with the route it was learned on.)
    for name in ["IcmpOutDestUnreachs", "Icmp6OutPktTooBigs"] {
        let told = SWITCHES.map(|switch| lab.sh(switch, &format!("nstat -as {name}")).unwrap());
        let counts = told.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with(name));
        let sent = counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>();
        assert!(sent > 0, "{name}: the link was not in the way: {told:?}");
    }
}

/// Waits until every download has got another megabyte.
async fn progress(load: &Load, when: &str) {
    let before: Vec<u64> = load.connections().iter().map(|c| c.bytes).collect();
    let start = Instant::now();
    loop {
        let now = load.connections();
        if now.iter().zip(&before).all(|(c, before)| c.bytes >= before + (1 << 20)) {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{when}: downloads stand still: {now:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
