//! Services with full NAT, and the addresses that stand for clients.

use director_common::schedulers::Method;

use super::{Edit, TUNNEL, UDP, V6_REAL, V6_VIP, edited, parse, web};
use crate::config::{Forwarding, Ports};

const FULL: Edit<'_> = ("\"dr\"", "\"fullnat\"");
const LOCALS: Edit<'_> =
    ("\"eth2\"]", "\"eth2\"]\nlocal_addresses = [\"10.0.9.1\", \"10.0.9.2\", \"2001:db8:9::1\"]");

#[test]
fn a_service_with_full_nat_is_tracked_whatever_its_scheduler() {
    let service = web(&[FULL, LOCALS]);
    assert_eq!((service.forwarding, service.scheduler_name()), (Forwarding::FullNat, "mh"));
    let tracking = service.tracking.expect("tracked");
    assert!(tracking.refuse && tracking.method == Method::Slots);
    let service = web(&[FULL, LOCALS, ("scheduler = \"mh\"", "scheduler = \"wlc\"")]);
    let tracking = service.tracking.expect("tracked");
    assert!(tracking.refuse && tracking.method == Method::WeightedLeastConnection);
    assert_eq!(service.scheduler_name(), "wlc");
    assert_eq!(web(&[FULL, LOCALS, V6_VIP, V6_REAL]).forwarding, Forwarding::FullNat);
    assert_eq!(web(&[FULL, LOCALS, ("port = 80\nweight", "port = 8080\nweight")]).reals[0].port, 8_080);
    // A whole prefix of VIPs: every connection knows its own.
    let prefix = web(&[FULL, LOCALS, ("\"203.0.113.10\"", "\"203.0.113.0/28\"")]);
    assert_eq!(prefix.prefixes().len(), 1);
}

#[test]
fn local_addresses_have_ports_that_the_kernel_does_not_give_out() {
    let node = parse(&edited(&[LOCALS])).expect("valid").node;
    assert_eq!(node.locals.addresses.len(), 3);
    assert_eq!(node.locals.ports, Ports { first: 1_024, last: 32_767 });
    let ports = (LOCALS.0, "\"eth2\"]\nlocal_addresses = [\"10.0.9.1\"]\nlocal_ports = \"2000-2999\"");
    let node = parse(&edited(&[ports])).expect("valid").node;
    assert_eq!(node.locals.ports, Ports { first: 2_000, last: 2_999 });
}

/// Each row: edits of the good file, and parts of the message, the first of them its place.
#[test]
fn every_mistake_about_full_nat_is_named_with_its_place() {
    let local = |list: &str| format!("\"eth2\"]\nlocal_addresses = [{list}]");
    let many: Vec<String> = (1..=17).map(|last| format!("\"10.9.0.{last}\"")).collect();
    let (many, vip, real, peer) =
        (local(&many.join(", ")), local("\"203.0.113.10\""), local("\"10.0.2.11\""), local("\"10.255.9.2\""));
    let (twice, group) = (local("\"10.0.9.1\", \"10.0.9.1\""), local("\"224.0.0.1\""));
    let one_packet = ("scheduler = \"mh\"", "scheduler = \"mh\"\none_packet = true");
    let rows: &[(&[Edit<'_>], [&str; 2])] = &[
        (&[FULL], ["25:14: ", "add an IPv4 one that it has to itself to local_addresses in [node]"]),
        (
            &[FULL, V6_VIP, V6_REAL, (LOCALS.0, "\"eth2\"]\nlocal_addresses = [\"10.0.9.1\"]")],
            ["26:14: ", "add an IPv6 one"],
        ),
        (&[FULL, LOCALS, V6_REAL], [": ", "fullnat cannot take packets for the IPv4 VIP"]),
        (
            &[FULL, LOCALS, ("scheduler = \"mh\"", "when_full = \"forward\"")],
            ["27:13: ", "when_full = \"refuse\""],
        ),
        (&[FULL, LOCALS, ("scheduler = \"mh\"", "sorry_server = \"10.0.2.99\"")], ["27:16: ", "tracked"]),
        (&[FULL, LOCALS, ("weight = 100", "upper = 9")], [": ", "a threshold is for services"]),
        (&[FULL, LOCALS, UDP, one_packet], ["28:14: ", "with fullnat datagrams are tracked"]),
        (
            &[FULL, LOCALS, ("scheduler", "tunnel = {}\nscheduler")],
            ["27:10: ", "needs forwarding = \"tunnel\""],
        ),
        (&[(LOCALS.0, "\"eth2\"]\nlocal_ports = \"2000-2999\"")], ["5:15: ", "there are none: add them"]),
        (&[(LOCALS.0, &many)], ["5:", "at most 16 IPv4 local_addresses"]),
        (&[(LOCALS.0, &twice)], ["5:32: ", "listed twice"]),
        (&[(LOCALS.0, &group)], ["5:20: ", "cannot stand for clients"]),
        (&[(LOCALS.0, &vip)], ["5:20: ", "is a VIP of service \"web\""]),
        (&[(LOCALS.0, &real)], ["5:20: ", "is a real server of service \"web\""]),
        (
            &[(LOCALS.0, &peer), ("127.0.0.2:7000", "10.255.9.2:7000")],
            ["5:20: ", "an address of another director"],
        ),
        (
            &[LOCALS, ("[ospf]\n", "[ospf]\naggregate = [\"2001:db8:9::/64\"]\n")],
            ["5:44: ", "is inside the aggregate 2001:db8:9::/64"],
        ),
        (&[TUNNEL, LOCALS], [": ", "tunnel_source"]),
    ];
    for (edits, parts) in rows {
        let error = parse(&edited(edits)).expect_err("a mistake");
        for part in parts {
            assert!(error.contains(part), "{edits:?}: {error}");
        }
    }
}
