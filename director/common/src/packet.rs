//! Bounds-checked access to a frame, and the headers found in it.
//!
//! A header is parsed into a small value that holds what the data plane uses, and nothing else; each parser
//! says which error means what. Offsets are named once, next to the header they belong to.

mod ethernet;
pub mod icmp;
mod ip;
mod ipv4;
mod ipv6;
mod outer;
mod translate;
mod transport;

pub use ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ethernet};
pub use ip::Ip;
pub(crate) use ip::parse_at;
pub(crate) use ipv4::{checksum_for_ttl, fold, folded};
pub(crate) use outer::{
    LEN_GRE, LEN_GUE, LEN_UDP, LEN_V4 as OUTER_V4_LEN, PROTOCOL_GRE, PROTOCOL_IPV4, PROTOCOL_IPV6,
};
pub use outer::{Outer, overhead};
pub use translate::{End, Translation};
pub use transport::{Ports, TransportError, UDP_LEN, check as check_transport};
pub(crate) use transport::{
    TCP_MIN_LEN, TCP_OFFSET_FLAGS, UDP_LENGTH, tcp_header_len, tcp_opens, tcp_signals,
};

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of the authentication header.
pub const PROTOCOL_AH: u8 = 51;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// IP protocol number of SCTP.
pub const PROTOCOL_SCTP: u8 = 132;

/// A frame in memory that may end anywhere.
#[expect(clippy::len_without_is_empty, reason = "a frame is never asked whether it is empty")]
pub trait Frame {
    /// Length of the frame in bytes, link-layer header included.
    fn len(&self) -> usize;
    /// The `N` bytes at `offset`, if the frame holds them all.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Replaces the `N` bytes at `offset`, if the frame holds them all; else changes nothing.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
    /// Whether the frame holds its first `N` bytes: to be asked before [`Self::peek`] and [`Self::poke`], which do not
    /// ask again. So a header at a fixed place costs one comparison, however often it is looked at.
    #[inline(always)]
    fn holds<const N: usize>(&self) -> bool {
        self.len() >= N
    }
    /// The `N` bytes at `AT`, which the frame is known to hold; any others where it does not.
    #[inline(always)]
    fn peek<const AT: usize, const N: usize>(&self) -> [u8; N] {
        self.read(AT).unwrap_or([0; N])
    }
    /// Replaces the `N` bytes at `AT`, which the frame is known to hold; changes nothing where it does not.
    #[inline(always)]
    fn poke<const AT: usize, const N: usize>(&mut self, bytes: [u8; N]) {
        let _ = self.write(AT, bytes);
    }
    /// Makes the frame `N` bytes longer in front, with anything in them; `None` where it cannot be.
    fn grow<const N: usize>(&mut self) -> Option<()>;
    /// Cuts the frame to its first `len` bytes; `None` if it is shorter, or cannot be cut.
    fn truncate(&mut self, len: usize) -> Option<()>;
    /// `offset` itself. In the kernel, with all that its verifier knows of it forgotten: else it would go through
    /// the rest of the program once for every value an offset can have.
    #[inline(always)]
    fn launder(&self, offset: usize) -> usize {
        offset
    }
}

/// A frame in user space, of fixed length.
#[derive(Debug)]
pub struct Buffer<'a>(pub &'a mut [u8]);

impl Frame for Buffer<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk::<N>().copied()
    }

    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.0.get_mut(offset..)?.first_chunk_mut::<N>()? = bytes;
        Some(())
    }

    fn grow<const N: usize>(&mut self) -> Option<()> {
        None
    }

    fn truncate(&mut self, _len: usize) -> Option<()> {
        None
    }
}
