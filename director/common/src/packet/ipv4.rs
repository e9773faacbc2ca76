//! IPv4 (RFC 791, section 3.1).

use super::Frame;
use super::ip::Ip;
use crate::tables::{Address, FlowKey};
use crate::verdict::PassReason;

/// Length of a header without options in bytes.
pub(super) const LEN: usize = 20;
const TTL: usize = 8;
const CHECKSUM: usize = 10;

/// Parses the header at `start`, which may have options.
#[inline(always)]
pub(super) fn parse(frame: &impl Frame, start: usize, flow: &mut FlowKey) -> Result<Ip, PassReason> {
    let header = frame.read::<LEN>(start).ok_or(PassReason::ShortHeader)?;
    let [version_ihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        header;
    if version_ihl >> 4 != 4 {
        return Err(PassReason::BadVersion);
    }
    let header_len = usize::from(version_ihl & 0x0f).wrapping_mul(4);
    if header_len < LEN {
        return Err(PassReason::BadHeaderLength);
    }
    flow.source = Address::from_ipv4([s0, s1, s2, s3]);
    flow.destination = Address::from_ipv4([d0, d1, d2, d3]);
    let fragment = u16::from_be_bytes([f0, f1]);
    Ok(Ip {
        version: 4,
        start,
        payload: start.wrapping_add(header_len),
        total_len: usize::from(u16::from_be_bytes([l0, l1])),
        hop_limit: ttl,
        traffic_class: tos,
        protocol,
        fragment_offset: fragment & 0x1fff,
        more_fragments: fragment & 0x2000 != 0,
        dont_fragment: fragment & 0x4000 != 0,
        identification: u32::from(u16::from_be_bytes([i0, i1])),
        broken: None,
    })
}

/// The checksum of the header of `header_len` bytes at `start` is right (RFC 1071): the sum over all of it,
/// options included, is -0.
#[inline(always)]
pub(super) fn checksum_holds(frame: &impl Frame, start: usize, header_len: usize) -> bool {
    // Words of 32 bits in the machine's order: the sum does not depend on either (RFC 1071, section 2), and the part
    // that every header has is within the frame or not as a whole.
    let Some(fixed) = frame.read::<LEN>(start) else { return false };
    let mut sum = 0_u64;
    for word in fixed.as_chunks::<4>().0 {
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    }
    for word in LEN / 4..15_usize {
        let offset = word.wrapping_mul(4);
        if offset >= header_len {
            break;
        }
        let Some(bytes) = frame.read(start.wrapping_add(offset)) else { return false };
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(bytes)));
    }
    folded(sum) == 0xffff
}

/// The 16-bit sum that this sum of at most 15 words of 32 bits stands for.
#[inline(always)]
pub(crate) const fn folded(sum: u64) -> u16 {
    // 36 bits, then 18 or fewer, then 17, then 16.
    let sum = (sum & 0xffff).wrapping_add((sum >> 16) & 0xffff).wrapping_add(sum >> 32) as u32;
    fold(fold(sum)) as u16
}

/// Writes a time to live of `new` instead of `old`, and the checksum that follows from that and from the one that is
/// there: addresses may have changed by now (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')).
#[inline(always)]
pub(super) fn emit_ttl(frame: &mut impl Frame, start: usize, (old, new): (u8, u8)) -> Option<()> {
    frame.write(start.wrapping_add(TTL), [new])?;
    let at = start.wrapping_add(CHECKSUM);
    let checksum = u16::from_be_bytes(frame.read(at)?);
    frame.write(at, checksum_for_ttl(checksum, old, new).to_be_bytes())
}

/// The checksum of a header with a time to live of `new`, which had `checksum` with `old`.
#[inline(always)]
pub(crate) const fn checksum_for_ttl(checksum: u16, old: u8, new: u8) -> u16 {
    // The other half of the 16-bit word is the protocol: its share of ~m + m' is -0.
    let change = (!((old as u16) << 8) as u32).wrapping_add((new as u32) << 8);
    !(fold(fold((!checksum as u32).wrapping_add(change))) as u16)
}

/// Exchanges the addresses, which no checksum notices.
#[inline(always)]
pub(super) fn emit_swapped(frame: &mut impl Frame, start: usize) -> Option<()> {
    let [s0, s1, s2, s3, d0, d1, d2, d3] = frame.read(start.wrapping_add(12))?;
    frame.write(start.wrapping_add(12), [d0, d1, d2, d3, s0, s1, s2, s3])
}

/// Adds the carries above 16 bits back in, once.
#[inline(always)]
pub(crate) const fn fold(sum: u32) -> u32 {
    (sum & 0xffff).wrapping_add(sum >> 16)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::super::{Buffer, Ethernet};
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

    fn parsed(frame: &mut [u8]) -> Ip {
        parse(&Buffer(frame), Ethernet::LEN, &mut FlowKey::default()).expect("valid header")
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
            prop_assert!(parsed(&mut frame).checksum_holds(&Buffer(&mut frame)));
            // One flipped bit behind the first byte never goes unnoticed.
            let bit = 8 + flip % (header.len() * 8 - 8);
            frame[Ethernet::LEN + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!checksum_holds(&Buffer(&mut frame), Ethernet::LEN, header.len()));
        }

        #[test]
        fn decremented_ttl_keeps_the_checksum_right(mut header: [u8; 20], ttl in 1_u8..) {
            header[0] = 0x45;
            header[8] = ttl;
            header[10..12].fill(0);
            let sum = rfc_1071(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut frame = frame_of(&header);
            parsed(&mut frame).emit_decremented_hop_limit(&mut Buffer(&mut frame)).expect("long enough");
            prop_assert_eq!(parsed(&mut frame).hop_limit, ttl - 1);
            prop_assert!(parsed(&mut frame).checksum_holds(&Buffer(&mut frame)));
            let (before, after) = (frame_of(&header), frame);
            prop_assert_eq!(&before[..22], &after[..22]);
            prop_assert_eq!(&before[26..], &after[26..]);
        }
    }
}
