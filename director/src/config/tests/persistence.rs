//! Services whose clients stay with their real servers.

use std::net::IpAddr;
use std::time::Duration;

use director_common::schedulers::Method;

use super::{Edit, UDP, V6_REAL, V6_VIP, edited, parse, web};
use crate::config::Persistence;

/// In the place of the hash, which is in line 27.
fn with(keys: &'static str) -> Edit<'static> {
    ("hash = \"source-port\"", keys)
}

fn by(name: &'static str) -> Edit<'static> {
    ("scheduler = \"mh\"", name)
}

#[test]
fn a_persistent_service_is_tracked_whatever_its_scheduler() {
    let service = web(&[with("persistent = 300")]);
    let tracking = service.tracking.expect("tracked");
    assert_eq!((tracking.method, service.scheduler_name()), (Method::Slots, "mh"));
    let whole = Persistence {
        timeout: Duration::from_secs(300),
        prefix_v4: 32,
        prefix_v6: 128,
        expire_quiescent: false,
    };
    assert_eq!((tracking.persistence, tracking.refuse), (Some(whole), false));
    let keys =
        "persistent = 360\npersistent_prefix = { v4 = 24 }\nexpire_quiescent = true\nwhen_full = \"refuse\"";
    let service = web(&[by("scheduler = \"wlc\""), with(keys)]);
    let tracking = service.tracking.expect("tracked");
    assert_eq!((tracking.method, tracking.refuse), (Method::WeightedLeastConnection, true));
    let text = "when full refuse, persistent 360 s by /24 and /128, not with weight 0";
    assert_eq!(tracking.to_string(), text);
    assert_eq!(web(&[by("scheduler = \"wlc\"")]).tracking.expect("tracked").persistence, None);
}

#[test]
fn a_client_is_a_network() {
    let [v4, v6, other]: [IpAddr; 3] =
        ["198.51.100.77", "2001:db8:1:2:3::4", "2001:db8:1:3::"].map(|text| text.parse().expect("address"));
    let timeout = Duration::from_secs(1);
    let persistence = Persistence { timeout, prefix_v4: 24, prefix_v6: 64, expire_quiescent: false };
    assert_eq!(persistence.client(v4).to_string(), "198.51.100.0");
    assert_eq!(persistence.client(v6).to_string(), "2001:db8:1:2::");
    assert_ne!(persistence.client(v6), persistence.client(other));
}

#[test]
fn directors_must_have_all_of_it_alike() {
    let digest = |keys: &'static str| parse(&edited(&[with(keys)])).expect("valid").services_digest();
    let all = [
        "",
        "persistent = 300",
        "persistent = 301",
        "persistent = 300\npersistent_prefix = { v4 = 24 }",
        "persistent = 300\nexpire_quiescent = true",
    ];
    let digests: std::collections::BTreeSet<_> = all.iter().map(|keys| digest(keys)).collect();
    assert_eq!(digests.len(), all.len());
    assert_eq!(digest("persistent = 300"), digest("persistent = 300\npersistent_prefix = {}"));
}

/// Each row: edits of the good file, and parts of the message, the first of them its place.
#[test]
fn every_mistake_about_persistence_is_named_with_its_place() {
    let rows: &[(&[Edit<'_>], [&str; 2])] = &[
        (&[with("persistent = 0")], ["27:14: ", "from 1 to 604800 seconds; leave it out"]),
        (&[with("persistent = 604801")], ["27:14: ", "from 1 to 604800 seconds"]),
        (&[with("persistent = \"5m\"")], ["27:14: ", "expected u32"]),
        (&[by("scheduler = \"mh\"\npersistent = 300")], ["27:14: ", "leave hash = \"source-port\" out"]),
        (&[with("persistent_prefix = { v4 = 24 }")], ["27:21: ", "write persistent = SECONDS too"]),
        (&[with("expire_quiescent = true")], ["27:20: ", "write persistent = SECONDS too"]),
        (&[with("persistent = 9\npersistent_prefix = { v4 = 0 }")], ["28:28: ", "v4 must be from 1 to 32"]),
        (&[with("persistent = 9\npersistent_prefix = { v4 = 33 }")], ["28:28: ", "v4 must be from 1 to 32"]),
        (&[with("persistent = 9\npersistent_prefix = { v6 = 64 }")], ["28:28: ", "has no IPv6 address"]),
        (
            &[V6_VIP, V6_REAL, with("persistent = 9\npersistent_prefix = { v6 = 129 }")],
            ["28:28: ", "v6 must be from 1 to 128"],
        ),
        (&[with("persistent = 9\npersistent_prefix = { v5 = 64 }")], ["28:23: ", "unknown field `v5`"]),
        (
            &[UDP, with("persistent = 9\none_packet = true")],
            ["28:14: ", "leave one_packet out, or persistent"],
        ),
        (
            &[UDP, with("persistent = 9\nquic = { offset = 1, length = 2 }")],
            ["28:8: ", "leave quic out, or persistent"],
        ),
    ];
    for (edits, parts) in rows {
        let error = parse(&edited(edits)).expect_err("a mistake");
        for part in parts {
            assert!(error.contains(part), "{edits:?}: {error}");
        }
    }
}
