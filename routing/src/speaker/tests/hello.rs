//! When Hellos are sent beyond the one of each HelloInterval (deviations.md, "Hello"), with an interval of 10 seconds that
//! hides nothing.

use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;

use super::{
    protocol::deliver,
    seconds,
    simulator::{Sent, Simulator, id},
};
use crate::{
    config::{InterfaceConfig, Network},
    packet::{Body, Hello, OPTION_E, Packet, V2},
};

const MOMENT: Duration = Duration::from_millis(50);

fn slow() -> InterfaceConfig {
    let config = InterfaceConfig::new("replaced", Network::PointToPoint);
    assert_eq!((config.hello_interval, config.dead_interval), (10, 40));
    config
}

/// Two nodes on a link; nobody lives yet.
fn pair() -> Simulator {
    let mut sim = Simulator::new(501);
    sim.segment(&[(0, slow()), (1, slow())]);
    sim.wire = Some(Vec::new());
    sim
}

/// Node 1's Hello, with the neighbours that it lists.
fn hello(neighbors: &[Ipv4Addr]) -> Body {
    Body::Hello(Hello {
        mask: Ipv4Addr::new(255, 255, 255, 0),
        hello_interval: 10,
        options: OPTION_E,
        priority: 1,
        dead_interval: 40,
        dr: Ipv4Addr::UNSPECIFIED,
        bdr: Ipv4Addr::UNSPECIFIED,
        neighbors: neighbors.to_vec(),
    })
}

/// Hellos of node 0 since the last call: when, and whom they list.
fn hellos(sim: &mut Simulator) -> Vec<(Duration, Vec<Ipv4Addr>)> {
    let sent = sim.wire.replace(Vec::new()).expect("listened to");
    let hello = |sent: Sent<V2>| match Packet::parse(&Bytes::from(sent.payload)).expect("well-formed").body {
        Body::Hello(hello) if sent.node == 0 => Some((sent.at, hello.neighbors)),
        _ => None,
    };
    sent.into_iter().filter_map(hello).collect()
}

/// "On broadcast networks and physical point-to-point networks, Hello packets are sent every HelloInterval seconds" (RFC
/// 2328 section 9.5), and the first four within a second.
#[test]
fn interface_that_comes_up_says_hello_four_times_within_a_second_and_then_every_interval() {
    let mut sim = pair();
    sim.restart(0);
    sim.run(seconds(35));
    let times: Vec<_> = hellos(&mut sim).into_iter().map(|(at, _)| at.as_millis()).collect();
    assert_eq!(times, [0, 300, 600, 900, 10_900, 20_900, 30_900]);
    // A link that comes back is an interface that comes up.
    sim.set_link(0, false);
    sim.run(seconds(3));
    assert!(hellos(&mut sim).is_empty());
    sim.set_link(0, true);
    sim.run(seconds(8));
    assert_eq!(hellos(&mut sim).len(), 4);
}

#[test]
fn first_hellos_that_are_lost_cost_no_interval() {
    let mut sim = pair();
    sim.cut(0, true);
    sim.start();
    sim.run(Duration::from_millis(700));
    sim.cut(0, false);
    // The fourth at 900 ms, the answers to it a tenth of a second after that.
    sim.until(Duration::from_millis(400), |sim| sim.all_full(2));
}

#[test]
fn hello_that_does_not_list_us_is_answered_at_once() {
    let mut sim = pair();
    sim.restart(0);
    sim.run(seconds(5));
    hellos(&mut sim);
    deliver(&mut sim, hello(&[]));
    let answers = hellos(&mut sim);
    assert_eq!(answers.len(), 1, "by the packet alone, no time has gone by");
    assert_eq!(answers[0].1, [id(1)], "the answer lists the neighbour");
    // It lists us: nothing to tell it before the interval is over.
    sim.run(seconds(1));
    deliver(&mut sim, hello(&[id(0)]));
    sim.run(seconds(1));
    assert!(hellos(&mut sim).is_empty());
    // 1-WayReceived: the neighbour has forgotten us.
    deliver(&mut sim, hello(&[]));
    assert_eq!(hellos(&mut sim).len(), 1);
}

/// A neighbour that already lists us is new to us all the same: it heard an earlier life, and shall hear this one.
#[test]
fn first_hello_of_a_neighbor_is_answered_even_if_it_lists_us() {
    let mut sim = pair();
    sim.restart(0);
    sim.run(seconds(5));
    hellos(&mut sim);
    deliver(&mut sim, hello(&[id(0)]));
    assert_eq!(hellos(&mut sim).len(), 1);
}

#[test]
fn answers_keep_a_pace_that_no_neighbor_can_raise() {
    let mut sim = pair();
    sim.restart(0);
    sim.run(seconds(5));
    hellos(&mut sim);
    for _ in 0..20 {
        for _ in 0..5 {
            deliver(&mut sim, hello(&[]));
        }
        sim.run(MOMENT);
    }
    let times: Vec<_> = hellos(&mut sim).into_iter().map(|(at, _)| at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_millis(100)), "{times:?}");
    assert!((9..=11).contains(&times.len()), "one for each tenth of a second: {times:?}");
}

#[test]
fn router_that_comes_to_one_in_the_middle_of_its_interval_is_full_at_once() {
    let mut sim = pair();
    sim.restart(0);
    sim.run(seconds(5));
    sim.restart(1);
    sim.until(Duration::from_millis(200), |sim| sim.all_full(2));
}
