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
//! With full NAT there is more to a connection than its server: it gets entry and lease at once ([`crate::lease`]), and
//! what has none goes nowhere.
//!
//! By its slot: that needs no memory, so a connection that found no room stays with one server, too.

use super::assign::{at_position, find_server};
use crate::lease::{self, opening};
use crate::packet::PROTOCOL_UDP;
use crate::pin::{Pin, PinCell, PinState, ServerId, signal};
use crate::schedulers::Method;
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

/// Forgets the connection that began at real server number `index` with a packet which was not forwarded.
#[inline(always)]
pub(super) fn forget(tables: &impl Tables, flow: &FlowKey, index: u32) {
    if tables.remove_half_open(flow) {
        count(tables, flow, lease::FIRST, index, -1);
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
    let mut opened = tables.opened(service);
    if opened == opening::NONE {
        if let Some(real) = known(tables, service, flow, forward) {
            return Ok(real);
        }
        let opens = forward.signals & signal::OPENS != 0;
        let is_sound = forward.related == 0 && forward.signals & signal::RST == 0;
        if is_sound && (opens || flow.protocol == PROTOCOL_UDP) {
            opened = open(tables, service, slot, flow);
        } else if slot.is_moving() && is_sound && !service.is_full_nat() {
            return keep(tables, service, slot, flow, forward, tables.now());
        }
    }
    match opened {
        opening::OPENED | opening::FOUND => begun(tables, service, flow, forward, opened),
        opening::NONE if service.refuses() => Err(DropReason::NoConnection),
        opening::NO_ROOM if !service.refuses() => {
            // Where what comes next goes, which has no entry either.
            forward.pin = Forward::PIN_REFUSED;
            at_position(tables, service, by_slot(slot), forward)
        }
        opening::NONE => at_position(tables, service, by_slot(slot), forward),
        _ => Err(lease::reason(opened)),
    }
}

/// The real server of a connection that has an entry, unless it has ended and this packet begins another one.
#[inline(always)]
fn known<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    flow: &FlowKey,
    forward: &mut Forward,
) -> Option<&'a RealEntry> {
    let mut is_half = 0_u32;
    let mut cell = tables.pin(flow);
    if cell.is_none() {
        cell = tables.half_open(flow);
        is_half = 1;
    }
    let cell = cell?;
    let old = cell.load();
    let Some(real) = find_server(tables, service, old.server(), forward) else {
        // Its server is gone, and what was counted there with it.
        remove(tables, flow, is_half);
        return None;
    };
    if forward.signals & signal::OPENS != 0 && old.state().is_closing() {
        if remove(tables, flow, is_half) {
            count(tables, flow, old.state(), forward.real, -1);
        }
        return None;
    }
    forward.pin = Forward::PIN_FOLLOWED;
    if forward.related == 0 {
        follow(tables, flow, cell, &old, is_half, forward, tables.now());
    }
    Some(real)
}

/// Asks that a connection begin.
#[inline(always)]
fn open(tables: &impl Tables, service: &ServiceEntry, slot: Slot, flow: &FlowKey) -> u32 {
    let by_slots = matches!(service.method(), Method::Slots);
    if by_slots && slot.raw_current() == Slot::NO_POSITION {
        return opening::NO_SERVER;
    }
    let wanted = if by_slots { u32::from(slot.raw_current()) } else { Roster::NOBODY };
    tables.open(service, flow, wanted)
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
    forward: &mut Forward,
    now: u32,
) {
    let signals = forward.signals;
    if is_half != 0 && signals & (signal::OPENS | signal::RST) == 0 {
        forward.pin = Forward::PIN_ADVANCES;
        return;
    }
    change(tables, flow, cell, old, old.state().after(signals), forward.real, now);
}

/// Notes a packet of second `now` in the entry of a connection of real server number `index`, which is in this state then.
#[inline(always)]
fn change(
    tables: &impl Tables,
    flow: &FlowKey,
    cell: &PinCell,
    old: &Pin,
    state: PinState,
    index: u32,
    now: u32,
) {
    if state as u8 == old.state() as u8 {
        cell.touch(old, now);
        return;
    }
    let next = Pin::new(old.server(), state, now);
    if tables.exchange(cell, old, &next) {
        cell.touch(old, now);
        recount(tables, flow, old.state(), state, index);
    }
}

/// Takes a connection of real server number `index`, whose second packet says this, over from the half-open ones to the
/// pins; where those have no room, it stays.
#[inline(always)]
pub(super) fn advance(tables: &impl Tables, flow: &FlowKey, index: u32, signals: u16) {
    let Some(cell) = tables.half_open(flow) else { return };
    let (old, now) = (cell.load(), tables.now());
    let state = old.state().after(signals);
    if !tables.promote(flow, &Pin::new(old.server(), state, now)) {
        change(tables, flow, cell, &old, state, index, now);
    } else if tables.remove_half_open(flow) {
        recount(tables, flow, old.state(), state, index);
    } else {
        // Somebody else has taken the entry away, and the count with it.
        count(tables, flow, state, index, 1);
    }
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

/// The real server of a connection that has just begun, or was found to have.
#[inline(always)]
fn begun<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    flow: &FlowKey,
    forward: &mut Forward,
    opened: u32,
) -> Result<&'a RealEntry, DropReason> {
    let found =
        tables.half_open(flow).and_then(|cell| find_server(tables, service, cell.load().server(), forward));
    forward.pin = if opened == opening::OPENED { Forward::PIN_OPENED } else { Forward::PIN_FOLLOWED };
    // Taken away by user space in between: what comes next begins it anew.
    found.ok_or(DropReason::NoConnection)
}

/// Removes the entry of a connection of real server number `index` that has no lease, as from before its service had full
/// NAT: what comes next may begin it anew.
#[inline(always)]
pub(super) fn end(tables: &impl Tables, flow: &FlowKey, index: u32) {
    let mut is_half = 0_u32;
    let mut cell = tables.pin(flow);
    if cell.is_none() {
        cell = tables.half_open(flow);
        is_half = 1;
    }
    let Some(cell) = cell else { return };
    let state = cell.load().state();
    if remove(tables, flow, is_half) {
        count(tables, flow, state, index, -1);
    }
}

/// Notes an answer in the entry of the connection of `flow`, which is of real server number `index`. One that is
/// half-open stays so: a server answers a flood, too.
#[inline(always)]
pub(super) fn note_reply(tables: &impl Tables, flow: &FlowKey, index: u32, signals: u16) {
    let now = tables.now();
    let Some(cell) = tables.pin(flow) else {
        if let Some(cell) = tables.half_open(flow) {
            cell.touch(&cell.load(), now);
        }
        return;
    };
    let old = cell.load();
    change(tables, flow, cell, &old, old.state().after_reply(signals), index, now);
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
