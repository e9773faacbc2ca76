//! Persistence: which connections of a client go together, and for how long.

mod dataplane_fixture;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use dataplane_fixture::cases::{INGRESS, KEY};
use dataplane_fixture::memory::Memory;
use dataplane_fixture::packets::{ACK, FIN, OUR_MAC, Packet, RST, SYN};
use dataplane_fixture::persistence::{
    TIMEOUT, VIPS, apply, by_turns, connect, datagram, persistence, ready, run, sent, server, spec,
    templates, tracking, way,
};
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{
    Dataplane, Lookup, Method, Options, Persistence, Probe, Protocol, RealSpec, ServiceSpec, TcpFlags,
    Thresholds, Tracking, monotonic_seconds,
};
use director_common::SLOTS;
use director_common::pin::PinCell;
use director_common::tables::{FlowKey, Interface};

#[test]
fn the_kernel_keeps_clients_where_user_space_does() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let methods = Method::ALL.into_iter().filter(|method| *method != Method::TwoChoices);
        for method in methods.chain([Method::Slots]) {
            let reals: Vec<RealSpec> = (11..)
                .zip([4, 1, 7, 0, 3])
                .map(|(last, weight)| RealSpec {
                    thresholds: Thresholds { upper: if last == 13 { 9 } else { 0 }, lower: 0 },
                    ..server(last, weight)
                })
                .collect();
            let slots: Vec<u16> = (0..SLOTS).map(|slot| (slot % 5) as u16).collect();
            let name = method.name();
            let service = ServiceSpec { name, ..spec(tracking(method, persistence()), &reals, &slots) };
            dataplane.apply(std::slice::from_ref(&service)).expect("apply");
            let mut memory = Memory::new(KEY);
            let flags = Interface::FLAG_KNOWN | Interface::FLAG_NATIVE;
            memory.interfaces.insert(INGRESS, Interface { mac: OUR_MAC, flags });
            memory.add(&service, |real| Some(way(real)));
            let (mut random, mut servers) = (1_u64, BTreeSet::new());
            for step in 0..400_u16 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (number, host) = ((random >> 50) % 12, (random >> 20) as u8);
                let client = format!("198.{}.{number}.{host}", method as u8 + 18);
                let (vip, port) = if random >> 33 & 1 == 0 { (VIPS[0], 80) } else { (VIPS[1], 443) };
                let known = (random >> 40) as u16 % (step + 1) + 1;
                let packet = match (random >> 34) % 10 {
                    0..5 => Packet::tcp((&client, step + 1), (vip, port), SYN),
                    5..7 => Packet::tcp((&client, known), (vip, port), ACK),
                    7 => Packet::tcp((&client, known), (vip, port), FIN | ACK),
                    8 => Packet::tcp((&client, known), (vip, port), RST),
                    _ => Packet::udp((&client, known), (VIPS[0], 80), b"question"),
                };
                let mut ours = packet.bytes();
                let theirs = run(&dataplane, &ours);
                if memory.hasten(INGRESS, &mut ours).is_none() {
                    let _ = memory.run(INGRESS, &mut ours);
                }
                let expected = if ours[..5] == [2, 0, 0, 0, 9] { ours[5] } else { 0 };
                assert_eq!(theirs, expected, "{name} step {step}: {packet:?}");
                servers.insert(theirs);
            }
            assert!(servers.len() > 2, "{name}: {servers:?}");
            let kept = |table: &RefCell<HashMap<FlowKey, &PinCell>>| {
                table.borrow().keys().filter(|key| key.is_template()).count()
            };
            let (assured, new) = (kept(&memory.pins), kept(&memory.half_open));
            let found = templates(&dataplane);
            let found_assured = found.iter().filter(|(.., is_assured)| *is_assured).count();
            assert_eq!((found_assured, found.len() - found_assured), (assured, new), "{name}");
            assert!(assured > 5, "{name}");
        }
    });
}

#[test]
fn all_connections_of_a_network_go_to_one_server_and_other_clients_take_their_turns() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, by_turns(), &[server(11, 1), server(12, 1), server(13, 1)]);
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
        assert_eq!(connect(&dataplane, "198.51.101.7", 1), 12);
        for (client, expected) in [("198.51.100.200", 11), ("198.51.101.1", 12)] {
            assert_eq!([2, 3, 4].map(|port| connect(&dataplane, client, port)), [expected; 3], "{client}");
            assert_eq!(datagram(&dataplane, client, 5), expected, "another protocol");
            let other = Packet::tcp((client, 6), (VIPS[1], 443), SYN);
            assert_eq!(run(&dataplane, &other.bytes()), expected, "another address and port of the service");
        }
        assert_eq!(connect(&dataplane, "198.51.102.7", 1), 13, "no turn was taken");
        let all = [("198.51.100.0", 11), ("198.51.101.0", 12), ("198.51.102.0", 13)];
        let all = all.map(|(client, server)| (client.to_owned(), server, true));
        assert_eq!(templates(&dataplane), all);
        // None of them counts as a connection.
        let loads: Vec<_> = dataplane.loads().into_values().collect();
        assert_eq!(loads, [(5, 1), (5, 1), (1, 0)]);
        dataplane.tick(monotonic_seconds()).expect("tick");
        let counts: Vec<_> = dataplane.template_counts().into_values().collect();
        assert_eq!(counts, [1, 1, 1]);
        // Nor in the next process, which counts anew.
        drop(dataplane);
        let dataplane = open(&options());
        assert_eq!(dataplane.loads().into_values().collect::<Vec<_>>(), loads);
        assert_eq!(connect(&dataplane, "198.51.101.9", 9), 12);
    });
}

#[test]
fn clients_that_begin_several_connections_at_once_are_together_from_the_first_syn() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, by_turns(), &[server(11, 1), server(12, 1)]);
        assert_eq!([1, 2, 3, 4].map(|port| sent(&dataplane, "198.51.100.7", port, SYN)), [11; 4]);
        assert_eq!(templates(&dataplane), [("198.51.100.0".to_owned(), 11, false)]);
        assert_eq!(sent(&dataplane, "198.51.100.7", 3, ACK), 11);
        assert_eq!(templates(&dataplane), [("198.51.100.0".to_owned(), 11, true)]);
        // Of datagrams the second flow shows that the client is there.
        assert_eq!([1, 2].map(|port| datagram(&dataplane, "198.51.101.7", port)), [12; 2]);
        assert_eq!(templates(&dataplane)[1], ("198.51.101.0".to_owned(), 12, true));
    });
}

#[test]
fn a_flood_of_syns_leaves_no_template_behind() {
    isolated(|| {
        let mut dataplane = ready(&Options { half_open: 512, ..options() });
        apply(&mut dataplane, by_turns(), &[server(11, 1), server(12, 1)]);
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
        for number in 0..2_000_u32 {
            let [_, _, c, d] = number.to_be_bytes();
            sent(&dataplane, &format!("10.{c}.{d}.1"), 7, SYN);
        }
        assert_eq!(templates(&dataplane).iter().filter(|(.., is_assured)| *is_assured).count(), 1);
        assert_eq!(connect(&dataplane, "198.51.100.8", 2), 11);
        dataplane.tick(monotonic_seconds() + 65).expect("tick");
        assert_eq!(templates(&dataplane), [("198.51.100.0".to_owned(), 11, true)]);
    });
}

#[test]
fn a_drained_server_keeps_its_clients_unless_they_are_to_leave() {
    isolated(|| {
        for expire_quiescent in [false, true] {
            let mut dataplane = ready(&Options { discard_pins: true, ..options() });
            let by = tracking(Method::RoundRobin, Persistence { expire_quiescent, ..persistence() });
            apply(&mut dataplane, by, &[server(11, 1), server(12, 1)]);
            assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
            assert_eq!(sent(&dataplane, "198.51.101.7", 1, SYN), 12);
            assert_eq!(sent(&dataplane, "198.51.102.7", 1, SYN), 11);
            apply(&mut dataplane, by, &[server(11, 0), server(12, 1)]);
            dataplane.tick(monotonic_seconds()).expect("tick");
            let expected = if expire_quiescent { 12 } else { 11 };
            assert_eq!(connect(&dataplane, "198.51.100.8", 2), expected);
            assert_eq!(connect(&dataplane, "198.51.102.8", 2), expected, "half-open, too");
            assert_eq!(sent(&dataplane, "198.51.100.7", 1, ACK), 11, "what has begun stays");
            // Its weight comes back: whoever has gone has gone.
            apply(&mut dataplane, by, &[server(11, 1), server(12, 1)]);
            assert_eq!(connect(&dataplane, "198.51.100.9", 3), expected);
        }
    });
}

#[test]
fn a_server_at_its_threshold_keeps_its_clients() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let full = RealSpec { thresholds: Thresholds { upper: 1, lower: 0 }, ..server(11, 1) };
        apply(&mut dataplane, by_turns(), &[full, server(12, 1)]);
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
        assert_eq!(connect(&dataplane, "198.51.101.7", 1), 12);
        assert_eq!(connect(&dataplane, "198.51.102.7", 1), 12, "it has enough");
        assert_eq!(connect(&dataplane, "198.51.100.7", 2), 11, "but not of this client");
    });
}

#[test]
fn clients_of_a_server_that_is_dead_or_gone_get_another_one_for_good() {
    isolated(|| {
        let mut dataplane = ready(&options());
        apply(&mut dataplane, by_turns(), &[server(11, 1), server(12, 1)]);
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
        assert_eq!(connect(&dataplane, "198.51.101.7", 1), 12);
        assert_eq!(sent(&dataplane, "198.51.102.7", 1, SYN), 11);
        let dead = RealSpec { alive: false, ..server(11, 1) };
        apply(&mut dataplane, by_turns(), &[dead, server(12, 1)]);
        assert_eq!([2, 3].map(|port| connect(&dataplane, "198.51.100.7", port)), [12; 2]);
        assert_eq!(connect(&dataplane, "198.51.102.7", 2), 12);
        apply(&mut dataplane, by_turns(), &[server(11, 1), server(12, 1)]);
        assert_eq!([4, 5].map(|port| connect(&dataplane, "198.51.100.7", port)), [12; 2]);
        // One that leaves keeps what it has, and gets nothing new.
        apply(&mut dataplane, by_turns(), &[server(11, 1)]);
        dataplane.tick(monotonic_seconds()).expect("tick");
        assert_eq!(sent(&dataplane, "198.51.101.7", 1, ACK), 12);
        assert_eq!(connect(&dataplane, "198.51.101.7", 2), 11);
        // The same for one that the tables only keep for its connections.
        let left = RealSpec { is_left: true, ..server(11, 0) };
        apply(&mut dataplane, by_turns(), &[left, server(13, 1)]);
        dataplane.tick(monotonic_seconds()).expect("tick");
        assert_eq!(sent(&dataplane, "198.51.101.7", 2, ACK), 11);
        assert_eq!(connect(&dataplane, "198.51.101.7", 3), 13);
    });
}

#[test]
fn whoever_came_to_the_sorry_server_leaves_it_when_others_serve_again() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let sorry = RealSpec { is_sorry: true, ..server(19, 1) };
        let dead = RealSpec { alive: false, ..server(11, 1) };
        let nobody = vec![u16::MAX; SLOTS];
        dataplane.apply(&[spec(by_turns(), &[dead, sorry], &nobody)]).expect("apply");
        assert_eq!([1, 2].map(|port| connect(&dataplane, "198.51.100.7", port)), [19; 2]);
        assert_eq!(templates(&dataplane), []);
        apply(&mut dataplane, by_turns(), &[server(11, 1), sorry]);
        assert_eq!(connect(&dataplane, "198.51.100.7", 3), 11);
        // One that becomes the sorry server has clients no more.
        let sorry = RealSpec { is_sorry: true, ..server(11, 1) };
        apply(&mut dataplane, by_turns(), &[server(12, 1), sorry]);
        assert_eq!(connect(&dataplane, "198.51.100.7", 4), 12);
    });
}

#[test]
fn a_template_lives_for_its_time_and_while_a_connection_of_it_does() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let mut reals = vec![server(11, 1), server(12, 1)];
        apply(&mut dataplane, by_turns(), &reals);
        let now = monotonic_seconds();
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11, "goes on");
        assert_eq!(connect(&dataplane, "198.51.101.7", 1), 12, "ends at once");
        assert_eq!(sent(&dataplane, "198.51.101.7", 1, FIN | ACK), 12);
        let ticks = |dataplane: &mut Dataplane, after: u32| {
            (0..3).for_each(|_| drop(dataplane.tick(now + after).expect("tick")));
            templates(dataplane).into_iter().map(|(client, ..)| client).collect::<Vec<_>>()
        };
        let both = ["198.51.100.0", "198.51.101.0"];
        assert_eq!(ticks(&mut dataplane, TIMEOUT - 5), both);
        // The connection that has ended was forgotten 120 s after its last packet.
        assert_eq!(ticks(&mut dataplane, TIMEOUT + 5), both[..1]);
        assert_eq!(ticks(&mut dataplane, 890), both[..1]);
        // Another weight, so that turns say something else, and yet the client stays.
        reals[0].weight = 0;
        apply(&mut dataplane, by_turns(), &reals);
        assert_eq!(sent(&dataplane, "198.51.100.9", 2, SYN), 11);
        // With 900 s the connection that went on has had its time, and the half-open one has long.
        assert_eq!(ticks(&mut dataplane, 910), [""; 0]);
        assert_eq!(connect(&dataplane, "198.51.100.7", 3), 12);
    });
}

#[test]
fn half_open_connections_keep_a_short_template_too() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let short = Persistence { timeout: Duration::from_secs(10), ..persistence() };
        apply(&mut dataplane, tracking(Method::RoundRobin, short), &[server(11, 1), server(12, 1)]);
        let now = monotonic_seconds();
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
        assert_eq!(sent(&dataplane, "198.51.100.7", 1, FIN | ACK), 11);
        // Known for 60 s, where the one that has ended is for 120 s.
        assert_eq!(sent(&dataplane, "198.51.100.7", 2, SYN), 11);
        let alive = |dataplane: &mut Dataplane, after: u32| {
            (0..3).for_each(|_| drop(dataplane.tick(now + after).expect("tick")));
            templates(dataplane).len()
        };
        assert_eq!([30, 55, 110, 130].map(|after| alive(&mut dataplane, after)), [1, 1, 1, 0]);
    });
}

#[test]
fn a_service_that_hashes_keeps_a_client_across_a_change_of_its_slots() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let (by, reals) = (tracking(Method::Slots, persistence()), [server(11, 1), server(12, 1)]);
        apply(&mut dataplane, by, &reals);
        // A network has one slot, whichever of its addresses a packet comes from.
        let mixed: Vec<u16> = (0..SLOTS).map(|slot| (slot % 2) as u16).collect();
        let of = |dataplane: &Dataplane, host: u8| {
            let probe = Probe {
                source: format!("198.51.100.{host}:4000").parse().expect("source"),
                destination: format!("{}:80", VIPS[0]).parse().expect("destination"),
                protocol: Protocol::Tcp,
                flags: TcpFlags::Syn,
                length: 0,
            };
            let explained = dataplane.explain(&mut probe.emit(OUR_MAC).expect("packet"), INGRESS);
            let explained = explained.expect("explanation");
            assert!(explained.hash.is_some(), "the slot follows from the hash that is shown");
            explained.slot.expect("a slot").number
        };
        assert_eq!((1..=254).map(|host| of(&dataplane, host)).collect::<BTreeSet<_>>().len(), 1);
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
        dataplane.apply(&[spec(by, &reals, &vec![1; SLOTS])]).expect("apply");
        assert_eq!([2, 3].map(|port| connect(&dataplane, "198.51.100.8", port)), [11; 2]);
        assert_eq!(connect(&dataplane, "198.51.101.7", 1), 12, "who has not been here goes by the slot");
        // As one that is tracked no more, it goes by its slots.
        dataplane.apply(&[spec(None, &reals, &mixed)]).expect("apply");
        dataplane.tick(monotonic_seconds()).expect("tick");
        assert_eq!(templates(&dataplane), []);
    });
}

#[test]
fn an_explanation_shows_the_template_and_a_service_without_has_no_look_up_of_one() {
    isolated(|| {
        let mut dataplane = ready(&options());
        let of_template = |dataplane: &Dataplane| {
            let mut frame = Packet::tcp(("198.51.100.9", 7), (VIPS[0], 80), SYN).bytes();
            let explained = dataplane.explain(&mut frame, INGRESS).expect("explanation");
            let found = explained.lookups.iter().filter_map(|lookup| match lookup {
                Lookup::Pin { key, found } if key.is_template() => Some(found.is_some()),
                Lookup::AddPin { key, .. } if key.is_template() => Some(true),
                _ => None,
            });
            (explained.real.expect("a server").position, found.collect::<Vec<_>>())
        };
        let reals = [server(11, 1), server(12, 1)];
        let plain = Tracking { persistence: None, ..by_turns().expect("tracked") };
        apply(&mut dataplane, Some(plain), &reals);
        assert_eq!(of_template(&dataplane), (0, vec![]));
        apply(&mut dataplane, None, &reals);
        assert_eq!(of_template(&dataplane), (0, vec![]));
        apply(&mut dataplane, by_turns(), &reals);
        assert_eq!(of_template(&dataplane), (0, vec![false, false, true]), "it would be made");
        assert_eq!(connect(&dataplane, "198.51.100.7", 1), 11);
        assert_eq!(of_template(&dataplane), (0, vec![true]));
        assert_eq!(connect(&dataplane, "198.51.101.7", 1), 12);
        assert_eq!(of_template(&dataplane), (0, vec![true]), "it has taken no turn");
    });
}

#[test]
fn lengths_of_prefixes_that_no_address_has_are_refused() {
    isolated(|| {
        let mut dataplane = ready(&options());
        for (prefix_v4, prefix_v6) in [(0, 64), (33, 64), (24, 0), (24, 129)] {
            let by = tracking(Method::RoundRobin, Persistence { prefix_v4, prefix_v6, ..persistence() });
            let error = dataplane.apply(&[spec(by, &[server(11, 1)], &[0; SLOTS])]).expect_err("refused");
            let text = format!("{:#}", anyhow::Error::from(error));
            assert!(text.contains("1 to 32 and 1 to 128"), "{text}");
        }
    });
}
