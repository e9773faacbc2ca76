//! A neighbour that says nothing new after a link has failed and come back is made to calculate.

use std::{net::Ipv4Addr, time::Duration};

use super::{
    p2p, seconds,
    simulator::{Simulator, id},
};
use crate::{packet::ROUTER, speaker::Event};

fn reminders(sim: &Simulator, node: usize) -> Vec<Ipv4Addr> {
    let reminded = |event: &Event| match event {
        Event::Reminded { router, .. } => Some(*router),
        _ => None,
    };
    sim.events(node).iter().filter_map(reminded).collect()
}

/// Three routers in a triangle; the first segment is that of nodes 0 and 1.
fn triangle() -> Simulator {
    let mut sim = Simulator::new(79);
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        sim.segment(&[(one, p2p()), (other, p2p())]);
    }
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(6) && sim.databases_equal());
    sim.run(seconds(10));
    sim
}

/// The link fails for a moment, and the adjacency is full again.
fn flap(sim: &mut Simulator) {
    sim.set_link(0, false);
    sim.run(Duration::from_millis(10));
    sim.set_link(0, true);
    sim.until(Duration::from_millis(900), |sim| sim.all_full(6));
}

#[test]
fn links_are_told_in_another_order_where_the_neighbour_has_nothing_new_to_say() {
    let mut sim = triangle();
    flap(&mut sim); // the neighbour says that the link is gone, and must wait before it says more
    sim.run(Duration::from_millis(1200));
    flap(&mut sim); // so this time it says nothing in between
    let (sequence, body) = (sim.sequence(1, id(0)), sim.body_of(1, ROUTER, id(0)));
    sim.run(seconds(6));
    assert_eq!((reminders(&sim, 0), sim.sequence(1, id(0))), (vec![], sequence), "before its time");
    sim.run(seconds(2));
    assert_eq!(reminders(&sim, 0), [id(1)]);
    let reordered = sim.body_of(1, ROUTER, id(0));
    assert_eq!(sim.sequence(1, id(0)), sequence.map(|sequence| sequence + 1));
    assert_ne!(reordered, body);
    let sorted = |body: &[u8]| {
        let mut links: Vec<_> = body[4..].chunks(12).map(<[u8]>::to_vec).collect();
        links.sort_unstable();
        links
    };
    assert_eq!(sorted(&reordered), sorted(&body), "the same links");
    sim.run(seconds(60));
    assert_eq!(reminders(&sim, 0).len(), 1, "once is enough");
}

#[test]
fn a_neighbour_that_tells_of_the_link_anew_is_left_in_peace() {
    let mut sim = triangle();
    sim.kill(0);
    sim.run(seconds(10));
    sim.restart(0);
    sim.until(seconds(10), |sim| sim.all_full(6));
    sim.run(seconds(20));
    assert_eq!((reminders(&sim, 0), reminders(&sim, 1)), (vec![], vec![]));
}
