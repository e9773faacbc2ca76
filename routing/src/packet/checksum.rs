//! The two checksums of OSPF: the internet checksum over packets (RFC 1071, RFC 2328 section D.4.1) and
//! the Fletcher checksum over LSAs (RFC 2328 section 12.1.7, ISO 8473).

/// Where the checksum sits in an LSA that starts after the age field.
const LSA_CHECKSUM_AT: usize = 14;

/// The internet checksum of `chunks`, as if they were joined. Every chunk but the last has even length.
#[must_use]
pub fn internet(chunks: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for chunk in chunks {
        for pair in chunk.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The running Fletcher sums (c0, c1) modulo 255 of `data`.
fn sums(data: impl Iterator<Item = u8>) -> (i64, i64) {
    data.fold((0, 0), |(c0, c1), byte| {
        let c0 = (c0 + i64::from(byte)) % 255;
        (c0, (c1 + c0) % 255)
    })
}

/// The value for the checksum field of an LSA. `without_age` is the LSA without its first two bytes; what
/// its checksum field holds does not matter. It must be at least 18 bytes long (a header).
#[must_use]
pub fn fletcher(without_age: &[u8]) -> u16 {
    let zeroed = without_age
        .iter()
        .enumerate()
        .map(|(at, byte)| if at == LSA_CHECKSUM_AT || at == LSA_CHECKSUM_AT + 1 { 0 } else { *byte });
    let (c0, c1) = sums(zeroed);
    let after = without_age.len() as i64 - LSA_CHECKSUM_AT as i64;
    // x and y make both sums of the whole zero: with n octets from the field to the end,
    // c0 + x + y = 0 and c1 + n x + (n - 1) y = 0 (mod 255).
    let x = ((after - 1) * c0 - c1).rem_euclid(255);
    let y = (c1 - after * c0).rem_euclid(255);
    let field = |value: i64| if value == 0 { 255 } else { value as u16 };
    (field(x) << 8) | field(y)
}

/// Whether the checksum of an LSA (given without its age) holds. Zero is not allowed (section 12.1.7).
#[must_use]
pub fn fletcher_holds(without_age: &[u8]) -> bool {
    let field = without_age.get(LSA_CHECKSUM_AT..LSA_CHECKSUM_AT + 2);
    field.is_some_and(|field| field != [0, 0]) && sums(without_age.iter().copied()) == (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn internet_checksum_of_rfc_1071_example() {
        assert_eq!(internet(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    proptest! {
        #[test]
        fn fletcher_verifies_what_it_wrote_and_sees_a_flipped_bit(
            mut data in proptest::collection::vec(any::<u8>(), 18..300), at in 0usize..300, bit in 0u8..8
        ) {
            let sum = fletcher(&data);
            data[14..16].copy_from_slice(&sum.to_be_bytes());
            prop_assert!(fletcher_holds(&data));
            let at = at % data.len();
            let before = data[at];
            data[at] ^= 1 << bit;
            // 0 and 255 are the same number modulo 255.
            prop_assume!(!matches!((before, data[at]), (0, 255) | (255, 0)));
            prop_assert!(!fletcher_holds(&data));
        }
    }
}
