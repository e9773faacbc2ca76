//! Bounds-checked reading of big-endian fields.

use std::net::Ipv4Addr;

use super::ParseError;

/// A cursor over received bytes; every read that would run over the end is an error.
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, naming `what` in errors.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(ParseError::Short { what: self.what })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ParseError> {
        Ok(self.take::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ParseError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ParseError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    pub(crate) fn u24(&mut self) -> Result<u32, ParseError> {
        let [high, middle, low] = self.take()?;
        Ok(u32::from_be_bytes([0, high, middle, low]))
    }

    pub(crate) fn address(&mut self) -> Result<Ipv4Addr, ParseError> {
        Ok(Ipv4Addr::from(self.take::<4>()?))
    }

    /// Addresses up to the end.
    pub(crate) fn addresses(&mut self) -> Result<Vec<Ipv4Addr>, ParseError> {
        let mut addresses = Vec::new();
        while !self.is_empty() {
            addresses.push(self.address()?);
        }
        Ok(addresses)
    }

    pub(crate) fn skip(&mut self, count: usize) -> Result<(), ParseError> {
        self.rest = self.rest.get(count..).ok_or(ParseError::Short { what: self.what })?;
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}
