//! Network address translation (RFC 3022): one end of a packet becomes another, and checksums follow by what changed
//! (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')), so that a packet which was damaged before stays recognisably so.
//!
//! - A later fragment has an address only: what its ports and addresses mean to the checksum is in the first one.
//! - A checksum of UDP that is 0 says that there is none, and stays (RFC 768); one that becomes 0 is written as ffff.
//! - In an ICMP error the packet that it is about went the other way: there it is the other end that changes (RFC
//!   5508, section 4.2), and of its checksum what the error shows.
//!
//! Sums are of words in the machine's order, which makes no difference (RFC 1071, section 2 B).

use super::ipv4::folded;
use super::{Frame, Ip, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::tables::Address;

/// Header checksum, from the start of an IPv4 header.
const HEADER_CHECKSUM: usize = 10;
/// Protocol, from the start of an IPv4 header.
const PROTOCOL_V4: usize = 9;
/// Next header, from the start of an IPv6 header.
const NEXT_HEADER: usize = 6;
const LEN_V6: usize = 40;
/// Length of the header of an ICMP error.
const LEN_ICMP: usize = 8;
/// Checksum, from the start of an ICMP message.
const ICMP_CHECKSUM: usize = 2;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// One of the two ends that a packet names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Whom it comes from.
    Source,
    /// Whom it goes to.
    Destination,
}

impl End {
    const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// Where the address is, from the start of the IP header.
    #[inline(always)]
    const fn address(self, is_v6: bool) -> usize {
        match (self, is_v6) {
            (Self::Source, false) => 12,
            (Self::Destination, false) => 16,
            (Self::Source, true) => 8,
            (Self::Destination, true) => 24,
        }
    }

    /// Where the port is, from the start of the transport header.
    #[inline(always)]
    const fn port(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 2,
        }
    }
}

/// What one end of a packet becomes.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a> {
    /// Which end.
    pub end: End,
    /// The new address, of the packet's family.
    pub address: &'a Address,
    /// The new port; 0 leaves it.
    pub port: u16,
}

impl Translation<'_> {
    /// Rewrites the packet whose header is `ip`. Where that is an ICMP error, `inner` is the offset of the transport
    /// header of the packet it is about, else 0. `None` if the frame is not the one `ip` was parsed of; part of it
    /// may have changed then.
    #[inline(always)]
    pub fn emit(&self, frame: &mut impl Frame, ip: &Ip, inner: usize) -> Option<()> {
        if inner != 0 {
            return self.emit_related(frame, ip, inner);
        }
        let mut change = self.emit_address(frame, ip.is_v6(), ip.start, self.end)?;
        if ip.fragment_offset != 0 {
            return Some(());
        }
        change = change.wrapping_add(self.emit_port(frame, ip.payload, self.end)?);
        let checksum = checksum_of(ip.protocol)?;
        emit_transport_checksum(frame, ip.payload.wrapping_add(checksum), ip.protocol, change)?;
        Some(())
    }

    /// Rewrites an ICMP error. Its own end is replaced where it is the one that the packet within names: a router on
    /// the way speaks for itself.
    #[inline(always)]
    fn emit_related(&self, frame: &mut impl Frame, ip: &Ip, inner: usize) -> Option<()> {
        let (is_v6, within, end) = (ip.is_v6(), self.end.other(), ip.start.wrapping_add(ip.total_len));
        let shown = ip.payload.wrapping_add(LEN_ICMP);
        let mut change = 0;
        if is_same(
            frame,
            is_v6,
            ip.start.wrapping_add(self.end.address(is_v6)),
            shown.wrapping_add(within.address(is_v6)),
        )? {
            let outer = self.emit_address(frame, is_v6, ip.start, self.end)?;
            // Only the checksum of ICMPv6 has the addresses in it (RFC 4443, section 2.3).
            change = if is_v6 { outer } else { 0 };
        }
        let address = self.emit_address(frame, is_v6, shown, within)?;
        // An IPv4 header's sum is the same as before: its checksum has taken up the change.
        change = change.wrapping_add(if is_v6 { address } else { 0 });
        let port = self.emit_port(frame, inner, within)?;
        change = change.wrapping_add(port);
        let protocol = protocol_within(frame, is_v6, shown, inner)?;
        let at = inner.wrapping_add(checksum_of(protocol)?);
        if at.wrapping_add(2) <= end {
            let inside = emit_transport_checksum(frame, at, protocol, address.wrapping_add(port))?;
            change = change.wrapping_add(inside);
        }
        let at = ip.payload.wrapping_add(ICMP_CHECKSUM);
        let checksum = adjusted(frame.read(at)?, change);
        frame.write(at, checksum)
    }

    /// Replaces an end's address in the IP header at `start`, with the header's checksum if it has one; what changes
    /// in a sum over the addresses.
    #[inline(always)]
    fn emit_address(&self, frame: &mut impl Frame, is_v6: bool, start: usize, end: End) -> Option<u64> {
        let at = start.wrapping_add(end.address(is_v6));
        let mut change = 0;
        if is_v6 {
            let old = Address(frame.read(at)?);
            frame.write(at, self.address.0)?;
            let ([a, b, c, d], [e, f, g, h]) = (old.words(), self.address.words());
            for (old, new) in [(a, e), (b, f), (c, g), (d, h)] {
                change = change_of(change, old, new);
            }
            return Some(change);
        }
        let (old, new) = (frame.read(at)?, self.address.low());
        frame.write(at, new)?;
        change = change_of(change, u32::from_ne_bytes(old), u32::from_ne_bytes(new));
        let at = start.wrapping_add(HEADER_CHECKSUM);
        let checksum = adjusted(frame.read(at)?, change);
        frame.write(at, checksum)?;
        Some(change)
    }

    /// Replaces an end's port in the transport header at `start`; what changes in a sum over it.
    #[inline(always)]
    fn emit_port(&self, frame: &mut impl Frame, start: usize, end: End) -> Option<u64> {
        if self.port == 0 {
            return Some(0);
        }
        let at = start.wrapping_add(end.port());
        let (old, new) = (frame.read(at)?, self.port.to_be_bytes());
        frame.write(at, new)?;
        Some(change_of_half(old, new))
    }
}

/// Whether the addresses at both places are the same.
#[inline(always)]
fn is_same(frame: &impl Frame, is_v6: bool, one: usize, other: usize) -> Option<bool> {
    if is_v6 {
        let ([a, b, c, d], [e, f, g, h]) =
            (Address(frame.read(one)?).words(), Address(frame.read(other)?).words());
        return Some((a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0);
    }
    let (one, other): ([u8; 4], [u8; 4]) = (frame.read(one)?, frame.read(other)?);
    Some(u32::from_ne_bytes(one) == u32::from_ne_bytes(other))
}

/// The protocol of the packet that an ICMP error shows, whose IP header is at `start` and transport header at `inner`:
/// one extension header may be between (see [`icmp::parse_inner`](super::icmp::parse_inner)).
#[inline(always)]
fn protocol_within(frame: &impl Frame, is_v6: bool, start: usize, inner: usize) -> Option<u8> {
    let first = start.wrapping_add(LEN_V6);
    let at = match is_v6 {
        false => start.wrapping_add(PROTOCOL_V4),
        true if inner == first => start.wrapping_add(NEXT_HEADER),
        true => first,
    };
    let [protocol] = frame.read(at)?;
    Some(protocol)
}

/// Where the checksum is, from the start of the transport header.
#[inline(always)]
const fn checksum_of(protocol: u8) -> Option<usize> {
    match protocol {
        PROTOCOL_TCP => Some(TCP_CHECKSUM),
        PROTOCOL_UDP => Some(UDP_CHECKSUM),
        _ => None,
    }
}

/// Makes the transport checksum at `at` follow a change; what that changes in a sum over it.
#[inline(always)]
fn emit_transport_checksum(frame: &mut impl Frame, at: usize, protocol: u8, change: u64) -> Option<u64> {
    let old = frame.read(at)?;
    let is_udp = protocol == PROTOCOL_UDP;
    if is_udp && old == [0; 2] {
        return Some(0);
    }
    let mut new = adjusted(old, change);
    if is_udp && new == [0; 2] {
        new = [0xff; 2];
    }
    frame.write(at, new)?;
    Some(change_of_half(old, new))
}

/// `change` and what a word that becomes another adds to it.
#[inline(always)]
const fn change_of(change: u64, old: u32, new: u32) -> u64 {
    change.wrapping_add(!old as u64).wrapping_add(new as u64)
}

/// As [`change_of`], of a word of 16 bits alone.
#[inline(always)]
const fn change_of_half(old: [u8; 2], new: [u8; 2]) -> u64 {
    (!u16::from_ne_bytes(old) as u64).wrapping_add(u16::from_ne_bytes(new) as u64)
}

/// A checksum after a change in what it is of.
#[inline(always)]
const fn adjusted(checksum: [u8; 2], change: u64) -> [u8; 2] {
    (!folded((!u16::from_ne_bytes(checksum) as u64).wrapping_add(change))).to_ne_bytes()
}

#[cfg(test)]
mod tests;
