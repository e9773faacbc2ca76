//! Full NAT: packets both ways against packets built from scratch, in user space and in the kernel; and who has which
//! local port when, against a model.

mod dataplane_fixture;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::cases::{Family, HERE, INGRESS, KEY, V4, V6};
use dataplane_fixture::memory::Memory;
use dataplane_fixture::packets::{ACK, FIN, OUR_MAC, Packet, RST, SYN, SYN_ACK};
use dataplane_fixture::routes::{self, GATEWAY_MAC, UPLINK};
use dataplane_fixture::{isolated, open, options, shadow};
use director::dataplane::{
    ApplyError, Datagrams, Dataplane, Forwarding, HashInput, LocalAddresses, Method, NextHop, Options, Ports,
    Protocol, RealSpec, ServiceAddress, ServiceSpec, SpecError, Timeouts, Tracking, WhenFull,
    monotonic_seconds,
};
use director_common::SLOTS;
use director_common::Verdict;
use director_common::pin::PinState;
use director_common::pin::table::Trace;
use director_common::tables::{FlowKey, Interface, Lease};
use director_common::verdict::{DropReason, Outcome, ReplyReason};
use proptest::prelude::*;

/// The service's port, and the one that it has on the real servers.
const PORT: u16 = 80;
const MAPPED: u16 = 8_100;
const LOCALS: [&str; 3] = ["10.0.9.1", "10.0.9.2", "2001:db8:9::1"];
const PORTS: Ports = Ports { first: 2_000, last: 2_999 };

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// Another real server of a family.
fn second(f: &Family) -> &'static str {
    if f.name == "IPv4" { "10.0.2.12" } else { "2001:db8:2::12" }
}

fn locals(addresses: &[&str], ports: Ports) -> LocalAddresses {
    LocalAddresses { addresses: addresses.iter().map(|address| ip(address)).collect(), ports }
}

/// A service for each family, in TCP and UDP, with two real servers.
fn services(slots: &[u16], method: Method) -> Vec<ServiceSpec<'_>> {
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

fn way(_: IpAddr) -> Option<NextHop> {
    Some(HERE)
}

/// Tables in user space; with slots that are all the first real server's.
fn memory(method: Method, addresses: &[&str], ports: Ports) -> Memory {
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

/// The same in the kernel.
fn kernel(options: &Options, method: Method) -> Dataplane {
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

fn run(dataplane: &Dataplane, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(options).expect("test run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

fn less(packet: &Packet) -> Packet {
    packet.clone().with(|p| p.ttl -= 1)
}

fn tcp(f: &Family, port: u16, flags: u8) -> Packet {
    Packet::tcp((f.client, port), (f.vip, PORT), flags).summed()
}

/// Source and destination of what left.
fn ends(f: &Family, frame: &[u8]) -> (SocketAddr, SocketAddr) {
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
fn sent(memory: &Memory, packet: &Packet, expected: Verdict) -> Vec<u8> {
    let mut out = packet.bytes();
    let verdict = memory.run(INGRESS, &mut out).verdict;
    assert_eq!(verdict, expected, "{packet:?}");
    out.split_off(12)
}

/// Begins a connection; what stands for the client, as text and port.
fn begin(memory: &Memory, f: &Family, packet: &Packet) -> (String, u16) {
    let mut out = packet.bytes();
    assert_eq!(memory.run(INGRESS, &mut out).verdict, Verdict::Transmit, "{packet:?}");
    let (local, real) = ends(f, &out);
    assert_eq!(real, SocketAddr::new(ip(f.real), MAPPED));
    (local.ip().to_string(), local.port())
}

const ANSWERED: Verdict = Verdict::Reply(ReplyReason::Redirected);

#[test]
fn both_ends_change_on_the_way_in_and_back_on_the_way_out() {
    let memory = memory(Method::Slots, &LOCALS, PORTS);
    for f in [V4, V6] {
        let (address, port) = begin(&memory, &f, &tcp(&f, 40_000, SYN));
        let local = (address.as_str(), port);
        assert!(LOCALS.contains(&local.0) && (PORTS.first..=PORTS.last).contains(&port), "{local:?}");
        let large = |p: Packet| p.with(|p| p.payload.resize(1_201, 0xf7)).summed();
        for request in [
            tcp(&f, 40_000, SYN),
            tcp(&f, 40_000, ACK),
            large(tcp(&f, 40_000, ACK)),
            tcp(&f, 40_000, ACK).with(|p| p.vlan = Some(7)),
        ] {
            let expected = less(&request.clone().from(local).to((f.real, MAPPED)).summed());
            assert_eq!(sent(&memory, &request, Verdict::Transmit), expected.bytes()[12..], "{}", f.name);
        }
        let answer = Packet::tcp((f.real, MAPPED), local, SYN_ACK).summed();
        for answer in [answer.clone(), large(answer)] {
            let expected = less(&answer.clone().from((f.vip, PORT)).to((f.client, 40_000)).summed());
            let mut out = answer.bytes();
            assert_eq!(memory.run(INGRESS, &mut out).verdict, ANSWERED);
            assert_eq!(out[..12], [GATEWAY_MAC, UPLINK.1].concat());
            assert_eq!(out[12..], expected.bytes()[12..], "{}", f.name);
        }
        // Datagrams, with a checksum and, in IPv4, without.
        let udp = |data: &[u8]| Packet::udp((f.client, 40_001), (f.vip, PORT), data);
        let (address, port) = begin(&memory, &f, &udp(b"odd").summed());
        let local = (address.as_str(), port);
        for request in [udp(b"odd").summed(), udp(b"even").summed(), udp(b"none")] {
            let has_sum = request.payload[6..8] != [0, 0];
            let sum = |p: Packet| if has_sum { p.summed() } else { p };
            let expected = less(&sum(request.clone().from(local).to((f.real, MAPPED))));
            assert_eq!(sent(&memory, &request, Verdict::Transmit), expected.bytes()[12..], "{}", f.name);
            let answer = sum(Packet::udp((f.real, MAPPED), local, b"an answer"));
            let expected = less(&sum(answer.clone().from((f.vip, PORT)).to((f.client, 40_001))));
            assert_eq!(sent(&memory, &answer, ANSWERED), expected.bytes()[12..], "{}", f.name);
        }
    }
}

#[test]
fn later_fragments_go_as_their_connection_both_ways() {
    let memory = memory(Method::Slots, &LOCALS, PORTS);
    for f in [V4, V6] {
        let (address, port) = begin(&memory, &f, &tcp(&f, 40_000, SYN));
        let local = (address.as_str(), port);
        let as_fragment = |p: Packet, at| p.with(|p| (p.identification, p.fragment) = (0x1_0042, at));
        let (request, answer) = (tcp(&f, 40_000, ACK), Packet::tcp((f.real, MAPPED), local, ACK).summed());
        let there =
            [0x2000, 100].map(|at| sent(&memory, &as_fragment(request.clone(), at), Verdict::Transmit));
        let back = [0x2000, 100].map(|at| sent(&memory, &as_fragment(answer.clone(), at), ANSWERED));
        let first = request.clone().from(local).to((f.real, MAPPED)).summed();
        assert_eq!(there[0], less(&as_fragment(first, 0x2000)).bytes()[12..], "{}", f.name);
        let first = answer.clone().from((f.vip, PORT)).to((f.client, 40_000)).summed();
        assert_eq!(back[0], less(&as_fragment(first, 0x2000)).bytes()[12..], "{}", f.name);
        // Here the payload is data, whatever it looks like: only addresses change.
        let later = |p: Packet, source: &str, destination: &str| {
            less(&as_fragment(p.with(|p| (p.source, p.destination) = (ip(source), ip(destination))), 100))
        };
        assert_eq!(there[1], later(request, local.0, f.real).bytes()[12..], "{}", f.name);
        assert_eq!(back[1], later(answer, f.vip, f.client).bytes()[12..], "{}", f.name);
    }
}

/// An ICMP error with this packet in it, `bytes` of its payload.
fn error(f: &Family, from: &str, to: &str, about: &Packet, bytes: usize) -> Packet {
    let kind = if f.name == "IPv4" { [3, 4, 0, 0, 0, 0, 5, 0] } else { [2, 0, 0, 0, 0, 0, 5, 0] };
    f.message(from, to, &[&kind[..], &f.shown(about, bytes)].concat())
}

#[test]
fn errors_are_about_what_their_receiver_has_sent() {
    let memory = memory(Method::Slots, &LOCALS, PORTS);
    for f in [V4, V6] {
        let (address, port) = begin(&memory, &f, &tcp(&f, 40_000, SYN));
        let local = (address.as_str(), port);
        let between = |from, to| Packet::tcp(from, to, ACK).summed();
        let (request, received) = (tcp(&f, 40_000, ACK), between(local, (f.real, MAPPED)));
        let (given, answer) = (between((f.real, MAPPED), local), between((f.vip, PORT), (f.client, 40_000)));
        for bytes in [8, 16, 18, 25] {
            // The client, and a router before it, about an answer.
            for (from, seen) in [(f.client, local.0), (f.router, f.router)] {
                let told = error(&f, from, f.vip, &answer, bytes);
                let expected = less(&error(&f, seen, f.real, &given, bytes));
                let out = sent(&memory, &told, Verdict::Transmit);
                assert_eq!(out, expected.bytes()[12..], "{} from {from}, {bytes}", f.name);
            }
            // The real server, and a router before it, about a request.
            for (from, seen) in [(f.real, f.vip), (f.router, f.router)] {
                let told = error(&f, from, local.0, &received, bytes);
                let expected = less(&error(&f, seen, f.client, &request, bytes));
                let out = sent(&memory, &told, ANSWERED);
                assert_eq!(out, expected.bytes()[12..], "{} from {from}, {bytes}", f.name);
            }
        }
    }
}

#[test]
fn what_has_no_connection_goes_nowhere() {
    let memory = memory(Method::Slots, &LOCALS, PORTS);
    for f in [V4, V6] {
        sent(&memory, &tcp(&f, 40_000, ACK), Verdict::Drop(DropReason::NoConnection));
        sent(&memory, &tcp(&f, 40_000, RST), Verdict::Drop(DropReason::NoConnection));
        // To a local address, but to no lease: it may be the node's own business.
        let nobodys =
            Packet::tcp((f.real, MAPPED), (LOCALS[if f.name == "IPv4" { 0 } else { 2 }], 2_500), ACK);
        let mut out = nobodys.bytes();
        assert!(matches!(memory.run(INGRESS, &mut out).verdict, Verdict::Pass(_)));
        assert_eq!(out, nobodys.bytes());
        // To a lease, from a port that it is not towards, from another server, and in another protocol.
        let (address, port) = begin(&memory, &f, &tcp(&f, 40_000, SYN));
        let local = (address.as_str(), port);
        for wrong in [
            Packet::tcp((f.real, MAPPED + 1), local, ACK),
            Packet::tcp((second(&f), MAPPED), local, ACK),
            Packet::udp((f.real, MAPPED), local, b"no"),
        ] {
            assert!(matches!(memory.run(INGRESS, &mut wrong.bytes()).verdict, Verdict::Pass(_)), "{wrong:?}");
        }
    }
}

/// What user space decides and writes is what the kernel's program does, byte for byte, connection by connection.
#[test]
fn the_kernel_does_the_same() {
    isolated(|| {
        routes::make();
        let options = Options { locals: locals(&LOCALS, PORTS), ..options() };
        for method in [Method::Slots, Method::RoundRobin] {
            let options = Options { discard_pins: true, ..options.clone() };
            let dataplane = kernel(&options, method);
            let mut memory = memory(method, &LOCALS, PORTS);
            memory.config.pins = shadow::config(&options.pin_dir).pins;
            assert_eq!(memory.config.locals, shadow::config(&options.pin_dir).locals);
            let both = |packet: &Packet| {
                let (frame, mut want) = (packet.bytes(), packet.bytes());
                let (action, _) = memory.run(INGRESS, &mut want).verdict.disposition();
                let (code, out) = run(&dataplane, &frame);
                assert_eq!((code, &out), (action as u32 + 1, &want), "{packet:?}");
                out
            };
            for f in [V4, V6] {
                for number in 0..40 {
                    let client = 40_000 + number;
                    let request = |flags| tcp(&f, client, flags);
                    let (local, real) = ends(&f, &both(&request(SYN)));
                    let (address, server) = (local.ip().to_string(), real.ip().to_string());
                    let local = (address.as_str(), local.port());
                    let answer = |flags| Packet::tcp((&server, MAPPED), local, flags).summed();
                    for packet in
                        [answer(SYN_ACK), request(ACK), answer(ACK), request(FIN | ACK), answer(FIN)]
                    {
                        both(&packet);
                    }
                    let told = error(&f, f.router, &address, &Packet::tcp(local, (&server, MAPPED), ACK), 8);
                    both(&told);
                    let shown = Packet::tcp((f.vip, PORT), (f.client, client), ACK);
                    both(&error(&f, f.client, f.vip, &shown, 18));
                    for at in [0x2000, 100] {
                        let id = 0x2_0000 + u32::from(client);
                        both(&request(ACK).with(|p| (p.identification, p.fragment) = (id, at)));
                        both(&answer(ACK).with(|p| (p.identification, p.fragment) = (id, at)));
                    }
                    let datagram = Packet::udp((f.client, client), (f.vip, PORT), b"question").summed();
                    let (local, real) = ends(&f, &both(&datagram));
                    let (address, server) = (local.ip().to_string(), real.ip().to_string());
                    both(&Packet::udp((&server, MAPPED), (&address, local.port()), b"answer").summed());
                    both(&datagram);
                }
                both(&tcp(&f, 50_000, ACK));
                both(&tcp(&f, 40_000, SYN));
            }
            let active = |dataplane: &Dataplane| -> u32 {
                dataplane.loads().values().map(|(active, _)| *active).sum()
            };
            let expected: u64 = memory.loads.borrow().iter().map(|load| load.active).sum();
            assert_eq!(u64::from(active(&dataplane)), expected);
            assert_eq!(dataplane.leases(), memory.leases.borrow().len());
        }
    });
}

fn drops(dataplane: &Dataplane, reason: DropReason) -> u64 {
    let counters = dataplane.counters().expect("counters");
    let wanted = Outcome::Dropped(reason);
    counters.outcomes.iter().find(|(outcome, _)| *outcome == wanted).expect("outcome").1
}

/// Ten thousand connections at one time to one real server by two addresses, none of which is another's; and what comes
/// when there is no port left.
#[test]
fn every_connection_has_a_port_of_its_own_until_there_is_none() {
    isolated(|| {
        routes::make();
        let ports = Ports { first: 2_000, last: 9_999 };
        let options =
            Options { locals: locals(&LOCALS[..2], ports), pins: 40_000, half_open: 40_000, ..options() };
        let v4_only = |dataplane: &mut Dataplane| {
            let slots = vec![0; SLOTS];
            dataplane.apply(&services(&slots, Method::Slots)[..1]).expect("apply");
        };
        let mut dataplane = open(&options);
        dataplane.set_hash_key(KEY).expect("key");
        for (index, mac) in [(INGRESS, OUR_MAC), UPLINK] {
            dataplane.declare_interface(index, mac, true).expect("interface");
        }
        v4_only(&mut dataplane);
        dataplane.set_next_hop(ip(V4.real), Some(HERE)).expect("next hop");
        let mut clients: BTreeMap<SocketAddr, u16> = BTreeMap::new();
        for client in 10_000..20_000 {
            let (code, out) = run(&dataplane, &tcp(&V4, client, SYN).bytes());
            assert_eq!(code, 3, "client {client}: {} refused", drops(&dataplane, DropReason::NoLocalPort));
            let (local, _) = ends(&V4, &out);
            assert_eq!(clients.insert(local, client), None, "{local} for client {client}");
            assert_eq!(run(&dataplane, &tcp(&V4, client, ACK).bytes()).0, 3);
        }
        let used: BTreeSet<IpAddr> = clients.keys().map(SocketAddr::ip).collect();
        assert_eq!(used.len(), 2);
        for (local, client) in &clients {
            let answer =
                Packet::tcp((V4.real, MAPPED), (&local.ip().to_string(), local.port()), ACK).summed();
            let (code, out) = run(&dataplane, &answer.bytes());
            assert_eq!(code, 4);
            let back = (SocketAddr::new(ip(V4.vip), PORT), SocketAddr::new(ip(V4.client), *client));
            assert_eq!(ends(&V4, &out), back);
        }
        // Of the 16,000 there are, nearly all are given out before one is refused; and the table has room for more.
        let mut refused = 0;
        for client in 20_000..40_000 {
            let (code, out) = run(&dataplane, &tcp(&V4, client, SYN).bytes());
            if code == 3 {
                assert_eq!(clients.insert(ends(&V4, &out).0, client), None);
            } else {
                refused += 1;
            }
        }
        assert_eq!(drops(&dataplane, DropReason::NoLocalPort), refused);
        assert!(clients.len() > 15_800 && clients.len() <= 16_000, "{}", clients.len());
        assert_eq!(dataplane.leases(), clients.len());
        // They outlive the process, and are free again when their connections have had their time.
        drop(dataplane);
        let mut dataplane = open(&options);
        v4_only(&mut dataplane);
        assert_eq!(dataplane.leases(), clients.len());
        let listed = dataplane.pins(monotonic_seconds()).expect("pins");
        let known: BTreeMap<SocketAddr, u16> =
            listed.iter().map(|pin| (pin.local.expect("a lease"), pin.source.port())).collect();
        assert_eq!(known.len(), 10_000);
        assert!(known.iter().all(|(local, client)| clients.get(local) == Some(client)));
        let later = monotonic_seconds() + 903;
        while !dataplane.tick(later).expect("tick").swept {}
        dataplane.tick(later).expect("tick");
        assert_eq!(dataplane.leases(), 0);
        assert_eq!(run(&dataplane, &tcp(&V4, 9_999, SYN).bytes()).0, 3);
    });
}

#[test]
fn an_explanation_names_the_port_that_the_packet_then_gets() {
    isolated(|| {
        routes::make();
        let dataplane = kernel(&Options { locals: locals(&LOCALS, PORTS), ..options() }, Method::RoundRobin);
        let explained =
            |packet: &Packet| dataplane.explain(&mut packet.bytes(), INGRESS).expect("explanation");
        for f in [V4, V6] {
            let request = tcp(&f, 40_000, SYN);
            let before = explained(&request);
            assert_eq!(before.outcome, Outcome::Transmitted);
            assert_eq!(
                (dataplane.leases(), explained(&request).translated),
                (
                    match f.name {
                        "IPv4" => 0,
                        _ => 1,
                    },
                    before.translated
                )
            );
            let (_, out) = run(&dataplane, &request.bytes());
            let (local, real) = ends(&f, &out);
            assert_eq!(before.translated, Some((local, real)), "{}", f.name);
            let address = (local.ip().to_string(), real.ip().to_string());
            let answer = Packet::tcp((&address.1, MAPPED), (&address.0, local.port()), ACK).summed();
            let told = explained(&answer);
            assert_eq!(told.outcome, Outcome::Replied(ReplyReason::Redirected));
            let back = (SocketAddr::new(ip(f.vip), PORT), SocketAddr::new(ip(f.client), 40_000));
            assert_eq!(told.translated, Some(back));
            assert_eq!(
                told.service.map(|service| service.name),
                Some(match f.name {
                    "IPv4" => "full".to_owned(),
                    _ => "full-6".to_owned(),
                })
            );
            // Of the answers, too, there are counts.
            run(&dataplane, &answer.bytes());
            let counters = dataplane.counters().expect("counters");
            let name = if f.name == "IPv4" { "full" } else { "full-6" };
            let total = counters.services[name].total;
            assert_eq!((total.packets_in, total.packets_out), (1, 1), "{name}");
        }
    });
}

#[test]
fn a_service_without_a_local_address_is_refused() {
    isolated(|| {
        let mut dataplane = open(&Options { locals: locals(&LOCALS[..2], PORTS), ..options() });
        let slots = vec![0; SLOTS];
        let services = services(&slots, Method::Slots);
        let refused = dataplane.apply(&services).expect_err("no IPv6 address");
        assert!(matches!(refused, ApplyError::Spec(SpecError::NoLocalAddress { .. })), "{refused}");
        let untracked = ServiceSpec { tracking: None, ..services[0].clone() };
        let refused = dataplane.apply(&[untracked]).expect_err("untracked");
        assert!(matches!(refused, ApplyError::Spec(SpecError::FullNatUntracked(_))), "{refused}");
    });
}

/// User space's part in the tables of [`Memory`]: what `dataplane/sweep.rs` and `dataplane/leases.rs` do in the kernel's.
#[derive(Default)]
struct Sweeper {
    vacant: HashMap<(u64, u64), u32>,
}

/// As in `dataplane/leases.rs`.
const LINGER: u32 = 120;

impl Sweeper {
    fn tick(&mut self, memory: &Memory) {
        let (now, timeouts) = (memory.now.get(), Timeouts::default());
        let mut ended = Vec::new();
        for table in [&memory.half_open, &memory.pins] {
            table.borrow_mut().retain(|flow, cell| {
                let stays = !timeouts.is_expired(&cell.load(), flow.protocol == 6, now);
                if !stays {
                    ended.push(*flow);
                }
                stays
            });
        }
        let held: HashMap<(u64, u64), Lease> = {
            let (pins, half_open) = (memory.pins.borrow(), memory.half_open.borrow());
            let leased = memory.leased.borrow();
            let flows = pins.keys().chain(half_open.keys());
            flows.map(|flow| (key(&memory.config.pins.of(flow)), leased[flow])).collect()
        };
        let expired: BTreeSet<(u64, u64)> =
            ended.iter().map(|flow| key(&memory.config.pins.of(flow))).collect();
        memory.leases.borrow_mut().retain(|trace, (pin, owner)| {
            let owner = (owner.first, owner.second);
            if held.get(&owner) == Some(&Lease::unpacked(pin.server())) {
                return true;
            }
            let since = *self.vacant.entry(*trace).or_insert(now);
            let is_over = expired.contains(&owner) || now >= since + LINGER;
            if is_over {
                self.vacant.remove(trace);
            }
            !is_over
        });
        let mut leased = memory.leased.borrow_mut();
        leased.retain(|flow, _| held.contains_key(&key(&memory.config.pins.of(flow))));
    }
}

fn key(trace: &Trace) -> (u64, u64) {
    (trace.first, trace.second)
}

/// One step of a history.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client's packet.
    Client { number: u16, flags: u8 },
    /// A client's datagram.
    Datagram { number: u16 },
    /// What the real server sends on the connection of the last request of this client, or of an older one.
    Server { number: usize, flags: u8 },
    /// Time passes.
    Wait { seconds: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let flags = || prop_oneof![4 => Just(SYN), 6 => Just(ACK), 2 => Just(FIN | ACK), 1 => Just(RST)];
    prop_oneof![
        6 => (0_u16..24, flags()).prop_map(|(number, flags)| Step::Client { number, flags }),
        2 => (0_u16..24).prop_map(|number| Step::Datagram { number }),
        4 => (any::<usize>(), flags()).prop_map(|(number, flags)| {
            Step::Server { number, flags: if flags == SYN { SYN_ACK } else { flags } }
        }),
        2 => prop_oneof![Just(1), Just(5), Just(61), Just(130), Just(1_000)]
            .prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What is known of a local end towards a real server: whose it is, and when a packet passed last.
type Ends = HashMap<(u8, SocketAddr, SocketAddr), (u16, u32, bool)>;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// No local address and port is ever two connections' at once, nor another one's before the real server has forgotten
    /// the first; what comes back goes to whoever has it; and what has ended frees what it had.
    #[test]
    fn nobody_ever_gets_what_another_has(steps in prop::collection::vec(step(), 1..250), ports in 4_u16..60) {
        let ports = Ports { first: 3_000, last: 3_000 + ports - 1 };
        let (memory, mut sweeper, mut seen) =
            (memory(Method::RoundRobin, &LOCALS[..1], ports), Sweeper::default(), Ends::new());
        let f = V4;
        for step in steps {
            let now = memory.now.get();
            match step {
                Step::Wait { seconds } => {
                    for _ in 0..2 {
                        memory.now.set(memory.now.get() + seconds.div_ceil(2));
                        sweeper.tick(&memory);
                    }
                }
                Step::Client { .. } | Step::Datagram { .. } => {
                    let (packet, number, protocol, opens) = match step {
                        Step::Client { number, flags } => (tcp(&f, 40_000 + number, flags), number, 6, flags == SYN),
                        Step::Datagram { number } => {
                            (Packet::udp((f.client, 40_000 + number), (f.vip, PORT), b"q").summed(), number, 17, true)
                        }
                        _ => unreachable!(),
                    };
                    let mut out = packet.bytes();
                    match memory.run(INGRESS, &mut out).verdict {
                        Verdict::Transmit => {}
                        Verdict::Drop(DropReason::NoLocalPort) => {
                            prop_assert!(opens, "{:?}", step);
                            continue;
                        }
                        Verdict::Drop(DropReason::NoConnection) => {
                            prop_assert!(!opens, "{:?}", step);
                            continue;
                        }
                        other => return Err(TestCaseError::fail(format!("{other:?} of {step:?}"))),
                    }
                    let (local, real) = ends(&f, &out);
                    if let Some((other, last, _)) = seen.get(&(protocol, local, real)) {
                        // TIME_WAIT of Linux is 60 s, half-open connections are forgotten by then.
                        prop_assert!(*other == number || now > last + 60, "{:?} at {}: {} since {}", step, now, other, last);
                    }
                    seen.insert((protocol, local, real), (number, now, opens && protocol == 6));
                }
                Step::Server { number, flags } => {
                    let mut known: Vec<_> = seen.iter().map(|(ends, whose)| (*ends, *whose)).collect();
                    known.sort_unstable();
                    let Some((ends_of, (whose, ..))) = known.get(number % known.len().max(1)).copied() else { continue };
                    let (protocol, local, real) = ends_of;
                    let (from, to) = (real.ip().to_string(), local.ip().to_string());
                    let packet = match protocol {
                        6 => Packet::tcp((&from, real.port()), (&to, local.port()), flags).summed(),
                        _ => Packet::udp((&from, real.port()), (&to, local.port()), b"a").summed(),
                    };
                    let mut out = packet.bytes();
                    match memory.run(INGRESS, &mut out).verdict {
                        Verdict::Reply(_) => {
                            let client = SocketAddr::new(ip(f.client), 40_000 + whose);
                            prop_assert_eq!(ends(&f, &out), (SocketAddr::new(ip(f.vip), PORT), client));
                            seen.insert(ends_of, (whose, now, false));
                        }
                        Verdict::Pass(_) => prop_assert_eq!(out, packet.bytes()),
                        other => return Err(TestCaseError::fail(format!("{other:?} of {step:?}"))),
                    }
                }
            }
            let leases = memory.leases.borrow().len();
            prop_assert!(leases <= 2 * 2 * usize::from(ports.last - ports.first + 1), "{leases}");
            prop_assert!(memory.loads.borrow().iter().all(|load| load.active < 1 << 32 && load.inactive < 1 << 32));
        }
        // Everything that was begun ends, by time alone, and so is every port free again.
        for _ in 0..4 {
            memory.now.set(memory.now.get() + 1_000);
            sweeper.tick(&memory);
        }
        prop_assert_eq!(memory.leases.borrow().len(), 0);
        prop_assert_eq!(memory.pins.borrow().len() + memory.half_open.borrow().len(), 0);
    }
}

/// RST and FIN of either side shorten a connection's life, and its port is free when that is over; no earlier.
#[test]
fn a_connection_that_has_ended_frees_its_port_when_it_has_had_its_time() {
    for (ending, by_server) in [(FIN | ACK, false), (FIN | ACK, true), (RST, false), (RST, true)] {
        let memory = memory(Method::Slots, &LOCALS[..1], Ports { first: 3_000, last: 3_001 });
        let mut sweeper = Sweeper::default();
        let f = V4;
        let (address, port) = begin(&memory, &f, &tcp(&f, 1, SYN));
        sent(&memory, &tcp(&f, 1, ACK), Verdict::Transmit);
        let answer = |flags| Packet::tcp((f.real, MAPPED), (&address, port), flags).summed();
        if by_server {
            sent(&memory, &answer(ending), ANSWERED);
        } else {
            sent(&memory, &tcp(&f, 1, ending), Verdict::Transmit);
        }
        // What was under way when the client reset it does not bring it back.
        if ending == RST {
            sent(&memory, &answer(ACK), ANSWERED);
        }
        let flow = memory.pins.borrow().keys().next().copied().expect("it goes on").clone();
        let state = memory.pins.borrow()[&flow].load().state();
        assert_eq!(state, if ending == RST { PinState::Reset } else { PinState::Finished });
        assert_eq!(memory.loads.borrow()[0].active, 0);
        let _: FlowKey = flow;
        for (wait, leases) in [(119, 1), (4, 0)] {
            memory.now.set(memory.now.get() + wait);
            sweeper.tick(&memory);
            assert_eq!(memory.leases.borrow().len(), leases, "after {wait} s more, by {by_server}");
        }
    }
}
