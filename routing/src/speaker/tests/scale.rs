//! How long a calculation takes in a large domain.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{
    p2p, seconds,
    simulator::{Simulator, id},
};
use crate::{
    packet::{LinkKind, Lsa, LsaKey, OPTION_E, ROUTER, RouterBody, RouterLink},
    speaker::{Extent, Scope},
};

const ROUTERS: u32 = 1000;
const PREFIXES: u32 = 10;

fn router(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a64_0000 + number)
}

fn link(kind: LinkKind, id: Ipv4Addr, data: Ipv4Addr, metric: u16) -> RouterLink {
    RouterLink { kind, id, data, metric }
}

/// Row after row of ten routers, each linked to its neighbours in the grid, each with ten prefixes.
fn grid_router(number: u32) -> RouterBody {
    let across = [(!number.is_multiple_of(10), number.wrapping_sub(1)), (number % 10 < 9, number + 1)];
    let along = [(number >= 10, number.wrapping_sub(10)), (number + 10 < ROUTERS, number + 10)];
    let others = across.into_iter().chain(along).filter(|(there, _)| *there);
    let links = others.map(|(_, other)| link(LinkKind::PointToPoint, router(other), router(number), 10));
    let stub = |n: u32| {
        let prefix = Ipv4Addr::from(0x1400_0000 + ((number * PREFIXES + n) << 8));
        link(LinkKind::Stub, prefix, Ipv4Addr::new(255, 255, 255, 0), 1)
    };
    RouterBody { flags: 0, links: links.chain((0..PREFIXES).map(stub)).collect() }
}

#[test]
fn thousand_routers_with_ten_thousand_prefixes_are_calculated_in_milliseconds() {
    let mut sim = Simulator::new(500);
    sim.segment(&[(0, p2p()), (1, p2p())]);
    sim.start();
    sim.until(seconds(5), |sim| sim.all_full(2) && sim.databases_equal());
    let machine = sim.machine(0);
    let now = machine.now;
    let scope = Scope::Area(Ipv4Addr::UNSPECIFIED);
    let mut install = |number: Ipv4Addr, body: &RouterBody| {
        let key = LsaKey { kind: ROUTER, id: number, router: number };
        let lsa = Lsa::build(key, OPTION_E, 9, &body.emit()).expect("short");
        machine.database_mut(scope).install(lsa, now, true);
    };
    let door = |other| link(LinkKind::PointToPoint, other, Ipv4Addr::UNSPECIFIED, 10);
    install(id(1), &RouterBody { flags: 0, links: vec![door(id(0)), door(router(0))] });
    for number in 0..ROUTERS {
        let mut body = grid_router(number);
        if number == 0 {
            body.links.push(door(id(1)));
        }
        install(router(number), &body);
    }
    let mut spans: Vec<Duration> = Vec::new();
    for _ in 0..11 {
        let start = Instant::now();
        let routes = machine.calculate_routes(Extent::Full);
        spans.push(start.elapsed());
        assert_eq!(routes.len(), usize::try_from(ROUTERS * PREFIXES).expect("small"));
    }
    spans.sort_unstable();
    eprintln!("{ROUTERS} routers, {} prefixes: median {:?} of {spans:?}", ROUTERS * PREFIXES, spans[5]);
    let start = Instant::now();
    machine.calculate_routes(Extent::Externals);
    eprintln!("externals alone: {:?}", start.elapsed());
    // Ten times the figure of an idle machine: a busy one shall not fail it, an algorithm of another order shall.
    assert!(spans[0] < Duration::from_millis(200), "{spans:?}");
}
