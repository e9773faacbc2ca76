//! Slots that are moving or pinned, and QUIC. The previous owner is on the same link, the current one on another, so
//! that the outcome tells them apart. What is pinned in one row meets the next.

use director_common::verdict::{DropReason, Outcome};

use super::{Family, MORE_FRAGMENTS, Row};
use crate::dataplane_fixture::packets::{ACK, FIN, Packet, RST, SYN};

pub(super) fn changing(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Redirected as Current, Transmitted as Previous};
    let tcp = |port, flags| Packet::tcp((f.client, port), (f.changing, 96), flags);
    let row = |what, port, flags, outcome| (what, tcp(port, flags).bytes(), outcome);
    let pinned = |flags| Packet::tcp((f.client, 40_001), (f.vip, 97), flags);
    let udp = |port| Packet::udp((f.client, 40_001), (f.changing, port), b"data").bytes();
    let error = |port| {
        let answer = Packet::tcp((f.changing, 96), (f.client, port), ACK);
        let error = f.error((if f.name == "IPv4" { 11 } else { 3 }, 0), &f.shown(&answer, 8));
        f.message(f.router, f.changing, &error.payload).bytes()
    };
    let part =
        |port, id, fragment| tcp(port, ACK).with(|p| (p.identification, p.fragment) = (id, fragment)).bytes();
    let large = tcp(40_005, ACK).with(|p| p.payload.resize(1_500, 7)).bytes();
    vec![
        row("moving: of a connection that was there", 40_001, ACK, Previous),
        row("moving: a new connection", 40_002, SYN, Current),
        row("moving: sent again", 40_002, SYN, Current),
        row("moving: the new connection goes on", 40_002, ACK, Current),
        row("moving: a SYN within a connection that was there", 40_001, SYN, Previous),
        row("moving: the end of one that was there", 40_001, FIN | ACK, Previous),
        (
            "moving: its last acknowledgement",
            tcp(40_001, ACK).with(|p| p.payload.truncate(20)).bytes(),
            Previous,
        ),
        row("moving: a new connection with its ports", 40_001, SYN, Current),
        row("moving: which goes on", 40_001, ACK, Current),
        row("moving: a reset", 40_002, RST, Current),
        row("moving: that was not the client's", 40_002, ACK, Current),
        row("moving: a reset of a connection that was there", 40_003, RST | ACK, Previous),
        row("moving: leaves nothing behind", 40_003, SYN, Current),
        ("moving: an error about a connection that was there", error(40_004), Previous),
        row("moving: an error leaves nothing behind", 40_004, SYN, Current),
        ("moving: an error about a new connection", error(40_004), Current),
        ("moving: too large for the way", large, f.too_big()),
        row("moving: leaves nothing behind either", 40_005, SYN, Current),
        (
            "moving: a tagged packet that cannot go to its server",
            tcp(40_006, SYN).with(|p| p.vlan = Some(7)).bytes(),
            Dropped(DropReason::VlanRedirect),
        ),
        row("moving: has no pin", 40_006, ACK, Previous),
        ("moving: first fragment of a new connection", part(40_002, 21, MORE_FRAGMENTS), Current),
        ("moving: its later one", part(40_002, 21, 9), Current),
        ("moving: first fragment of a connection that was there", part(40_007, 22, MORE_FRAGMENTS), Previous),
        ("moving: its later one follows it", part(40_007, 22, 9), Previous),
        ("moving: a fragment that overtakes", part(40_002, 23, 9), Dropped(DropReason::FragmentNeedsPort)),
        ("moving: a datagram", udp(98), Previous),
        ("moving: one packet", udp(99), Current),
        ("pinned: of a connection", pinned(ACK).bytes(), Previous),
        ("pinned: a new connection", pinned(SYN).bytes(), Previous),
    ]
}

pub(super) fn quic(f: &Family) -> Vec<Row> {
    use Outcome::{Redirected as Second, Transmitted as First};
    // The slots' owner is the first, and the second one's id is 0x0109, behind one byte of the connection id.
    let row = |what, data: &[u8], outcome| {
        (what, Packet::udp((f.client, 40_001), (f.changing, 443), data).bytes(), outcome)
    };
    let long = |first, version: u32, id: &[u8]| {
        [&[first], &version.to_be_bytes()[..], &[id.len() as u8], id, &[0; 8]].concat()
    };
    let second = [0xaa, 1, 9, 0xbb];
    // Another service with the same ids, whose slots are moving from the first to the second.
    let moving = |what, port, data: &[u8], outcome| {
        (what, Packet::udp((f.client, port), (f.changing, 444), data).bytes(), outcome)
    };
    let part = |what, id, fragment, outcome| {
        let packet = Packet::udp((f.client, 40_001), (f.changing, 443), &[0x40, 0xaa, 1, 9, 5, 6, 7, 8]);
        let packet = packet.with(|p| (p.identification, p.fragment) = (id, fragment));
        (what, packet.with(|p| p.payload.resize(32, 3)).bytes(), outcome)
    };
    let padded =
        Packet::udp((f.client, 40_001), (f.changing, 443), &[0x40, 0xaa, 1]).with(|p| p.padding = 20);
    vec![
        row("QUIC: short header, another's id", &[0x40, 0xaa, 1, 9, 5], Second),
        row("QUIC: short header, the owner's id", &[0x40, 0xaa, 0, 7, 5], First),
        row("QUIC: short header, nobody's id", &[0x40, 0xaa, 7, 7, 5], First),
        row("QUIC: ends behind the id", &[0x40, 0xaa, 1, 9], Second),
        row("QUIC: ends within the id", &[0x40, 0xaa, 1], First),
        ("QUIC: padding is no id", padded.bytes(), First),
        row("QUIC: without data", &[], First),
        row("QUIC: Initial", &long(0xc0, 1, &second), First),
        row("QUIC: 0-RTT", &long(0xd0, 1, &second), First),
        row("QUIC: Handshake", &long(0xe0, 1, &second), Second),
        row("QUIC: Handshake with a short id", &long(0xe0, 1, &second[..2]), First),
        row("QUIC: Initial of version 2", &long(0xd0, 0x6b33_43cf, &second), First),
        row("QUIC: 0-RTT of version 2", &long(0xe0, 0x6b33_43cf, &second), First),
        row("QUIC: Handshake of version 2", &long(0xf0, 0x6b33_43cf, &second), Second),
        row("QUIC: ends within a long header", &long(0xe0, 1, &second)[..5], First),
        moving("QUIC, moving: 0-RTT begins a connection", 40_011, &long(0xd0, 1, &second), Second),
        moving(
            "QUIC, moving: which goes on before it has an id",
            40_011,
            &long(0xe0, 1, &second[..2]),
            Second,
        ),
        moving("QUIC, moving: Initial begins a connection", 40_012, &long(0xc0, 1, &second), Second),
        moving("QUIC, moving: without an id, of one that was there", 40_013, &[0x40, 0xaa, 7, 7, 5], First),
        moving("QUIC, moving: another's id", 40_013, &[0x40, 0xaa, 1, 9, 5], Second),
        moving("QUIC, moving: the previous owner's id", 40_011, &[0x40, 0xaa, 0, 7, 5], First),
        part("QUIC: first fragment, another's id", 0x701, MORE_FRAGMENTS, Second),
        part("QUIC: its later one", 0x701, 9, Second),
        part("QUIC: a fragment that overtakes", 0x702, 9, Outcome::Dropped(DropReason::Fragment)),
    ]
}
