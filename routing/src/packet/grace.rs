//! Body of a Grace-LSA (RFC 3623 appendix A, RFC 5187 section 2.2): a router says that it restarts, and for how long its
//! neighbours shall pretend that it did not.

use std::net::Ipv4Addr;

use super::{ParseError, reader::Reader};

/// TLV: the grace period in seconds.
const PERIOD: u16 = 1;
/// TLV: why it restarts.
const REASON: u16 = 2;
/// TLV: its address on the link (version 2 alone).
const ADDRESS: u16 = 3;

/// What a Grace-LSA says. TLVs of other types are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraceBody {
    /// Seconds since the LSA's origination during which adjacencies are kept.
    pub period: u32,
    /// 0 unknown, 1 software restart, 2 software reload or upgrade, 3 switch to a redundant control processor.
    pub reason: u8,
    /// The router's address on the link.
    pub address: Option<Ipv4Addr>,
}

impl GraceBody {
    /// Parses the body of a Grace-LSA.
    ///
    /// # Errors
    /// A TLV is cut short, or the grace period is missing.
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(body, "grace LSA");
        let (mut period, mut reason, mut address) = (None, 0, None);
        while !reader.is_empty() {
            let (kind, length) = (reader.u16()?, usize::from(reader.u16()?));
            let rest = match (kind, length) {
                (PERIOD, 4) => {
                    period = Some(reader.u32()?);
                    0
                }
                (REASON, 1) => {
                    reason = reader.u8()?;
                    3
                }
                (ADDRESS, 4) => {
                    address = Some(reader.address()?);
                    0
                }
                (_, length) => length.next_multiple_of(4),
            };
            reader.skip(rest)?;
        }
        let period = period.ok_or(ParseError::Short { what: "grace LSA" })?;
        Ok(Self { period, reason, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn period_reason_and_address_are_read_and_other_tlvs_skipped() {
        let body = [
            0, 9, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0, // unknown, with padding
            0, 1, 0, 4, 0, 0, 0, 120, //
            0, 2, 0, 1, 2, 0, 0, 0, //
            0, 3, 0, 4, 10, 9, 1, 1,
        ];
        let address = Some(Ipv4Addr::new(10, 9, 1, 1));
        assert_eq!(GraceBody::parse(&body), Ok(GraceBody { period: 120, reason: 2, address }));
        assert_eq!(GraceBody::parse(&body[12..20]), Ok(GraceBody { period: 120, reason: 0, address: None }));
    }

    #[test]
    fn body_without_a_period_is_refused() {
        assert!(GraceBody::parse(&[0, 2, 0, 1, 2, 0, 0, 0]).is_err());
        assert!(GraceBody::parse(&[0, 1, 0, 4, 0, 0]).is_err(), "cut short");
        assert!(GraceBody::parse(&[]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = GraceBody::parse(&bytes);
        }
    }
}
