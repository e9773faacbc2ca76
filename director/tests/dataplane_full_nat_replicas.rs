//! Full NAT at several directors: connections of one go on at another, both ways, and nobody's port becomes another's.

mod dataplane_fixture;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use dataplane_fixture::cases::{Family, V4, V6};
use dataplane_fixture::full_nat::{MAPPED, PORT, PORTS, drops, ends, ip, kernel, locals, run, tcp};
use dataplane_fixture::packets::{ACK, FIN, Packet, RST, SYN, SYN_ACK};
use dataplane_fixture::{isolated, options, routes};
use director::dataplane::{Dataplane, Method, Options, Ports, monotonic_seconds};
use director_common::tables::{Address, Endpoint, FlowKey};
use director_common::verdict::DropReason;
use director_proto::pins::{Begin, Position};
use director_proto::sync::BootId;
use syncd::pins::{Delivery, LocalPin, Receipt, RemotePin};

const ONE: &[&str] = &["10.0.9.1", "2001:db8:9::1"];
const TWO: &[&str] = &["10.0.9.2", "2001:db8:9::2"];
/// Answers of the program: the packet leaves by the interface that it came in by, by another, or is dropped.
const SENT: u32 = 3;
const BACK: u32 = 4;
const DROPPED: u32 = 1;

/// A director's options, with a folder of pins of its own.
fn of(name: &str, own: &[&str], ports: Ports) -> Options {
    let pin_dir = PathBuf::from(format!("/run/director/bpf-{name}"));
    Options { pin_dir, locals: locals(own, ports), ..options() }
}

/// What a walk through all of a director's connections meets.
fn walk(dataplane: &mut Dataplane, now: u32) -> Vec<LocalPin> {
    let mut pins = Vec::new();
    while !dataplane.walk_pins(now, 1_000, true, &mut pins).expect("walk") {}
    pins
}

/// These as they come from the director with a router id that ends so, whose own local addresses are `own`.
fn from(last: u8, own: &[&str], pins: &[LocalPin], begins: Option<Begin>) -> Delivery {
    let mut servers = Vec::new();
    let mut remote = |pin: &LocalPin| {
        let known = servers.iter().position(|server| *server == pin.server);
        let server = known.unwrap_or_else(|| {
            servers.push(Arc::clone(&pin.server));
            servers.len() - 1
        }) as u32;
        let LocalPin { flow, state, remaining, local, age, .. } = *pin;
        RemotePin { flow, server, state, remaining, local, age }
    };
    let pins = pins.iter().map(&mut remote).collect();
    Delivery {
        receipt: Receipt {
            from: Ipv4Addr::new(10, 255, 0, last),
            boot_id: BootId(last.into()),
            position: Position { session: 1, sequence: 1 },
        },
        begins,
        ends_snapshot: begins == Some(Begin::Snapshot),
        locals: begins.map(|_| own.iter().map(|text| address(text)).collect()),
        servers,
        pins,
        removed: Vec::new(),
    }
}

fn address(text: &str) -> Address {
    match ip(text) {
        IpAddr::V4(v4) => Address::from_ipv4(v4.octets()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

/// Tells one director everything that the other has.
fn tell_all(to: &mut Dataplane, (last, own): (u8, &[&str]), by: &mut Dataplane) -> usize {
    let now = monotonic_seconds();
    let pins = walk(by, now);
    to.apply_pins(&from(last, own, &pins, Some(Begin::Snapshot)), now).expect("apply").added
}

/// Begins a connection, and lets it go on: what stands for its client.
fn establish(dataplane: &Dataplane, f: &Family, client: u16) -> SocketAddr {
    let (code, out) = run(dataplane, &tcp(f, client, SYN).bytes());
    assert_eq!(code, SENT, "client {client}: {:?}", drops(dataplane, DropReason::NoLocalPort));
    assert_eq!(run(dataplane, &tcp(f, client, ACK).bytes()).0, SENT);
    ends(f, &out).0
}

fn answer(f: &Family, local: SocketAddr, flags: u8) -> Vec<u8> {
    Packet::tcp((f.real, MAPPED), (&local.ip().to_string(), local.port()), flags).summed().bytes()
}

fn own(of: &[&str]) -> BTreeSet<IpAddr> {
    of.iter().map(|address| ip(address)).collect()
}

#[test]
fn a_connection_goes_on_at_another_director_both_ways_as_it_did() {
    isolated(|| {
        routes::make();
        let (first, second) = (of("1", ONE, PORTS), of("2", TWO, PORTS));
        let (mut one, mut two) = (kernel(&first, Method::Slots), kernel(&second, Method::Slots));
        for f in [V4, V6] {
            for client in 40_000..40_050 {
                establish(&one, &f, client);
                let datagram = Packet::udp((f.client, client), (f.vip, PORT), b"question").summed();
                assert_eq!([0, 1].map(|_| run(&one, &datagram.bytes()).0), [SENT; 2]);
            }
        }
        assert_eq!(two.other_locals(), BTreeSet::new());
        assert_eq!(tell_all(&mut two, (1, ONE), &mut one), 200);
        assert_eq!((two.leases(), two.replicas()), (200, 200));
        assert_eq!(two.other_locals(), own(ONE));
        let same = |frame: Vec<u8>, expected: u32| {
            let (code, out) = run(&two, &frame);
            assert_eq!((code, &out), (expected, &run(&one, &frame).1));
            out
        };
        for f in [V4, V6] {
            for client in 40_000..40_050 {
                // A SYN that is sent again gets no lease of its own either.
                for flags in [ACK, SYN, FIN | ACK] {
                    let (local, _) = ends(&f, &same(tcp(&f, client, flags).bytes(), SENT));
                    assert!(own(ONE).contains(&local.ip()), "{local}");
                    let back = same(answer(&f, local, ACK), BACK);
                    let client = SocketAddr::new(ip(f.client), client);
                    assert_eq!(ends(&f, &back), (SocketAddr::new(ip(f.vip), PORT), client));
                }
                let datagram = Packet::udp((f.client, client), (f.vip, PORT), b"more").summed();
                let (local, _) = ends(&f, &same(datagram.bytes(), SENT));
                let (address, port) = (local.ip().to_string(), local.port());
                same(Packet::udp((f.real, MAPPED), (&address, port), b"less").summed().bytes(), BACK);
            }
            // What begins here has an address of this director.
            let local = establish(&two, &f, 50_000);
            assert!(own(TWO).contains(&local.ip()), "{local}");
        }
        // It is all there when the process comes back, and then nothing of it is lost when the other is dead for good.
        drop(two);
        let mut two = kernel(&second, Method::Slots);
        assert_eq!(two.leases(), 202);
        assert_eq!(two.other_locals(), own(ONE));
        let now = monotonic_seconds();
        let listed = two.pins(now).expect("pins");
        assert_eq!(listed.len(), 202);
        assert!(listed.iter().all(|pin| pin.local.is_some()));
        two.orphan_pins(Ipv4Addr::new(10, 255, 0, 1), now);
        assert_eq!(run(&two, &tcp(&V4, 40_007, ACK).bytes()), run(&one, &tcp(&V4, 40_007, ACK).bytes()));
        // Everything has its time, and then nobody takes the other's addresses over any more.
        let later = now + 10_000;
        for _ in 0..3 {
            while !two.tick(later).expect("tick").swept {}
        }
        assert_eq!(two.leases(), 0);
        assert_eq!(two.other_locals(), BTreeSet::new());
    });
}

#[test]
fn a_director_that_lost_all_takes_no_port_that_others_hold() {
    isolated(|| {
        routes::make();
        let ports = Ports { first: 3_000, last: 3_031 };
        let first = Options { holds_leases: true, ..of("1", ONE, ports) };
        let mut one = kernel(&first, Method::Slots);
        assert_eq!(run(&one, &tcp(&V4, 1, SYN).bytes()).0, DROPPED);
        assert_eq!(drops(&one, DropReason::NoLocalPort), 1);
        one.allow_leases(true).expect("allowed");
        let held: BTreeSet<SocketAddr> = (1..=20).map(|client| establish(&one, &V4, client)).collect();
        assert_eq!(held.len(), 20);
        let mut two = kernel(&of("2", TWO, ports), Method::Slots);
        assert_eq!(tell_all(&mut two, (1, ONE), &mut one), 20);
        // The process alone: it goes on as it was, and need not wait.
        drop(one);
        let one = kernel(&first, Method::Slots);
        assert!(!held.contains(&establish(&one, &V4, 30)));
        // The node: it has to, and others tell what of its own they know.
        drop(one);
        let mut one = kernel(&Options { discard_pins: true, ..first.clone() }, Method::Slots);
        assert_eq!(run(&one, &tcp(&V4, 31, SYN).bytes()).0, DROPPED);
        assert_eq!(tell_all(&mut one, (2, TWO), &mut two), 0, "whose run goes on tells of them itself");
        two.note_run(Ipv4Addr::new(10, 255, 0, 1), BootId(9), monotonic_seconds());
        assert_eq!(tell_all(&mut one, (2, TWO), &mut two), 20);
        one.allow_leases(true).expect("allowed");
        assert_eq!(one.other_locals(), own(TWO));
        let mut begun = BTreeSet::new();
        for client in 100..400 {
            let (code, out) = run(&one, &tcp(&V4, client, SYN).bytes());
            if code == SENT {
                assert!(begun.insert(ends(&V4, &out).0));
            }
        }
        assert!((10..=12).contains(&begun.len()) && begun.is_disjoint(&held), "{begun:?}");
        for client in 1..=20 {
            let (local, _) = ends(&V4, &run(&one, &tcp(&V4, client, ACK).bytes()).1);
            assert!(held.contains(&local), "{local}");
            assert_eq!(run(&one, &answer(&V4, local, ACK)), run(&two, &answer(&V4, local, ACK)));
        }
    });
}

#[test]
fn what_its_owner_has_ended_is_free_and_a_port_is_never_two_connections() {
    isolated(|| {
        routes::make();
        let now = monotonic_seconds();
        let mut one = kernel(&of("1", ONE, PORTS), Method::Slots);
        let mut two = kernel(&of("2", TWO, PORTS), Method::Slots);
        let (a, b, c) = (establish(&one, &V4, 1), establish(&one, &V4, 2), establish(&one, &V4, 3));
        // As if it were some time ago: so what comes now comes later.
        let earlier = |pin: LocalPin| LocalPin { remaining: pin.remaining - 10, age: 100, ..pin };
        let pins: Vec<LocalPin> = walk(&mut one, now).into_iter().map(earlier).collect();
        let pin = |local: SocketAddr| {
            let end = Endpoint { address: address(&local.ip().to_string()), port: local.port(), reserved: 0 };
            pins.iter().find(|pin| pin.local == Some(end)).expect("told").clone()
        };
        two.apply_pins(&from(1, ONE, &pins, Some(Begin::Snapshot)), now).expect("apply");
        let gone = Delivery { removed: vec![pin(a).flow], ..from(1, ONE, &[], None) };
        two.apply_pins(&gone, now).expect("apply");
        assert_eq!((two.leases(), two.replicas()), (2, 2));
        assert_eq!(run(&two, &tcp(&V4, 1, ACK).bytes()).0, DROPPED);
        assert_eq!(drops(&two, DropReason::NoConnection), 1);
        // The owner has given the second one's port to somebody else: the first is over.
        let next = LocalPin { flow: pin(a).flow, ..pin(b) };
        let report = two.apply_pins(&from(1, ONE, &[next], None), now).expect("apply");
        assert_eq!((report.added, two.leases()), (1, 2));
        assert_eq!(run(&two, &tcp(&V4, 2, ACK).bytes()).0, DROPPED);
        let (code, out) = run(&two, &answer(&V4, b, SYN_ACK));
        assert_eq!((code, ends(&V4, &out).1.port()), (BACK, 1));
        // Nobody takes a port from a connection that began later, whoever tells of it.
        assert_eq!(run(&two, &tcp(&V4, 3, ACK).bytes()).0, SENT);
        let next = |age| LocalPin { flow: FlowKey { source_port: 999, ..pin(c).flow }, age, ..pin(c) };
        let tell = |two: &mut Dataplane, last: u8, pin: LocalPin| {
            let report = two.apply_pins(&from(last, ONE, &[pin], None), now).expect("apply");
            (report.added, report.conflicts, two.leases())
        };
        assert_eq!(tell(&mut two, 1, next(200)), (0, 1, 2));
        assert_eq!(run(&two, &tcp(&V4, 999, ACK).bytes()).0, DROPPED);
        assert_eq!(run(&two, &tcp(&V4, 3, ACK).bytes()), run(&one, &tcp(&V4, 3, ACK).bytes()));
        // From one that began earlier it is taken, though packets of that have come here.
        assert_eq!(tell(&mut two, 1, next(50)), (1, 0, 2));
        assert_eq!(run(&two, &tcp(&V4, 3, ACK).bytes()).0, DROPPED);
        let (code, out) = run(&two, &answer(&V4, c, ACK));
        assert_eq!((code, ends(&V4, &out).1.port()), (BACK, 999));
        assert_eq!(tell(&mut two, 3, pin(c)), (0, 1, 2), "a third one still has it");
    });
}

/// A director was cut off, its client has ended the connection by another one and begun anew from the same port: the
/// director that is back learns of that, though it has the old one still.
#[test]
fn of_two_connections_from_one_port_the_later_one_counts() {
    isolated(|| {
        routes::make();
        let now = monotonic_seconds();
        let mut one = kernel(&of("1", ONE, PORTS), Method::Slots);
        let mut two = kernel(&of("2", TWO, PORTS), Method::Slots);
        let old = establish(&one, &V4, 1);
        assert_eq!(tell_all(&mut two, (1, ONE), &mut one), 1);
        assert_eq!(run(&two, &tcp(&V4, 1, RST).bytes()).0, SENT);
        let new = establish(&two, &V4, 1);
        assert!(own(ONE).contains(&old.ip()) && own(TWO).contains(&new.ip()));
        let told = walk(&mut two, now);
        // At the same time it would not be clear who is right, so both keep what they have.
        let report = one.apply_pins(&from(2, TWO, &told, Some(Begin::Snapshot)), now).expect("apply");
        assert_eq!((report.added, report.conflicts), (0, 1));
        assert_eq!(ends(&V4, &run(&one, &tcp(&V4, 1, ACK).bytes()).1).0, old);
        let later = now + 60;
        let report = one.apply_pins(&from(2, TWO, &told, Some(Begin::Snapshot)), later).expect("apply");
        assert_eq!((report.added, report.conflicts), (1, 0));
        assert_eq!(ends(&V4, &run(&one, &tcp(&V4, 1, ACK).bytes()).1).0, new);
        // The old port is this director's, and no one else's for a while: the real server may still know it.
        assert_eq!(one.leases(), 2);
    });
}

#[test]
fn an_address_that_two_directors_have_is_told_and_can_be_ceded() {
    isolated(|| {
        routes::make();
        let now = monotonic_seconds();
        let mut one = kernel(&of("1", ONE, PORTS), Method::Slots);
        let both = [ONE[0], TWO[1]];
        one.apply_pins(&from(2, &both, &[], Some(Begin::Snapshot)), now).expect("apply");
        let contested = one.contested_locals();
        assert_eq!(contested[&Ipv4Addr::new(10, 255, 0, 2)], BTreeSet::from([ip(ONE[0])]));
        assert_eq!(one.other_locals(), BTreeSet::from([ip(TWO[1])]));
        establish(&one, &V4, 1);
        one.cede_locals(&BTreeSet::from([ip(ONE[0])])).expect("ceded");
        assert_eq!(run(&one, &tcp(&V4, 2, SYN).bytes()).0, DROPPED);
        assert_eq!(run(&one, &tcp(&V4, 1, ACK).bytes()).0, SENT);
        assert!(own(ONE).contains(&establish(&one, &V6, 1).ip()));
        one.orphan_pins(Ipv4Addr::new(10, 255, 0, 2), now);
        assert!(one.contested_locals().is_empty() && one.other_locals().is_empty());
    });
}

/// A connection of a director that is dead gets its whole time once more at the others, and is no younger for that.
#[test]
fn what_a_dead_director_had_is_not_taken_for_newer_than_what_began_since() {
    isolated(|| {
        const THREE: &[&str] = &["10.0.9.3", "2001:db8:9::3"];
        routes::make();
        let mut one = kernel(&of("1", ONE, PORTS), Method::Slots);
        let mut two = kernel(&of("2", TWO, PORTS), Method::Slots);
        let mut three = kernel(&of("3", THREE, PORTS), Method::Slots);
        let now = monotonic_seconds();
        establish(&one, &V4, 1);
        let aged = |pin: LocalPin| LocalPin { age: pin.age + 100, ..pin };
        let pins: Vec<LocalPin> = walk(&mut one, now).into_iter().map(aged).collect();
        two.apply_pins(&from(1, ONE, &pins, Some(Begin::Snapshot)), now).expect("apply");
        let new = establish(&three, &V4, 1);
        let later = now + 60;
        two.orphan_pins(Ipv4Addr::new(10, 255, 0, 1), later);
        let [stale, told] = [&mut two, &mut three].map(|dataplane| walk(dataplane, later));
        assert!(stale[0].remaining == 900 && stale[0].age >= 159 && told[0].age <= 60, "{stale:?} {told:?}");
        let report = three.apply_pins(&from(2, TWO, &stale, Some(Begin::Snapshot)), later).expect("apply");
        assert_eq!((report.added, report.conflicts), (0, 1));
        let report = two.apply_pins(&from(3, THREE, &told, Some(Begin::Snapshot)), later).expect("apply");
        assert_eq!((report.added, report.conflicts), (1, 0));
        for dataplane in [&two, &three] {
            assert_eq!(ends(&V4, &run(dataplane, &tcp(&V4, 1, ACK).bytes()).1).0, new);
        }
        assert_eq!((two.leases(), three.leases()), (1, 1));
        // It knows so when its process has been started anew.
        drop(three);
        let mut three = kernel(&of("3", THREE, PORTS), Method::Slots);
        assert_eq!(walk(&mut three, later)[0].age, told[0].age);
    });
}

/// A drained director's connections are carried by another one, which tells of their packets in steps.
#[test]
fn a_port_is_not_free_before_the_director_that_carries_its_connection_has_ended_it() {
    isolated(|| {
        routes::make();
        let now = monotonic_seconds();
        let mut one = kernel(&of("1", ONE, PORTS), Method::Slots);
        establish(&one, &V4, 1);
        let pins = walk(&mut one, now);
        let life = pins[0].remaining;
        one.apply_pins(&from(2, TWO, &pins, Some(Begin::Snapshot)), now + 100).expect("apply");
        let end = now + 100 + life;
        for (at, leases) in [(end, 1), (end + life / 10, 1), (end + life / 10 + 10, 0)] {
            for _ in 0..3 {
                while !one.tick(at).expect("tick").swept {}
            }
            assert_eq!(one.leases(), leases, "{} s after the end", at - end);
        }
    });
}

/// Heartbeats stall, and the stream goes on: what was said at its beginning still counts when they are back.
#[test]
fn what_a_director_said_of_its_addresses_counts_while_it_lives() {
    isolated(|| {
        routes::make();
        let now = monotonic_seconds();
        let other = Ipv4Addr::new(10, 255, 0, 2);
        let mut one = kernel(&of("1", ONE, PORTS), Method::Slots);
        one.note_run(other, BootId(2), now);
        let both = [ONE[0], TWO[1]];
        one.apply_pins(&from(2, &both, &[], Some(Begin::Snapshot)), now).expect("apply");
        let seen = |one: &Dataplane| (one.contested_locals().len(), one.other_locals());
        assert_eq!(seen(&one), (1, BTreeSet::from([ip(TWO[1])])));
        one.orphan_pins(other, now);
        assert_eq!(seen(&one), (0, BTreeSet::new()));
        one.note_run(other, BootId(2), now);
        assert_eq!(seen(&one), (1, BTreeSet::from([ip(TWO[1])])));
        // Of one that is dead something may still be on its way here, and is nobody's word.
        one.orphan_pins(other, now);
        one.apply_pins(&from(2, &both, &[], Some(Begin::Snapshot)), now).expect("apply");
        assert_eq!(seen(&one), (0, BTreeSet::new()));
        // Another run of it has not said anything yet; or it has, before it was heard.
        one.note_run(other, BootId(7), now);
        assert_eq!(seen(&one), (0, BTreeSet::new()));
        one.orphan_pins(other, now);
        one.apply_pins(&from(2, TWO, &[], Some(Begin::Snapshot)), now).expect("apply");
        one.note_run(other, BootId(2), now);
        assert_eq!(seen(&one), (0, own(TWO)));
    });
}

/// Ten thousand connections of one director to one real server by two addresses: another one brings the answers of each to
/// its client, and sends each on as the first did.
#[test]
fn of_ten_thousand_connections_none_is_taken_for_another() {
    isolated(|| {
        const FIRST: [&str; 3] = ["10.0.9.1", "10.0.9.3", ONE[1]];
        const SECOND: [&str; 3] = ["10.0.9.2", "10.0.9.4", TWO[1]];
        routes::make();
        let ports = Ports { first: 2_000, last: 9_999 };
        let large = |options| Options { pins: 40_000, half_open: 40_000, ..options };
        let mut one = kernel(&large(of("1", &FIRST, ports)), Method::Slots);
        let mut two = kernel(&large(of("2", &SECOND, ports)), Method::Slots);
        let all: Vec<SocketAddr> = (10_000..20_000).map(|client| establish(&one, &V4, client)).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 10_000);
        assert_eq!(tell_all(&mut two, (1, &FIRST), &mut one), 10_000);
        for (client, local) in (10_000..20_000).zip(&all) {
            assert_eq!(ends(&V4, &run(&two, &tcp(&V4, client, ACK).bytes()).1).0, *local);
            let (code, back) = run(&two, &answer(&V4, *local, ACK));
            assert_eq!((code, ends(&V4, &back).1), (BACK, SocketAddr::new(ip(V4.client), client)));
        }
        // As many more begin there meanwhile: none of them is at the first one's addresses.
        for client in 20_000..30_000 {
            let local = establish(&two, &V4, client);
            assert!(own(&SECOND).contains(&local.ip()), "{local}");
        }
    });
}
