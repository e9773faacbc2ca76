//! Slots that are not settled: which connection goes where, and what is remembered of it.

use super::assign::{at_position, find_server};
use crate::pin::{Pin, PinState, ServerId, signal};
use crate::slot::Slot;
use crate::tables::{FlowKey, RealEntry, ServiceEntry, Tables};
use crate::verdict::{DropReason, Forward};

/// The real server of a packet whose `slot` is moving or pinned.
///
/// | | has a pin | begins a connection | anything else |
/// |---|---|---|---|
/// | moving | the pin's | current, gets a pin | previous, gets a pin |
/// | pinned | the pin's | current | current |
///
/// What begins a connection under the pin of one that has ended counts as without a pin. Where there is no room for
/// a pin, everything goes to the previous owner: so does whatever comes next without a pin, and a connection must
/// not be torn between two servers. An ICMP error changes nothing, and a RST gets no pin: nothing comes after it.
#[inline(always)]
pub(super) fn pick<'a>(
    tables: &'a impl Tables,
    service: &ServiceEntry,
    slot: Slot,
    flow: &FlowKey,
    forward: &mut Forward,
) -> Result<&'a RealEntry, DropReason> {
    // No connection has port 0 at both ends: it is a fragment that has overtaken its first one.
    if flow.source_port == 0 && flow.destination_port == 0 {
        return Err(DropReason::FragmentNeedsPort);
    }
    let now = tables.now();
    let opens = forward.signals & signal::OPENS != 0;
    let cell = tables.pin(flow);
    let mut old = Pin::default();
    if let Some(cell) = cell {
        old = cell.load();
        let ended = opens && old.state().is_closing();
        if !ended && let Some(real) = find_server(tables, service, old.server(), forward) {
            if forward.related == 0 {
                cell.note(&old, forward.signals, now, tables);
            }
            forward.pin = Forward::PIN_FOLLOWED;
            return Ok(real);
        }
    }
    let mut position = slot.raw_current();
    if slot.is_moving() && !opens {
        position = slot.raw_previous();
    }
    let real = at_position(tables, service, position, forward)?;
    // A pin that is there already is made right in any state, since what comes next will look at it.
    let tracks = slot.is_moving() || cell.is_some();
    if !tracks || forward.related != 0 || forward.signals & signal::RST != 0 || real.ifindex == 0 {
        return Ok(real);
    }
    let pin = Pin::new(ServerId::new(position, real.generation), PinState::first(forward.signals), now);
    if let Some(cell) = cell {
        cell.replace(&old, &pin, tables);
        forward.pin = Forward::PIN_FOLLOWED;
        return Ok(real);
    }
    if tables.add_pin(flow, &pin) {
        forward.pin = Forward::PIN_STORED;
        return Ok(real);
    }
    // Another processor may have had a packet of the same connection just now.
    if let Some(cell) = tables.pin(flow)
        && let Some(real) = find_server(tables, service, cell.load().server(), forward)
    {
        forward.pin = Forward::PIN_FOLLOWED;
        return Ok(real);
    }
    forward.pin = Forward::PIN_REFUSED;
    at_position(tables, service, slot.raw_previous(), forward)
}
