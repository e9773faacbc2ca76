//! Writing pcapng (draft-ietf-opsawg-pcapng), as little of it as a capture needs: one section, an interface
//! description each, enhanced packets with a comment, statistics at the end. Numbers are little-endian, which the
//! section's header says.

use std::io::{self, Write};

/// Block types (section 11.1 of the draft).
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
/// Says in which order bytes are.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Link type of Ethernet.
const LINKTYPE_ETHERNET: u16 = 1;
/// Options of any block.
const OPT_COMMENT: u16 = 1;
/// Options of a section header.
const SHB_USERAPPL: u16 = 4;
/// Options of an interface description.
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
/// Options of interface statistics.
const ISB_OSDROP: u16 = 7;
/// Timestamps count units of 10 to the minus this many seconds.
const NANOSECONDS: u8 = 9;

/// Writes a capture.
pub(super) struct Writer<W> {
    out: W,
    /// Number of interfaces described so far.
    interfaces: u32,
    snaplen: u32,
}

/// A packet to write.
pub(super) struct Packet<'a> {
    /// Number of its interface, in the order of [`Writer::interface`].
    pub(super) interface: u32,
    /// Nanoseconds since 1970, UTC.
    pub(super) time_ns: u64,
    /// Length of the frame in bytes.
    pub(super) length: u32,
    /// Its first bytes.
    pub(super) bytes: &'a [u8],
    /// What is to say about it.
    pub(super) comment: &'a str,
}

impl<W: Write> Writer<W> {
    /// Begins a section. Of each packet at most `snaplen` bytes will follow.
    pub(super) fn new(out: W, application: &str, snaplen: u32) -> io::Result<Self> {
        let mut writer = Self { out, interfaces: 0, snaplen };
        let mut body = BYTE_ORDER_MAGIC.to_le_bytes().to_vec();
        // Version 1.0, and a length that is not known beforehand.
        body.extend(1_u16.to_le_bytes());
        body.extend(0_u16.to_le_bytes());
        body.extend(u64::MAX.to_le_bytes());
        option(&mut body, SHB_USERAPPL, application.as_bytes());
        end_of_options(&mut body);
        writer.block(SECTION_HEADER, &body)?;
        Ok(writer)
    }

    /// Describes an interface; its number.
    pub(super) fn interface(&mut self, name: &str) -> io::Result<u32> {
        let mut body = LINKTYPE_ETHERNET.to_le_bytes().to_vec();
        body.extend([0; 2]);
        body.extend(self.snaplen.to_le_bytes());
        option(&mut body, IF_NAME, name.as_bytes());
        option(&mut body, IF_TSRESOL, &[NANOSECONDS]);
        end_of_options(&mut body);
        self.block(INTERFACE_DESCRIPTION, &body)?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Writes a packet.
    pub(super) fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let mut body = packet.interface.to_le_bytes().to_vec();
        body.extend(((packet.time_ns >> 32) as u32).to_le_bytes());
        body.extend((packet.time_ns as u32).to_le_bytes());
        body.extend((packet.bytes.len() as u32).to_le_bytes());
        body.extend(packet.length.to_le_bytes());
        padded(&mut body, packet.bytes);
        option(&mut body, OPT_COMMENT, packet.comment.as_bytes());
        end_of_options(&mut body);
        self.block(ENHANCED_PACKET, &body)
    }

    /// Writes how many packets were lost until `time_ns`, on all interfaces together: it stands with the first.
    pub(super) fn lost(&mut self, lost: u64, time_ns: u64) -> io::Result<()> {
        if self.interfaces == 0 {
            return Ok(());
        }
        let mut body = 0_u32.to_le_bytes().to_vec();
        body.extend(((time_ns >> 32) as u32).to_le_bytes());
        body.extend((time_ns as u32).to_le_bytes());
        option(&mut body, ISB_OSDROP, &lost.to_le_bytes());
        end_of_options(&mut body);
        self.block(INTERFACE_STATISTICS, &body)
    }

    /// Hands on what is buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        // Type, length in front, body, length behind.
        let length = (body.len() as u32 + 12).to_le_bytes();
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&length)?;
        self.out.write_all(body)?;
        self.out.write_all(&length)
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    // Longer than an option can be is no text of ours.
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    padded(body, value);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

/// Appends with zeroes up to a multiple of four bytes.
fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_long_as_they_say_at_both_ends() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, "test", 65_000).expect("section");
        assert_eq!(writer.interface("eth1").expect("interface"), 0);
        assert_eq!(writer.interface("eth22").expect("interface"), 1);
        for length in 0..9 {
            let packet = Packet {
                interface: 1,
                time_ns: 0x0123_4567_89ab_cdef,
                length: 1_500,
                bytes: &[0xaa; 9][..length],
                comment: "verdict=transmitted",
            };
            writer.packet(&packet).expect("packet");
        }
        writer.lost(7, 1).expect("statistics");
        let mut kinds = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("word"));
            let length = word(4) as usize;
            assert_eq!((length % 4, word(length - 4) as usize), (0, length));
            if word(0) == ENHANCED_PACKET {
                assert_eq!((word(12), word(16)), (0x0123_4567, 0x89ab_cdef), "upper half first");
            }
            kinds.push(word(0));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [&[SECTION_HEADER, 1, 1][..], &[6; 9], &[5]].concat());
    }
}
