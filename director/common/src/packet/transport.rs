//! The first bytes of TCP (RFC 9293, section 3.1) and UDP (RFC 768).

use super::{Frame, Ip, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::pin::signal;

/// Source and destination port, where every balanced protocol has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The client's.
    pub source: u16,
    /// The service's.
    pub destination: u16,
}

/// What is wrong with a transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// The packet ends within the header.
    Short,
    /// A length in the header cannot be.
    Length,
}

/// Shortest TCP header in bytes.
pub(crate) const TCP_MIN_LEN: usize = 20;
/// Data offset and flags, from the start of the TCP header.
pub(crate) const TCP_OFFSET_FLAGS: usize = 12;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
/// Length of the UDP header in bytes.
pub const UDP_LEN: usize = 8;
/// The datagram's length, from the start of the UDP header.
pub(crate) const UDP_LENGTH: usize = 4;

impl Ports {
    /// The ports behind `ip`, or `None` if the frame ends before them.
    #[inline(always)]
    pub fn parse(frame: &impl Frame, ip: &Ip) -> Option<Self> {
        let [a, b, c, d] = frame.read(ip.payload)?;
        Some(Self { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) })
    }
}

/// Length of a TCP header in bytes, by the byte that holds its data offset.
#[inline(always)]
pub(crate) const fn tcp_header_len(offset: u8) -> usize {
    ((offset >> 4) as usize).wrapping_mul(4)
}

/// Whether a segment with these flags begins a connection.
#[inline(always)]
pub(crate) const fn tcp_opens(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// What a segment with these flags, with or without data, says about its connection: [`signal`]s.
#[inline(always)]
pub(crate) const fn tcp_signals(flags: u8, data: bool) -> u16 {
    (tcp_opens(flags) as u16).wrapping_mul(signal::OPENS)
        | ((flags & TCP_FIN != 0) as u16).wrapping_mul(signal::FIN)
        | ((flags & TCP_RST != 0) as u16).wrapping_mul(signal::RST)
        | (data as u16).wrapping_mul(signal::DATA)
}

/// Checks the header behind `ip` (not a later fragment), whose `payload_len` bytes are known to be within
/// the frame, and tells what the packet says about its connection: [`signal`]s.
///
/// # Errors
/// [`TransportError`] if the packet is too short for its header or the header contradicts it.
#[inline(always)]
pub fn check(frame: &impl Frame, ip: &Ip, payload_len: usize) -> Result<u16, TransportError> {
    let start = ip.payload;
    match ip.protocol {
        PROTOCOL_TCP => {
            if payload_len < TCP_MIN_LEN {
                return Err(TransportError::Short);
            }
            let [offset, flags] =
                frame.read(start.wrapping_add(TCP_OFFSET_FLAGS)).ok_or(TransportError::Short)?;
            let header_len = tcp_header_len(offset);
            if header_len < TCP_MIN_LEN {
                return Err(TransportError::Length);
            }
            if header_len > payload_len {
                // Options may be in the next fragment, but then nobody has judged them.
                return Err(if ip.more_fragments { TransportError::Short } else { TransportError::Length });
            }
            Ok(tcp_signals(flags, payload_len > header_len))
        }
        PROTOCOL_UDP => {
            if payload_len < UDP_LEN {
                return Err(TransportError::Short);
            }
            let length = frame.read(start.wrapping_add(UDP_LENGTH)).ok_or(TransportError::Short)?;
            let length = usize::from(u16::from_be_bytes(length));
            // The length of a first fragment is that of the whole datagram.
            if length < UDP_LEN || (length > payload_len && !ip.more_fragments) {
                return Err(TransportError::Length);
            }
            Ok(0)
        }
        _ => Ok(0),
    }
}
