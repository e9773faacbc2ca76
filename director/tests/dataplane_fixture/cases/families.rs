//! What only one family has: options and header checksums of IPv4, extension headers of IPv6.

use director_common::verdict::{AnswerReason, DropReason, Outcome, PassReason};

use super::ordinary::{mistaken, patched};
use super::{Row, V4, V6, ip, vip};
use crate::dataplane_fixture::packets::Packet;

pub(super) fn only_v4() -> Vec<Row> {
    use Outcome::Answered;
    use Outcome::{Dropped, Passed, Transmitted};
    let tcp = V4.tcp(80);
    let large = || V4.udp(V4.vip, &[7; 1473]).with(|p| p.fragment = 0x4000);
    vec![
        ("too large, don't fragment", large().bytes(), Answered(AnswerReason::TooBig)),
        ("too large, tagged", large().with(|p| p.vlan = Some(7)).bytes(), Answered(AnswerReason::TooBig)),
        (
            "too large, with options",
            large().with(|p| p.options = vec![1; 4]).bytes(),
            Answered(AnswerReason::TooBig),
        ),
        (
            "too large, from a group",
            large().with(|p| p.source = ip("224.0.0.9")).bytes(),
            Dropped(DropReason::TooBig),
        ),
        (
            "last hop, with options, too short to be shown",
            tcp.clone().with(|p| (p.ttl, p.options) = (1, vec![1; 4])).bytes(),
            Dropped(DropReason::TtlExpired),
        ),
        (
            "last hop, with options",
            large().with(|p| (p.ttl, p.options) = (1, vec![1; 40])).bytes(),
            Answered(AnswerReason::TimeExceeded),
        ),
        (
            "too large, first fragment that may be cut",
            large().with(|p| p.fragment = 0x2000).bytes(),
            Dropped(DropReason::TooBig),
        ),
        (
            "last hop, first fragment",
            tcp.clone().with(|p| (p.ttl, p.fragment) = (1, 0x2000)).bytes(),
            Answered(AnswerReason::TimeExceeded),
        ),
        ("header with options", tcp.clone().with(|p| p.options = vec![1; 40]).bytes(), Transmitted),
        ("header of 16 bytes", patched(&tcp, 14, &[0x44], false), Passed(PassReason::BadHeaderLength)),
        ("wrong header checksum", patched(&tcp, 24, &[0xab, 0xcd], false), Dropped(DropReason::BadChecksum)),
        (
            "wrong checksum of options",
            patched(&tcp.clone().with(|p| p.options = vec![1; 8]), 38, &[7], false),
            Dropped(DropReason::BadChecksum),
        ),
        ("shorter than its header", patched(&tcp, 16, &[0, 19], true), Dropped(DropReason::BadLength)),
    ]
}

pub(super) fn only_v6() -> Vec<Row> {
    use Outcome::{Answered, Dropped, Passed, Transmitted};
    let long = |packet: Packet| packet.with(|p| p.payload.resize(1_460, 7)).bytes();
    let part = |id, fragment| V6.tcp(90).with(|p| (p.identification, p.fragment) = (id, fragment));
    let extended = |chain: &[(u8, usize)]| {
        let body = |units: usize| [vec![units as u8], vec![0; 6 + 8 * units]].concat();
        let chain = chain.iter().map(|(kind, units)| (*kind, body(*units))).collect();
        V6.tcp(80).with(|p| p.extensions = chain)
    };
    // Length in units of 4 bytes: 24 bytes of authentication header are 4.
    let authentication = V6.tcp(80).with(|p| p.extensions = vec![(51, [vec![4], vec![0; 22]].concat())]);
    let left = V6.tcp(80).with(|p| p.extensions = vec![(43, vec![0, 0, 1, 0, 0, 0, 0])]);
    let elsewhere = |packet: Packet| packet.with(|p| p.destination = ip(V6.elsewhere));
    let mapped = |packet: Packet, at: usize| {
        let mut frame = packet.bytes();
        frame[at..at + 16].copy_from_slice(&vip("203.0.113.10").0);
        frame
    };
    let broken = Dropped(DropReason::BadExtension);
    vec![
        ("hop-by-hop options", extended(&[(0, 0)]).bytes(), Transmitted),
        ("every extension header", extended(&[(0, 0), (60, 1), (43, 2), (60, 3)]).bytes(), Transmitted),
        (
            "last hop, hop-by-hop options, too short to be shown",
            extended(&[(0, 0)]).with(|p| p.ttl = 1).bytes(),
            Dropped(DropReason::TtlExpired),
        ),
        (
            "last hop, hop-by-hop options",
            long(extended(&[(0, 0)]).with(|p| p.ttl = 1)),
            Answered(AnswerReason::TimeExceeded),
        ),
        ("too large, hop-by-hop options", long(extended(&[(0, 0)])), Answered(AnswerReason::TooBig)),
        ("too large, first fragment", long(part(0x600, 0x2000)), Answered(AnswerReason::TooBig)),
        // Not known: its first one was not forwarded.
        ("too large, later fragment", long(part(0x600, 100)), Dropped(DropReason::Fragment)),
        ("first fragment that fits", part(0x601, 0x2000).bytes(), Transmitted),
        (
            "too large, later fragment of one that fits",
            long(part(0x601, 100)),
            Answered(AnswerReason::TooBig),
        ),
        ("an authentication header", authentication.bytes(), Transmitted),
        ("as many extension headers as are walked", extended(&[(60, 0); 6]).bytes(), Transmitted),
        ("one extension header more", extended(&[(60, 0); 7]).bytes(), broken),
        ("extension headers as long as are walked", extended(&[(60, 63)]).bytes(), Transmitted),
        ("longer extension headers", extended(&[(60, 80)]).bytes(), broken),
        ("ends within an extension header", extended(&[(0, 0)]).bytes()[..58].to_vec(), broken),
        (
            "ends behind an extension header",
            extended(&[(0, 0)]).bytes()[..62].to_vec(),
            Dropped(DropReason::ShortTransport),
        ),
        (
            "extension headers beyond the length",
            mistaken(&extended(&[(0, 3)]), -30),
            Dropped(DropReason::BadLength),
        ),
        ("segments left", left.bytes(), Dropped(DropReason::RoutingHeader)),
        ("segments left, elsewhere", elsewhere(left).bytes(), Passed(PassReason::NoService)),
        (
            "too many extension headers elsewhere",
            elsewhere(extended(&[(60, 0); 7])).bytes(),
            Passed(PassReason::NoService),
        ),
        ("an encrypted packet", V6.of(50, V6.vip).bytes(), Passed(PassReason::ProtocolToVip)),
        ("destination maps the IPv4 VIP", mapped(V6.tcp(80), 38), Passed(PassReason::MappedAddress)),
        ("source maps an IPv4 address", mapped(V6.tcp(80), 22), Passed(PassReason::MappedAddress)),
    ]
}
