//! Real packets: a client, a director and a real server in namespaces, TCP through the VIP.

mod dataplane_fixture;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane_fixture::{isolated, options, run};
use director::dataplane::{
    Adoption, AttachedMode, Datagrams, Dataplane, Forwarding, HashInput, Options, Ports, Protocol, RealSpec,
    ServiceAddress, ServiceCounters, ServiceSpec, Timeouts, XdpMode, monotonic_seconds,
};
use director::next_hop::Resolver;
use director_common::SLOTS;
use nix::sched::{CloneFlags, setns};

const VIP: &str = "203.0.113.10";
const REAL: &str = "10.0.2.11";
/// Another real server, on a link of its own.
const OTHER: &str = "10.0.3.11";
const CHUNK: usize = 64 * 1024;

/// Runs `body` in a thread inside a named namespace.
fn within<T: Send + 'static>(namespace: &str, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let file = File::open(format!("/run/netns/{namespace}")).expect("namespace");
    std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("enter namespace");
        body()
    })
}

/// client (192.0.2.2) --- d0 director d1 --- real server (10.0.2.11), which owns the VIP too.
fn build() {
    for name in ["client", "real"] {
        run("ip", &format!("netns add {name}"));
        run("ip", &format!("-n {name} link set lo up"));
    }
    for (name, ours, theirs, our_address, address, gateway) in [
        ("client", "d0", "c0", "192.0.2.1/24", "192.0.2.2/24", "192.0.2.1"),
        ("real", "d1", "r0", "10.0.2.1/24", "10.0.2.11/24", "10.0.2.1"),
    ] {
        run("ip", &format!("link add {ours} type veth peer name {theirs} netns {name}"));
        run("ip", &format!("addr add {our_address} dev {ours}"));
        run("ip", &format!("link set {ours} up"));
        run("ip", &format!("-n {name} addr add {address} dev {theirs}"));
        run("ip", &format!("-n {name} link set {theirs} up"));
        run("ip", &format!("-n {name} route add default via {gateway}"));
        // Partial checksums do not survive a redirect; a redirect's target needs NAPI, which GRO turns on.
        run("ip", &format!("netns exec {name} ethtool -K {theirs} tx off gro on"));
    }
    for setting in ["all.rp_filter", "default.rp_filter", "d0.rp_filter", "d1.rp_filter"] {
        run("sysctl", &format!("-q -w net.ipv4.conf.{setting}=0"));
    }
    run("sysctl", "-q -w net.ipv4.ip_forward=1");
    run("ip", &format!("-n real addr add {VIP}/32 dev lo"));
}

/// A second real server, behind d2.
fn build_other() {
    run("ip", "netns add other");
    run("ip", "-n other link set lo up");
    run("ip", "link add d2 type veth peer name r1 netns other");
    run("ip", "addr add 10.0.3.1/24 dev d2");
    run("ip", "link set d2 up");
    run("ip", &format!("-n other addr add {OTHER}/24 dev r1"));
    run("ip", "-n other link set r1 up");
    run("ip", "-n other route add default via 10.0.3.1");
    run("ip", "netns exec other ethtool -K r1 tx off gro on");
    run("sysctl", "-q -w net.ipv4.conf.d2.rp_filter=0");
    run("ip", &format!("-n other addr add {VIP}/32 dev lo"));
}

/// Answers every connection with `CHUNK` times the byte it sends, as often as it sends one.
fn serve(namespace: &str, connections: Arc<AtomicUsize>) {
    within(namespace, move || {
        let listener = TcpListener::bind((VIP, 80)).expect("listen");
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            connections.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&[byte[0]; CHUNK]).expect("answer");
                }
            });
        }
    });
}

fn exchange(stream: &mut TcpStream, byte: u8) {
    stream.write_all(&[byte]).expect("question");
    let mut answer = vec![0; CHUNK];
    stream.read_exact(&mut answer).expect("answer");
    assert!(answer.iter().all(|got| *got == byte), "wrong bytes");
}

/// A connection from the client through the VIP.
fn connect() -> TcpStream {
    let connecting = within("client", || {
        let address = (VIP.parse::<IpAddr>().expect("vip"), 80).into();
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        stream
    });
    connecting.join().expect("client")
}

fn service(slots: &[u16]) -> ServiceSpec<'_> {
    ServiceSpec {
        name: "web",
        addresses: vec![ServiceAddress {
            prefix: VIP.parse::<IpAddr>().expect("vip").into(),
            protocol: Protocol::Tcp,
            ports: Ports::one(80),
        }],
        hash: HashInput::SourcePort,
        forwarding: Forwarding::DirectReturn,
        reals: vec![RealSpec::new(REAL.parse().expect("real"), 80)],
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    }
}

/// Lets the resolver find the way to the real server and tells the data plane.
fn resolve(dataplane: &mut Dataplane, real: &str) {
    let real: IpAddr = real.parse().expect("real");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let change = runtime.block_on(async {
        let (resolver, mut changes) = Resolver::start([]).expect("resolver");
        resolver.watch([real]);
        let first = async {
            loop {
                let change = changes.recv().await.expect("resolver runs");
                if change.next_hop.is_some() {
                    return change;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), first).await.expect("a way within five seconds")
    });
    dataplane.set_next_hop(change.address, change.next_hop).expect("next hop");
}

/// The service's counters once nothing is on its way between one counter and the next.
fn settled(dataplane: &Dataplane) -> ServiceCounters {
    let begin = Instant::now();
    loop {
        let web = dataplane.counters().expect("counters").services["web"].clone();
        if web.reals[0].counters == web.total || begin.elapsed() > Duration::from_secs(10) {
            return web;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn forwards(mode: XdpMode, expected: AttachedMode) {
    isolated(move || {
        build();
        serve("real", Arc::default());
        let slots = vec![0; SLOTS];
        let options = Options { interfaces: vec!["d0".to_owned()], mode, flow_accounting: true, ..options() };
        let (mut first, adoption) = Dataplane::open(&options).expect("open");
        assert_eq!(adoption, Adoption::Fresh);
        first.apply(&[service(&slots)]).expect("apply");
        resolve(&mut first, REAL);
        let attached = first.attach().expect("attach");
        assert_eq!(attached.len(), 1);
        assert_eq!((attached[0].name.as_str(), attached[0].mode), ("d0", expected));

        let mut stream = connect();
        for byte in 1..=20 {
            exchange(&mut stream, byte);
        }
        let web = &settled(&first);
        assert_eq!(web.total.connections, 1);
        assert!(web.total.packets_in > 20 && web.total.dropped == 0, "{web:?}");
        assert_eq!(web.reals[0].counters, web.total);
        assert_eq!(first.flows().expect("flows").len(), 1);

        // The process is gone without a word; the connection goes on.
        drop(first);
        exchange(&mut stream, 21);
        let (mut second, adoption) = Dataplane::open(&options).expect("open");
        let names = |name: &str| vec![name.to_owned()];
        assert_eq!(adoption, Adoption::Adopted { services: names("web"), interfaces: names("d0") });
        assert!(second.apply(&[service(&slots)]).expect("apply").is_unchanged());
        assert_eq!(second.attach().expect("attach"), attached);
        exchange(&mut stream, 22);
        let adopted = second.counters().expect("counters").services["web"].total;
        assert!(adopted.packets_in > web.total.packets_in, "counters go on");
        assert_eq!(adopted.connections, 1);

        // A clean end takes the program off: the client's packets are the kernel's, which has no such address.
        second.detach().expect("detach");
        // The kernel lets go of a link behind the caller's back.
        let begin = Instant::now();
        while run("ip", "-d link show dev d0").contains("xdp") {
            assert!(begin.elapsed() < Duration::from_secs(10), "the program is still on d0");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn native_xdp_forwards_and_survives_its_process() {
    forwards(XdpMode::Auto, AttachedMode::Native);
}

#[test]
fn generic_xdp_forwards_and_survives_its_process() {
    forwards(XdpMode::Generic, AttachedMode::Generic);
}

#[test]
fn a_connection_survives_every_transition_of_its_slot() {
    isolated(|| {
        build();
        build_other();
        let accepted: [Arc<AtomicUsize>; 2] = Default::default();
        let count = |server: usize| accepted[server].load(Ordering::SeqCst);
        serve("real", Arc::clone(&accepted[0]));
        serve("other", Arc::clone(&accepted[1]));
        let options = Options { interfaces: vec!["d0".to_owned()], ..options() };
        let (mut dataplane, _) = Dataplane::open(&options).expect("open");
        let (first, second) = (vec![0; SLOTS], vec![1; SLOTS]);
        let both = [REAL, OTHER].map(|real| RealSpec::new(real.parse().expect("real"), 80));
        fn two<'a>(slots: &'a [u16], both: &[RealSpec]) -> ServiceSpec<'a> {
            ServiceSpec { reals: both.to_vec(), ..service(slots) }
        }
        dataplane.apply(&[service(&first)]).expect("apply");
        resolve(&mut dataplane, REAL);
        resolve(&mut dataplane, OTHER);
        dataplane.attach().expect("attach");
        let mut streams = vec![connect()];
        let mut servers = [1, 0];
        exchange(&mut streams[0], 1);
        let mut byte = 1;
        let mut all_go_on = |streams: &mut Vec<TcpStream>| {
            byte += 1;
            streams.iter_mut().for_each(|stream| exchange(stream, byte));
        };
        let mut next = |streams: &mut Vec<TcpStream>, server: usize| {
            streams.push(connect());
            exchange(streams.last_mut().expect("just made"), 1);
            servers[server] += 1;
            assert_eq!([count(0), count(1)], servers);
        };
        // Settled, then moving to the other.
        dataplane.apply(&[two(&second, &both)]).expect("apply");
        all_go_on(&mut streams);
        next(&mut streams, 1);
        // It flaps back and forth.
        dataplane.apply(&[two(&first, &both)]).expect("apply");
        all_go_on(&mut streams);
        next(&mut streams, 0);
        dataplane.apply(&[two(&second, &both)]).expect("apply");
        all_go_on(&mut streams);
        next(&mut streams, 1);
        // The process is gone, and the next one drains the first server, which leaves.
        drop(dataplane);
        all_go_on(&mut streams);
        let (mut dataplane, _) = Dataplane::open(&options).expect("open");
        let drained = ServiceSpec { reals: both[1..].to_vec(), ..service(&first) };
        dataplane.apply(std::slice::from_ref(&drained)).expect("apply");
        assert_eq!(dataplane.retained().len(), 1);
        all_go_on(&mut streams);
        next(&mut streams, 1);
        let _ = dataplane.tick(monotonic_seconds()).expect("tick");
        all_go_on(&mut streams);
        assert_eq!(dataplane.counters().expect("counters").services["web"].total.dropped, 0);
        dataplane.detach().expect("detach");
    });
}

#[test]
fn an_interface_made_anew_gets_the_program_anew() {
    isolated(|| {
        run("ip", "link add d0 type veth peer name d1");
        let options = Options { interfaces: vec!["d0".to_owned()], ..options() };
        let (mut dataplane, _) = Dataplane::open(&options).expect("open");
        let before = dataplane.attach().expect("attach")[0].ifindex;
        run("ip", "link del d0");
        run("ip", "link add d0 type veth peer name d1");
        let after = dataplane.attach().expect("attach")[0].ifindex;
        assert_ne!(before, after);
        assert!(run("ip", "-d link show dev d0").contains("xdp"));
        drop(dataplane);
        run("ip", "link del d0");
        let (mut again, adoption) = Dataplane::open(&options).expect("open");
        assert_eq!(adoption, Adoption::Adopted { services: vec![], interfaces: vec![] });
        let error = again.attach().expect_err("no such interface").to_string();
        assert!(error.contains("'d0'"), "{error}");
    });
}

#[test]
fn a_real_server_that_falls_silent_loses_its_way_and_gets_it_back() {
    isolated(|| {
        build();
        // Impatient neighbour discovery, so that the test is quick.
        for setting in [
            "base_reachable_time_ms=500",
            "retrans_time_ms=100",
            "delay_first_probe_time=1",
            "mcast_solicit=1",
            "ucast_solicit=1",
        ] {
            run("sysctl", &format!("-q -w net.ipv4.neigh.d1.{setting}"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (resolver, mut changes) = Resolver::start([]).expect("resolver");
            resolver.watch([REAL.parse().expect("real")]);
            let mut next = async |found: bool| {
                let wait = async {
                    loop {
                        let change = changes.recv().await.expect("resolver runs");
                        if change.next_hop.is_some() == found {
                            return change.next_hop;
                        }
                    }
                };
                tokio::time::timeout(Duration::from_secs(15), wait).await.expect("a change in time")
            };
            let way = next(true).await.expect("way");
            assert_eq!(way.mtu, 1500);
            run("ip", "-n real link set r0 arp off");
            assert_eq!(next(false).await, None);
            run("ip", "-n real link set r0 arp on");
            assert_eq!(next(true).await, Some(way));
            // A link without carrier is no way, at once.
            run("ip", "-n real link set r0 down");
            assert_eq!(next(false).await, None);
        });
    });
}
