//! Whole packets, as they are and as somebody broke them.

use director_common::verdict::{DropReason, Outcome, PassReason};

use super::{Family, Row};
use crate::dataplane_fixture::packets::{self, ACK, Packet, SYN};

pub(super) fn ordinary(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed, Redirected, Transmitted};
    let tcp = |port| f.tcp(port);
    let largest = vec![7; 1500 - (f.headers - 14) - 8];
    let larger = vec![7; largest.len() + 1];
    vec![
        ("real server on the same link", tcp(80).bytes(), Transmitted),
        ("real server on another link", tcp(81).bytes(), Redirected),
        ("a SYN", Packet::tcp((f.client, 1), (f.vip, 80), SYN).bytes(), Transmitted),
        ("a datagram", f.dns().bytes(), Transmitted),
        ("a datagram without data", f.udp(f.vip, b"").bytes(), Transmitted),
        ("any port of a service of all ports", f.udp(f.whole, b"x").bytes(), Transmitted),
        ("padded to the shortest frame", f.dns().with(|p| p.padding = 18).bytes(), Transmitted),
        ("marked traffic", tcp(80).with(|p| p.traffic_class = 0xbb).bytes(), Transmitted),
        ("largest packet", f.udp(f.vip, &largest).bytes(), Transmitted),
        ("one byte too large", f.udp(f.vip, &larger).bytes(), f.too_big()),
        ("second to last hop", tcp(80).with(|p| p.ttl = 2).bytes(), Transmitted),
        ("service without real servers", tcp(84).bytes(), Dropped(DropReason::NoRealServer)),
        ("no way to the real server", tcp(85).bytes(), Dropped(DropReason::NoNextHop)),
        ("another port of the VIP", tcp(443).bytes(), Passed(PassReason::NoService)),
        (
            "port of the other protocol",
            Packet::udp((f.client, 9), (f.vip, 80), b"x").bytes(),
            Passed(PassReason::NoService),
        ),
        (
            "another address",
            Packet::tcp((f.client, 9), (f.elsewhere, 80), ACK).bytes(),
            Passed(PassReason::NoService),
        ),
        ("ICMP elsewhere", f.of(f.icmp, f.elsewhere).bytes(), Passed(PassReason::NoService)),
        ("the other ICMP to the VIP", f.of(59 - f.icmp, f.vip).bytes(), Passed(PassReason::ProtocolToVip)),
        ("OSPF to the VIP", f.of(89, f.vip).bytes(), Passed(PassReason::ProtocolToVip)),
        ("OSPF elsewhere", f.of(89, f.elsewhere).bytes(), Passed(PassReason::NoService)),
        ("ARP", tcp(80).with(|p| p.ethertype = 0x0806).bytes(), Passed(PassReason::NotIp)),
        (
            "flooded: for another station",
            tcp(80).with(|p| p.destination_mac = [2, 0, 0, 0, 0, 0x55]).bytes(),
            Passed(PassReason::OtherStation),
        ),
        (
            "broadcast",
            tcp(80).with(|p| p.destination_mac = [0xff; 6]).bytes(),
            Passed(PassReason::OtherStation),
        ),
    ]
}

/// `packet` with the bytes at `offset` replaced, and the header checksum made right again or not.
pub(super) fn patched(packet: &Packet, offset: usize, bytes: &[u8], fix_checksum: bool) -> Vec<u8> {
    let mut frame = packet.bytes();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    if fix_checksum {
        packets::fix_checksum(&mut frame);
    }
    frame
}

/// `packet` with its length field that many bytes from the truth.
pub(super) fn mistaken(packet: &Packet, by: i32) -> Vec<u8> {
    let frame = packet.bytes();
    let at = if packet.version == 4 { 16 } else { 18 };
    let length = i32::from(u16::from_be_bytes([frame[at], frame[at + 1]])) + by;
    patched(packet, at, &(length as u16).to_be_bytes(), packet.version == 4)
}

pub(super) fn malformed(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed};
    let (tcp, dns) = (f.tcp(80), f.dns());
    let truncated = |length: usize| tcp.bytes()[..length].to_vec();
    let (data, end) = (f.headers, f.headers + 25);
    vec![
        ("frame of a bare header", truncated(14), Passed(PassReason::ShortHeader)),
        ("ends within the IP header", truncated(data - 1), Passed(PassReason::ShortHeader)),
        ("ends before the ports", truncated(data + 3), Dropped(DropReason::ShortTransport)),
        ("ends within the TCP header", truncated(data + 19), Dropped(DropReason::BadLength)),
        ("ends within the data", truncated(end - 1), Dropped(DropReason::BadLength)),
        ("another version than its frame", patched(&tcp, 14, &[0x75], false), Passed(PassReason::BadVersion)),
        ("longer than its frame", mistaken(&tcp, 30_000), Dropped(DropReason::BadLength)),
        ("too short for TCP", mistaken(&tcp, -6), Dropped(DropReason::ShortTransport)),
        ("too short for UDP", mistaken(&dns, -11), Dropped(DropReason::ShortTransport)),
        (
            "TCP header of 16 bytes",
            patched(&tcp, data + 12, &[0x40], false),
            Dropped(DropReason::BadTransport),
        ),
        (
            "TCP header beyond the packet",
            patched(&tcp, data + 12, &[0xf0], false),
            Dropped(DropReason::BadTransport),
        ),
        ("UDP length of 7", patched(&dns, data + 4, &[0, 7], false), Dropped(DropReason::BadTransport)),
        (
            "UDP longer than its packet",
            patched(&dns, data + 4, &[0, 99], false),
            Dropped(DropReason::BadTransport),
        ),
    ]
}
