//! Persistence at several directors: they keep each other's clients, and agree on whose a client is.

mod dataplane_fixture;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use dataplane_fixture::packets::{ACK, SYN};
use dataplane_fixture::persistence::{
    TIMEOUT, address, apply, by_turns, connect, ready, sent, server, spec, templates,
};
use dataplane_fixture::{isolated, options};
use director::dataplane::{
    Dataplane, Options, Ports, Protocol, ServiceAddress, ServiceSpec, monotonic_seconds,
};
use director_common::SLOTS;
use director_proto::pins::{Begin, Position, Server};
use director_proto::sync::BootId;
use syncd::pins::{Delivery, LocalPin, Receipt, RemotePin};

fn walk(dataplane: &mut Dataplane, now: u32) -> Vec<LocalPin> {
    let mut pins = Vec::new();
    while !dataplane.walk_pins(now, 1_000, true, &mut pins).expect("walk") {}
    pins
}

/// These, or removals of these, as they come from the director whose router id ends so.
fn from(last: u8, sequence: u64, pins: &[LocalPin], removed: &[LocalPin]) -> Delivery {
    let mut servers: Vec<Arc<Server>> = Vec::new();
    let pins = pins
        .iter()
        .map(|pin| {
            let number = servers.iter().position(|known| *known == pin.server).unwrap_or_else(|| {
                servers.push(Arc::clone(&pin.server));
                servers.len() - 1
            });
            let (flow, state, remaining) = (pin.flow, pin.state, pin.remaining);
            RemotePin { flow, server: number as u32, state, remaining, local: None, age: 0 }
        })
        .collect();
    Delivery {
        receipt: Receipt {
            from: Ipv4Addr::new(10, 255, 0, last),
            boot_id: BootId(last.into()),
            position: Position { session: 1, sequence },
        },
        begins: (sequence == 1).then_some(Begin::Snapshot),
        locals: None,
        servers,
        pins,
        removed: removed.iter().map(|pin| pin.flow).collect(),
        ends_snapshot: sequence == 1,
    }
}

fn of(name: &str) -> Options {
    Options { pin_dir: PathBuf::from(format!("/run/director/bpf-{name}")), ..options() }
}

fn only_templates(pins: &[LocalPin]) -> Vec<LocalPin> {
    pins.iter().filter(|pin| pin.flow.is_template()).cloned().collect()
}

#[test]
fn another_director_keeps_the_client_too() {
    isolated(|| {
        let (mut one, mut two) = (ready(&of("one")), ready(&of("two")));
        let reals = [server(11, 1), server(12, 1)];
        let now = monotonic_seconds();
        apply(&mut one, by_turns(), &reals);
        // Other numbers of services and positions of servers there.
        let other = ServiceSpec {
            name: "other",
            addresses: vec![ServiceAddress {
                prefix: "203.0.113.99".parse::<IpAddr>().expect("vip").into(),
                protocol: Protocol::Tcp,
                ports: Ports::one(80),
            }],
            ..spec(None, &[server(13, 1)], &[0; SLOTS])
        };
        two.apply(std::slice::from_ref(&other)).expect("apply");
        let slots = vec![0; SLOTS];
        let turned = [server(12, 1), server(11, 1)];
        two.apply(&[other, spec(by_turns(), &turned, &slots)]).expect("apply");
        assert_eq!(connect(&one, "198.51.100.7", 1), 11);
        assert_eq!(sent(&one, "198.51.102.7", 1, SYN), 12, "of what has only begun nobody is told");
        let told = walk(&mut one, now);
        assert_eq!((told.len(), only_templates(&told).len()), (2, 1));
        assert_eq!(only_templates(&told)[0].remaining, TIMEOUT);
        // As they would be some time later.
        let told: Vec<LocalPin> =
            told.into_iter().map(|pin| LocalPin { remaining: pin.remaining - 20, ..pin }).collect();
        assert_eq!(two.apply_pins(&from(1, 1, &told, &[]), now).expect("apply").added, 2);
        assert_eq!(connect(&two, "198.51.100.8", 2), 11, "its first turn would be 12's");
        // It is at work there now, so they tell of it too, and its first owner hears that.
        let back = only_templates(&walk(&mut two, now));
        assert_eq!(back.len(), 1);
        let report = one.apply_pins(&from(2, 1, &back, &[]), now).expect("apply");
        assert_eq!((report.added, report.conflicts, report.strangers), (0, 0, 0));
        // What the first one has no more, the other keeps: a connection has begun there.
        two.apply_pins(&from(1, 2, &[], &told), now).expect("apply");
        assert_eq!(connect(&two, "198.51.100.9", 3), 11);
    });
}

#[test]
fn what_another_director_has_no_more_is_no_more_here() {
    isolated(|| {
        let (mut one, mut two) = (ready(&of("one")), ready(&of("two")));
        let reals = [server(11, 1), server(12, 1)];
        let now = monotonic_seconds();
        apply(&mut one, by_turns(), &reals);
        apply(&mut two, by_turns(), &reals);
        assert_eq!(connect(&one, "198.51.100.7", 1), 11);
        let told = only_templates(&walk(&mut one, now));
        // As it would be some seconds later.
        let old = LocalPin { remaining: TIMEOUT - 5, ..told[0].clone() };
        two.apply_pins(&from(1, 1, std::slice::from_ref(&old), &[]), now).expect("apply");
        assert_eq!(templates(&two).len(), 1);
        two.apply_pins(&from(1, 2, &[], std::slice::from_ref(&old)), now).expect("apply");
        assert_eq!(templates(&two), []);
        two.apply_pins(&from(1, 3, &[old], &[]), now).expect("apply");
        (0..3).for_each(|_| drop(two.tick(now + TIMEOUT - 15).expect("tick")));
        assert_eq!(templates(&two).len(), 1);
        (0..3).for_each(|_| drop(two.tick(now + TIMEOUT + 5).expect("tick")));
        assert_eq!(templates(&two), []);
        // A name that the key does not belong to, and a service without templates.
        let mut stranger = told[0].clone();
        stranger.flow.destination.0[3] ^= 1;
        assert_eq!(two.apply_pins(&from(1, 4, &[stranger], &[]), now).expect("apply").strangers, 1);
        apply(&mut two, None, &reals);
        assert_eq!(two.apply_pins(&from(1, 5, &told, &[]), now).expect("apply").redundant, 1);
    });
}

#[test]
fn directors_that_have_chosen_apart_agree_and_a_server_that_has_left_loses() {
    isolated(|| {
        let (mut one, mut two) = (ready(&of("one")), ready(&of("two")));
        let reals = [server(11, 1), server(12, 1)];
        let now = monotonic_seconds();
        apply(&mut one, by_turns(), &reals);
        apply(&mut two, by_turns(), &[server(12, 1), server(11, 1)]);
        let clients: Vec<String> = (0..40).map(|number| format!("198.51.{number}.7")).collect();
        for client in &clients {
            assert_ne!(connect(&one, client, 1), connect(&two, client, 2), "{client}");
        }
        let (first, second) = (only_templates(&walk(&mut one, now)), only_templates(&walk(&mut two, now)));
        let there = one.apply_pins(&from(2, 1, &second, &[]), now).expect("apply");
        let here = two.apply_pins(&from(1, 1, &first, &[]), now).expect("apply");
        assert_eq!((there.conflicts + here.conflicts, there.added + here.added), (40, 40));
        let servers: Vec<u8> = clients
            .iter()
            .map(|client| {
                let [here, there] = [&one, &two].map(|dataplane| connect(dataplane, client, 3));
                assert_eq!(here, there, "{client}");
                here
            })
            .collect();
        let share = servers.iter().filter(|server| **server == 11).count();
        assert!((8..=32).contains(&share), "{share} of 40: each server keeps some");
        // What has begun stays.
        assert_eq!(sent(&one, &clients[0], 1, ACK), 11);
        assert_eq!(sent(&two, &clients[0], 2, ACK), 12);
        // The second has not heard yet that a server leaves, and tells of its clients.
        apply(&mut one, by_turns(), &[server(12, 1)]);
        one.tick(now).expect("tick");
        let late = only_templates(&walk(&mut two, now));
        let there = late.iter().filter(|pin| pin.server.address == address(11)).count();
        assert!(there > 0);
        let report = one.apply_pins(&from(2, 2, &late, &[]), now).expect("apply");
        assert_eq!((report.added, report.redundant), (0, there));
        for client in &clients {
            assert_eq!(connect(&one, client, 4), 12);
        }
        // And where it has left for good, its clients there are not in the way of where they are now.
        let mut moved = only_templates(&walk(&mut one, now));
        moved.retain(|pin| pin.server.address == address(12));
        apply(&mut two, by_turns(), &[server(12, 1)]);
        assert_eq!(two.apply_pins(&from(1, 2, &moved, &[]), now).expect("apply").conflicts, 0);
        for client in &clients {
            assert_eq!(connect(&two, client, 5), 12);
        }
    });
}
