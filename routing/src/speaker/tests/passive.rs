//! Passive interfaces: their prefixes are advertised, and nothing is said or heard there.

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    lan, p2p, seconds,
    simulator::{Family, Network, id},
};
use crate::{
    config::InterfaceConfig,
    packet::{V2, v3::V3},
    speaker::{InterfaceId, InterfaceState, Refusal},
};

/// Node 0 speaks on a link whose other end, at node 1, is passive; node 2 hears of it from node 1.
fn network<V: Family>(config: &InterfaceConfig, prefix: V::Net) {
    let passive = InterfaceConfig { passive: true, cost: 7, ..config.clone() };
    let mut sim = Network::<V>::new(511);
    sim.segment(&[(0, config.clone()), (1, passive)]);
    sim.segment(&[(1, p2p()), (2, p2p())]);
    sim.wire = Some(Vec::new());
    sim.start();
    sim.until(seconds(3), |sim| sim.cost(2, prefix) == Some(10 + 7));
    // Whatever else happens: changes of what is announced and of the other link, and many intervals.
    sim.set_link(1, false);
    sim.run(seconds(2));
    sim.set_link(1, true);
    sim.until(seconds(5), |sim| sim.full(2) == 1 && sim.cost(2, prefix) == Some(10 + 7));
    sim.run(seconds(60));
    let sent = sim.wire.take().expect("listened to");
    let there: Vec<_> =
        sent.iter().filter(|sent| (sent.node, sent.interface) == (1, InterfaceId(0))).collect();
    assert!(there.is_empty(), "{there:?}");
    assert!(sent.iter().any(|sent| (sent.node, sent.interface) == (1, InterfaceId(1))));
    // What is heard there is a counted refusal, and makes no neighbour.
    let status = sim.status(1);
    let interface = &status.interfaces[0];
    assert_eq!(interface.state, InterfaceState::Passive);
    assert!(status.neighbors.iter().all(|neighbor| neighbor.router_id == id(2)));
    assert!(status.counters[&Refusal::InterfaceInactive] >= 60, "{:?}", status.counters);
    assert_eq!(sim.neighbor_state(0, 1), None);
    // And with the link goes its prefix.
    sim.set_link(0, false);
    sim.until(seconds(3), |sim| sim.cost(2, prefix).is_none());
}

#[test]
fn passive_interface_is_advertised_and_silent() {
    let prefix: Ipv4Net = "10.0.0.0/24".parse().expect("a prefix");
    for config in [p2p(), lan(1), lan(0)] {
        network::<V2>(&config, prefix);
    }
}

#[test]
fn passive_interface_of_version_3_is_advertised_and_silent() {
    let prefix: Ipv6Net = "2001:db8::/64".parse().expect("a prefix");
    for config in [p2p(), lan(1), lan(0)] {
        network::<V3>(&config, prefix);
    }
}
