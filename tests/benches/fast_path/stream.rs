//! The packets that are sent: TCP segments of established connections, which differ in their source.

use crate::rig::Link;
use crate::shared::{HEADER_WORDS, Stream};

/// Port of every VIP.
pub(crate) const PORT: u16 = 80;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A number of flows to a number of VIPs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flows {
    pub(crate) family: Family,
    /// Exponent of two of the number of flows.
    pub(crate) bits: u32,
    /// Last four bytes of the first VIP.
    pub(crate) vip: u32,
    /// Number of VIPs.
    pub(crate) vips: u32,
}

/// The first 12 bytes of every IPv6 address here: documentation prefix (RFC 3849).
pub(crate) const PREFIX_V6: [u8; 12] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0];
/// First client's address, or its last four bytes: 16.0.0.0.
const CLIENT: u32 = 0x1000_0000;
/// Bytes of payload.
const PAYLOAD: usize = 6;
const TCP: u8 = 6;
const ACK: u8 = 0x10;

impl Flows {
    /// Bytes of a frame.
    pub(crate) const fn frame_len(&self) -> usize {
        match self.family {
            Family::V4 => 14 + 20 + 20 + PAYLOAD,
            Family::V6 => 14 + 40 + 20 + PAYLOAD,
        }
    }

    /// What the generator is told.
    pub(crate) fn stream(&self, link: &Link) -> Stream {
        let mut frame = Vec::with_capacity(self.frame_len());
        frame.extend_from_slice(&link.mac);
        frame.extend_from_slice(&link.sender_mac);
        let sum = match self.family {
            Family::V4 => self.emit_v4(&mut frame),
            Family::V6 => self.emit_v6(&mut frame),
        };
        frame.extend_from_slice(&1024_u16.to_be_bytes());
        frame.extend_from_slice(&PORT.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, ACK, 0xff, 0xff, 0, 0, 0, 0]);
        frame.resize(HEADER_WORDS * 4, 0);
        let mut header = [0; HEADER_WORDS];
        for (word, bytes) in header.iter_mut().zip(frame.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        Stream {
            next: 0,
            flow_mask: (1 << self.bits) - 1,
            flow_bits: self.bits,
            vips: self.vips,
            sum,
            header,
        }
    }

    /// The IPv4 header without checksum, and the sum of what is the same in all packets.
    fn emit_v4(&self, frame: &mut Vec<u8>) -> u32 {
        frame.extend_from_slice(&[0x08, 0x00]);
        let total = (20 + 20 + PAYLOAD) as u8;
        let fixed = [0x45, 0, 0, total, 0, 0, 0x40, 0, 64, TCP];
        frame.extend_from_slice(&fixed);
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(&CLIENT.to_be_bytes());
        frame.extend_from_slice(&self.vip.to_be_bytes());
        fixed.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum()
    }

    fn emit_v6(&self, frame: &mut Vec<u8>) -> u32 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, (20 + PAYLOAD) as u8, TCP, 64]);
        for low in [CLIENT, self.vip] {
            frame.extend_from_slice(&PREFIX_V6);
            frame.extend_from_slice(&low.to_be_bytes());
        }
        0
    }
}
