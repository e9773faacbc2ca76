use std::num::{NonZeroU8, NonZeroU32};

use proptest::prelude::*;

use super::{Diagnostic, Packet, State};
use crate::bfd::discard::Discard;
use crate::packet::tests::{Frame, captures, frames};

/// The first packet of a public capture of two routers (single hop, Up, 300 ms x 3).
const CAPTURED: [u8; 24] = [
    0x20, 0xc0, 0x03, 0x18, 0x74, 0x29, 0xab, 0xf9, 0xd4, 0x3a, 0x40, 0xc1, 0x00, 0x04, 0x93, 0xe0, 0x00,
    0x04, 0x93, 0xe0, 0x00, 0x04, 0x93, 0xe0,
];

/// `CAPTURED` with one octet replaced.
fn with(at: usize, octet: u8) -> [u8; 24] {
    let mut octets = CAPTURED;
    octets[at] = octet;
    octets
}

#[test]
fn captured_packet_reads_as_its_sender_meant_it() {
    let packet = Packet::parse(&CAPTURED).unwrap();
    let expected = Packet {
        diagnostic: Diagnostic::NONE,
        state: State::Up,
        poll: false,
        final_: false,
        control_plane_independent: false,
        demand: false,
        multiplier: NonZeroU8::new(3).unwrap(),
        my_discriminator: NonZeroU32::new(0x7429_abf9).unwrap(),
        your_discriminator: 0xd43a_40c1,
        desired_min_tx: 300_000,
        required_min_rx: 300_000,
        required_min_echo_rx: 300_000,
    };
    assert_eq!(packet, expected);
    assert_eq!(packet.emit(), CAPTURED);
}

/// A sentence, packets that break it, and the name of that.
type Rule<'a> = (&'a str, &'a [(&'a str, &'a [u8])], Discard);

/// The list of RFC 5880 section 6.8.6 as far as it needs no session, sentence by sentence.
#[test]
fn each_broken_rule_is_refused_by_its_name() {
    let mut no_mine = CAPTURED;
    no_mine[4..8].fill(0);
    let mut no_yours = CAPTURED;
    no_yours[8..12].fill(0);
    let mut no_yours_in_init = no_yours;
    no_yours_in_init[1] = 0x80;
    let mut authenticated = with(1, 0xc4).to_vec();
    authenticated[3] = 26;
    authenticated.extend([1, 2]);
    let cases: [Rule<'_>; 9] = [
        (
            "(the mandatory section is 24 octets, section 4.1)",
            &[("empty", &[]), ("one octet short", &CAPTURED[..23])],
            Discard::Truncated,
        ),
        (
            "If the version number is not correct (1), the packet MUST be discarded.",
            &[("version 0", &with(0, 0x00)), ("version 2", &with(0, 0x40)), ("version 7", &with(0, 0xe0))],
            Discard::Version,
        ),
        (
            "If the Length field is less than the minimum correct value (24 if the A bit is clear, or 26 if the A \
             bit is set), the packet MUST be discarded.",
            &[("23", &with(3, 23)), ("0", &with(3, 0)), ("24 with the A bit", &with(1, 0xc4))],
            Discard::LengthTooSmall,
        ),
        (
            "If the Length field is greater than the payload of the encapsulating protocol, the packet MUST be \
             discarded.",
            &[("25", &with(3, 25)), ("255", &with(3, 255))],
            Discard::LengthTooLarge,
        ),
        (
            "If the Detect Mult field is zero, the packet MUST be discarded.",
            &[("zero", &with(2, 0))],
            Discard::ZeroMultiplier,
        ),
        (
            "If the Multipoint (M) bit is nonzero, the packet MUST be discarded.",
            &[("set", &with(1, 0xc1))],
            Discard::Multipoint,
        ),
        (
            "If the My Discriminator field is zero, the packet MUST be discarded.",
            &[("zero", &no_mine)],
            Discard::ZeroMyDiscriminator,
        ),
        (
            "If the Your Discriminator field is zero and the State field is not Down or AdminDown, the packet MUST \
             be discarded.",
            &[("in Up", &no_yours), ("in Init", &no_yours_in_init)],
            Discard::ZeroYourDiscriminator,
        ),
        (
            "If the A bit is set and no authentication is in use (bfd.AuthType is zero), the packet MUST be \
             discarded.",
            &[("26 octets", &authenticated)],
            Discard::Authentication,
        ),
    ];
    for (sentence, packets, reason) in cases {
        for (what, octets) in packets {
            assert_eq!(Packet::parse(octets), Err(reason), "{sentence}: {what}");
        }
    }
}

#[test]
fn your_discriminator_may_be_unknown_while_the_sender_is_down() {
    for state in [State::Down, State::AdminDown] {
        let mut octets = with(1, (state as u8) << 6);
        octets[8..12].fill(0);
        assert_eq!(Packet::parse(&octets).unwrap().state, state);
    }
}

/// UDP payloads over IPv4 of a capture file, by destination port.
fn datagrams(file: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let datagram = |frame: &Frame| {
        let ip = frame.network(0x0800)?;
        let udp = ip.get(usize::from(ip[0] & 15) * 4..).filter(|_| ip[9] == 17)?;
        let word = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        Some((word(2), udp[8..usize::from(word(4))].to_vec()))
    };
    frames(file).iter().filter_map(datagram).collect()
}

/// What other implementations send, byte for byte: over one hop and several, over a member of a bundle (RFC 7130), and
/// with authentication, which is refused by its name.
#[test]
fn captured_packets_round_trip_byte_for_byte() {
    let Some(files) = captures() else { return };
    let mut seen = Vec::new();
    for (path, file) in files {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if !name.starts_with("bfd-") {
            continue;
        }
        let (mut accepted, mut refused) = (0, 0);
        for (port, octets) in datagrams(&file) {
            assert!([3784, 4784, 6784].contains(&port), "{name}: port {port}");
            match Packet::parse(&octets) {
                Ok(packet) => {
                    assert_eq!(packet.emit()[..], octets[..], "{name}");
                    accepted += 1;
                }
                Err(Discard::Authentication) => refused += 1,
                Err(other) => panic!("{name}: {other}: {octets:02x?}"),
            }
        }
        seen.push((name, accepted, refused));
    }
    seen.sort();
    let expected = [("bfd-lag.pcap", 5, 0), ("bfd-multihop.pcap", 40, 0), ("bfd-raw-auth-md5.pcap", 0, 31)];
    assert_eq!(seen, expected.map(|(name, accepted, refused)| (name.to_owned(), accepted, refused)));
}

#[test]
fn octets_behind_the_length_are_not_part_of_the_packet() {
    let mut padded = CAPTURED.to_vec();
    padded.extend([0xff; 22]);
    assert_eq!(Packet::parse(&padded), Packet::parse(&CAPTURED));
}

proptest! {
    #[test]
    fn parse_is_the_inverse_of_emit_over_the_full_width(
        diagnostic in 0u8..32, state in 0u8..4, flags in any::<[bool; 4]>(), multiplier in 1u8..,
        discriminators in (1u32.., 1u32..), intervals in any::<[u32; 3]>(),
    ) {
        let packet = Packet {
            diagnostic: Diagnostic::from_bits(diagnostic),
            state: State::from_bits(state),
            poll: flags[0],
            final_: flags[1],
            control_plane_independent: flags[2],
            demand: flags[3],
            multiplier: NonZeroU8::new(multiplier).unwrap(),
            my_discriminator: NonZeroU32::new(discriminators.0).unwrap(),
            your_discriminator: discriminators.1,
            desired_min_tx: intervals[0],
            required_min_rx: intervals[1],
            required_min_echo_rx: intervals[2],
        };
        prop_assert_eq!(packet.diagnostic.code(), diagnostic);
        prop_assert_eq!(packet.state as u8, state);
        prop_assert_eq!(Packet::parse(&packet.emit()), Ok(packet));
    }

    #[test]
    fn what_is_accepted_is_written_back_unchanged(octets in any::<[u8; 24]>()) {
        // Version, Length and the A and M bits are right so that most cases are accepted.
        let mut octets = octets;
        octets[0] = octets[0] & 0x1f | 0x20;
        octets[1] &= !0x05;
        octets[3] = 24;
        if let Ok(packet) = Packet::parse(&octets) {
            prop_assert_eq!(packet.emit(), octets);
        }
    }

    #[test]
    fn no_input_panics(octets in prop::collection::vec(any::<u8>(), 0..64)) {
        let _verdict = Packet::parse(&octets);
    }
}
