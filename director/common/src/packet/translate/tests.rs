//! Translated packets against sums worked out over the whole of them (RFC 1071, section 4.1).

extern crate std;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::icmp::parse_inner;
use super::super::{Buffer, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet};
use super::*;
use crate::tables::FlowKey;

fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Addresses of one family; the first byte keeps them from being of the other.
#[derive(Clone, Debug)]
struct Ends {
    is_v6: bool,
    source: [u8; 16],
    destination: [u8; 16],
}

impl Ends {
    fn bytes(&self, address: &[u8; 16]) -> Vec<u8> {
        if self.is_v6 { address.to_vec() } else { address[12..].to_vec() }
    }

    fn swapped(&self) -> Self {
        Self { source: self.destination, destination: self.source, ..self.clone() }
    }
}

fn pseudo(ends: &Ends, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = [ends.bytes(&ends.source), ends.bytes(&ends.destination)].concat();
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// A transport header with its data and a right checksum, unless it is UDP's and is to have none.
fn transport(ends: &Ends, protocol: u8, ports: [u16; 2], data: &[u8], without: bool) -> Vec<u8> {
    let mut bytes = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    let at = if protocol == PROTOCOL_TCP {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 1, 0, 0, 0, 0]);
        TCP_CHECKSUM
    } else {
        bytes.extend((8 + data.len() as u16).to_be_bytes());
        bytes.extend([0, 0]);
        UDP_CHECKSUM
    };
    bytes.extend(data);
    if !without {
        let whole = [pseudo(ends, protocol, bytes.len()), bytes.clone()].concat();
        let checksum = match !sum(&whole) {
            0 if protocol == PROTOCOL_UDP => 0xffff,
            checksum => checksum,
        };
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

fn packet(ends: &Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if ends.is_v6 {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([protocol, 64]);
    } else {
        bytes.extend([0x45, 0]);
        bytes.extend((20 + payload.len() as u16).to_be_bytes());
        bytes.extend([1, 2, 0x40, 0, 64, protocol, 0, 0]);
    }
    bytes.extend(ends.bytes(&ends.source));
    bytes.extend(ends.bytes(&ends.destination));
    if !ends.is_v6 {
        let checksum = !sum(&bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn icmp(ends: &Ends, shown: &[u8]) -> Vec<u8> {
    let (protocol, kind) = if ends.is_v6 { (58, 1) } else { (1, 3) };
    let mut message = [&[kind, 1, 0, 0, 0, 0, 0, 0], shown].concat();
    let mut whole = if ends.is_v6 { pseudo(ends, protocol, message.len()) } else { Vec::new() };
    whole.extend(&message);
    let checksum = !sum(&whole);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet(ends, protocol, &message)
}

fn framed(ends: &Ends, packet: &[u8]) -> Vec<u8> {
    let ethertype = if ends.is_v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    [&[2; 12], &ethertype.to_be_bytes()[..], packet].concat()
}

fn parsed(frame: &mut [u8]) -> (Ip, FlowKey) {
    let mut flow = FlowKey::default();
    let frame = Buffer(frame);
    let ethernet = Ethernet::parse(&frame).expect("a header");
    (Ip::parse(&frame, &ethernet, &mut flow).expect("a packet"), flow)
}

fn mapped(ends: &Ends, address: &[u8; 16]) -> Address {
    let [.., a, b, c, d] = *address;
    if ends.is_v6 { Address(*address) } else { Address::from_ipv4([a, b, c, d]) }
}

/// The same ends with one replaced.
fn changed(ends: &Ends, end: End, new: [u8; 16]) -> Ends {
    match end {
        End::Source => Ends { source: new, ..ends.clone() },
        End::Destination => Ends { destination: new, ..ends.clone() },
    }
}

fn changed_ports([source, destination]: [u16; 2], end: End, new: u16) -> [u16; 2] {
    match end {
        _ if new == 0 => [source, destination],
        End::Source => [new, destination],
        End::Destination => [source, new],
    }
}

prop_compose! {
    fn any_ends()(is_v6: bool, mut source: [u8; 16], mut destination: [u8; 16]) -> Ends {
        (source[0], destination[0]) = (0x20, 0x20);
        Ends { is_v6, source, destination }
    }
}

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Source), Just(End::Destination)]
}

fn any_protocol() -> impl Strategy<Value = u8> {
    prop_oneof![Just(PROTOCOL_TCP), Just(PROTOCOL_UDP)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_translated_packet_is_the_one_that_its_new_end_would_have_had(
        ends in any_ends(), end in any_end(), protocol in any_protocol(), ports: [u16; 2], without: bool,
        data in prop::collection::vec(any::<u8>(), 0..40), mut new: [u8; 16], port: u16,
    ) {
        new[0] = 0x20;
        let without = without && protocol == PROTOCOL_UDP;
        let payload = transport(&ends, protocol, ports, &data, without);
        let mut frame = framed(&ends, &packet(&ends, protocol, &payload));
        let (ip, _) = parsed(&mut frame);
        let address = mapped(&ends, &new);
        let translation = Translation { end, address: &address, port };
        translation.emit(&mut Buffer(&mut frame), &ip, 0).expect("long enough");
        let to = changed(&ends, end, new);
        let payload = transport(&to, protocol, changed_ports(ports, end, port), &data, without);
        prop_assert_eq!(frame, framed(&to, &packet(&to, protocol, &payload)));
    }

    #[test]
    fn an_error_shows_what_was_sent_by_the_new_end(
        ends in any_ends(), end in any_end(), protocol in any_protocol(), ports: [u16; 2], without: bool,
        data in prop::collection::vec(any::<u8>(), 0..40), mut new: [u8; 16], port: u16,
        shown in 8_usize..60, router: bool, from in 0_usize..16,
    ) {
        new[0] = 0x20;
        let without = without && protocol == PROTOCOL_UDP;
        // Of a checksum cut in two neither half is looked at.
        let shown = if shown == TCP_CHECKSUM + 1 { shown + 1 } else { shown };
        // What an error to or from `ends` is about went the other way.
        let about = |ends: &Ends, ports: [u16; 2]| {
            let back = ends.swapped();
            let payload = transport(&back, protocol, [ports[1], ports[0]], &data, without);
            let whole = packet(&back, protocol, &payload);
            let header = whole.len() - payload.len();
            whole[..whole.len().min(header + shown)].to_vec()
        };
        // The other end may be a router that is on the way; so may the source, which is nobody's then.
        let mut outer = ends.clone();
        if router || end == End::Destination {
            outer.source[from.max(12)] ^= 0x5a;
        }
        let keeps = outer.source != ends.source && end == End::Source;
        let mut frame = framed(&outer, &icmp(&outer, &about(&ends, ports)));
        let (ip, mut flow) = parsed(&mut frame);
        let inner = parse_inner(&Buffer(&mut frame), &ip, &mut flow).expect("readable");
        let address = mapped(&ends, &new);
        let translation = Translation { end, address: &address, port };
        translation.emit(&mut Buffer(&mut frame), &ip, inner.payload).expect("long enough");
        let to = if keeps { outer.clone() } else { changed(&outer, end, new) };
        let shown = about(&changed(&ends, end, new), changed_ports(ports, end, port));
        prop_assert_eq!(frame, framed(&to, &icmp(&to, &shown)));
    }
}

/// All sums that a checksum can be of: the one that would come out as 0 included.
#[test]
fn a_checksum_of_udp_that_becomes_zero_is_written_as_ones() {
    let ends = Ends { is_v6: false, source: [0x20; 16], destination: [0x21; 16] };
    let mut seen = 0;
    for port in 1..=u16::MAX {
        let payload = transport(&ends, PROTOCOL_UDP, [7, 9], &[1, 2], false);
        let mut frame = framed(&ends, &packet(&ends, PROTOCOL_UDP, &payload));
        let (ip, _) = parsed(&mut frame);
        let address = mapped(&ends, &ends.destination);
        let translation = Translation { end: End::Destination, address: &address, port };
        translation.emit(&mut Buffer(&mut frame), &ip, 0).expect("long enough");
        let checksum = [frame[ip.payload + UDP_CHECKSUM], frame[ip.payload + UDP_CHECKSUM + 1]];
        assert_ne!(checksum, [0; 2]);
        seen += u32::from(checksum == [0xff; 2]);
        let whole = [pseudo(&ends, PROTOCOL_UDP, payload.len()), frame[ip.payload..].to_vec()].concat();
        assert_eq!(sum(&whole), 0xffff, "port {port}");
    }
    assert_eq!(seen, 1);
}

#[test]
fn a_later_fragment_changes_in_its_address_only() {
    let ends = Ends { is_v6: false, source: [0x20; 16], destination: [0x21; 16] };
    let mut frame = framed(&ends, &packet(&ends, PROTOCOL_TCP, &[7; 40]));
    let (ip, _) = parsed(&mut frame);
    let ip = Ip { fragment_offset: 100, ..ip };
    let new = [0x77; 16];
    let address = mapped(&ends, &new);
    let translation = Translation { end: End::Source, address: &address, port: 99 };
    translation.emit(&mut Buffer(&mut frame), &ip, 0).expect("long enough");
    let to = changed(&ends, End::Source, new);
    assert_eq!(frame, framed(&to, &packet(&to, PROTOCOL_TCP, &[7; 40])));
}
