//! Whole speakers that authenticate, on a virtual clock.

use std::time::Duration;

use super::{
    p2p, seconds,
    simulator::{Family, Network, START},
};
use crate::{
    auth::{Algorithm, Authentication, Key, Secret, Window},
    config::InterfaceConfig,
    packet::{V2, v3::V3},
    speaker::{Event, Input, NeighborState, Output, Refusal, Time},
};

fn key(id: u8, secret: &str) -> Key {
    Key::new(id, Algorithm::HmacSha256, Secret::new(secret))
}

fn with(keys: Vec<Key>) -> InterfaceConfig {
    InterfaceConfig { authentication: Authentication::Keys(keys), ..p2p() }
}

/// Two speakers with these keys.
fn pair<V: Family>(one: Vec<Key>, other: Vec<Key>) -> Network<V> {
    let mut sim = Network::new(1);
    sim.segment(&[(0, with(one)), (1, with(other))]);
    sim.start();
    sim
}

fn refused<V: Family>(sim: &Network<V>, node: usize, reason: Refusal) -> u64 {
    sim.status(node).counters.get(&reason).copied().unwrap_or(0)
}

/// Whether the adjacency ended at any time.
fn was_lost<V: Family>(sim: &Network<V>, node: usize) -> bool {
    let lost = |event: &Event| matches!(event, Event::Neighbor { from: NeighborState::Full, .. });
    sim.events(node).iter().any(lost)
}

fn lives_and_comes_back<V: Family>() {
    let mut sim = pair::<V>(vec![key(1, "same")], vec![key(1, "same")]);
    sim.until(seconds(1), |sim| sim.all_full(2));
    sim.run(seconds(20));
    sim.kill(1);
    sim.run(Duration::from_millis(300));
    sim.restart(1);
    // Within the dead interval: the neighbour still holds the numbers of the earlier life.
    sim.until(seconds(2), |sim| sim.all_full(2));
    for node in [0, 1] {
        assert_eq!(refused(&sim, node, Refusal::AuthenticationSequence), 0);
    }
}

#[test]
fn numbers_of_a_restarted_speaker_are_not_behind() {
    lives_and_comes_back::<V2>();
    lives_and_comes_back::<V3>();
}

/// RFC 2328 section D.3 and RFC 7166 section 4.1: no neighbour hears a number twice, or a smaller one, not even of a
/// speaker that restarts at once, in the middle of its exchange, with a clock that was set back.
fn numbers_grow_over_restarts<V: Family>(number: impl Fn(&[u8]) -> u64) {
    let mut sim = Network::<V>::new(1);
    sim.segment(&[(0, with(vec![key(1, "same")])), (1, with(vec![key(1, "same")]))]);
    sim.keeps_numbers = true;
    sim.start();
    sim.said = Some(Vec::new());
    for life in 0..5 {
        sim.until(seconds(30), |sim| sim.all_full(2));
        sim.run(Duration::from_millis(7 * life));
        sim.time_of_day -= seconds(86_400);
        sim.restart(0);
    }
    sim.until(seconds(30), |sim| sim.all_full(2));
    let said: Vec<_> = sim.said.take().expect("listened").iter().map(|packet| number(packet)).collect();
    assert!(said.len() > 30 && said.is_sorted_by(|one, next| one < next), "{said:?}");
    assert_eq!(refused(&sim, 1, Refusal::AuthenticationSequence), 0);
}

#[test]
fn numbers_grow_over_restarts_and_clocks_that_go_back() {
    numbers_grow_over_restarts::<V2>(|packet| {
        u32::from_be_bytes(*packet[20..].first_chunk().expect("a header")).into()
    });
    numbers_grow_over_restarts::<V3>(|packet| {
        let at = packet.len() - 32 - 8; // before the digest
        u64::from_be_bytes(*packet[at..].first_chunk().expect("a trailer"))
    });
}

#[test]
fn numbers_are_kept_only_where_there_are_keys() {
    let reserves = |config: InterfaceConfig| {
        let config = crate::config::Config::new(std::net::Ipv4Addr::new(10, 255, 0, 1), vec![config]);
        let mut machine = crate::speaker::Speaker::new(config, 1).expect("valid");
        machine.handle(Time::ZERO, Input::Numbers(None));
        std::iter::from_fn(|| machine.poll_output()).any(|output| matches!(output, Output::Reserve { .. }))
    };
    assert!(!reserves(p2p()));
    assert!(reserves(with(vec![key(1, "one")])));
}

fn strangers_stay_strangers<V: Family>() {
    let mut sim = pair::<V>(vec![key(1, "ours")], vec![key(1, "theirs")]);
    sim.run(seconds(10));
    for node in [0, 1] {
        assert!(sim.status(node).neighbors.is_empty());
        assert!(refused(&sim, node, Refusal::AuthenticationDigest) >= 10);
    }
    let said = |event: &&Event| matches!(event, Event::Refused { reason: Refusal::AuthenticationDigest, .. });
    assert_eq!(sim.events(0).iter().filter(said).count(), 1, "one log line for many packets");
}

#[test]
fn speakers_with_different_secrets_never_meet() {
    strangers_stay_strangers::<V2>();
    strangers_stay_strangers::<V3>();
}

/// Two clocks that differ by less than the time in which both keys are accepted.
fn rolls_over<V: Family>() {
    let turn = START.as_secs() + 30;
    let keys = |skew: u64| {
        let old = Window { from: None, until: Some(turn + skew) };
        let new = Window { from: Some(turn + skew), until: None };
        let until = Window { from: None, until: Some(turn + 20) };
        vec![Key { send: old, accept: until, ..key(1, "old") }, Key { send: new, ..key(2, "new") }]
    };
    let mut sim = pair::<V>(keys(0), keys(7));
    sim.until(seconds(1), |sim| sim.all_full(2));
    sim.run(seconds(90));
    let key_of = |node: usize| sim.status(node).interfaces[0].authentication.clone();
    assert_eq!([key_of(0), key_of(1)], ["key 2, hmac-sha-256"; 2]);
    for node in [0, 1] {
        assert!(!was_lost(&sim, node), "{:?}", sim.events(node));
        assert_eq!(refused(&sim, node, Refusal::AuthenticationExpired), 0);
    }
}

#[test]
fn keys_roll_over_by_the_clock_without_loss() {
    rolls_over::<V2>();
    rolls_over::<V3>();
}

#[test]
fn keys_change_in_a_running_speaker_without_loss() {
    let mut sim = pair::<V3>(vec![key(1, "old")], vec![key(1, "old")]);
    sim.until(seconds(1), |sim| sim.all_full(2));
    let both = || vec![key(1, "old"), key(2, "new")];
    let authenticate = |sim: &mut Network<V3>, node: usize, keys: Vec<Key>| {
        let mut config = sim.machine(node).config.clone();
        config.interfaces[0].authentication = Authentication::Keys(keys);
        sim.input(node, Input::Reconfigure(Box::new(config)));
    };
    // The key with the higher id is sent with as soon as it is there, so the other side learns it at once.
    authenticate(&mut sim, 0, both());
    authenticate(&mut sim, 1, both());
    sim.run(seconds(10));
    for node in [0, 1] {
        authenticate(&mut sim, node, vec![key(2, "new")]);
    }
    sim.run(seconds(10));
    assert!(sim.all_full(2) && !was_lost(&sim, 0) && !was_lost(&sim, 1));
    assert_eq!(sim.status(0).interfaces[0].authentication, "key 2, hmac-sha-256");
}

#[test]
fn last_key_goes_on_after_its_end_and_says_so() {
    let send = Window { from: None, until: Some(START.as_secs() + 10) };
    let keys = || vec![Key { send, accept: send, ..key(1, "only") }];
    let mut sim = pair::<V2>(keys(), keys());
    sim.until(seconds(1), |sim| sim.all_full(2));
    sim.run(seconds(60));
    assert!(sim.all_full(2) && !was_lost(&sim, 0));
    let warned = |event: &&Event| matches!(event, Event::SendingKey { key: 1, expired: true, .. });
    assert_eq!(sim.events(0).iter().filter(warned).count(), 1);
    assert_eq!(sim.status(0).interfaces[0].authentication, "key 1, hmac-sha-256, expired");
}

/// RFC 2328 section D.3: the number of a neighbour is forgotten when it goes Down.
#[test]
fn neighbor_with_a_clock_set_back_is_heard_again_after_the_dead_interval() {
    let mut sim = pair::<V2>(vec![key(1, "same")], vec![key(1, "same")]);
    sim.until(seconds(1), |sim| sim.all_full(2));
    sim.run(seconds(5));
    sim.time_of_day = START - seconds(86_400);
    sim.restart(1);
    sim.run(seconds(3));
    assert!(refused(&sim, 0, Refusal::AuthenticationSequence) > 0);
    sim.until(seconds(10), |sim| sim.all_full(2));
}

fn digests_fit<V: Family>(room: usize, prefix: impl Fn(u16) -> V::Net) {
    let longest = || vec![Key::new(1, Algorithm::HmacSha512, Secret::new("same"))];
    let mut sim = pair::<V>(longest(), longest());
    let announced: Vec<_> = (0..100).map(|number| (prefix(number), 10)).collect();
    sim.announce(0, &announced);
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.hops(1, prefix(99)) == 1);
    assert!(sim.largest <= room, "{} bytes in a packet", sim.largest);
    assert!(sim.largest > room / 2, "{} bytes in the largest packet", sim.largest);
}

#[test]
fn packets_and_their_digests_fit_the_mtu() {
    let vip = |number: u16| ipnet::Ipv4Net::from(std::net::Ipv4Addr::from(0xc633_6400 + u32::from(number)));
    digests_fit::<V2>(1500 - 20, vip);
    let vip = |number| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, number).into();
    digests_fit::<V3>(1500 - 40, vip);
}

#[test]
fn time_of_day_follows_the_clock_it_was_told() {
    let mut machine = crate::speaker::Speaker::new(
        crate::config::Config::new(std::net::Ipv4Addr::new(10, 255, 0, 1), vec![p2p()]),
        1,
    )
    .expect("valid");
    machine.handle(Time::from_start(seconds(5)), Input::TimeOfDay(START));
    machine.handle(Time::from_start(seconds(9)), Input::Timer);
    assert_eq!(machine.time_of_day(), START + seconds(4));
}
