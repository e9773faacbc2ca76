//! IPv4 (RFC 791, section 3.1).

use super::{Ethernet, Frame};

/// The fields of an IPv4 header that the data plane uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Length of the header in bytes: 20 to 60.
    pub header_len: usize,
    /// Length of the packet in bytes, header included, as it claims.
    pub total_len: u16,
    /// Time to live.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Header checksum as received.
    pub checksum: u16,
    /// Offset of this fragment in units of 8 bytes; 0 in a whole packet.
    pub fragment_offset: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Who sent it.
    pub source: [u8; 4],
    /// Who it is for.
    pub destination: [u8; 4],
}

/// Why there is no usable IPv4 header, so that its destination cannot be trusted either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4Error {
    /// The frame ends within the first 20 bytes.
    Short,
    /// The version is not 4.
    Version,
    /// The header claims to be shorter than 20 bytes.
    HeaderLength,
}

impl Ipv4 {
    /// Length of a header without options.
    pub const MIN_LEN: usize = 20;
    const START: usize = Ethernet::LEN;
    const TTL: usize = Self::START + 8;
    const CHECKSUM: usize = Self::START + 10;

    /// Offset of what follows the header, from the start of the frame.
    #[inline(always)]
    pub const fn payload_offset(&self) -> usize {
        Self::START.wrapping_add(self.header_len)
    }

    /// Bytes of the packet behind the header; `None` if its length is smaller than its header.
    #[inline(always)]
    pub fn payload_len(&self) -> Option<usize> {
        usize::from(self.total_len).checked_sub(self.header_len)
    }

    /// The packet is a fragment, first or later.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// Parses the header behind an Ethernet header. Lengths are checked by [`Self::length_fits`] and the sum
    /// by [`Self::checksum_holds`]: only a packet that concerns us pays for those.
    ///
    /// # Errors
    /// See [`Ipv4Error`].
    #[inline(always)]
    pub fn parse(frame: &impl Frame) -> Result<Self, Ipv4Error> {
        let header = frame.read::<{ Self::MIN_LEN }>(Self::START).ok_or(Ipv4Error::Short)?;
        let [version_ihl, _, l0, l1, _, _, f0, f1, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] =
            header;
        if version_ihl >> 4 != 4 {
            return Err(Ipv4Error::Version);
        }
        let header_len = usize::from(version_ihl & 0x0f).wrapping_mul(4);
        if header_len < Self::MIN_LEN {
            return Err(Ipv4Error::HeaderLength);
        }
        let fragment = u16::from_be_bytes([f0, f1]);
        Ok(Self {
            header_len,
            total_len: u16::from_be_bytes([l0, l1]),
            ttl,
            protocol,
            checksum: u16::from_be_bytes([c0, c1]),
            fragment_offset: fragment & 0x1fff,
            more_fragments: fragment & 0x2000 != 0,
            source: [s0, s1, s2, s3],
            destination: [d0, d1, d2, d3],
        })
    }

    /// The packet, as long as it claims to be, is within the frame. (Padding behind it is allowed.)
    #[inline(always)]
    pub fn length_fits(&self, frame: &impl Frame) -> bool {
        Self::START.wrapping_add(usize::from(self.total_len)) <= frame.len()
    }

    /// The header's checksum is right (RFC 1071): the sum over the whole header, options included, is -0.
    #[inline(always)]
    pub fn checksum_holds(&self, frame: &impl Frame) -> bool {
        let mut sum = 0_u32;
        for word in 0..15_usize {
            let offset = word.wrapping_mul(4);
            if offset >= self.header_len {
                break;
            }
            let Some([a, b, c, d]) = frame.read(Self::START.wrapping_add(offset)) else { return false };
            sum = sum.wrapping_add(u32::from(u16::from_be_bytes([a, b])));
            sum = sum.wrapping_add(u32::from(u16::from_be_bytes([c, d])));
        }
        // At most 30 words of 16 bits: two folds suffice.
        fold(fold(sum)) == 0xffff
    }

    /// Writes a time to live one less than `ttl` (which must not be 0), and the checksum that follows from
    /// it and from `checksum`, both as received (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')).
    #[inline(always)]
    pub fn emit_decremented_ttl(frame: &mut impl Frame, ttl: u8, checksum: u16) -> Option<()> {
        // The 16-bit word changes from m to m - 0x0100, so ~m + m' is -0x0100 = ~0x0100.
        let sum = fold(u32::from(!checksum).wrapping_add(u32::from(!0x0100_u16)));
        frame.write(Self::TTL, [ttl.wrapping_sub(1)])?;
        frame.write(Self::CHECKSUM, (!(sum as u16)).to_be_bytes())
    }
}

/// Adds the carries above 16 bits back in, once.
#[inline(always)]
const fn fold(sum: u32) -> u32 {
    (sum & 0xffff).wrapping_add(sum >> 16)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::super::Buffer;
    use super::*;

    /// RFC 1071, section 4.1, word for word, as the oracle.
    fn rfc_1071(header: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in header.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair[1]);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn frame_of(header: &[u8]) -> std::vec::Vec<u8> {
        let mut frame = std::vec![0_u8; Ethernet::LEN];
        frame.extend_from_slice(header);
        frame
    }

    proptest! {
        #[test]
        fn checksum_agrees_with_the_rfc_at_every_header_length(
            mut header in prop::collection::vec(any::<u8>(), 60), ihl in 5_u8..=15, flip in 0_usize..160,
        ) {
            header.truncate(usize::from(ihl) * 4);
            header[0] = 0x40 | ihl;
            header[10..12].fill(0);
            let sum = rfc_1071(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut frame = frame_of(&header);
            let ipv4 = Ipv4::parse(&Buffer(&mut frame)).expect("valid header");
            prop_assert!(ipv4.checksum_holds(&Buffer(&mut frame)));
            // One flipped bit behind the first byte never goes unnoticed.
            let bit = 8 + flip % (header.len() * 8 - 8);
            frame[Ethernet::LEN + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!ipv4.checksum_holds(&Buffer(&mut frame)));
        }

        #[test]
        fn decremented_ttl_keeps_the_checksum_right(mut header: [u8; 20], ttl in 1_u8..) {
            header[0] = 0x45;
            header[8] = ttl;
            header[10..12].fill(0);
            let sum = rfc_1071(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut frame = frame_of(&header);
            Ipv4::emit_decremented_ttl(&mut Buffer(&mut frame), ttl, sum).expect("long enough");
            let after = Ipv4::parse(&Buffer(&mut frame)).expect("valid header");
            prop_assert_eq!(after.ttl, ttl - 1);
            prop_assert!(after.checksum_holds(&Buffer(&mut frame)));
            prop_assert_eq!((after.source, after.destination), {
                let before = Ipv4::parse(&Buffer(&mut frame_of(&header))).expect("valid header");
                (before.source, before.destination)
            });
        }
    }
}
