use std::num::{NonZeroU8, NonZeroU32};

use proptest::prelude::*;

use super::{Diagnostic, Packet, State};
use crate::bfd::discard::Discard;

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
    let cases: [(&str, &[u8], Discard); 13] = [
        ("empty", &[], Discard::Truncated),
        ("one octet short", &CAPTURED[..23], Discard::Truncated),
        ("version 0", &with(0, 0x00), Discard::Version),
        ("version 2", &with(0, 0x40), Discard::Version),
        ("length below the minimum", &with(3, 23), Discard::LengthTooSmall),
        ("length below the minimum with A", &with(1, 0xc4), Discard::LengthTooSmall),
        ("length behind the end", &with(3, 25), Discard::LengthTooLarge),
        ("multiplier 0", &with(2, 0), Discard::ZeroMultiplier),
        ("multipoint", &with(1, 0xc1), Discard::Multipoint),
        ("my discriminator 0", &no_mine, Discard::ZeroMyDiscriminator),
        ("your discriminator 0 in Up", &no_yours, Discard::ZeroYourDiscriminator),
        ("your discriminator 0 in Init", &no_yours_in_init, Discard::ZeroYourDiscriminator),
        ("authentication", &authenticated, Discard::Authentication),
    ];
    for (what, octets, reason) in cases {
        assert_eq!(Packet::parse(octets), Err(reason), "{what}");
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
