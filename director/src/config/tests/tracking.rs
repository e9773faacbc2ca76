//! Services whose connections are tracked.

use director_common::schedulers::{Method, Thresholds};

use super::{Edit, TUNNEL, UDP, edited, parse, web};

fn by(name: &'static str) -> Edit<'static> {
    ("scheduler = \"mh\"", name)
}

#[test]
fn every_scheduler_that_chooses_for_connections_tracks_them() {
    for method in Method::ALL {
        let scheduler = format!("scheduler = \"{}\"", method.name());
        let service = web(&[("scheduler = \"mh\"", &scheduler)]);
        assert_eq!(service.tracking.map(|tracking| tracking.method), Some(method));
        assert_eq!(service.scheduler_name(), method.name());
    }
    assert_eq!((web(&[]).tracking, web(&[]).scheduler_name()), (None, "mh"));
    let keys = "scheduler = \"wlc\"\nwhen_full = \"refuse\"\nsorry_server = \"10.0.2.99\"";
    let service = web(&[by(keys), ("weight = 100", "weight = 2\nupper = 9\nlower = 3")]);
    assert_eq!(service.reals[0].thresholds, Thresholds { upper: 9, lower: 3 });
    let tracking = service.tracking.expect("tracked");
    assert_eq!(tracking.to_string(), "when full refuse, sorry server 10.0.2.99");
}

#[test]
fn what_directors_must_have_alike_has_all_of_it() {
    let digest =
        |keys: &str| parse(&edited(&[("scheduler = \"mh\"", keys)])).expect("valid").services_digest();
    let all = ["\"wlc\"", "\"lc\"", "\"lc\"\nwhen_full = \"refuse\"", "\"lc\"\nsorry_server = \"10.0.2.99\""];
    let digests: std::collections::BTreeSet<_> =
        all.iter().map(|keys| digest(&format!("scheduler = {keys}"))).collect();
    assert_eq!(digests.len(), all.len());
}

/// Each row: edits of the good file, and parts of the message, the first of them its place.
#[test]
fn every_mistake_about_tracking_is_named_with_its_place() {
    let rows: &[(&[Edit<'_>], [&str; 2])] = &[
        (&[by("scheduler = \"fair\"")], ["26:13: ", "use one of mh, ch, rr, wrr"]),
        (&[by("scheduler = \"lblc\"")], ["26:13: ", "not supported by this version; use \"mh\""]),
        (&[by("scheduler = \"sh\"")], ["26:13: ", "hashes the source too"]),
        (&[by("when_full = \"refuse\"")], ["26:13: ", "leave it out"]),
        (&[by("sorry_server = \"10.0.2.99\"")], ["26:16: ", "connections are tracked"]),
        (&[("weight = 100", "upper = 9")], ["33:9: ", "a threshold is for services"]),
        (&[by("scheduler = \"rr\"\nwhen_full = \"wait\"")], ["27:13: ", "unknown variant"]),
        (&[by("scheduler = \"rr\""), ("weight = 100", "upper = 2\nlower = 3")], ["34:9: ", "not be above"]),
        (&[by("scheduler = \"rr\""), ("weight = 100", "lower = 3")], ["33:9: ", "not be above"]),
        (&[by("scheduler = \"rr\"\nsorry_server = \"10.0.2.11\"")], ["27:16: ", "is a real server"]),
        (&[by("scheduler = \"rr\"\nsorry_server = \"2001:db8::1\"")], ["27:16: ", "use its IPv4 address"]),
        (&[UDP, by("scheduler = \"rr\"\none_packet = true")], ["27:14: ", "leave one_packet out"]),
        (&[UDP, by("scheduler = \"rr\"\nquic = { offset = 1, length = 2 }")], ["27:8: ", "leave quic out"]),
        (&[("\"eth2\"]", "\"eth2\"]\nhalf_open = 0")], ["5:13: ", "half_open must be from 1"]),
        (&[("\"eth2\"]", "\"eth2\"]\nconnections = 0")], ["5:15: ", "connections must be from 1"]),
        (
            &[TUNNEL, by("scheduler = \"rr\"\nsorry_server = \"10.0.2.99\"")],
            ["32:11: ", "add an IPv4 address of this node to tunnel_source"],
        ),
    ];
    for (edits, parts) in rows {
        let error = parse(&edited(edits)).expect_err("a mistake");
        for part in parts {
            assert!(error.contains(part), "{edits:?}: {error}");
        }
    }
}
