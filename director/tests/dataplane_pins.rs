//! Connections of changing slots in the kernel's data plane: what outlives a process, what time does, who is let go.

mod dataplane_fixture;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::cases::{HERE, INGRESS, KEY};
use dataplane_fixture::packets::{ACK, OUR_MAC, Packet, SYN};
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{
    ApplyError, Datagrams, Dataplane, Forwarding, HashInput, NextHop, Options, Ports, Protocol, RealSpec,
    ServiceAddress, ServiceSpec, Timeouts, monotonic_seconds,
};
use director_common::SLOTS;
use director_common::pin::PinState;
use director_common::tables::{Address, FlowKey};
use director_proto::pins::{Begin, Position, Server};
use director_proto::sync::BootId;
use director_proto::windows::Windows;
use syncd::pins::{Delivery, LocalPin, Receipt, RemotePin};

const VIP: &str = "203.0.113.10";
/// Longer than any connection is kept.
const LONG: u32 = 1_000;

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 2, last])
}

/// A data plane that knows the ways to 10.0.2.11 to 10.0.2.19: the link address ends with the same byte.
fn ready(options: &Options) -> Dataplane {
    let mut dataplane = open(options);
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    learn(&mut dataplane);
    dataplane
}

fn learn(dataplane: &mut Dataplane) {
    for last in 11..20 {
        let hop = NextHop { destination_mac: [2, 0, 0, 0, 9, last], ..HERE };
        dataplane.set_next_hop(address(last), Some(hop)).expect("next hop");
    }
}

/// Gives all slots to the first of these servers.
fn deal(dataplane: &mut Dataplane, servers: &[u8]) {
    deal_to(dataplane, &servers.iter().map(|last| RealSpec::new(address(*last), 80)).collect::<Vec<_>>());
}

fn deal_to(dataplane: &mut Dataplane, reals: &[RealSpec]) {
    with_spec(reals, |service| dataplane.apply(&[service])).expect("apply");
}

/// PREPARE of an epoch that would give all slots to the first of these servers.
fn prepare_for(dataplane: &mut Dataplane, reals: &[RealSpec]) -> Result<usize, ApplyError> {
    with_spec(reals, |service| dataplane.prepare(&[service]))
}

fn follow_for(
    dataplane: &mut Dataplane,
    reals: &[RealSpec],
    windows: &Windows,
    now: u32,
) -> Result<bool, ApplyError> {
    with_spec(reals, |service| dataplane.follow_windows(&[service], windows, now))
}

fn with_spec<T>(reals: &[RealSpec], action: impl FnOnce(ServiceSpec<'_>) -> T) -> T {
    let owner = reals.iter().position(|real| real.alive).map_or(u16::MAX, |position| position as u16);
    let slots = vec![owner; SLOTS];
    let service = ServiceSpec {
        name: "web",
        addresses: vec![ServiceAddress {
            prefix: VIP.parse::<IpAddr>().expect("vip").into(),
            protocol: Protocol::Tcp,
            ports: Ports::one(80),
        }],
        hash: HashInput::Source,
        forwarding: Forwarding::DirectReturn,
        reals: reals.to_vec(),
        slots: &slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    };
    action(service)
}

/// Which server a packet of the connection from this port goes to; 0 if to none.
fn sent(dataplane: &Dataplane, port: u16, flags: u8) -> u8 {
    let frame = Packet::tcp(("198.51.100.7", port), (VIP, 80), flags).bytes();
    let mut out = vec![0; frame.len()];
    let options = TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(options).expect("run");
    if result.return_value == 3 { out[5] } else { 0 }
}

fn retained(dataplane: &Dataplane) -> Vec<IpAddr> {
    dataplane.retained().into_iter().collect()
}

#[test]
fn a_server_that_leaves_keeps_its_connections_until_the_last_has_ended() {
    isolated(|| {
        let mut dataplane = ready(&options());
        deal(&mut dataplane, &[11]);
        assert!(dataplane.tick(monotonic_seconds()).expect("tick").swept, "the first one of a process");
        assert!(!dataplane.tick(monotonic_seconds()).expect("tick").swept, "nothing to do");
        deal(&mut dataplane, &[12]);
        assert_eq!(
            [sent(&dataplane, 1, ACK), sent(&dataplane, 2, SYN), sent(&dataplane, 2, ACK)],
            [11, 12, 12]
        );
        assert_eq!(retained(&dataplane), [address(11)]);
        let now = monotonic_seconds();
        let window = dataplane.windows(now)["web"].clone();
        assert_eq!((window.moving, window.pinned), (1.0, 0.0));
        assert!(window.closes_in.is_some_and(|left| (901..=906).contains(&left.as_secs())), "{window:?}");
        assert_eq!(window.leaving, [(address(11), 80)]);

        // The window closes; the connection has not had its time yet by its own pin, which the kernel dates.
        let report = dataplane.tick(now + 903).expect("tick");
        assert_eq!((report.held, report.removed), (SLOTS, 2), "both pins have had their time as well");
        assert_eq!((report.closed, report.released), (0, vec![address(11)]));
        assert_eq!(sent(&dataplane, 3, SYN), 12);
        assert_eq!(dataplane.pins(now).expect("pins").len(), 1, "for another director that is not as far");
        let report = dataplane.tick(now + 912).expect("tick");
        assert_eq!((report.closed, report.removed, report.settled), (SLOTS, 1, SLOTS));
        assert!(retained(&dataplane).is_empty());
        assert_eq!([sent(&dataplane, 1, ACK), sent(&dataplane, 2, ACK)], [12, 12]);
        let window = dataplane.windows(now)["web"].clone();
        assert_eq!((window.moving, window.pinned, window.pins), (0.0, 0.0, 0));
    });
}

/// A tick looks at a part of the table. A walk that is not through settles nothing, and what changes meanwhile is for the
/// next one to judge.
#[test]
fn a_walk_of_many_ticks_judges_only_what_it_has_seen_from_its_beginning() {
    isolated(|| {
        let mut dataplane = ready(&Options { pins: 65_536, swept_at_once: 1, ..options() });
        deal(&mut dataplane, &[11]);
        deal(&mut dataplane, &[12]);
        let sent_to =
            |dataplane: &Dataplane| (1..=500).map(|port| sent(dataplane, port, ACK)).collect::<Vec<_>>();
        assert_eq!(sent_to(&dataplane), [11; 500]);
        let now = monotonic_seconds();
        let held = dataplane.tick(now + 903).expect("tick");
        assert_eq!(held.held, SLOTS);
        // The slots are closed, the walk of that tick is under way, and no later one has begun.
        let first = dataplane.tick(now + 912).expect("tick");
        assert_eq!((first.closed, first.swept), (SLOTS, false));
        let (mut ticks, mut removed) = (0, held.removed + first.removed);
        let mut walk = |dataplane: &mut Dataplane, now, removed: &mut usize| loop {
            let report = dataplane.tick(now).expect("tick");
            (ticks, *removed) = (ticks + 1, *removed + report.removed);
            if report.swept {
                return report.settled;
            }
            assert_eq!(report.settled, 0, "not at its end");
            assert!(ticks < 1_000, "the walk has an end");
        };
        let settled = walk(&mut dataplane, now + 912, &mut removed);
        assert_eq!(settled, 0, "it began before they were closed");
        let report = dataplane.tick(now + 912).expect("tick");
        assert!(!report.swept);
        // They begin to move again in the middle of the second walk.
        deal(&mut dataplane, &[13]);
        assert_eq!((sent(&dataplane, 600, ACK), sent(&dataplane, 601, SYN)), (12, 13));
        // By their own time: it is not over.
        assert_eq!(walk(&mut dataplane, monotonic_seconds(), &mut removed), 0);
        assert!(ticks > 10, "{ticks}");
        assert_eq!(dataplane.windows(monotonic_seconds())["web"].moving, 1.0);
        assert_eq!((sent(&dataplane, 600, ACK), sent(&dataplane, 601, ACK)), (12, 13));
        assert!(removed >= 500, "{removed}");
    });
}

#[test]
fn windows_and_pins_outlive_the_process() {
    isolated(|| {
        let mut first = ready(&options());
        deal(&mut first, &[11]);
        deal(&mut first, &[12]);
        assert_eq!([sent(&first, 1, ACK), sent(&first, 2, SYN), sent(&first, 2, ACK)], [11, 12, 12]);
        let now = monotonic_seconds();
        let (pins, opened) = (first.pins(now).expect("pins"), first.windows(now)["web"].closes_in);
        assert_eq!(pins.len(), 2);
        drop(first);

        let mut second = open(&Options { pins: 99, ..options() });
        assert_eq!(second.pins(now).expect("pins"), pins, "in the map as it was made");
        assert_eq!(second.windows(now)["web"].closes_in, opened);
        // Before it is told anything it closes nothing early and lets nobody go.
        let report = second.tick(now + 890).expect("tick");
        assert_eq!((report.closed, report.released), (0, vec![]));
        deal(&mut second, &[12]);
        assert_eq!(retained(&second), [address(11)]);
        assert_eq!([sent(&second, 1, ACK), sent(&second, 3, ACK), sent(&second, 2, ACK)], [11, 11, 12]);
        learn(&mut second);
        // Told another thing, it goes on from where the slots were.
        deal(&mut second, &[13]);
        assert_eq!([1, 2, 4].map(|port| sent(&second, port, ACK)), [11, 12, 11]);
        assert_eq!(sent(&second, 5, SYN), 13);
        assert_eq!(retained(&second), [address(11), address(12)]);
        let report = second.tick(now + LONG).expect("tick");
        assert_eq!(report.released, [address(11), address(12)]);
    });
}

#[test]
fn a_dead_server_gets_nothing_more_and_its_place_is_nobodys_by_mistake() {
    isolated(|| {
        let mut dataplane = ready(&options());
        deal(&mut dataplane, &[11]);
        deal(&mut dataplane, &[12]);
        assert_eq!([sent(&dataplane, 1, ACK), sent(&dataplane, 2, SYN)], [11, 12]);
        let dead = RealSpec { alive: false, ..RealSpec::new(address(11), 80) };
        deal_to(&mut dataplane, &[dead, RealSpec::new(address(12), 80)]);
        assert_eq!([sent(&dataplane, 1, ACK), sent(&dataplane, 2, ACK)], [12, 12]);
        // Another server may have its place now; pins to the dead one stay void.
        deal(&mut dataplane, &[13, 12]);
        assert_eq!([1, 2, 3].map(|port| sent(&dataplane, port, ACK)), [12, 12, 12]);
        assert_eq!(sent(&dataplane, 4, SYN), 13);
        // Everybody dead: nobody is asked.
        let dead = |last| RealSpec { alive: false, ..RealSpec::new(address(last), 80) };
        deal_to(&mut dataplane, &[dead(12), dead(13)]);
        assert_eq!([sent(&dataplane, 1, ACK), sent(&dataplane, 9, SYN)], [0, 0]);
    });
}

#[test]
fn where_no_pin_finds_room_it_is_counted_and_the_window_stays_open() {
    isolated(|| {
        let mut dataplane = ready(&Options { pins: 2, ..options() });
        deal(&mut dataplane, &[11]);
        deal(&mut dataplane, &[12]);
        let begun: Vec<u8> = (1..=200).map(|port| sent(&dataplane, port, SYN)).collect();
        let pinned = begun.iter().filter(|server| **server == 12).count();
        assert!((1..200).contains(&pinned), "{pinned}");
        for (port, server) in (1..=200).zip(&begun) {
            assert_eq!(sent(&dataplane, port, ACK), *server, "port {port}");
        }
        let counters = dataplane.counters().expect("counters").services["web"].total;
        assert_eq!(counters.unpinned, 2 * (200 - pinned) as u64);
        assert_eq!(dataplane.pins(monotonic_seconds()).expect("pins").len(), pinned);
        let now = monotonic_seconds() + LONG;
        let report = dataplane.tick(now).expect("tick");
        assert_eq!((report.closed, report.refused), (0, vec!["web".to_owned()]));
        assert_eq!(dataplane.tick(now + LONG).expect("tick").held, SLOTS, "a window later");
    });
}

/// What a walk through all of a director's own pins meets.
fn walk(dataplane: &mut Dataplane, now: u32) -> Vec<LocalPin> {
    let mut pins = Vec::new();
    while !dataplane.walk_pins(now, 1_000, true, &mut pins).expect("walk") {}
    pins.sort_by_key(|pin| pin.flow);
    pins
}

const OTHER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);

/// These pins as they come from the other director.
fn delivery(pins: &[LocalPin], begins: Option<Begin>) -> Delivery {
    let mut servers: Vec<_> = pins.iter().map(|pin| Arc::clone(&pin.server)).collect();
    servers.dedup();
    let remote = |pin: &LocalPin| RemotePin {
        flow: pin.flow,
        server: servers.iter().position(|server| *server == pin.server).expect("listed") as u32,
        state: pin.state,
        remaining: pin.remaining,
        local: pin.local,
        age: pin.age,
    };
    let position = Position { session: 1, sequence: 1 };
    Delivery {
        receipt: Receipt { from: OTHER, boot_id: BootId(7), position },
        begins,
        ends_snapshot: begins == Some(Begin::Snapshot),
        locals: None,
        pins: pins.iter().map(remote).collect(),
        removed: Vec::new(),
        servers,
    }
}

/// What a director has that saw a connection of the previous server and one that began since.
fn pins_of_another(now: u32) -> Vec<LocalPin> {
    let mut one = ready(&options());
    deal(&mut one, &[11]);
    deal(&mut one, &[12]);
    assert_eq!([sent(&one, 1, ACK), sent(&one, 2, SYN)], [11, 12]);
    let pins = walk(&mut one, now);
    one.detach().expect("detach");
    assert_eq!(pins.len(), 2);
    pins
}

#[test]
fn another_directors_pins_are_followed_where_slots_were_settled() {
    isolated(|| {
        let now = monotonic_seconds();
        let pins = pins_of_another(now);
        // A director that has just been told the tables.
        let mut two = ready(&options());
        deal(&mut two, &[12, 11]);
        let report = two.apply_pins(&delivery(&pins, Some(Begin::Snapshot)), now).expect("apply");
        assert_eq!((report.added, report.redundant), (1, 1), "one of them says what the slot says");
        assert_eq!([1, 2, 3].map(|port| sent(&two, port, ACK)), [11, 12, 12]);
        let report = two.apply_pins(&delivery(&pins, None), now).expect("apply");
        assert_eq!((report.added, report.conflicts), (0, 0), "known already");
        assert_eq!(two.tick(now).expect("tick").settled, 0);
        let report = two.tick(now + LONG).expect("tick");
        assert_eq!((report.removed, report.settled, two.replicas()), (1, 1, 0));
        assert_eq!(sent(&two, 1, ACK), 12);
    });
}

#[test]
fn in_a_moving_slot_both_sorts_of_connections_go_where_the_other_director_sent_them() {
    isolated(|| {
        let now = monotonic_seconds();
        let pins = pins_of_another(now);
        let mut two = ready(&options());
        deal(&mut two, &[11]);
        deal(&mut two, &[12]);
        assert_eq!(two.apply_pins(&delivery(&pins, None), now).expect("apply").added, 2);
        assert!(walk(&mut two, now).is_empty(), "what the other has is not told again");
        // Without its pin the second would be torn: it began at the new owner.
        assert_eq!([1, 2, 3].map(|port| sent(&two, port, ACK)), [11, 12, 11]);
        // The window closes: the connection of the old owner is kept, and its slot pinned.
        let report = two.tick(monotonic_seconds() + 903).expect("tick");
        assert_eq!((report.held, report.closed), (SLOTS, 0));
    });
}

#[test]
fn a_replica_lives_as_long_as_its_owner_says_and_goes_when_it_says() {
    isolated(|| {
        let now = monotonic_seconds();
        let pins = pins_of_another(now);
        let mut two = ready(&options());
        deal(&mut two, &[12, 11]);
        let half = LocalPin { remaining: 400, ..pins[0].clone() };
        two.apply_pins(&delivery(&[half], Some(Begin::Snapshot)), now).expect("apply");
        // A refresh, and nothing is written to the kernel.
        let report = two.apply_pins(&delivery(&pins[..1], None), now + 300).expect("apply");
        assert_eq!(report.added, 0);
        two.tick(now + 900).expect("tick");
        assert_eq!(two.replicas(), 1);
        // Absurd times are cut down to what a connection has here.
        let endless = LocalPin { remaining: 900_000, ..pins[0].clone() };
        two.apply_pins(&delivery(&[endless], None), now + 900).expect("apply");
        two.tick(now + 1_000).expect("tick");
        assert_eq!(two.replicas(), 1);
        two.tick(now + 1_000 + LONG).expect("tick");
        assert_eq!(two.replicas(), 0);

        two.apply_pins(&delivery(&pins[..1], None), now).expect("apply");
        let gone = Delivery { pins: Vec::new(), removed: vec![pins[0].flow], ..delivery(&pins[..1], None) };
        assert_eq!(two.apply_pins(&gone, now).expect("apply").removed, 1);
        // A snapshot that does not name it says the same.
        two.apply_pins(&delivery(&pins[..1], None), now).expect("apply");
        let empty = Delivery { pins: Vec::new(), ..delivery(&[], Some(Begin::Snapshot)) };
        assert_eq!(two.apply_pins(&empty, now).expect("apply").removed, 1);
        assert_eq!(sent(&two, 1, ACK), 12);
    });
}

#[test]
fn packets_make_a_replica_ours_and_its_owners_end_leaves_it() {
    isolated(|| {
        let now = monotonic_seconds();
        let pins = pins_of_another(now);
        let mut two = ready(&options());
        deal(&mut two, &[12, 11]);
        let old = LocalPin { remaining: 800, ..pins[0].clone() };
        two.apply_pins(&delivery(std::slice::from_ref(&old), Some(Begin::Snapshot)), now).expect("apply");
        assert!(walk(&mut two, now).is_empty());
        assert_eq!(sent(&two, 1, ACK), 11);
        assert_eq!(walk(&mut two, now).len(), 1, "told to the others, as ours");
        let gone = Delivery { pins: Vec::new(), removed: vec![old.flow], ..delivery(&[], None) };
        assert_eq!(two.apply_pins(&gone, now).expect("apply").removed, 0);
        assert_eq!(sent(&two, 1, ACK), 11);
    });
}

#[test]
fn when_its_owner_dies_a_replica_is_an_orphan_that_a_joiner_is_told_of() {
    isolated(|| {
        let now = monotonic_seconds();
        let pins = pins_of_another(now);
        let mut two = ready(&options());
        deal(&mut two, &[12, 11]);
        // Its owner gave it little more time, which packets on their way to it may take up.
        let short = [LocalPin { remaining: 3, ..pins[0].clone() }];
        two.apply_pins(&delivery(&short, Some(Begin::Snapshot)), now).expect("apply");
        two.orphan_pins(OTHER, now);
        assert_eq!(two.tick(now + 30).expect("tick").removed, 0);
        assert_eq!(walk(&mut two, now).len(), 1);
        // Its machine comes back and knows nothing: that ends no connection.
        let mut empty = delivery(&[], Some(Begin::Snapshot));
        empty.receipt.boot_id = BootId(8);
        two.apply_pins(&empty, now).expect("apply");
        assert_eq!(sent(&two, 1, ACK), 11);
    });
}

#[test]
fn strangers_and_conflicts_are_counted_and_change_nothing_and_some_room_stays_ours() {
    isolated(|| {
        let now = monotonic_seconds();
        let pins = pins_of_another(now);
        let mut two = ready(&Options { pins: 8, ..options() });
        deal(&mut two, &[12]);
        let unknown = two.apply_pins(&delivery(&pins[..1], None), now).expect("apply");
        assert_eq!((unknown.unknown_servers, unknown.added), (1, 0));
        deal(&mut two, &[11, 12]);
        // Moving from 12 to 11: here the connection was met as one of 12's.
        assert_eq!(sent(&two, 1, ACK), 12);
        let report = two.apply_pins(&delivery(&pins[..1], None), now).expect("apply");
        assert_eq!((report.conflicts, report.added), (1, 0));
        assert_eq!(sent(&two, 1, ACK), 12);
        let stranger = Arc::new(Server { service: "nobody".to_owned(), ..Server::clone(&pins[0].server) });
        let stranger = LocalPin { server: stranger, ..pins[0].clone() };
        assert_eq!(two.apply_pins(&delivery(&[stranger], None), now).expect("apply").strangers, 1);
        let many: Vec<LocalPin> = (100..120)
            .map(|port| {
                let mut pin = pins[0].clone();
                pin.flow.source_port = port;
                pin
            })
            .collect();
        let report = two.apply_pins(&delivery(&many, None), now).expect("apply");
        assert!(report.added <= 6 && report.added + report.refused == 20, "{report:?}");
    });
}

#[test]
fn a_full_map_is_swept_whole() {
    isolated(|| {
        let mut dataplane = ready(&options());
        deal(&mut dataplane, &[11]);
        deal(&mut dataplane, &[12]);
        for port in 1..=4_000 {
            assert_eq!(sent(&dataplane, port, ACK), 11);
        }
        let now = monotonic_seconds();
        assert_eq!(dataplane.pins(now).expect("pins").len(), 4_000);
        assert_eq!(dataplane.tick(now).expect("tick").removed, 0);
        assert_eq!(dataplane.windows(now)["web"].pins, 4_000);
        assert_eq!(dataplane.tick(now + LONG).expect("tick").removed, 4_000);
        assert!(dataplane.pins(now).expect("pins").is_empty());
    });
}

/// A measurement, to be run alone: `cargo test --release … -- --ignored --nocapture a_million`.
#[test]
#[ignore = "a measurement: it takes a minute of an idle machine to mean anything"]
fn a_million_replicas_are_taken() {
    isolated(|| {
        let now = monotonic_seconds();
        let mut two = ready(&Options { pins: 1 << 21, ..options() });
        deal(&mut two, &[11]);
        deal(&mut two, &[12]);
        let server = Arc::new(Server { service: "web".to_owned(), address: address(11), port: 80 });
        let flow = a_flow();
        let pin = |number: u32| RemotePin {
            flow: FlowKey { source: Address::from_ipv4(number.to_be_bytes()), ..flow },
            server: 0,
            state: PinState::Open,
            remaining: 900,
            local: None,
            age: 0,
        };
        let batches: Vec<Delivery> = (0..1_000_000_u32)
            .collect::<Vec<_>>()
            .chunks(4_096)
            .map(|numbers| Delivery {
                pins: numbers.iter().map(|number| pin(*number)).collect(),
                servers: vec![Arc::clone(&server)],
                ..delivery(&[], None)
            })
            .collect();
        for what in ["new", "refreshed"] {
            let begin = Instant::now();
            for batch in &batches {
                two.apply_pins(batch, now).expect("apply");
            }
            let taken = begin.elapsed();
            println!("a million replicas, {what}: {taken:?}, {:.2} M/s", 1.0 / taken.as_secs_f64());
        }
        assert_eq!(two.replicas(), 1_000_000);
    });
}

fn a_flow() -> FlowKey {
    FlowKey {
        destination: Address::from_ipv4([203, 0, 113, 10]),
        source_port: 1_000,
        destination_port: 80,
        protocol: 6,
        ..FlowKey::default()
    }
}

/// What a director that has served all the while says of its slots.
fn told(dataplane: &Dataplane, now: u32) -> Windows {
    Windows::decode(dataplane.slot_windows(now).encode()).expect("own encoding")
}

#[test]
fn what_is_prepared_is_pinned_and_goes_where_it_went_until_it_is_committed_or_rolled_back() {
    isolated(|| {
        let mut dataplane = ready(&options());
        deal(&mut dataplane, &[11]);
        assert_eq!(sent(&dataplane, 1, SYN), 11);
        assert!(dataplane.pins(monotonic_seconds()).expect("pins").is_empty(), "settled");
        let all = [RealSpec::new(address(12), 80)];
        assert_eq!(prepare_for(&mut dataplane, &all).expect("prepare"), SLOTS);
        assert_eq!([sent(&dataplane, 1, ACK), sent(&dataplane, 2, SYN)], [11, 11]);
        let now = monotonic_seconds();
        assert_eq!(dataplane.pins(now).expect("pins").len(), 2);
        // However long the epoch takes, it is held.
        assert_eq!(dataplane.tick(now + 1_000).expect("tick").closed, 0);
        // Rolled back: what is in force once more, and after a margin the slots settle.
        deal(&mut dataplane, &[11]);
        dataplane.end_epoch().expect("end");
        assert_eq!([sent(&dataplane, 1, ACK), sent(&dataplane, 3, SYN)], [11, 11]);
        assert_eq!(dataplane.tick(now + LONG).expect("tick").settled, SLOTS);
        // Once more, and committed.
        assert_eq!(prepare_for(&mut dataplane, &all).expect("prepare"), SLOTS);
        assert_eq!(sent(&dataplane, 4, SYN), 11);
        deal(&mut dataplane, &[12]);
        dataplane.end_epoch().expect("end");
        assert_eq!(
            [sent(&dataplane, 4, ACK), sent(&dataplane, 5, ACK), sent(&dataplane, 6, SYN)],
            [11, 11, 12]
        );
        assert_eq!(prepare_for(&mut dataplane, &all).expect("prepare"), 0, "in force already");
    });
}

#[test]
fn a_director_that_was_not_there_follows_the_windows_of_one_that_was() {
    isolated(|| {
        let mut one = ready(&options());
        deal(&mut one, &[11]);
        deal(&mut one, &[12]);
        let now = monotonic_seconds();
        let windows = told(&one, now + 100);
        one.detach().expect("detach");
        // It joins by tables that do not name the previous owner any more.
        let mut two = ready(&options());
        deal(&mut two, &[12]);
        assert_eq!([sent(&two, 1, ACK), sent(&two, 2, SYN)], [12, 12]);
        assert!(
            follow_for(&mut two, &[RealSpec::new(address(12), 80)], &windows, now + 100).expect("follow")
        );
        learn(&mut two);
        assert_eq!(retained(&two), [address(11)]);
        assert_eq!([sent(&two, 1, ACK), sent(&two, 2, SYN), sent(&two, 2, ACK)], [11, 12, 12]);
        // It ends when it does there, and not a window later.
        assert_eq!(two.tick(now + 880).expect("tick").held, 0);
        assert_eq!(two.tick(now + 910).expect("tick").held, SLOTS);
    });
}

#[test]
fn what_is_over_at_the_others_is_not_waited_for() {
    isolated(|| {
        let now = monotonic_seconds();
        let mut dataplane = ready(&options());
        deal(&mut dataplane, &[11]);
        deal(&mut dataplane, &[12]);
        assert_eq!(sent(&dataplane, 1, ACK), 11);
        let reals = [RealSpec::new(address(12), 80)];
        assert!(follow_for(&mut dataplane, &reals, &Windows::default(), now).expect("follow"));
        assert_eq!([sent(&dataplane, 1, ACK), sent(&dataplane, 2, ACK)], [11, 12], "its own pins are kept");
        assert!(!follow_for(&mut dataplane, &reals, &Windows::default(), now).expect("follow"));
    });
}
