//! Point-to-point links without a subnet (RFC 2328 sections 9.5 and 12.4.1.1), and addresses that change.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    net, p2p, seconds,
    simulator::{Simulator, id},
};
use crate::packet::{Body, LinkKind, Lsa, LsaBody, LsaKey, Packet, ROUTER, RouterLink};

/// Two routers that both send from their router ids on two links.
fn unnumbered() -> Simulator {
    let mut sim = Simulator::new(9);
    for _ in 0..2 {
        sim.segment(&[(0, p2p()), (1, p2p())]);
    }
    sim.start();
    for (node, at) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        sim.change_link(node, at, |link| link.address = Some(id(node).into()));
    }
    sim.announce(1, &[(net("203.0.113.10/32"), 10)]);
    sim.said = Some(Vec::new());
    sim.until(seconds(10), |sim| sim.all_full(4) && sim.hops(0, net("203.0.113.10/32")) == 2);
    sim
}

fn links_of(sim: &Simulator, node: usize) -> Vec<RouterLink> {
    let key = LsaKey { kind: ROUTER, id: id(node), router: id(node) };
    let lsa = Lsa::build(key, 0, 1, &sim.body_of(0, ROUTER, id(node))).expect("short");
    match LsaBody::parse(&lsa).expect("well formed") {
        LsaBody::Router(body) => body.links,
        other => panic!("{other:?}"),
    }
}

/// "For unnumbered point-to-point networks, the Link Data field should specify the interface's MIB-II ifIndex value."
#[test]
fn an_unnumbered_link_is_described_by_its_index_and_no_stub() {
    let sim = unnumbered();
    let mut links: Vec<_> =
        links_of(&sim, 0).into_iter().map(|link| (link.kind, link.id, link.data)).collect();
    links.sort_by_key(|link| link.2);
    let index = |index: u32| Ipv4Addr::from(index);
    assert_eq!(links, [(LinkKind::PointToPoint, id(1), index(1)), (LinkKind::PointToPoint, id(1), index(2))]);
    let stubs = links_of(&sim, 1).into_iter().filter(|link| link.kind == LinkKind::Stub);
    assert_eq!(
        stubs.map(|link| link.id).collect::<Vec<_>>(),
        [Ipv4Addr::new(203, 0, 113, 10)],
        "the VIP alone"
    );
}

/// "On unnumbered point-to-point networks and on virtual links this field should be set to 0.0.0.0."
#[test]
fn hellos_on_an_unnumbered_link_have_no_mask() {
    let mut sim = unnumbered();
    let said = sim.said.take().expect("listened");
    let hello = |bytes: &Vec<u8>| match Packet::parse(&bytes.clone().into()).expect("well formed").body {
        Body::Hello(hello) => Some(hello.mask),
        _ => None,
    };
    let masks: Vec<_> = said.iter().filter_map(hello).collect();
    assert!(!masks.is_empty() && masks.iter().all(Ipv4Addr::is_unspecified), "{masks:?}");
}

#[test]
fn a_numbered_and_an_unnumbered_link_can_be_side_by_side() {
    let mut sim = unnumbered();
    for node in [0, 1] {
        let host = u8::try_from(node + 1).expect("few");
        let numbered = Ipv4Net::new_assert(Ipv4Addr::new(10, 9, 9, host), 30);
        sim.change_link(node, 0, |link| link.address = Some(numbered));
    }
    sim.until(seconds(10), |sim| sim.all_full(4) && sim.hops(0, net("203.0.113.10/32")) == 2);
    sim.run(seconds(5));
    let kinds = |kind| links_of(&sim, 0).iter().filter(|link| link.kind == kind).count();
    assert_eq!([kinds(LinkKind::PointToPoint), kinds(LinkKind::Stub)], [2, 1]);
}

/// The neighbours of the old address are none of the new one, and everything is said anew from there.
#[test]
fn an_address_that_changes_at_run_time_is_taken_up() {
    let mut sim = Simulator::new(10);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2));
    sim.run(seconds(3));
    let before = Ipv4Addr::new(10, 0, 0, 1);
    let after = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 77), 24);
    sim.tap = Some(Vec::new());
    sim.change_link(0, 0, |link| link.address = Some(after));
    assert_eq!(sim.full(0), 0);
    sim.until(seconds(10), |sim| sim.all_full(2) && sim.databases_agree());
    sim.run(seconds(3));
    let link = |kind| links_of(&sim, 0).into_iter().find(|link| link.kind == kind).expect("described");
    assert_eq!(link(LinkKind::PointToPoint).data, after.addr());
    assert_eq!(link(LinkKind::Stub).id, after.network());
    let neighbor = &sim.status(1).neighbors;
    assert_eq!(
        neighbor.iter().map(|n| n.address).collect::<Vec<_>>(),
        [std::net::IpAddr::from(after.addr())]
    );
    let heard = sim.tap.take().expect("listened");
    assert!(heard.iter().all(|(_, destination, _)| *destination != before), "nobody sends to the old one");
    // Another subnet than the neighbour's: no adjacency, and the refusal says why.
    sim.change_link(0, 0, |link| link.address = Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 0, 1), 24)));
    sim.run(seconds(10));
    assert_eq!(sim.full(0), 0);
    assert!(sim.status(0).counters.contains_key(&crate::speaker::Refusal::Source));
    sim.change_link(0, 0, |link| link.address = None);
    assert_eq!(sim.status(0).interfaces[0].state, crate::speaker::InterfaceState::Down);
}
