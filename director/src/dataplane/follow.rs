//! How slots stand, told to a director that has missed something, and taken over by it: see
//! [`director_proto::windows`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use director_common::{Slot, SlotState};
use director_proto::windows::{ServiceWindows, SlotWindow, Windows};

use super::Dataplane;
use super::error::ApplyError;
use super::plan::Placement;
use super::spec::ServiceSpec;

impl Dataplane {
    /// How all slots stand at second `now`: of services that are changing, and of those that connections of servers
    /// that have left are still at.
    pub fn slot_windows(&self, now: u32) -> Windows {
        let leaves = |placement: &Placement| placement.servers.values().any(|server| server.is_leaving);
        let changes = |placement: &Placement| placement.slots.is_open() || leaves(placement);
        let services = self.plan.services.iter().filter(|(_, placement)| changes(placement));
        Windows { services: services.map(|(name, placement)| (name.clone(), told(placement, now))).collect() }
    }

    /// Takes over at second `now` how slots stand at a director that has missed nothing, and that has these services by
    /// the same tables. Servers that have left there, and still have connections, get a place here. True if anything
    /// changes: then there may be connections that were passed over so far.
    ///
    /// # Errors
    /// [`ApplyError`], as [`Dataplane::apply`].
    pub fn follow_windows(
        &mut self,
        services: &[ServiceSpec<'_>],
        windows: &Windows,
        now: u32,
    ) -> Result<bool, ApplyError> {
        let mut have_come = false;
        for (name, theirs) in &windows.services {
            let Some(placement) = self.plan.services.get_mut(name) else { continue };
            let known = places(placement);
            placement.guests =
                theirs.servers.iter().filter(|server| !known.contains_key(server)).copied().collect();
            have_come |= !placement.guests.is_empty();
        }
        if have_come {
            self.apply(services)?;
        }
        let nothing = ServiceWindows::default();
        let mut changed = Vec::new();
        for (name, placement) in &mut self.plan.services {
            let theirs = windows.services.get(name).unwrap_or(&nothing);
            if followed(placement, theirs, now) {
                // Noted before the slots change, as with every window.
                placement.window.opened = placement.slots.opened().unwrap_or(0);
                self.maps.set_window(placement.index, placement.window)?;
                changed.push(name.clone());
            }
        }
        let any = have_come || !changed.is_empty();
        self.rewrite_tables(changed)?;
        Ok(any)
    }
}

/// The position of each server.
fn places(placement: &Placement) -> BTreeMap<(IpAddr, u16), u16> {
    let servers = placement.servers.iter();
    servers.map(|(position, server)| ((server.address, server.port), *position)).collect()
}

fn told(placement: &Placement, now: u32) -> ServiceWindows {
    let mut windows = ServiceWindows::default();
    let mut place_of: BTreeMap<u16, u16> = BTreeMap::new();
    for (position, server) in &placement.servers {
        // As many as there are positions.
        place_of.insert(*position, windows.servers.len() as u16);
        windows.servers.push((server.address, server.port));
    }
    let mut states: BTreeMap<SlotWindow, u16> = BTreeMap::new();
    for (at, slot) in placement.slots.slots().iter().enumerate() {
        let since = placement.slots.moves_since(at).unwrap_or(now);
        let age_ms = now.saturating_sub(since).saturating_mul(1000);
        let state = match slot.state() {
            Some(SlotState::Moving) if slot.is_held() => SlotWindow::Held { age_ms },
            Some(SlotState::Moving) => match place_of.get(&slot.raw_previous()) {
                Some(previous) => SlotWindow::Moving { previous: *previous, age_ms },
                // It is dead: only pins are to be kept.
                None => SlotWindow::Held { age_ms },
            },
            Some(SlotState::Pinned) => SlotWindow::Pinned,
            Some(SlotState::Settled) | None => continue,
        };
        let next = states.len();
        let Ok(next) = u16::try_from(next) else { continue };
        let state = *states.entry(state).or_insert(next);
        windows.slots.insert(at as u32, state);
    }
    windows.states = vec![SlotWindow::Pinned; states.len()];
    for (state, place) in states {
        windows.states[usize::from(place)] = state;
    }
    windows
}

fn followed(placement: &mut Placement, theirs: &ServiceWindows, now: u32) -> bool {
    let places = places(placement);
    let owners: Vec<u16> = placement.slots.slots().iter().map(|slot| slot.raw_current()).collect();
    let position = |place: u16| {
        let server = theirs.servers.get(usize::from(place))?;
        places.get(server).copied()
    };
    let slot = |at: usize| {
        let owner = owners[at];
        let since = |age_ms: u32| now.saturating_sub(age_ms / 1000);
        match theirs.slot(at as u32) {
            Some(SlotWindow::Moving { previous, age_ms }) => match position(previous) {
                Some(previous) => (Slot::new(SlotState::Moving, owner, previous), since(age_ms)),
                None => (Slot::held(owner), since(age_ms)),
            },
            Some(SlotWindow::Held { age_ms }) => (Slot::held(owner), since(age_ms)),
            Some(SlotWindow::Pinned) => (Slot::new(SlotState::Pinned, owner, owner), now),
            None => (Slot::settled(owner), now),
        }
    };
    placement.slots.follow(slot, now)
}
