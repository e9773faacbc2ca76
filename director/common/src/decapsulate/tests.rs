//! The far end against the near one ([`Outer`]), and against whatever else may arrive.

extern crate std;

use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::packet::{Buffer, Outer, overhead};
use crate::tables::Encapsulation;

const GUE_PORT: u16 = 6080;

/// A frame that grows and shrinks in front.
struct Elastic(Vec<u8>);

impl Frame for Elastic {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk::<N>().copied()
    }
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        Buffer(&mut self.0).write(offset, bytes)
    }
    fn grow<const N: usize>(&mut self) -> Option<()> {
        self.0.splice(0..0, [0; N]);
        Some(())
    }
    fn truncate(&mut self, len: usize) -> Option<()> {
        (len <= self.0.len()).then(|| self.0.truncate(len))
    }
}

impl Shrink for Elastic {
    fn shrink(&mut self, bytes: usize) -> Option<()> {
        (bytes <= self.0.len()).then(|| drop(self.0.drain(..bytes)))
    }
}

struct Host {
    settings: Settings,
    local: BTreeSet<Address>,
    listed: BTreeSet<Address>,
    vips: BTreeSet<Address>,
}

impl Endpoint for Host {
    fn settings(&self) -> Settings {
        self.settings
    }
    fn is_local(&self, address: &Address) -> bool {
        self.local.contains(address)
    }
    fn is_listed(&self, source: &Address) -> bool {
        self.listed.contains(source)
    }
    fn serves(&self, vip: &Address) -> bool {
        self.vips.contains(vip)
    }
}

fn v6(last: u8) -> Address {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    bytes[15] = last;
    Address(bytes)
}

fn address(is_v6: bool, last: u8) -> Address {
    if is_v6 { v6(last) } else { Address::from_ipv4([10, 0, 0, last]) }
}

const DIRECTOR: u8 = 1;
const OURS: u8 = 2;
const CLIENT: u8 = 7;
const VIP: u8 = 100;

fn host(flags: u32) -> Host {
    let both = |last| BTreeSet::from([address(false, last), address(true, last)]);
    Host {
        settings: Settings(Settings::IPIP | Settings::GRE | flags).with_gue(GUE_PORT),
        local: both(OURS),
        listed: both(DIRECTOR),
        vips: both(VIP),
    }
}

/// A frame from the client to the VIP, with this traffic class and payload.
fn plain(is_v6: bool, tagged: bool, class: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if tagged {
        frame.extend([0x81, 0, 0, 42]);
    }
    let (source, destination) = (address(is_v6, CLIENT), address(is_v6, VIP));
    if is_v6 {
        frame.extend([0x86, 0xdd, 0x60 | class >> 4, class << 4 | 5, 0xab, 0xcd]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([17, 64]);
        frame.extend(source.0);
        frame.extend(destination.0);
    } else {
        let total = (20 + payload.len() as u16).to_be_bytes();
        let mut header = vec![0x45, class, total[0], total[1], 0x12, 0x34, 0, 0, 64, 17, 0, 0];
        header.extend(source.low());
        header.extend(destination.low());
        let sum = rfc_1071(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        frame.extend([8, 0]);
        frame.extend(header);
    }
    frame.extend(payload);
    frame
}

/// RFC 1071, section 4.1.
fn rfc_1071(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The frame in a tunnel from the director to us.
fn encapsulated(frame: &[u8], encapsulation: Encapsulation, over_v6: bool) -> Vec<u8> {
    let mut frame = Elastic(frame.to_vec());
    let ethernet = Ethernet::parse(&frame).expect("Ethernet");
    let inner = Ip::parse(&frame, &ethernet, &mut FlowKey::default()).expect("IP");
    let (source, destination) = (address(over_v6, DIRECTOR), address(over_v6, OURS));
    let outer = Outer {
        encapsulation,
        port: GUE_PORT,
        source: &source,
        destination: &destination,
        entropy: 0x1234_5678,
    };
    let before = frame.len();
    outer.emit(&mut frame, &inner).expect("room");
    assert_eq!(frame.len() - before, overhead(encapsulation, &destination));
    // `emit` leaves the link addresses to its caller.
    frame.0[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame.0
}

/// What becomes of the frame, and the frame then.
fn receive(host: &Host, frame: &[u8]) -> (Reception, Vec<u8>) {
    let mut frame = Elastic(frame.to_vec());
    let decision = decapsulate(&frame, host, &mut FlowKey::default());
    if decision.reception == Reception::Decapsulated {
        strip(&mut frame, &decision).expect("the same frame");
    }
    (decision.reception, frame.0)
}

const KINDS: [Encapsulation; 3] = [Encapsulation::Ipip, Encapsulation::Gre, Encapsulation::Gue];

/// Every kind, family pair and tagging with the plain frame and the one in the tunnel.
fn tunnels() -> Vec<(Encapsulation, bool, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for kind in KINDS {
        for bits in 0..8_u8 {
            let [inner_v6, over_v6, tagged] = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
            let frame = plain(inner_v6, tagged, 0, b"twelve bytes");
            let tunnel = encapsulated(&frame, kind, over_v6);
            all.push((kind, over_v6, frame, tunnel));
        }
    }
    all
}

#[test]
fn what_the_director_puts_in_comes_out() {
    for (kind, over_v6, frame, tunnel) in tunnels() {
        assert_eq!(receive(&host(0), &tunnel), (Reception::Decapsulated, frame), "{kind:?} {over_v6}");
    }
}

#[test]
fn a_guard_checks_and_changes_nothing() {
    for (kind, _, _, tunnel) in tunnels() {
        assert_eq!(receive(&host(Settings::GUARD), &tunnel), (Reception::LeftToDevice, tunnel), "{kind:?}");
    }
}

/// RFC 6040, section 4.2, figure 4: rows are what is inside, columns what is outside, of codepoints 00 to 11.
#[test]
fn congestion_marks_are_combined_by_rfc_6040() {
    const NONE: Option<u8> = None;
    let table = [
        [Some(0), Some(0), Some(0), NONE],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (inner, row) in table.iter().enumerate() {
        for (outer, expected) in row.iter().enumerate() {
            for bits in 0..4_u8 {
                let [inner_v6, over_v6] = [bits & 1 != 0, bits & 2 != 0];
                let class = 0xb8 | inner as u8;
                let mut tunnel =
                    encapsulated(&plain(inner_v6, false, class, b"data"), Encapsulation::Ipip, over_v6);
                if over_v6 {
                    tunnel[15] = tunnel[15] & 0xcf | (outer as u8) << 4;
                } else {
                    tunnel[15] = tunnel[15] & 0xfc | outer as u8;
                    tunnel[24..26].fill(0);
                    let sum = rfc_1071(&tunnel[14..34]);
                    tunnel[24..26].copy_from_slice(&sum.to_be_bytes());
                }
                let (reception, out) = receive(&host(0), &tunnel);
                match expected {
                    None => assert_eq!(reception, Reception::Congestion),
                    // DSCP, flow label and hop limit stay, and the checksum is right again.
                    Some(ecn) => assert_eq!(out, plain(inner_v6, false, 0xb8 | ecn, b"data")),
                }
            }
        }
    }
}

/// A tunnel with one thing changed. IPv4 in IPv4: outer header at 14, what follows it at 34.
fn changed(kind: Encapsulation, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = encapsulated(&plain(false, false, 0, b"twelve bytes"), kind, false);
    change(&mut frame);
    if frame.len() >= 34 {
        frame[24..26].fill(0);
        let sum = rfc_1071(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

#[test]
fn every_departure_has_its_name() {
    use Encapsulation::{Gre, Gue, Ipip};
    type Case = (&'static str, Vec<u8>, Reception);
    let mut wrong_sum = changed(Ipip, |_| {});
    wrong_sum[24] ^= 1;
    let cases: [Case; 22] = [
        ("not IP", changed(Ipip, |f| f[12] = 9), Reception::NotTunnel),
        ("plain UDP", plain(false, false, 0, b"twelve bytes"), Reception::NotTunnel),
        ("another UDP port", changed(Gue, |f| f[37] ^= 1), Reception::NotTunnel),
        ("cut in the outer header", changed(Ipip, |f| f.truncate(30)), Reception::NotTunnel),
        ("to another host", changed(Ipip, |f| f[33] = 3), Reception::NotForUs),
        ("from somebody else", changed(Ipip, |f| f[29] = 9), Reception::SourceUnlisted),
        ("first fragment", changed(Ipip, |f| f[20] = 0x20), Reception::Fragment),
        ("later fragment", changed(Gre, |f| f[21] = 9), Reception::Fragment),
        ("longer than the frame", changed(Ipip, |f| f[16] = 1), Reception::OuterLength),
        ("cut in the inner packet", changed(Ipip, |f| f.truncate(60)), Reception::OuterLength),
        ("outer checksum", wrong_sum, Reception::OuterChecksum),
        ("GRE key", changed(Gre, |f| f[34] = 0x20), Reception::GreOptions),
        ("GRE version 1", changed(Gre, |f| f[35] = 1), Reception::GreOptions),
        ("GRE of ARP", changed(Gre, |f| f[37] = 6), Reception::InnerProtocol),
        ("UDP length", changed(Gue, |f| f[39] -= 1), Reception::UdpLength),
        ("UDP checksum", changed(Gue, |f| f[41] = 1), Reception::UdpChecksum),
        ("GUE extensions", changed(Gue, |f| f[42] = 1), Reception::GueOptions),
        ("GUE variant 1", changed(Gue, |f| f[42] = 0x40), Reception::GueOptions),
        ("GUE of TCP", changed(Gue, |f| f[43] = 6), Reception::InnerProtocol),
        ("inner version", changed(Ipip, |f| f[34] = 0x65), Reception::InnerHeader),
        ("inner length", changed(Ipip, |f| f[37] += 1), Reception::InnerLength),
        ("to no VIP", changed(Gre, |f| f[57] = 101), Reception::NotAVip),
    ];
    let host = host(Settings::LISTED_ONLY);
    for (what, frame, expected) in cases {
        assert_eq!(receive(&host, &frame), (expected, frame), "{what}");
    }
}

#[test]
fn only_what_is_switched_on_is_terminated() {
    for (kind, _, _, tunnel) in tunnels() {
        let settings = match kind {
            Encapsulation::Ipip => Settings(Settings::GRE).with_gue(GUE_PORT),
            Encapsulation::Gre => Settings(Settings::IPIP).with_gue(GUE_PORT),
            Encapsulation::Gue => Settings(Settings::IPIP | Settings::GRE),
        };
        let other = Host { settings, ..host(0) };
        assert_eq!(receive(&other, &tunnel), (Reception::NotTunnel, tunnel), "{kind:?}");
    }
}

#[test]
fn fragments_pass_a_guard_only_from_a_listed_source() {
    let fragment = changed(Encapsulation::Ipip, |frame| frame[20] = 0x20);
    assert_eq!(receive(&host(Settings::GUARD), &fragment).0, Reception::FragmentUnlisted);
    let listed = host(Settings::GUARD | Settings::LISTED_ONLY);
    assert_eq!(receive(&listed, &fragment).0, Reception::Fragment);
    // The same over IPv6: a fragment header, which says what is in it.
    let frame = encapsulated(&plain(false, false, 0, b"data"), Encapsulation::Ipip, true);
    let mut fragment = frame.clone();
    fragment[20] = 44;
    fragment.splice(54..54, [4, 0, 0, 1, 0, 0, 0, 9]);
    assert_eq!(receive(&host(0), &fragment).0, Reception::Fragment);
}

#[test]
fn names_are_unique() {
    let names: BTreeSet<&str> = Reception::ALL.iter().map(|reception| reception.name()).collect();
    assert_eq!(names.len(), Reception::ALL.len());
}

proptest! {
    /// Whatever is done to a tunnel packet, what comes out is an IP packet to a VIP, as long as it says and no
    /// longer than what came in; what does not come out is unchanged.
    #[test]
    fn nothing_but_packets_to_vips_comes_out(
        which in any::<prop::sample::Index>(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        flags in 0_u32..4,
        fix in any::<bool>(),
    ) {
        let tunnels = tunnels();
        let mut frame = tunnels[which.index(tunnels.len())].3.clone();
        frame.extend(payload);
        for (at, value) in damage {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len() + 1));
        }
        if fix && frame.len() >= 34 && frame[12..15] == [8, 0, 0x45] {
            frame[24..26].fill(0);
            let sum = rfc_1071(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let host = host(flags << 3);
        let (reception, out) = receive(&host, &frame);
        if reception != Reception::Decapsulated {
            prop_assert_eq!(out, frame);
            return Ok(());
        }
        prop_assert!(out.len() < frame.len());
        let mut flow = FlowKey::default();
        let out = Elastic(out);
        let ethernet = Ethernet::parse(&out).expect("Ethernet");
        let inner = packet::parse_at::<0>(&out, ethernet.ethertype == 0x86dd, ethernet.len, &mut flow).expect("IP");
        prop_assert!(host.vips.contains(&flow.destination));
        prop_assert!(inner.length_holds(&out));
    }

    #[test]
    fn any_bytes_are_safe(frame in prop::collection::vec(any::<u8>(), 0..200), flags in 0_u32..32) {
        let _ = receive(&Host { settings: Settings(flags).with_gue(GUE_PORT), ..host(0) }, &frame);
    }
}
