//! ICMP: echo, and errors about a flow.

use director_common::verdict::{AnswerReason, DropReason, Outcome, PassReason};

use super::ordinary::mistaken;
use super::{Family, MORE_FRAGMENTS, Row, TUNNEL_V4, TUNNEL_V6, ip};
use crate::dataplane_fixture::packets::{ACK, Packet};

impl Family {
    /// What becomes of a packet that is too big and says nothing about fragmenting.
    pub(super) fn too_big(&self) -> Outcome {
        if self.icmp == 1 {
            Outcome::Dropped(DropReason::TooBig)
        } else {
            Outcome::Answered(AnswerReason::TooBig)
        }
    }

    /// An echo request with a right checksum.
    pub fn echo(&self, destination: &str) -> Packet {
        let kind = if self.icmp == 1 { 8 } else { 128 };
        self.message(self.client, destination, &[kind, 0, 0, 0, 0x12, 0x34, 0, 1, 7, 7, 7, 7])
    }

    /// An ICMP message with the checksum made right.
    pub fn message(&self, source: &str, destination: &str, message: &[u8]) -> Packet {
        let mut packet = Packet::new(self.icmp, source, destination, message.to_vec());
        packet.payload[2..4].fill(0);
        let sum = packet.icmp_checksum();
        packet.payload[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// Every error, by type and code, about a packet of which it shows `inner`.
    fn errors(&self) -> &'static [(u8, u8)] {
        if self.icmp == 1 { &[(3, 1), (3, 4), (11, 0), (12, 0)] } else { &[(1, 4), (2, 0), (3, 0), (4, 1)] }
    }

    pub fn error(&self, (kind, code): (u8, u8), inner: &[u8]) -> Packet {
        let message = [&[kind, code, 0, 0, 0, 0, 5, 0], inner].concat();
        self.message(self.router, self.vip, &message)
    }

    /// The error that is to come of `packet`, from `source`: this type and code and this second word.
    pub fn told(&self, [kind, code]: [u8; 2], word: u32, packet: &Packet, source: &str) -> Packet {
        let bare = packet.clone().with(|p| p.vlan = None);
        let headers = bare.bytes().len() - bare.payload.len();
        let is_bare = headers == if self.icmp == 1 { 34 } else { 54 };
        // Eight bytes behind a bare header; with anything more between, 128 in all.
        let shown = self.shown(&bare, if is_bare { 8 } else { 14 + 128 - headers });
        let message = [&[kind, code, 0, 0], &word.to_be_bytes()[..], &shown].concat();
        self.message(source, self.client, &message).with(|p| {
            p.vlan = packet.vlan;
            if p.version == 4 {
                (p.fragment, p.traffic_class, p.identification) = (0x4000, 0xc0, 0);
            }
        })
    }

    /// Type and code of time exceeded in transit.
    pub fn time_exceeded(&self) -> [u8; 2] {
        if self.icmp == 1 { [11, 0] } else { [3, 0] }
    }

    /// The director's own address, from which it answers as a router.
    pub fn own(&self) -> String {
        if self.icmp == 1 { TUNNEL_V4 } else { TUNNEL_V6 }.to_string()
    }

    /// A packet from the VIP's `port` to the client, as an error shows it.
    pub fn answer(&self, port: u16) -> Packet {
        Packet::tcp((self.vip, port), (self.client, 40_000), ACK)
    }

    /// The first bytes of `packet` that an error shows: the IP header and as many bytes behind it.
    pub fn shown(&self, packet: &Packet, bytes: usize) -> Vec<u8> {
        let end = packet.bytes().len() - packet.payload.len() + bytes;
        packet.bytes()[14..end].to_vec()
    }
}

pub(super) fn icmp(f: &Family) -> Vec<Row> {
    use Outcome::{Answered, Dropped, Passed, Redirected, Transmitted};
    let error = |inner: &[u8]| f.error(f.errors()[0], inner);
    let about = |port, bytes| error(&f.shown(&f.answer(port), bytes)).bytes();
    let other = f.answer(80).with(|p| p.source = ip(f.whole));
    let echo = |vip| f.echo(vip);
    let unreadable = Dropped(DropReason::IcmpInner);
    let mut rows = vec![
        ("echo request", echo(f.vip).bytes(), Answered(AnswerReason::Echo)),
        (
            "echo request, tagged",
            echo(f.vip).with(|p| p.vlan = Some(7)).bytes(),
            Answered(AnswerReason::Echo),
        ),
        (
            "echo request on its last hop",
            echo(f.vip).with(|p| p.ttl = 1).bytes(),
            Answered(AnswerReason::Echo),
        ),
        ("echo request without real server", echo(f.dead).bytes(), Dropped(DropReason::EchoUnserved)),
        ("echo request longer than its frame", mistaken(&echo(f.vip), 9), Dropped(DropReason::BadLength)),
        (
            "echo request to another station",
            echo(f.vip).with(|p| p.destination_mac = [2, 0, 0, 0, 0, 0x55]).bytes(),
            Passed(PassReason::OtherStation),
        ),
        (
            "echo request in fragments",
            echo(f.vip).with(|p| p.fragment = MORE_FRAGMENTS).bytes(),
            Dropped(DropReason::IcmpFragment),
        ),
        ("echo request elsewhere", echo(f.elsewhere).bytes(), Passed(PassReason::NoService)),
        (
            "echo reply to the VIP",
            f.of(f.icmp, f.vip).with(|p| p.payload[0] = 129).bytes(),
            Passed(PassReason::IcmpToVip),
        ),
        (
            "cut within the ICMP header",
            f.of(f.icmp, f.vip).with(|p| p.payload.truncate(7)).bytes(),
            Dropped(DropReason::ShortTransport),
        ),
        ("error with 8 bytes of the header", about(80, 8), Transmitted),
        ("error with the ports only", about(80, 4), Transmitted),
        ("error without the ports", about(80, 3), unreadable),
        ("error, real server on another link", about(81, 8), Redirected),
        (
            "error about a datagram",
            error(&f.shown(&Packet::udp((f.vip, 53), (f.client, 40_000), b"an answer"), 8)).bytes(),
            Transmitted,
        ),
        ("error into a tunnel", about(90, 8), Transmitted),
        ("error into a tunnel over IPv6", about(95, 8), Transmitted),
        ("error cut within the inner header", about(80, 8)[..f.headers + 8 + 19].to_vec(), unreadable),
        (
            "error about a later fragment",
            error(&f.shown(&f.answer(80).with(|p| p.fragment = 9), 8)).bytes(),
            unreadable,
        ),
        (
            "error about a first fragment",
            error(&f.shown(&f.answer(80).with(|p| p.fragment = MORE_FRAGMENTS), 8)).bytes(),
            Transmitted,
        ),
        (
            "error about another VIP's packet",
            error(&f.shown(&other, 8)).bytes(),
            Dropped(DropReason::IcmpMismatch),
        ),
        ("error about a port of no service", about(443, 8), Dropped(DropReason::IcmpNoService)),
        (
            "error about another protocol",
            error(&f.shown(&f.answer(80).with(|p| p.protocol = 132), 8)).bytes(),
            Passed(PassReason::IcmpToVip),
        ),
    ];
    for error in f.errors() {
        rows.push(("every error", f.error(*error, &f.shown(&f.answer(80), 8)).bytes(), Transmitted));
    }
    rows
}

/// Packets whose time to live or hop limit ends at the director.
pub(super) fn expired(f: &Family) -> Vec<Row> {
    use Outcome::{Answered, Dropped, Passed};
    let (told, dropped) = (Answered(AnswerReason::TimeExceeded), Dropped(DropReason::TtlExpired));
    let last = |packet: Packet| packet.with(|p| p.ttl = 1);
    let tcp = |port| last(f.tcp(port));
    let large = vec![7; 1500];
    vec![
        ("last hop of its life", tcp(80).bytes(), told),
        ("no life at all", tcp(80).with(|p| p.ttl = 0).bytes(), told),
        ("last hop: a datagram without data", last(f.udp(f.vip, b"")).bytes(), told),
        ("last hop: padded", last(f.dns()).with(|p| p.padding = 18).bytes(), told),
        ("last hop: marked traffic", tcp(80).with(|p| p.traffic_class = 0xbb).bytes(), told),
        ("last hop: tagged", tcp(80).with(|p| p.vlan = Some(7)).bytes(), told),
        ("last hop: tagged, real server on another link", tcp(81).with(|p| p.vlan = Some(7)).bytes(), told),
        ("last hop: into a tunnel", tcp(90).bytes(), told),
        ("last hop: into a tunnel over IPv6", tcp(95).bytes(), told),
        (
            "last hop: a slot that moves",
            last(Packet::udp((f.client, 9), (f.changing, 98), b"x")).bytes(),
            told,
        ),
        ("last hop: service without real servers", tcp(84).bytes(), told),
        (
            "last hop: VIP without real servers",
            last(f.tcp(80)).with(|p| p.destination = ip(f.dead)).bytes(),
            told,
        ),
        ("last hop: no way to the real server", tcp(85).bytes(), told),
        ("last hop: too large besides", last(f.udp(f.vip, &large)).bytes(), told),
        ("last hop: another port of the VIP", tcp(443).bytes(), Passed(PassReason::NoService)),
        (
            "last hop: for another station",
            tcp(80).with(|p| p.destination_mac = [2, 0, 0, 0, 0, 0x55]).bytes(),
            Passed(PassReason::OtherStation),
        ),
        ("last hop: longer than its frame", mistaken(&tcp(80), 9), Dropped(DropReason::BadLength)),
        (
            "last hop: an error about a flow",
            last(f.error(f.errors()[0], &f.shown(&f.answer(80), 8))).bytes(),
            dropped,
        ),
        (
            "last hop: a later fragment",
            last(Packet::udp((f.client, 9), (f.whole, 9), &[7; 64])).with(|p| p.fragment = 9).bytes(),
            dropped,
        ),
        ("last hop: from a group", tcp(80).with(|p| p.source = ip(f.group)).bytes(), dropped),
        ("last hop: from nowhere", tcp(80).with(|p| p.source = ip(f.nowhere)).bytes(), dropped),
    ]
}
