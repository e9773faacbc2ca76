//! Tracked services: every connection has an entry from its first packet on, with the server that the scheduler chose.
//!
//! A connection that has begun and not gone on yet is *half-open* and stands in a table of its own: a flood of such
//! fills that one, and neither takes the room of connections under way nor removes anything. Its second packet moves it
//! to the pins. (Of TCP with direct return only the client's side is seen, so the second packet is the client's
//! acknowledgement; of datagrams, the second datagram.)
//!
//! | | begins a connection | anything else |
//! |---|---|---|
//! | has an entry | the entry's, unless that one has ended | the entry's |
//! | none | the scheduler's, gets an entry | by its slot, or refused; while the slot moves, to the previous owner, gets a pin |
//! | none, and no room | by its slot (the previous owner's while it moves), or refused | the same |
//!
//! By its slot: that needs no memory, so a connection that found no room stays with one server, too.

use super::{at_position, find_server};
use crate::packet::PROTOCOL_UDP;
use crate::pin::{Pin, PinCell, PinState, ServerId, signal};
use crate::slot::Slot;
use crate::tables::{FlowKey, RealEntry, Roster, ServiceEntry, Tables};
use crate::verdict::{DropReason, Forward};

/// Counts a connection of this flow's protocol in this state, `by` times, at real server number `index`.
#[inline(always)]
fn count(tables: &impl Tables, flow: &FlowKey, state: PinState, index: u32, by: i64) {
    if flow.protocol != PROTOCOL_UDP && state.is_active() {
        tables.count(index, by, 0);
    } else {
        tables.count(index, 0, by);
    }
}

/// The state of a connection that begins: also of a flow of datagrams, most of which are of one, so that those do not
/// fill the table of half-open connections for longer than a flood of SYNs does.
const FIRST: PinState = PinState::Opening;

/// Forgets the connection that began at real server number `index` with a packet which was not forwarded.
#[inline(always)]
pub(super) fn forget(tables: &impl Tables, flow: &FlowKey, index: u32) {
    if tables.remove_half_open(flow) {
        count(tables, flow, FIRST, index, -1);
    }
}

/// The real server of a packet of a tracked service, whose slot is `slot`.
#[inline(always)]
pub(super) fn pick<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    slot: Slot,
    flow: &FlowKey,
    forward: &mut Forward,
) -> Result<&'a RealEntry, DropReason> {
    if flow.source_port == 0 && flow.destination_port == 0 {
        return Err(DropReason::FragmentNeedsPort);
    }
    let now = tables.now();
    let opens = forward.signals & signal::OPENS != 0;
    let mut is_half = 0_u32;
    let mut cell = tables.pin(flow);
    if cell.is_none() {
        cell = tables.half_open(flow);
        is_half = 1;
    }
    if let Some(cell) = cell {
        let old = cell.load();
        let ended = opens && old.state().is_closing();
        if let Some(real) = find_server(tables, service, old.server(), forward) {
            if !ended {
                if forward.related == 0 {
                    follow(tables, flow, cell, &old, is_half, forward, now);
                }
                forward.pin = Forward::PIN_FOLLOWED;
                return Ok(real);
            }
            if remove(tables, flow, is_half) {
                count(tables, flow, old.state(), forward.real, -1);
            }
        } else {
            // Its server is gone, and what was counted there with it.
            remove(tables, flow, is_half);
        }
    }
    let is_sound = forward.related == 0 && forward.signals & signal::RST == 0;
    if is_sound && (opens || flow.protocol == PROTOCOL_UDP) {
        return begin(tables, service, slot, flow, forward, now);
    }
    if slot.is_moving() && is_sound {
        return keep(tables, service, slot, flow, forward, now);
    }
    if service.has(ServiceEntry::FLAG_REFUSE) {
        return Err(DropReason::NoConnection);
    }
    at_position(tables, service, by_slot(slot), forward)
}

/// The position that a connection without an entry goes to by its slot: the previous owner's while it moves.
#[inline(always)]
const fn by_slot(slot: Slot) -> u16 {
    if slot.is_moving() { slot.raw_previous() } else { slot.raw_current() }
}

#[inline(always)]
fn remove(tables: &impl Tables, flow: &FlowKey, is_half: u32) -> bool {
    if is_half != 0 { tables.remove_half_open(flow) } else { tables.remove_pin(flow) }
}

/// Notes a packet in its connection's entry.
#[inline(always)]
fn follow(
    tables: &impl Tables,
    flow: &FlowKey,
    cell: &PinCell,
    old: &Pin,
    is_half: u32,
    forward: &Forward,
    now: u32,
) {
    let signals = forward.signals;
    let state = old.state().after(signals);
    let next = Pin::new(old.server(), state, now);
    let goes_on = signals & (signal::OPENS | signal::RST) == 0;
    if is_half != 0 && goes_on && tables.add_pin(flow, &next) {
        if tables.remove_half_open(flow) {
            recount(tables, flow, old.state(), state, forward.real);
        } else {
            // Somebody else has taken the entry away, and the count with it.
            count(tables, flow, state, forward.real, 1);
        }
        return;
    }
    if state as u8 == old.state() as u8 {
        cell.touch(old, now);
        return;
    }
    let replaced = tables.exchange(cell, &next);
    recount(tables, flow, replaced.state(), state, forward.real);
}

/// A connection of real server number `index` was in one state and is in another.
#[inline(always)]
fn recount(tables: &impl Tables, flow: &FlowKey, old: PinState, new: PinState, index: u32) {
    if flow.protocol == PROTOCOL_UDP || old.is_active() == new.is_active() {
        return;
    }
    let by = if new.is_active() { 1 } else { -1 };
    tables.count(index, by, if new.is_active() { -1 } else { 1 });
}

/// A new connection: the scheduler chooses.
#[inline(always)]
fn begin<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    slot: Slot,
    flow: &FlowKey,
    forward: &mut Forward,
    now: u32,
) -> Result<&'a RealEntry, DropReason> {
    let position = tables.schedule(service);
    if position == Roster::NOBODY {
        return Err(DropReason::NoRealServer);
    }
    let real = at_position(tables, service, position as u16, forward)?;
    if real.ifindex == 0 {
        return Ok(real);
    }
    let pin = Pin::new(ServerId::new(position as u16, real.generation), FIRST, now);
    if tables.add_half_open(flow, &pin) {
        count(tables, flow, pin.state(), forward.real, 1);
        forward.pin = Forward::PIN_OPENED;
        return Ok(real);
    }
    // Another processor may have had a packet of the same connection just now.
    if let Some(cell) = tables.half_open(flow)
        && let Some(real) = find_server(tables, service, cell.load().server(), forward)
    {
        forward.pin = Forward::PIN_FOLLOWED;
        return Ok(real);
    }
    if service.has(ServiceEntry::FLAG_REFUSE) {
        return Err(DropReason::TableFull);
    }
    forward.pin = Forward::PIN_REFUSED;
    // Where what comes next goes, which has no entry either.
    at_position(tables, service, by_slot(slot), forward)
}

/// A connection that is known by nobody and may be one of the previous owner of its slot, which is changing hands: it
/// stays there.
#[inline(always)]
fn keep<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    slot: Slot,
    flow: &FlowKey,
    forward: &mut Forward,
    now: u32,
) -> Result<&'a RealEntry, DropReason> {
    let position = slot.raw_previous();
    let real = at_position(tables, service, position, forward)?;
    if real.ifindex == 0 {
        return Ok(real);
    }
    let pin = Pin::new(ServerId::new(position, real.generation), PinState::first(forward.signals), now);
    if tables.add_pin(flow, &pin) {
        count(tables, flow, pin.state(), forward.real, 1);
        forward.pin = Forward::PIN_FOLLOWED;
    } else {
        forward.pin = Forward::PIN_REFUSED;
    }
    Ok(real)
}
