//! The headers in front of a packet in a tunnel: IP in IP (RFC 2003, RFC 2473, RFC 4213), GRE (RFC 2784) and
//! generic UDP encapsulation (draft-ietf-intarea-gue-09, variant 0), each in both families and over both.
//!
//! - DSCP is copied, and so is ECN: the normal mode of RFC 6040, section 4.1.
//! - Over IPv4, "don't fragment" is copied from an inner IPv4 header and set for an inner IPv6 one. Where it is
//!   set the packet is atomic and its identification means nothing (RFC 6864, section 4.1); else it is made of
//!   the inner one and the flow, so that those of one client differ as long as the client's do.
//! - The checksum of UDP is 0 over both: the packet within protects itself, which is what RFC 6935, section 5,
//!   and RFC 6936, section 5, ask of a tunnel that does so over IPv6. The far end must be told to accept it.
//! - Nothing is fragmented here: what does not fit was told from its length before.

use super::ipv4::folded;
use super::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use super::{Ethernet, Frame, Ip, PROTOCOL_UDP};
use crate::tables::{Address, Encapsulation};

pub(crate) const PROTOCOL_IPV4: u8 = 4;
pub(crate) const PROTOCOL_IPV6: u8 = 41;
pub(crate) const PROTOCOL_GRE: u8 = 47;
pub(crate) const LEN_V4: usize = 20;
const LEN_V6: usize = 40;
pub(crate) const LEN_GRE: usize = 4;
pub(crate) const LEN_UDP: usize = 8;
pub(crate) const LEN_GUE: usize = 4;
/// Hop limit of the outer header: that of the way between director and real server, whatever the client's.
const HOP_LIMIT: u8 = 64;

/// The headers in front of one packet.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// What kind of tunnel.
    pub encapsulation: Encapsulation,
    /// UDP port of the far end; only for [`Encapsulation::Gue`].
    pub port: u16,
    /// The director's address, of the same family as the other.
    pub source: &'a Address,
    /// The real server's address.
    pub destination: &'a Address,
    /// Bits that differ between flows and are the same within one.
    pub entropy: u32,
}

/// Bytes in front of a packet in a tunnel of this kind to `destination`, link layer excluded.
#[inline(always)]
pub fn overhead(encapsulation: Encapsulation, destination: &Address) -> usize {
    let ip = if destination.is_v4() { LEN_V4 } else { LEN_V6 };
    ip.wrapping_add(match encapsulation {
        Encapsulation::Ipip => 0,
        Encapsulation::Gre => LEN_GRE,
        Encapsulation::Gue => LEN_UDP + LEN_GUE,
    })
}

impl Outer<'_> {
    /// Makes room and writes the headers in front of the packet whose header is `inner`; a VLAN tag moves to the
    /// front. Link addresses are not written. `None` if there is no room: the frame may be in pieces then.
    #[inline(always)]
    pub fn emit(&self, frame: &mut impl Frame, inner: &Ip) -> Option<()> {
        let tag: [u8; 4] = frame.read(Ethernet::TAG)?;
        let (over_v4, start) = (self.destination.is_v4(), inner.start);
        let ethertype = if over_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        // Each length a constant in its own branch, for the verifier's sake.
        match (over_v4, self.encapsulation) {
            (true, Encapsulation::Ipip) => frame.grow::<LEN_V4>()?,
            (true, Encapsulation::Gre) => frame.grow::<{ LEN_V4 + LEN_GRE }>()?,
            (true, Encapsulation::Gue) => frame.grow::<{ LEN_V4 + LEN_UDP + LEN_GUE }>()?,
            (false, Encapsulation::Ipip) => frame.grow::<LEN_V6>()?,
            (false, Encapsulation::Gre) => frame.grow::<{ LEN_V6 + LEN_GRE }>()?,
            (false, Encapsulation::Gue) => frame.grow::<{ LEN_V6 + LEN_UDP + LEN_GUE }>()?,
        }
        if start == Ethernet::TAGGED_LEN {
            frame.write(Ethernet::TAG, tag)?;
        }
        frame.write(start.wrapping_sub(2), ethertype.to_be_bytes())?;
        let shim_len = overhead(self.encapsulation, self.destination).wrapping_sub(if over_v4 {
            LEN_V4
        } else {
            LEN_V6
        });
        let payload_len = inner.total_len.wrapping_add(shim_len);
        let shim = if over_v4 {
            self.emit_v4(frame, inner, payload_len)?;
            start.wrapping_add(LEN_V4)
        } else {
            self.emit_v6(frame, inner, payload_len)?;
            start.wrapping_add(LEN_V6)
        };
        self.emit_shim(frame, inner, shim, payload_len)
    }

    /// What the outer IP header says follows it.
    #[inline(always)]
    const fn protocol(&self, inner: &Ip) -> u8 {
        match self.encapsulation {
            Encapsulation::Ipip => inner_protocol(inner),
            Encapsulation::Gre => PROTOCOL_GRE,
            Encapsulation::Gue => PROTOCOL_UDP,
        }
    }

    #[inline(always)]
    fn emit_v4(&self, frame: &mut impl Frame, inner: &Ip, payload_len: usize) -> Option<()> {
        let header = self.header_v4(inner, payload_len);
        let [h0, h1, h2, h3, h4, h5, h6, h7, rest @ ..] = header;
        frame.write(inner.start, [h0, h1, h2, h3, h4, h5, h6, h7])?;
        frame.write::<{ LEN_V4 - 8 }>(inner.start.wrapping_add(8), rest)
    }

    /// The outer IPv4 header in front of so many bytes.
    #[inline(always)]
    pub(crate) fn header_v4(&self, inner: &Ip, payload_len: usize) -> [u8; LEN_V4] {
        let (source, destination) = (self.source.low(), self.destination.low());
        let [l0, l1] = (payload_len.wrapping_add(LEN_V4) as u16).to_be_bytes();
        let (identification, flags) = if inner.dont_fragment {
            (0, 0x40)
        } else {
            ((inner.identification as u16) ^ (self.entropy as u16), 0)
        };
        let [i0, i1] = identification.to_be_bytes();
        let (tos, protocol) = (inner.traffic_class, self.protocol(inner));
        // In the machine's order, as in `checksum_holds`.
        let mut sum = 0_u64;
        for word in
            [[0x45, tos, l0, l1], [i0, i1, flags, 0], [HOP_LIMIT, protocol, 0, 0], source, destination]
        {
            sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(word)));
        }
        let [c0, c1] = (!folded(sum)).to_ne_bytes();
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (source, destination);
        [0x45, tos, l0, l1, i0, i1, flags, 0, HOP_LIMIT, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3]
    }

    /// The flow label carries the entropy (RFC 6438).
    #[inline(always)]
    fn emit_v6(&self, frame: &mut impl Frame, inner: &Ip, payload_len: usize) -> Option<()> {
        let first = 6 << 28 | u32::from(inner.traffic_class) << 20 | self.entropy & 0x000f_ffff;
        let [a, b, c, d] = first.to_be_bytes();
        let [l0, l1] = (payload_len as u16).to_be_bytes();
        frame.write(inner.start, [a, b, c, d, l0, l1, self.protocol(inner), HOP_LIMIT])?;
        frame.write(inner.start.wrapping_add(8), self.source.0)?;
        frame.write(inner.start.wrapping_add(24), self.destination.0)
    }

    /// Writes what is between the outer IP header and the packet, if anything.
    #[inline(always)]
    fn emit_shim(&self, frame: &mut impl Frame, inner: &Ip, at: usize, length: usize) -> Option<()> {
        match self.encapsulation {
            Encapsulation::Ipip => Some(()),
            Encapsulation::Gre => {
                let [e0, e1] = if inner.is_v6() { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }.to_be_bytes();
                frame.write(at, [0, 0, e0, e1])
            }
            Encapsulation::Gue => {
                // The dynamic ports (RFC 6335, section 6): two bits fixed, fourteen of entropy.
                let [p0, p1] = (0xc000 | self.entropy as u16 & 0x3fff).to_be_bytes();
                let ([q0, q1], [l0, l1]) = (self.port.to_be_bytes(), (length as u16).to_be_bytes());
                frame.write(at, [p0, p1, q0, q1, l0, l1, 0, 0, 0, inner_protocol(inner), 0, 0])
            }
        }
    }
}

#[inline(always)]
const fn inner_protocol(inner: &Ip) -> u8 {
    if inner.is_v6() { PROTOCOL_IPV6 } else { PROTOCOL_IPV4 }
}
