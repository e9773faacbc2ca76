//! Tracked services in the kernel's data plane: whom schedulers choose, what is counted, and what outlives a change.

mod dataplane_fixture;

use std::net::IpAddr;
use std::sync::Arc;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::cases::{HERE, INGRESS, KEY, V4};
use dataplane_fixture::memory::Memory;
use dataplane_fixture::packets::{ACK, FIN, OUR_MAC, Packet, RST, SYN};
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{
    Datagrams, Dataplane, Forwarding, HashInput, Method, NextHop, Options, Ports, Protocol, RealSpec,
    ServiceAddress, ServiceSpec, Thresholds, Timeouts, Tracking, WhenFull, monotonic_seconds,
};
use director_common::SLOTS;
use director_common::pin::table::{WAYS, buckets_for};
use director_common::tables::Interface;
use director_proto::pins::{Begin, Position, Server};
use director_proto::sync::BootId;
use syncd::pins::{Delivery, Receipt, RemotePin};

const VIP: &str = "203.0.113.10";
/// Longer than any connection is kept.
const LONG: u32 = 1_000;

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 2, last])
}

fn way(real: IpAddr) -> NextHop {
    let IpAddr::V4(real) = real else { panic!("IPv4") };
    NextHop { destination_mac: [2, 0, 0, 0, 9, real.octets()[3]], ..HERE }
}

/// A server by its weight.
fn server(last: u8, weight: u32) -> RealSpec {
    RealSpec { weight, ..RealSpec::new(address(last), 80) }
}

fn tracking(method: Method) -> Option<Tracking> {
    Some(Tracking { method, when_full: WhenFull::Forward, persistence: None })
}

/// All slots are the first server's.
fn spec<'a>(tracking: Option<Tracking>, reals: &[RealSpec], slots: &'a [u16]) -> ServiceSpec<'a> {
    ServiceSpec {
        name: "web",
        addresses: [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| ServiceAddress {
                prefix: VIP.parse::<IpAddr>().expect("vip").into(),
                protocol,
                ports: Ports::one(80),
            })
            .to_vec(),
        hash: HashInput::Source,
        forwarding: Forwarding::DirectReturn,
        reals: reals.to_vec(),
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking,
    }
}

fn ready(options: &Options) -> Dataplane {
    let mut dataplane = open(options);
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    for last in 1..=255 {
        dataplane.set_next_hop(address(last), Some(way(address(last)))).expect("next hop");
    }
    dataplane
}

fn apply(dataplane: &mut Dataplane, tracking: Option<Tracking>, reals: &[RealSpec]) {
    dataplane.apply(&[spec(tracking, reals, &vec![0; SLOTS])]).expect("apply");
}

fn frame(port: u16, flags: u8) -> Vec<u8> {
    frame_of("198.51.100.7", port, flags)
}

fn frame_of(client: &str, port: u16, flags: u8) -> Vec<u8> {
    Packet::tcp((client, port), (VIP, 80), flags).bytes()
}

fn run(dataplane: &Dataplane, frame: &[u8]) -> u8 {
    let mut out = vec![0; frame.len()];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(options).expect("run");
    if result.return_value == 3 { out[5] } else { 0 }
}

/// Which server a packet of the connection from this port goes to; 0 if to none.
fn sent(dataplane: &Dataplane, port: u16, flags: u8) -> u8 {
    run(dataplane, &frame(port, flags))
}

/// Which server a datagram goes to.
fn datagram(dataplane: &Dataplane, port: u16) -> u8 {
    run(dataplane, &Packet::udp(("198.51.100.7", port), (VIP, 80), b"question").bytes())
}

/// Active and inactive connections of a server.
fn load(dataplane: &Dataplane, last: u8) -> (u32, u32) {
    dataplane.loads()[&("web".to_owned(), address(last), 80)]
}

#[test]
fn the_kernel_chooses_as_user_space_does() {
    isolated(|| {
        let mut dataplane = ready(&options());
        for method in Method::ALL.into_iter().filter(|method| *method != Method::TwoChoices) {
            for weights in [[1, 1, 1, 1, 1], [4, 1, 7, 0, 3]] {
                let reals: Vec<RealSpec> = (11..)
                    .zip(weights)
                    .map(|(last, weight)| RealSpec {
                        thresholds: Thresholds { upper: if last == 13 { 9 } else { 0 }, lower: 0 },
                        ..server(last, weight)
                    })
                    .collect();
                let slots = vec![0; SLOTS];
                // One after the other, each with a client of its own: what was before is still remembered.
                let name = format!("{} {weights:?}", method.name());
                let client = format!("198.51.{}.{}", weights[0], method as u8);
                let service = ServiceSpec { name: &name, ..spec(tracking(method), &reals, &slots) };
                dataplane.apply(std::slice::from_ref(&service)).expect("apply");
                let mut memory = Memory::new(KEY);
                let flags = Interface::FLAG_KNOWN | Interface::FLAG_NATIVE;
                memory.interfaces.insert(INGRESS, Interface { mac: OUR_MAC, flags });
                memory.add(&service, |real| Some(way(real)));
                let mut random = 1_u64;
                for step in 0..400_u16 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let (port, flags) = match (random >> 33) % 10 {
                        0..5 => (step + 1, SYN),
                        5..7 => ((random >> 40) as u16 % (step + 1) + 1, ACK),
                        7 => ((random >> 40) as u16 % (step + 1) + 1, SYN),
                        8 => ((random >> 40) as u16 % (step + 1) + 1, RST),
                        _ => ((random >> 40) as u16 % (step + 1) + 1, FIN | ACK),
                    };
                    let mut ours = frame_of(&client, port, flags);
                    let theirs = run(&dataplane, &ours);
                    if memory.hasten(INGRESS, &mut ours).is_none() {
                        let _ = memory.run(INGRESS, &mut ours);
                    }
                    let expected = if ours[..5] == [2, 0, 0, 0, 9] { ours[5] } else { 0 };
                    assert_eq!(theirs, expected, "{name} step {step}");
                }
                for (at, real) in reals.iter().enumerate() {
                    let expected = memory.loads.borrow()[at].server();
                    let found = dataplane.loads()[&(name.clone(), real.address, 80)];
                    assert_eq!(found, (expected.active, expected.inactive), "{name}");
                }
            }
        }
    });
}

#[test]
fn two_choices_follow_the_weights() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, tracking(Method::TwoChoices), &[server(11, 3), server(12, 1), server(13, 0)]);
        let count = (1..2_000).filter(|port| sent(&dataplane, *port, SYN) == 11).count();
        // By the less loaded of two for its weight: three quarters, within a few.
        assert!((1_450..1_550).contains(&count), "{count}");
        assert_eq!(load(&dataplane, 13), (0, 0));
    });
}

#[test]
fn connections_are_counted_as_ipvs_counts_them_and_time_takes_them_off() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, tracking(Method::RoundRobin), &[server(11, 1)]);
        let now = monotonic_seconds();
        assert_eq!((sent(&dataplane, 1, SYN), load(&dataplane, 11)), (11, (1, 0)));
        assert_eq!((sent(&dataplane, 1, ACK), load(&dataplane, 11)), (11, (1, 0)));
        assert_eq!(dataplane.half_open(now).expect("half-open").len(), 0);
        assert_eq!(dataplane.pins(now).expect("pins").len(), 1);
        assert_eq!((sent(&dataplane, 1, FIN | ACK), load(&dataplane, 11)), (11, (0, 1)));
        assert_eq!((sent(&dataplane, 2, SYN), sent(&dataplane, 2, RST)), (11, 11));
        assert_eq!(load(&dataplane, 11), (0, 2));
        assert_eq!((datagram(&dataplane, 3), load(&dataplane, 11)), (11, (0, 3)));
        assert_eq!((datagram(&dataplane, 3), load(&dataplane, 11)), (11, (0, 3)));
        assert_eq!((sent(&dataplane, 4, SYN), load(&dataplane, 11)), (11, (1, 3)));
        assert_eq!((sent(&dataplane, 4, ACK), load(&dataplane, 11)), (11, (1, 3)));
        // FIN and RST: 120 s; datagrams: 300 s; under way: 900 s.
        for (after, expected) in [(115, (1, 3)), (130, (1, 1)), (310, (1, 0)), (LONG, (0, 0))] {
            dataplane.tick(now + after).expect("tick");
            assert_eq!(load(&dataplane, 11), expected, "after {after} s");
        }
        assert_eq!(dataplane.pins(now).expect("pins").len(), 0);
    });
}

#[test]
fn a_flood_of_syns_takes_no_room_of_connections_under_way() {
    isolated(|| {
        for when_full in [WhenFull::Forward, WhenFull::Refuse] {
            let mut dataplane = ready(&Options { half_open: 64, discard_pins: true, ..options() });
            let method = Method::RoundRobin;
            let reals = [server(11, 1), server(12, 1)];
            apply(&mut dataplane, Some(Tracking { method, when_full, persistence: None }), &reals);
            let mine: Vec<u8> = (1..=8).map(|port| sent(&dataplane, port, SYN)).collect();
            assert_eq!(mine, [11, 12, 11, 12, 11, 12, 11, 12]);
            let goes_on =
                |dataplane: &Dataplane| (1..=8).map(|port| sent(dataplane, port, ACK)).collect::<Vec<u8>>();
            assert_eq!(goes_on(&dataplane), mine);
            (1_000..3_000).for_each(|port| _ = sent(&dataplane, port, SYN));
            let room = 64..=buckets_for(64) as usize * WAYS;
            assert!(room.contains(&dataplane.half_open(monotonic_seconds()).expect("half-open").len()));
            assert_eq!(goes_on(&dataplane), mine, "{when_full:?}");
            // Who comes now goes by the slot, always the same way, or nowhere.
            let expected = if when_full == WhenFull::Forward { 11 } else { 0 };
            assert_eq!([SYN, ACK, ACK].map(|flags| sent(&dataplane, 9, flags)), [expected; 3]);
            let unpinned = dataplane.counters().expect("counters").services["web"].total.unpinned;
            assert_eq!(unpinned > 0, when_full == WhenFull::Forward);
            // A minute later there is room.
            dataplane.tick(monotonic_seconds() + 65).expect("tick");
            assert_ne!(sent(&dataplane, 10, SYN), 0);
            assert_eq!(dataplane.half_open(monotonic_seconds()).expect("half-open").len(), 1);
        }
    });
}

#[test]
fn a_connection_that_finds_no_room_stays_with_the_previous_owner_of_its_moving_slot() {
    isolated(|| {
        let mut dataplane = ready(&Options { half_open: 64, ..options() });
        let reals = [server(11, 1), server(12, 1)];
        let method = tracking(Method::RoundRobin);
        apply(&mut dataplane, method, &reals);
        dataplane.apply(&[spec(method, &reals, &vec![1; SLOTS])]).expect("apply");
        (1_000..3_000).for_each(|port| _ = sent(&dataplane, port, SYN));
        assert_eq!([SYN, ACK, ACK].map(|flags| sent(&dataplane, 9, flags)), [11; 3]);
    });
}

/// Of a connection under way, of one that has begun, and of one that nothing is known of.
#[test]
fn an_error_follows_the_connection_it_is_about_and_leaves_nothing_behind() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, tracking(Method::RoundRobin), &[server(11, 1), server(12, 1), server(13, 1)]);
        let error = |port, is_datagram: bool| {
            let answer = if is_datagram {
                Packet::udp((VIP, 80), (V4.client, port), b"answer")
            } else {
                Packet::tcp((VIP, 80), (V4.client, port), ACK)
            };
            let frame = V4.error((3, 1), &V4.shown(&answer, 8)).bytes();
            run(&dataplane, &frame)
        };
        let of = |port, flags| run(&dataplane, &frame_of(V4.client, port, flags));
        let datagram = |port| run(&dataplane, &Packet::udp((V4.client, port), (VIP, 80), b"data").bytes());
        for port in 1..=6 {
            let server = of(port, SYN);
            assert_eq!(error(port, false), server, "half-open, from port {port}");
            assert_eq!(of(port, ACK), server);
            assert_eq!(error(port, false), server, "under way, from port {port}");
            let server = datagram(port);
            assert_eq!(error(port, true), server, "of a datagram from port {port}");
        }
        let before: Vec<_> = [11, 12, 13].map(|last| load(&dataplane, last)).to_vec();
        // All slots are the first one's.
        assert_eq!(error(99, false), 11, "without an entry");
        assert_eq!([11, 12, 13].map(|last| load(&dataplane, last)).to_vec(), before, "nothing is counted");
    });
}

#[test]
fn a_flow_of_one_datagram_is_half_open_no_longer_than_a_syn() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, tracking(Method::RoundRobin), &[server(11, 1)]);
        let now = monotonic_seconds();
        assert_eq!([1, 2, 2].map(|port| datagram(&dataplane, port)), [11; 3]);
        assert_eq!(load(&dataplane, 11), (0, 2));
        dataplane.tick(now + 55).expect("tick");
        assert_eq!(load(&dataplane, 11), (0, 2));
        dataplane.tick(now + 65).expect("tick");
        assert_eq!(dataplane.half_open(now).expect("half-open").len(), 0);
        assert_eq!(load(&dataplane, 11), (0, 1), "the second datagram makes it a flow");
        dataplane.tick(now + 310).expect("tick");
        assert_eq!(load(&dataplane, 11), (0, 0));
    });
}

#[test]
fn new_weights_are_for_new_connections() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, tracking(Method::WeightedRoundRobin), &[server(11, 1), server(12, 1)]);
        let open = |dataplane: &Dataplane, port| [SYN, ACK].map(|flags| sent(dataplane, port, flags))[1];
        assert_eq!([1, 2, 3, 4].map(|port| open(&dataplane, port)), [11, 12, 11, 12]);
        // Quiesced: it keeps what it has.
        apply(&mut dataplane, tracking(Method::WeightedRoundRobin), &[server(11, 0), server(12, 1)]);
        assert_eq!([5, 6].map(|port| open(&dataplane, port)), [12, 12]);
        assert_eq!([1, 3].map(|port| sent(&dataplane, port, ACK)), [11, 11]);
        assert_eq!((load(&dataplane, 11), load(&dataplane, 12)), ((2, 0), (4, 0)));
        // Gone from the configuration, as well.
        apply(&mut dataplane, tracking(Method::WeightedRoundRobin), &[server(12, 1), server(13, 1)]);
        assert_eq!([1, 3].map(|port| sent(&dataplane, port, ACK)), [11, 11]);
        assert_eq!([7, 8].map(|port| open(&dataplane, port)), [12, 13]);
        // Dead, it keeps nothing: whoever goes on is told so by another server.
        let dead = RealSpec { alive: false, ..server(12, 1) };
        apply(&mut dataplane, tracking(Method::WeightedRoundRobin), &[dead, server(13, 1)]);
        assert_eq!(sent(&dataplane, 5, SYN), 13);
    });
}

#[test]
fn who_has_enough_gets_no_more_and_then_the_sorry_server_answers() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let limited =
            |last, upper| RealSpec { thresholds: Thresholds { upper, lower: 0 }, ..server(last, 1) };
        let sorry = RealSpec { is_sorry: true, ..server(19, 1) };
        let method = tracking(Method::LeastConnection);
        apply(&mut dataplane, method, &[limited(11, 2), limited(12, 1), sorry]);
        assert_eq!([1, 2, 3, 4, 5].map(|port| sent(&dataplane, port, SYN)), [11, 12, 11, 19, 19]);
        apply(&mut dataplane, method, &[limited(11, 2), limited(12, 1)]);
        assert_eq!(sent(&dataplane, 6, SYN), 0);
        assert_eq!(sent(&dataplane, 4, ACK), 19, "it keeps its connections");
        // A higher threshold makes room at once, time does later.
        apply(&mut dataplane, method, &[limited(11, 3), limited(12, 1)]);
        assert_eq!([7, 8].map(|port| sent(&dataplane, port, SYN)), [11, 0]);
        dataplane.tick(monotonic_seconds() + LONG).expect("tick");
        assert_eq!(sent(&dataplane, 9, SYN), 11);
    });
}

#[test]
fn a_server_that_the_program_took_connections_off_takes_new_ones_again() {
    isolated(|| {
        for restarts in [false, true] {
            let mut dataplane = ready(&Options { discard_pins: true, ..options() });
            let limited = RealSpec { thresholds: Thresholds { upper: 2, lower: 0 }, ..server(11, 1) };
            apply(&mut dataplane, tracking(Method::RoundRobin), &[limited, server(12, 1)]);
            assert_eq!([1, 2, 3].map(|port| sent(&dataplane, port, SYN)), [11, 12, 11]);
            // With the same ports again it is another connection.
            assert_eq!([ACK, FIN | ACK, SYN].map(|flags| sent(&dataplane, 1, flags)), [11, 11, 12]);
            assert_eq!((load(&dataplane, 11), load(&dataplane, 12)), ((1, 0), (2, 0)));
            assert_eq!([4, 5].map(|port| sent(&dataplane, port, SYN)), [12, 12]);
            if restarts {
                drop(dataplane);
                dataplane = open(&options());
            } else {
                dataplane.tick(monotonic_seconds()).expect("tick");
            }
            let next = [6, 7].map(|port| sent(&dataplane, port, SYN));
            assert!(next.contains(&11), "{next:?}");
        }
    });
}

#[test]
fn the_counts_of_a_new_service_begin_at_zero_where_another_was() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let (reals, method) = ([server(11, 1), server(12, 1)], tracking(Method::RoundRobin));
        apply(&mut dataplane, method, &reals);
        assert_eq!([1, 2, 3].map(|port| sent(&dataplane, port, SYN)), [11, 12, 11]);
        dataplane.apply(&[]).expect("apply");
        apply(&mut dataplane, method, &reals);
        assert_eq!((load(&dataplane, 11), load(&dataplane, 12)), ((0, 0), (0, 0)));
        assert_eq!(sent(&dataplane, 4, SYN), 11);
        dataplane.tick(monotonic_seconds() + LONG).expect("tick");
        assert_eq!((load(&dataplane, 11), load(&dataplane, 12)), ((0, 0), (0, 0)));
    });
}

#[test]
fn the_sorry_server_serves_where_no_real_server_is_alive() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let dead = RealSpec { alive: false, ..server(11, 1) };
        let sorry = RealSpec { is_sorry: true, ..server(19, 1) };
        let echo = V4.echo(VIP).bytes();
        apply(&mut dataplane, tracking(Method::RoundRobin), &[dead]);
        assert_eq!((sent(&dataplane, 1, SYN), run(&dataplane, &echo)), (0, 0));
        let nobody = vec![u16::MAX; SLOTS];
        dataplane.apply(&[spec(tracking(Method::RoundRobin), &[dead, sorry], &nobody)]).expect("apply");
        assert_eq!([SYN, ACK].map(|flags| sent(&dataplane, 2, flags)), [19; 2]);
        assert_ne!(run(&dataplane, &echo), 0, "and the VIP answers");
    });
}

#[test]
fn connections_and_counts_outlive_the_process() {
    isolated(|| {
        let mut first = ready(&options());
        let reals = [server(11, 1), server(12, 1), server(13, 1)];
        apply(&mut first, tracking(Method::RoundRobin), &reals);
        assert_eq!([1, 2].map(|port| [SYN, ACK].map(|flags| sent(&first, port, flags))[1]), [11, 12]);
        assert_eq!(sent(&first, 2, FIN | ACK), 12);
        drop(first);
        let mut second = open(&options());
        assert_eq!(second.loads().values().copied().collect::<Vec<_>>(), [(1, 0), (0, 1), (0, 0)]);
        assert_eq!(sent(&second, 1, ACK), 11);
        apply(&mut second, tracking(Method::RoundRobin), &reals);
        assert_eq!(sent(&second, 3, SYN), 13, "the turn goes on");
        assert_eq!(load(&second, 11), (1, 0));
    });
}

#[test]
fn a_service_that_is_tracked_no_more_keeps_its_connections_and_so_does_one_that_is_from_now_on() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let reals = [server(11, 1), server(12, 1)];
        apply(&mut dataplane, None, &reals);
        assert_eq!(sent(&dataplane, 1, SYN), 11);
        apply(&mut dataplane, tracking(Method::RoundRobin), &reals);
        assert_eq!([2, 3].map(|port| [SYN, ACK].map(|flags| sent(&dataplane, port, flags))[1]), [11, 12]);
        assert_eq!(sent(&dataplane, 1, ACK), 11, "by its slot, as before");
        apply(&mut dataplane, None, &reals);
        assert_eq!([1, 2, 3, 4].map(|port| sent(&dataplane, port, ACK)), [11, 11, 12, 11]);
        dataplane.tick(monotonic_seconds()).expect("tick");
        assert_eq!(sent(&dataplane, 3, ACK), 12);
        dataplane.tick(monotonic_seconds() + LONG).expect("tick");
        dataplane.tick(monotonic_seconds() + LONG).expect("tick");
        assert_eq!(dataplane.slot_states()["web"].settled, SLOTS);
    });
}

#[test]
fn another_directors_connections_are_followed_and_counted() {
    isolated(|| {
        let reals = [server(11, 1), server(12, 1)];
        let now = monotonic_seconds();
        let mut one = ready(&options());
        apply(&mut one, tracking(Method::RoundRobin), &reals);
        (1..=4).for_each(|port| _ = [SYN, ACK].map(|flags| sent(&one, port, flags)));
        sent(&one, 5, SYN);
        let mut pins = Vec::new();
        while !one.walk_pins(now, 1_000, true, &mut pins).expect("walk") {}
        assert_eq!(pins.len(), 4, "none of what has only begun");
        drop(one);
        let mut two = ready(&Options { discard_pins: true, ..options() });
        apply(&mut two, tracking(Method::LeastConnection), &reals);
        let mut delivery = Delivery {
            receipt: Receipt {
                from: [10, 255, 0, 2].into(),
                boot_id: BootId(7),
                position: Position { session: 1, sequence: 1 },
            },
            begins: Some(Begin::Snapshot),
            locals: None,
            servers: Vec::new(),
            pins: Vec::new(),
            removed: Vec::new(),
            ends_snapshot: true,
        };
        for pin in &pins {
            let server: &Arc<Server> = &pin.server;
            let number = delivery.servers.iter().position(|known| known == server).unwrap_or_else(|| {
                delivery.servers.push(Arc::clone(server));
                delivery.servers.len() - 1
            });
            let (flow, state, remaining) = (pin.flow, pin.state, pin.remaining);
            let server = number as u32;
            delivery.pins.push(RemotePin { flow, server, state, remaining, local: None, age: 0 });
        }
        assert_eq!(two.apply_pins(&delivery, now).expect("apply").added, 4);
        assert_eq!([load(&two, 11), load(&two, 12)], [(2, 0), (2, 0)]);
        assert_eq!([1, 2, 3, 4].map(|port| sent(&two, port, ACK)), [11, 12, 11, 12]);
        assert_eq!(two.slot_states()["web"].settled, SLOTS, "a tracked service is looked up anyway");
        assert_eq!([6, 7].map(|port| sent(&two, port, SYN)), [11, 12]);
        two.tick(now + LONG).expect("tick");
        assert_eq!([load(&two, 11), load(&two, 12)], [(0, 0), (0, 0)]);
    });
}

#[test]
fn of_a_thousand_servers_the_least_loaded_are_candidates() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let real = |number: u16| RealSpec::new(IpAddr::from([10, 1, (number >> 8) as u8, number as u8]), 80);
        let reals: Vec<RealSpec> = (0..1_000).map(real).collect();
        for real in &reals {
            dataplane.set_next_hop(real.address, Some(HERE)).expect("next hop");
        }
        let total = |dataplane: &Dataplane| dataplane.loads().values().map(|load| load.0).collect::<Vec<_>>();
        apply(&mut dataplane, tracking(Method::WeightedLeastConnection), &reals);
        for port in 0..1_000_u16 {
            assert_ne!(sent(&dataplane, port + 1, SYN), 0);
            if port % 50 == 49 {
                dataplane.refresh_candidates().expect("candidates");
            }
        }
        // 64 candidates at a time, renewed every 50 connections: nobody is far from one connection.
        let loads = total(&dataplane);
        assert_eq!((loads.iter().sum::<u32>(), loads.iter().max()), (1_000, Some(&1)));
    });
}
