//! Fragments: the later ones of a datagram have no ports, and go where the first one went.

use super::Decision;
use super::owner::{find_fragment_owner, find_owner, unless_vip};
use crate::packet::{Ip, PROTOCOL_TCP};
use crate::tables::{Config, FlowKey, FragmentEntry, HashInput, ServiceEntry, Tables};
use crate::verdict::{DropReason, PassReason, Verdict};

/// Length of the part of a TCP header that every segment has, in units of fragment offsets, rounded up.
const TCP_UNITS: u16 = 3;

/// Runs `use_key` on `flow` as the key of its datagram.
#[inline(always)]
fn with_key<T>(flow: &mut FlowKey, identification: u32, use_key: impl FnOnce(&FlowKey) -> T) -> T {
    let ports = (flow.source_port, flow.destination_port);
    (flow.source_port, flow.destination_port) = ((identification >> 16) as u16, identification as u16);
    let result = use_key(flow);
    (flow.source_port, flow.destination_port) = ports;
    result
}

/// The service of a later fragment. If its first one is known, `flow` gets the ports and the real server is that
/// one's; else it is forwarded only where neither service nor real server depends on ports.
#[inline(always)]
pub(super) fn find_service<'a>(
    config: &Config,
    tables: &'a impl Tables,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) -> Result<&'a ServiceEntry, Verdict> {
    let mut entry = FragmentEntry::default();
    if find_first(tables, flow, decision.ip.identification, &mut entry) {
        // No real server has this generation: it is who sent the datagram.
        if entry.generation == 0 {
            return Err(Verdict::Pass(PassReason::NoService));
        }
        (flow.source_port, flow.destination_port) = (entry.source_port, entry.destination_port);
        let forward = &mut decision.forward;
        (forward.real, forward.generation, forward.follows) = (entry.position, entry.generation, 1);
        return find_owner(flow, config, tables).ok_or(Verdict::Drop(DropReason::Fragment));
    }
    let Some(service) = find_fragment_owner(flow, config, tables) else {
        return Err(unless_vip(&flow.destination, config, tables, Verdict::Drop(DropReason::Fragment)));
    };
    // The first one has the port, or the connection id, that the real server is chosen by.
    match service.hash_input() {
        HashInput::Source if !service.has(ServiceEntry::FLAG_QUIC) => Ok(service),
        _ => Err(Verdict::Drop(DropReason::FragmentNeedsPort)),
    }
}

/// Writes what the first fragment of a datagram showed to `entry`; false if it has not been seen lately.
#[inline(always)]
pub(super) fn find_first(
    tables: &impl Tables,
    flow: &mut FlowKey,
    identification: u32,
    entry: &mut FragmentEntry,
) -> bool {
    let known = with_key(flow, identification, |key| tables.fragment(key, entry));
    known && tables.now().wrapping_sub(entry.seen) <= FragmentEntry::LIFE
}

/// Whether a later fragment spares the transport header: one that does not could give a datagram other ports or
/// flags than those it was judged by (RFC 1858, RFC 3128).
#[inline(always)]
pub(super) const fn overlaps(ip: &Ip) -> bool {
    ip.protocol == PROTOCOL_TCP && ip.fragment_offset != 0 && ip.fragment_offset < TCP_UNITS
}

/// Remembers where a first fragment goes: to the real server at `position`, of this generation, of its service.
#[inline(always)]
pub(super) fn note(
    tables: &impl Tables,
    flow: &mut FlowKey,
    identification: u32,
    position: u32,
    generation: u32,
) {
    let entry = FragmentEntry {
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        position,
        generation,
        seen: tables.now(),
    };
    with_key(flow, identification, |key| tables.note_fragment(key, &entry));
}
