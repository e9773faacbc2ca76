//! The real server of a packet that a service has: whom its slot, its pin or the scheduler names, and whether the packet
//! fits on the way there.

use super::{Decision, forget, fragment, may_answer, quic, schedule, track};
use crate::packet::{self, Ethernet, Frame, Ip, PROTOCOL_UDP};
use crate::pin::ServerId;
use crate::slot::{Slot, entropy_of, slot_of};
use crate::tables::{Config, FlowKey, Interface, RealEntry, ServiceEntry, Tables, table_slots};
use crate::verdict::{AnswerReason, DropReason, Forward, PassReason, Verdict};

/// The second step of [`decide()`](super::decide()): the verdict on a packet of `service`, with `flow` and `decision` as
/// [`examine`](super::examine) has left them. The decision gets the way, if it is forwarded.
#[inline(always)]
pub fn assign<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    service: &ServiceEntry,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) -> Verdict {
    let verdict = match find_way(frame, ifindex, tables, service, flow, decision) {
        Ok(()) if decision.forward.ifindex == ifindex => Verdict::Transmit,
        Ok(()) => Verdict::Redirect,
        Err(verdict) => verdict,
    };
    if !verdict.is_forward() {
        forget(tables, flow, &decision.forward);
    }
    verdict
}

/// Fills in the way; an error is the verdict of a packet that is not forwarded.
#[inline(always)]
fn find_way<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    service: &ServiceEntry,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) -> Result<(), Verdict> {
    let config = tables.config().ok_or(Verdict::Pass(PassReason::NotConfigured))?;
    let way = match choose(frame, ifindex, tables, config, service, flow, decision) {
        Err(DropReason::TooBig)
            if decision.mtu != 0
                && decision.ip.dont_fragment
                && may_answer(decision, flow)
                && tables.take_token(config.icmp_rate) =>
        {
            return Err(Verdict::Answer(AnswerReason::TooBig));
        }
        chosen => chosen.map_err(Verdict::Drop)?,
    };
    let (ip, is_tagged) = (&decision.ip, decision.ip.start != Ethernet::LEN);
    if is_tagged && way.ifindex != ifindex {
        return Err(Verdict::Drop(DropReason::VlanRedirect));
    }
    if ip.more_fragments && ip.fragment_offset == 0 {
        let position = decision.forward.real.wrapping_sub(service.real_base);
        fragment::note(tables, flow, ip.identification, position, way.generation);
    }
    decision.way = Some(way);
    Ok(())
}

/// Chooses the packet's real server, and notes the way to it.
#[inline(always)]
fn choose<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    config: &'a Config,
    service: &ServiceEntry,
    flow: &FlowKey,
    decision: &mut Decision<'a>,
) -> Result<&'a RealEntry, DropReason> {
    let ip = &decision.ip;
    let forward = &mut decision.forward;
    let real = pick_real(frame, ip, tables, config, service, flow, forward)?;
    if real.ifindex == 0 {
        return Err(DropReason::NoNextHop);
    }
    // NAT changes addresses and not families.
    if service.translates() && real.address.is_v4() == ip.is_v6() {
        return Err(DropReason::BadTable);
    }
    let (mut bytes, mut overhead) = (decision.bytes, 0);
    if let Some(encapsulation) = service.encapsulation() {
        let source = config.tunnel_source(real.address.is_v4());
        if source.is_none() {
            return Err(DropReason::BadTable);
        }
        decision.tunnel_source = source;
        overhead = packet::overhead(encapsulation, &real.address) as u32;
        bytes = bytes.wrapping_add(overhead);
        // Longer than a length field can say, whatever the interface takes.
        if bytes > u32::from(u16::MAX) {
            return Err(DropReason::TooBig);
        }
    }
    // In generic mode a frame may be a large one that is segmented again.
    let is_native = tables.interface(ifindex).is_some_and(Interface::is_native);
    if is_native && real.mtu != 0 && bytes > u32::from(real.mtu) {
        decision.mtu = u32::from(real.mtu).wrapping_sub(overhead);
        return Err(DropReason::TooBig);
    }
    forward.ifindex = real.ifindex;
    Ok(real)
}

/// The packet's real server: the one of the datagram's first fragment, the one that a connection id names, or, in a
/// settled slot, its owner. Only the others ask for pins.
#[inline(always)]
fn pick_real<'a>(
    frame: &impl Frame,
    ip: &Ip,
    tables: &'a impl Tables,
    config: &Config,
    service: &ServiceEntry,
    flow: &FlowKey,
    forward: &mut Forward,
) -> Result<&'a RealEntry, DropReason> {
    let mut hash = config.hash.of(flow.source, flow.source_port, service.hash_input());
    forward.entropy = entropy_of(hash, flow.source_port);
    if service.is_persistent() {
        hash = config.hash.of(service.client(&flow.source), flow.source_port, service.hash_input());
    }
    let slot =
        tables.slot(service.table, slot_of(hash, table_slots(service.table))).ok_or(DropReason::BadTable)?;
    // With full NAT a later fragment goes as its connection does, whose lease it needs.
    if forward.follows != 0 && !service.is_full_nat() {
        let server = ServerId::new(forward.real as u16, forward.generation);
        if let Some(real) = find_server(tables, service, server, forward) {
            return Ok(real);
        }
    }
    if service.has(ServiceEntry::FLAG_QUIC)
        && let Some(real) = quic::find(frame, ip, tables, service, forward)
    {
        return Ok(real);
    }
    if service.is_tracked() {
        return schedule::pick(tables, service, slot, flow, forward);
    }
    let one_packet = service.has(ServiceEntry::FLAG_ONE_PACKET) && flow.protocol == PROTOCOL_UDP;
    if slot.is_settled() || one_packet {
        return at_position(tables, service, slot.raw_current(), forward);
    }
    track::pick(tables, service, slot, flow, forward)
}

/// The real server at a position that a slot names.
#[inline(always)]
pub(super) fn at_position<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    position: u16,
    forward: &mut Forward,
) -> Result<&'a RealEntry, DropReason> {
    if position == Slot::NO_POSITION {
        return Err(DropReason::NoRealServer);
    }
    if u32::from(position) >= service.real_count {
        return Err(DropReason::BadTable);
    }
    forward.real = service.real_base.wrapping_add(u32::from(position));
    tables.real(forward.real).ok_or(DropReason::BadTable)
}

/// The real server that was remembered as `server`, unless it is gone.
#[inline(always)]
pub(super) fn find_server<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    server: ServerId,
    forward: &mut Forward,
) -> Option<&'a RealEntry> {
    let position = u32::from(server.position());
    if position >= service.real_count {
        return None;
    }
    let index = service.real_base.wrapping_add(position);
    let real = tables.real(index)?;
    if !server.is(real) {
        return None;
    }
    forward.real = index;
    Some(real)
}
