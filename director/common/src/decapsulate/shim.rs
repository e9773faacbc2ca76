//! What stands between the outer IP header and the inner packet, if anything.

use super::Reception;
use crate::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, LEN_GRE, LEN_GUE, LEN_UDP, PROTOCOL_IPV4, PROTOCOL_IPV6,
};

/// Where the inner packet is, and what it is announced as.
#[derive(Clone, Copy)]
pub(super) struct Inner {
    /// Offset of its header.
    pub(super) start: usize,
    /// 1 for IPv6, 0 for IPv4: a number, that the verifier can be made to forget.
    pub(super) is_v6: usize,
}

/// The inner packet behind the GRE header at `at` (RFC 2784, section 2.1), which has `len` bytes with all behind it.
#[inline(always)]
pub(super) fn parse_gre(frame: &impl Frame, at: usize, len: usize) -> Result<Inner, Reception> {
    if len < LEN_GRE {
        return Err(Reception::OuterLength);
    }
    let [flags, version, e0, e1] = frame.read(at).ok_or(Reception::OuterLength)?;
    if flags | version != 0 {
        return Err(Reception::GreOptions);
    }
    let is_v6 = match u16::from_be_bytes([e0, e1]) {
        ETHERTYPE_IPV4 => 0,
        ETHERTYPE_IPV6 => 1,
        _ => return Err(Reception::InnerProtocol),
    };
    Ok(Inner { start: at.wrapping_add(LEN_GRE), is_v6 })
}

/// The inner packet behind the UDP header at `at` and the GUE header behind that (draft-ietf-intarea-gue-09, section
/// 3.1), which have `len` bytes with all behind them.
#[inline(always)]
pub(super) fn parse_gue(frame: &impl Frame, at: usize, len: usize) -> Result<Inner, Reception> {
    if len < LEN_UDP + LEN_GUE {
        return Err(Reception::UdpLength);
    }
    // UDP's length and checksum; variant, control flag and header length in one; what is inside; flags.
    let [l0, l1, c0, c1, head, protocol, f0, f1] =
        frame.read(at.wrapping_add(4)).ok_or(Reception::UdpLength)?;
    if usize::from(u16::from_be_bytes([l0, l1])) != len {
        return Err(Reception::UdpLength);
    }
    if c0 | c1 != 0 {
        return Err(Reception::UdpChecksum);
    }
    if head | f0 | f1 != 0 {
        return Err(Reception::GueOptions);
    }
    let is_v6 = match protocol {
        PROTOCOL_IPV4 => 0,
        PROTOCOL_IPV6 => 1,
        _ => return Err(Reception::InnerProtocol),
    };
    Ok(Inner { start: at.wrapping_add(LEN_UDP + LEN_GUE), is_v6 })
}
