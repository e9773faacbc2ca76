//! Prefixes as OSPFv3 writes them (RFC 5340 section A.4.1): a length, option bits, and as many 32-bit words
//! of the address as the length asks for.

use std::net::Ipv6Addr;

use bytes::{BufMut, BytesMut};
use ipnet::Ipv6Net;

use crate::packet::{ParseError, reader::Reader};

/// Prefix option: no unicast; kept out of route calculation.
pub const PREFIX_NU: u8 = 0x01;
/// Prefix option: an address of the advertising router.
pub const PREFIX_LA: u8 = 0x02;

/// Prefix option of an NSSA-LSA: to be translated into an AS-External-LSA.
pub const PREFIX_P: u8 = 0x08;

/// A prefix with what stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The prefix, truncated to its length.
    pub net: Ipv6Net,
    /// [`PREFIX_NU`], [`PREFIX_LA`] and others.
    pub options: u8,
    /// The 16 bits behind: a metric in Intra-Area-Prefix-LSAs, a referenced LS type in AS-External-LSAs,
    /// zero elsewhere.
    pub field: u16,
}

impl Prefix {
    /// Reads a prefix.
    ///
    /// # Errors
    /// It is cut short, or longer than 128 bits.
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let (length, options, field) = (reader.u8()?, reader.u8()?, reader.u16()?);
        let mut octets = [0; 16];
        let words = octets.chunks_exact_mut(4).take(usize::from(length).div_ceil(32));
        for word in words {
            word.copy_from_slice(&reader.take::<4>()?);
        }
        let net = Ipv6Net::new(Ipv6Addr::from(octets), length)
            .map_err(|_| ParseError::PrefixLength { length })?
            .trunc();
        Ok(Self { net, options, field })
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        let length = self.net.prefix_len();
        out.put_u8(length);
        out.put_u8(self.options);
        out.put_u16(self.field);
        out.put_slice(&self.net.trunc().addr().octets()[..4 * usize::from(length).div_ceil(32)]);
    }
}
