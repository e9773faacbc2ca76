//! Full NAT: packets both ways against packets built from scratch, in user space and in the kernel.

mod dataplane_fixture;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use dataplane_fixture::cases::{Family, HERE, INGRESS, KEY, V4, V6};
use dataplane_fixture::full_nat::{
    ANSWERED, LOCALS, MAPPED, PORT, PORTS, begin, drops, ends, ip, kernel, locals, memory, run, second, sent,
    services, tcp,
};
use dataplane_fixture::packets::{ACK, FIN, OUR_MAC, Packet, RST, SYN, SYN_ACK};
use dataplane_fixture::routes::{self, GATEWAY_MAC, UPLINK};
use dataplane_fixture::{isolated, open, options, shadow};
use director::dataplane::{
    ApplyError, Dataplane, Forwarding, Method, Options, Ports, ServiceSpec, SpecError, monotonic_seconds,
};
use director_common::verdict::{DropReason, Outcome, ReplyReason};
use director_common::{SLOTS, Verdict};

fn less(packet: &Packet) -> Packet {
    packet.clone().with(|p| p.ttl -= 1)
}

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

/// A connection that was half-open, or under way, when its service became one of full NAT has no lease: its entry ends with
/// its next packet, and what begins it anew gets one.
#[test]
fn what_began_before_full_nat_ends_with_its_next_packet() {
    isolated(|| {
        routes::make();
        let mut dataplane = kernel(&Options { locals: locals(&LOCALS, PORTS), ..options() }, Method::Slots);
        let (slots, now) = (vec![0; SLOTS], monotonic_seconds());
        let of = |forwarding: Forwarding| {
            let mut all = services(&slots, Method::Slots);
            all.iter_mut().for_each(|service| service.forwarding = forwarding);
            all
        };
        dataplane.apply(&of(Forwarding::Nat)).expect("apply");
        let sent = |dataplane: &Dataplane, f: &Family, client: u16, flags: u8| {
            run(dataplane, &tcp(f, client, flags).bytes()).0 == 3
        };
        for f in [V4, V6] {
            assert!([SYN, ACK].iter().all(|flags| sent(&dataplane, &f, 1, *flags)));
            assert!(sent(&dataplane, &f, 2, SYN));
        }
        assert_eq!(dataplane.half_open(now).expect("half-open").len(), 2);
        dataplane.apply(&of(Forwarding::FullNat)).expect("apply");
        for f in [V4, V6] {
            for client in [1, 2] {
                let answers = [SYN, SYN, ACK].map(|flags| sent(&dataplane, &f, client, flags));
                assert_eq!(answers, [false, true, true], "{} {client}", f.name);
            }
        }
        assert_eq!((dataplane.leases(), drops(&dataplane, DropReason::NoConnection)), (4, 4));
        let loads = dataplane.loads();
        assert_eq!(loads.values().map(|(active, inactive)| active + inactive).sum::<u32>(), 4, "{loads:?}");
    });
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
