use clap::Parser as _;
use director_proto::control as wire;

use super::{Version, show_events, show_interface, show_routes};
use crate::command::{Cli, Command};

fn lsdb(arguments: &[&str]) -> super::Lsdb {
    let words = ["director", "lsdb"].iter().chain(arguments);
    match Cli::try_parse_from(words).expect("parses").command {
        Command::Lsdb(lsdb) => lsdb,
        _ => panic!("another command"),
    }
}

fn lsa() -> wire::Lsa {
    wire::Lsa {
        version: 2,
        scope: "area 0.0.0.1".to_owned(),
        r#type: 1,
        name: "router".to_owned(),
        id: "10.255.0.1".to_owned(),
        router_id: "10.255.0.1".to_owned(),
        sequence: 0x8000_0003,
        checksum: 0xbeef,
        age: 7,
        length: 48,
        own: true,
        body: vec!["stub network 203.0.113.10/32, metric 10".to_owned()],
    }
}

#[test]
fn database_is_narrowed_by_each_filter() {
    let foreign = wire::Lsa { own: false, router_id: "10.255.1.1".to_owned(), ..lsa() };
    for (arguments, admitted) in [
        (&[][..], [true, true]),
        (&["--own"], [true, false]),
        (&["--router", "10.255.1.1"], [false, true]),
        (&["--area", "0.0.0.1", "--type", "router"], [true, true]),
        (&["--area", "0.0.0.0"], [false, false]),
        (&["--type", "0x1"], [true, true]),
        (&["--type", "external"], [false, false]),
        (&["-4"], [true, true]),
        (&["-6"], [false, false]),
    ] {
        let command = lsdb(arguments);
        assert_eq!([command.admits(&lsa()), command.admits(&foreign)], admitted, "{arguments:?}");
    }
    assert!(Cli::try_parse_from(["director", "lsdb", "-4", "-6"]).is_err());
}

#[test]
fn detail_stands_below_its_lsa() {
    let all = wire::Lsdb { router_id: "10.255.0.1".to_owned(), lsas: vec![lsa(), lsa()] };
    let brief = "scope         v  type    id          origin            age  sequence    checksum  bytes\n\
                 area 0.0.0.1  2  router  10.255.0.1  10.255.0.1 (own)  7 s  0x80000003  0xbeef       48\n";
    assert_eq!(lsdb(&[]).show(&wire::Lsdb { lsas: vec![lsa()], ..all.clone() }), brief);
    let detailed = lsdb(&["--detail"]).show(&all);
    assert_eq!(detailed.lines().filter(|line| line.starts_with("    stub network")).count(), 2);
    assert_eq!(detailed.lines().count(), 5);
}

#[test]
fn route_that_is_not_installed_says_why() {
    let hop = |gateway: &str| wire::RouteHop { interface: "eth1".to_owned(), gateway: gateway.to_owned() };
    let route = wire::Route {
        version: 2,
        prefix: "203.0.113.10/32".to_owned(),
        kind: "intra-area".to_owned(),
        metric: 20,
        next_hops: vec![hop("10.9.1.1"), hop("")],
        installed: false,
        reason: "a VIP of the cluster".to_owned(),
    };
    let text = show_routes(&wire::Routes { routes: vec![route] });
    assert!(text.ends_with("20  no         10.9.1.1 on eth1, on eth1  a VIP of the cluster\n"), "{text}");
}

#[test]
fn interface_names_each_refusal_and_its_designated_routers() {
    let interface = wire::OspfInterface {
        version: 2,
        name: "eth1".to_owned(),
        ifindex: 3,
        up: true,
        state: "DrOther".to_owned(),
        network: "broadcast".to_owned(),
        dr: "10.9.0.254".to_owned(),
        wait_in_ms: Some(1500),
        authentication: "key 3, hmac-sha-256".to_owned(),
        bfd: Some(wire::OspfBfd { interval_ms: 50, multiplier: 3 }),
        refused: vec![wire::Count { name: "HelloInterval".to_owned(), packets: 4 }],
        ..wire::OspfInterface::default()
    };
    let text = show_interface(&interface);
    for line in [
        "eth1 (#3), OSPFv2: DrOther, 0 neighbours, 0 Full",
        "designated      DR 10.9.0.254, BDR none, our priority 0",
        "election        in 1.5 s, unless a backup is heard before",
        "authentication  key 3, hmac-sha-256",
        "bfd             50 ms x 3",
        "refused         HelloInterval 4",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn calculation_is_shown_with_its_triggers() {
    let event = wire::Event {
        ago_ms: 1234,
        version: 3,
        kind: "spf".to_owned(),
        action: "full".to_owned(),
        subject: "3 routes".to_owned(),
        detail: "0 ms after the first trigger".to_owned(),
        triggers: vec!["neighbour 10.255.1.1".to_owned()],
        trigger_count: 3,
        ..wire::Event::default()
    };
    let text = show_events(&wire::Events { events: vec![event] });
    assert!(text.contains("1.234 s ago  3  spf   full"), "{text}");
    assert!(text.contains("(no change); by neighbour 10.255.1.1 and 2 more"), "{text}");
}

#[test]
fn each_version_can_be_asked_for_alone() {
    let both = Version { ipv4: false, ipv6: false };
    assert!(both.admits(2) && both.admits(3));
    assert!(!Version { ipv4: true, ipv6: false }.admits(3));
    assert!(!Version { ipv4: false, ipv6: true }.admits(2));
}
