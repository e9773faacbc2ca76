//! QUIC: packets that name their real server in the connection id (in the manner of QUIC-LB, in plain text).
//!
//! A server gives its clients connection ids that hold its own server id at a place all servers of the service agree
//! on. So a connection survives every change of its slot, and also of its client's address (RFC 9000, section 9).
//! Before the client knows such an id it sends Initial and 0-RTT packets with a random one: these go by the slot,
//! and begin a connection there as a SYN does.

use super::assign::find_server;
use crate::packet::{Frame, Ip, PROTOCOL_UDP, UDP_LEN};
use crate::pin::{QuicKey, ServerId, signal};
use crate::tables::{RealEntry, ServiceEntry, Tables};
use crate::verdict::Forward;

/// First byte: the header is a long one (RFC 8999, section 5).
const LONG_HEADER: u8 = 0x80;
/// Connection id in a short header, from the start of the payload (RFC 8999, section 5.2).
const SHORT_ID: usize = 1;
/// Length of the destination connection id in a long header (RFC 8999, section 5.1); the id follows.
const LONG_ID_LENGTH: usize = 5;
/// QUIC version 2 (RFC 9369) numbers its types anew: in both, two neighbours of four are Initial and 0-RTT.
const VERSION_2: [u8; 4] = [0x6b, 0x33, 0x43, 0xcf];

/// The real server that the packet names; `None` if it names none, and must go by its slot. One that begins a
/// connection gets that signal.
#[inline(always)]
pub(super) fn find<'a>(
    frame: &impl Frame,
    ip: &Ip,
    tables: &'a impl Tables,
    service: &ServiceEntry,
    forward: &mut Forward,
) -> Option<&'a RealEntry> {
    if ip.protocol != PROTOCOL_UDP || ip.fragment_offset != 0 || forward.related != 0 {
        return None;
    }
    let payload = ip.payload.wrapping_add(UDP_LEN);
    let end = ip.start.wrapping_add(ip.total_len);
    let [first] = frame.read(payload)?;
    let (offset, length) = service.quic_position();
    let mut at = payload.wrapping_add(SHORT_ID);
    if first & LONG_HEADER != 0 {
        let [v0, v1, v2, v3, id_length] = frame.read(payload.wrapping_add(LONG_ID_LENGTH - 4))?;
        let kind = (first >> 4) & 3;
        let initial = u8::from([v0, v1, v2, v3] == VERSION_2);
        // Initial and 0-RTT are 0 and 1 in version 1, 1 and 2 in version 2.
        if kind.wrapping_sub(initial) < 2 {
            forward.signals |= signal::OPENS;
            return None;
        }
        if usize::from(id_length) < offset.wrapping_add(length) {
            return None;
        }
        at = payload.wrapping_add(LONG_ID_LENGTH + 1);
    }
    let at = frame.launder(at.wrapping_add(offset));
    if at.wrapping_add(length) > end {
        return None;
    }
    let mut id = 0_u32;
    for index in 0..4_usize {
        if index < length {
            let [byte] = frame.read(at.wrapping_add(index))?;
            id = (id << 8) | u32::from(byte);
        }
    }
    let entry = tables.quic(&QuicKey { service: service.service, id })?;
    let server = ServerId::new(entry.position as u16, entry.generation);
    find_server(tables, service, server, forward)
}
