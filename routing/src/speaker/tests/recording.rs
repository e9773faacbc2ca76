//! A recording that is replayed does the same, and holds no secret.

use std::time::Duration;

use super::{
    lan, net, p2p, seconds,
    simulator::{Family, Faults, Network, id},
};
use crate::{
    auth::{Algorithm, Authentication, Key, Secret},
    config::InterfaceConfig,
    packet::{V2, v3::V3},
    speaker::{
        Input, NeighborState, Refusal,
        recording::{FORMAT, RecordingEnd, Replay, ReplayError, replay},
    },
};

fn only(recording: &str) -> Replay {
    let mut replays = replay(recording.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(replays.len(), 1);
    replays.remove(0)
}

/// A network with faults, in which node 0 is recorded from the middle of things on.
fn busy<V: Family>(authentication: &Authentication, prefixes: [V::Net; 2]) -> Network<V> {
    let with = |config: InterfaceConfig| InterfaceConfig { authentication: authentication.clone(), ..config };
    let mut sim = Network::<V>::new(111);
    sim.segment(&[(0, with(p2p())), (1, with(p2p()))]);
    sim.segment(&[(0, with(lan(5))), (2, with(lan(10))), (3, with(lan(0)))]);
    sim.start();
    sim.faults = Faults { loss: 10, duplicate: 10, jitter: Duration::from_millis(30) };
    sim.announce(1, &[(prefixes[0], 1)]);
    sim.run(Duration::from_millis(2500));
    sim.record(0);
    sim.announce(0, &[(prefixes[1], 1)]);
    sim.run(seconds(20));
    sim.mtu(2, 0, 1400);
    sim.set_link(0, false);
    sim.run(seconds(5));
    sim.set_link(0, true);
    // A reload takes an uplink away, and another one puts it back.
    let whole = sim.machine(0).config.clone();
    let mut without = whole.clone();
    without.interfaces.remove(0);
    sim.input(0, Input::Reconfigure(Box::new(without)));
    assert_eq!(sim.status(0).interfaces.len(), 1);
    sim.run(seconds(3));
    sim.input(0, Input::Reconfigure(Box::new(whole)));
    sim.change_link(0, 0, |_| {}); // as the driver tells it
    sim.kill(3);
    sim.run(seconds(10));
    sim
}

fn replays_the_same<V: Family>(authentication: &Authentication, prefixes: [V::Net; 2]) -> String {
    let mut sim = busy::<V>(authentication, prefixes);
    let status = serde_json::to_string(&sim.status(0)).expect("serialises");
    let recording = sim.recorded(0);
    let replayed = only(&recording);
    assert_eq!((replayed.version, replayed.end), (V::NUMBER, Some(RecordingEnd::Time)));
    assert!(replayed.steps > 200, "{}", replayed.steps);
    assert_eq!(serde_json::to_string(&replayed.status).expect("serialises"), status, "the same state");
    recording
}

fn keys(algorithm: Algorithm) -> Authentication {
    Authentication::Keys(vec![Key::new(7, algorithm, Secret::new("tell-nobody"))])
}

#[test]
fn a_replay_puts_out_the_same_bytes_and_ends_in_the_same_state() {
    let v4 = [net("198.18.1.0/24"), net("203.0.113.10/32")];
    let v6 = ["2001:db8:198::/64", "2001:db8::10/128"].map(|text| text.parse().expect("a prefix"));
    replays_the_same::<V2>(&Authentication::None, v4);
    replays_the_same::<V3>(&Authentication::None, v6);
    let secrets = [
        replays_the_same::<V2>(&Authentication::Simple(Secret::new("nobody")), v4),
        replays_the_same::<V2>(&keys(Algorithm::Md5), v4),
        replays_the_same::<V2>(&keys(Algorithm::HmacSha256), v4),
        replays_the_same::<V3>(&keys(Algorithm::HmacSha512), v6),
    ];
    for recording in secrets {
        for secret in ["nobody", "6e6f626f6479"] {
            assert!(!recording.contains(secret), "a secret is in the recording");
        }
    }
}

/// A neighbour with another secret is refused in the replay as it was, and its password is not in the recording either.
#[test]
fn packets_that_were_refused_are_refused_again_without_what_they_gave_away() {
    let with = |authentication| InterfaceConfig { authentication, ..p2p() };
    for (ours, theirs) in [
        (Authentication::Simple(Secret::new("right")), Authentication::Simple(Secret::new("wrong!"))),
        (Authentication::None, Authentication::Simple(Secret::new("wrong!"))),
        (keys(Algorithm::HmacSha256), Authentication::Simple(Secret::new("wrong!"))),
        (
            keys(Algorithm::HmacSha256),
            Authentication::Keys(vec![Key::new(7, Algorithm::HmacSha256, Secret::new("wrong!"))]),
        ),
    ] {
        let mut sim = Network::<V2>::new(112);
        sim.segment(&[(0, with(ours)), (1, with(theirs))]);
        sim.start();
        sim.record(0);
        sim.run(seconds(5));
        assert!(!sim.status(0).counters.is_empty());
        let recording = sim.recorded(0);
        assert!(!recording.contains("77726f6e67"), "a password is in the recording");
        let _ = only(&recording);
    }
}

#[test]
fn a_key_that_changes_in_between_changes_in_the_replay() {
    let mut sim = Network::<V2>::new(113);
    let with = || InterfaceConfig { authentication: keys(Algorithm::HmacSha256), ..p2p() };
    sim.segment(&[(0, with()), (1, with())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    sim.record(0);
    for node in [0, 1] {
        let mut config = sim.machine(node).config.clone();
        let secret = Secret::new("another-secret");
        config.interfaces[0].authentication =
            Authentication::Keys(vec![Key::new(8, Algorithm::HmacSha384, secret)]);
        sim.input(node, Input::Reconfigure(Box::new(config)));
    }
    sim.run(seconds(10));
    assert_eq!(sim.neighbor_state(0, 1), Some(NeighborState::Full));
    let recording = sim.recorded(0);
    assert!(!recording.contains("another-secret"));
    let replayed = only(&recording);
    assert_eq!(
        (replayed.status.neighbors[0].router_id, replayed.status.neighbors[0].state),
        (id(1), NeighborState::Full)
    );
}

/// Whatever the input is that has no room any more, and the end has always room.
#[test]
fn a_recording_that_ends_at_its_limit_replays() {
    let mut sim = Network::<V2>::new(115);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.record(0);
    let head = sim.recorded(0).lines().next().expect("a head").len();
    let mut steps = Vec::new();
    for more in (0..6000).step_by(150) {
        let mut sim = Network::<V2>::new(115);
        sim.segment(&[(0, p2p()), (1, p2p())]);
        sim.start();
        sim.record_up_to(0, head + 300 + more);
        sim.run(seconds(20));
        let recording = sim.recorded(0);
        assert!(recording.len() <= head + 300 + more, "{} bytes", recording.len());
        let replayed = only(&recording);
        assert_eq!(replayed.end, Some(RecordingEnd::Limit));
        steps.push(replayed.steps);
    }
    assert!(steps.is_sorted() && steps[0] < 5 && steps[steps.len() - 1] > 10, "{steps:?}");
}

#[test]
fn what_differs_is_told_with_its_line_and_a_cut_recording_counts_as_far_as_it_goes() {
    let mut sim = busy::<V2>(&Authentication::None, [net("198.18.1.0/24"), net("203.0.113.10/32")]);
    let recording = sim.recorded(0);
    let lines: Vec<&str> = recording.lines().collect();
    let announce = lines.iter().position(|line| line.contains("\"input\":{\"Announce\"")).expect("announced");
    let without = [&lines[..announce], &lines[announce + 1..]].concat().join("\n");
    assert!(matches!(replay(without.as_bytes()), Err(ReplayError::Differs { .. })));
    let cut = &recording[..recording.len() / 2];
    let cut = only(cut);
    assert!(cut.end.is_none() && cut.steps > 10);
    let other = recording.replacen(&format!("\"recording\":{FORMAT}"), "\"recording\":9", 1);
    let error = replay(other.as_bytes()).expect_err("of another format").to_string();
    assert!(error.contains("line 1: a recording of format 9"), "{error}");
    let error = replay(&b"hello\n"[..]).expect_err("no recording").to_string();
    assert!(error.starts_with("line 1 is not that of a recording"), "{error}");
    let error = replay(lines[1].as_bytes()).expect_err("no beginning").to_string();
    assert!(error.contains("before its beginning"), "{error}");
}

/// An incident: a director's uplink flaps while a host on its other network speaks OSPF with the director's own router id.
/// The recording is a file, and must replay as long as its format is the one of today; a change of what a speaker
/// remembers is a new [`FORMAT`], and the file is written anew with `OSPF_RECORD_INCIDENT=1`.
#[test]
fn a_recorded_incident_replays() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/speaker/tests/incident.jsonl");
    if std::env::var_os("OSPF_RECORD_INCIDENT").is_some() {
        std::fs::write(path, record_incident()).expect("writable");
    }
    let replayed = only(&std::fs::read_to_string(path).expect("readable"));
    assert_eq!(replayed.end, Some(RecordingEnd::Time));
    let counters = &replayed.status.counters;
    assert!(counters.contains_key(&Refusal::DuplicateRouterId), "{counters:?}");
    let neighbors: Vec<_> = replayed.status.neighbors.iter().map(|n| (n.router_id, n.state)).collect();
    assert_eq!(neighbors, [(id(1), NeighborState::Full)], "it came back");
    let behind = replayed.routes.iter().find(|route| route.prefix == net("198.18.1.0/24").into());
    assert_eq!(behind.map(|route| route.next_hops.len()), Some(1));
    assert_eq!(replayed.lsdb.iter().filter(|lsa| lsa.lsa.own).count(), 1);
}

fn record_incident() -> String {
    let mut sim = Network::<V2>::new(114);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.segment(&[(0, lan(0)), (2, lan(1))]);
    sim.rename(2, id(0));
    sim.start();
    sim.kill(2);
    sim.announce(0, &[(net("203.0.113.10/32"), 10)]);
    sim.announce(1, &[(net("198.18.1.0/24"), 1)]);
    sim.run(seconds(5));
    sim.record(0);
    sim.restart(2);
    sim.run(seconds(2));
    sim.set_link(0, false);
    sim.run(seconds(1));
    sim.set_link(0, true);
    sim.run(seconds(4));
    sim.recorded(0)
}
