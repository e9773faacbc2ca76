//! Packets in fragments.

use director_common::verdict::{DropReason, Outcome, PassReason};

use super::ordinary::patched;
use super::{Family, MORE_FRAGMENTS, Row, ip};
use crate::dataplane_fixture::packets::Packet;

/// What is remembered of one row meets the next: each datagram has an identification of its own.
pub(super) fn fragments(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed, Redirected, Transmitted};
    let whole = || f.udp(f.whole, &[5; 64]);
    let first = |packet: Packet, id| packet.with(|p| (p.fragment, p.identification) = (MORE_FRAGMENTS, id));
    let later = |packet: Packet, id| packet.with(|p| (p.fragment, p.identification) = (9, id));
    let at = |packet: Packet, id, unit| packet.with(|p| (p.fragment, p.identification) = (unit, id));
    let length_of_udp = f.headers + 4 + if f.name == "IPv6" { 8 } else { 0 };
    let options = |packet: Packet| packet.with(|p| p.payload[12] = 0xf0);
    let overlap = Dropped(DropReason::FragmentOverlap);
    let tiny = Dropped(DropReason::FragmentTiny);
    vec![
        ("first fragment, hash of source", first(f.tcp(80), 1).bytes(), Transmitted),
        ("its later one", later(f.tcp(80), 1).bytes(), Transmitted),
        ("its last one, to another link", first(f.tcp(81), 2).bytes(), Redirected),
        ("follows to another link", later(f.tcp(81), 2).bytes(), Redirected),
        ("a later fragment of another datagram", later(f.tcp(81), 3).bytes(), Dropped(DropReason::Fragment)),
        (
            "a later fragment of another client",
            later(f.tcp(81), 2).with(|p| p.source = ip(f.router)).bytes(),
            Dropped(DropReason::Fragment),
        ),
        (
            "first fragment of a long datagram",
            patched(&first(whole(), 4), length_of_udp, &[8, 0], false),
            Transmitted,
        ),
        ("overtaking, the only service", later(whole(), 5).bytes(), Transmitted),
        (
            "overtaking, too short for ports",
            later(Packet::new(17, f.client, f.whole, vec![1]), 6).bytes(),
            Transmitted,
        ),
        ("overtaking, several services", later(f.tcp(80), 7).bytes(), Dropped(DropReason::Fragment)),
        (
            "overtaking, hash of source and port",
            later(f.dns(), 8).bytes(),
            Dropped(DropReason::FragmentNeedsPort),
        ),
        ("first fragment, hash of source and port", first(f.dns(), 8).bytes(), Transmitted),
        ("its later one, hash of source and port", later(f.dns(), 8).bytes(), Transmitted),
        ("first fragment into a tunnel", first(f.tcp(91), 9).bytes(), Transmitted),
        ("its later one into the tunnel", later(f.tcp(91), 9).bytes(), Transmitted),
        (
            "first fragment without all of TCP",
            first(f.tcp(80), 10).with(|p| p.payload.truncate(16)).bytes(),
            tiny,
        ),
        ("first fragment without all options of TCP", options(first(f.tcp(80), 11)).bytes(), tiny),
        (
            "first fragment without all of UDP",
            first(f.dns(), 12).with(|p| p.payload.truncate(6)).bytes(),
            tiny,
        ),
        ("its later one has not been let in", later(f.tcp(80), 10).bytes(), Dropped(DropReason::Fragment)),
        ("first fragment, to be overlapped", first(f.tcp(80), 13).bytes(), Transmitted),
        ("later fragment over the ports of TCP", at(f.tcp(80), 13, 1).bytes(), overlap),
        ("later fragment over the flags of TCP", at(f.tcp(80), 13, 2).bytes(), overlap),
        ("later fragment right behind TCP", at(f.tcp(80), 13, 3).bytes(), Transmitted),
        ("later fragment of UDP right behind the header", first(f.dns(), 14).bytes(), Transmitted),
        ("follows right behind UDP", at(f.dns(), 14, 1).bytes(), Transmitted),
        (
            "later fragment elsewhere",
            later(f.udp(f.elsewhere, &[0; 32]), 15).bytes(),
            Passed(PassReason::NoService),
        ),
    ]
}
