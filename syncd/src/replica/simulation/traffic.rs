//! Clients of the simulated cluster: connections whose packets come to any director that serves, as switches that rehash
//! at every packet would bring them. No packet may ever meet another real server than its connection's.
//!
//! A director's kernel is modelled by a few slots, which change by the very rules of the data plane
//! ([`director_common::slot`]), and pins that every director knows of after [`LAG`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use director_common::slot::Changed;
use director_common::{Slot, SlotState};
use director_proto::tables::TableSet;
use director_proto::windows::{ServiceWindows, SlotWindow, Windows};

/// Slots that are looked at.
pub(super) const SLOTS: usize = 6;

/// Time for a pin to reach the other directors.
pub(super) const LAG: Duration = Duration::from_millis(60);

/// Longest silence of a connection; longer, and it is given up.
const IDLE: Duration = Duration::from_millis(1500);

/// Time for which a slot moves, if the epoch is finished by then.
const WINDOW: Duration = Duration::from_secs(2);

/// The tables in one director's kernel.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    slots: [Slot; SLOTS],
    opened: [Instant; SLOTS],
    is_fed: bool,
}

/// The owner of each slot, behind it the previous one where it moves, and a star where it is pinned.
impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in &self.slots {
            match slot.state() {
                Some(SlotState::Moving) => write!(f, "{}<{} ", slot.raw_current(), slot.raw_previous())?,
                Some(SlotState::Pinned) => write!(f, "{}* ", slot.raw_current())?,
                _ => write!(f, "{} ", slot.raw_current())?,
            }
        }
        Ok(())
    }
}

fn owners(tables: &TableSet) -> [u16; SLOTS] {
    let slots = &tables.services["web"].slots;
    std::array::from_fn(|slot| slots[slot])
}

/// Servers do not die here.
fn nobody(_: u16) -> bool {
    false
}

impl Kernel {
    pub(super) fn new(now: Instant) -> Self {
        Self { slots: [Slot::EMPTY; SLOTS], opened: [now; SLOTS], is_fed: false }
    }

    fn set(&mut self, at: usize, changed: Changed, since: Instant) {
        self.slots[at] = changed.slot;
        if changed.restarts {
            self.opened[at] = since;
        }
    }

    /// PREPARE: slots that will change are looked up from now on.
    pub(super) fn prepare(&mut self, tables: &TableSet, now: Instant) {
        for (at, owner) in owners(tables).into_iter().enumerate() {
            if let Some(slot) = self.slots[at].hold(owner, nobody) {
                self.set(at, Changed { slot, restarts: true }, now);
            }
        }
    }

    /// The epoch that was prepared at `since` is over: what is held for it stays so for a margin.
    pub(super) fn end_epoch(&mut self, since: Instant, now: Instant) {
        for (slot, opened) in self.slots.iter().zip(&mut self.opened) {
            if slot.is_held() && *opened >= since {
                *opened = now;
            }
        }
    }

    /// COMMIT, or roll-back to what is in force.
    pub(super) fn apply(&mut self, tables: &TableSet, now: Instant) {
        for (at, owner) in owners(tables).into_iter().enumerate() {
            if !self.is_fed {
                self.slots[at] = Slot::settled(owner);
            } else if let Some(changed) = self.slots[at].give(owner, nobody) {
                self.set(at, changed, now);
            }
        }
        self.is_fed = true;
    }

    /// What is said of the slots to a director that has missed something.
    pub(super) fn windows(&self, now: Instant) -> Windows {
        let servers = (11..15).map(|host| (std::net::IpAddr::from([10, 0, 2, host]), 80)).collect();
        let mut web = ServiceWindows { servers, ..ServiceWindows::default() };
        for (at, slot) in self.slots.iter().enumerate() {
            let age_ms = now.duration_since(self.opened[at]).as_millis() as u32;
            let state = match slot.state() {
                Some(SlotState::Moving) if slot.is_held() => SlotWindow::Held { age_ms },
                Some(SlotState::Moving) => SlotWindow::Moving { previous: slot.raw_previous(), age_ms },
                Some(SlotState::Pinned) => SlotWindow::Pinned,
                _ => continue,
            };
            web.slots.insert(at as u32, web.states.len() as u16);
            web.states.push(state);
        }
        Windows { services: BTreeMap::from([("web".to_owned(), web)]) }
    }

    /// What another director says of the slots.
    pub(super) fn follow(&mut self, windows: &Windows, now: Instant) {
        for at in 0..SLOTS {
            let own = self.slots[at].raw_current();
            let ago = |age_ms: u32| now - Duration::from_millis(age_ms.into());
            let (theirs, since) = match windows.services["web"].slot(at as u32) {
                Some(SlotWindow::Moving { previous, age_ms }) => {
                    (Slot::new(SlotState::Moving, own, previous), ago(age_ms))
                }
                Some(SlotWindow::Held { age_ms }) => (Slot::held(own), ago(age_ms)),
                Some(SlotWindow::Pinned) => (Slot::new(SlotState::Pinned, own, own), now),
                None => (Slot::settled(own), now),
            };
            let since = if theirs.is_moving() { since } else { now };
            if let Some(changed) = self.slots[at].follow(theirs) {
                self.set(at, changed, since);
            }
        }
    }

    /// What time does to the slots; an epoch is under way since `under_way`.
    pub(super) fn age(&mut self, margin: Duration, under_way: Option<Instant>, now: Instant) {
        for at in 0..SLOTS {
            let time = if self.slots[at].is_held() { margin } else { WINDOW };
            let ends = under_way.is_none_or(|since| self.opened[at] < since);
            if ends && self.slots[at].is_moving() && now >= self.opened[at] + time {
                self.set(at, Changed { slot: self.slots[at].close(), restarts: true }, now);
            }
        }
    }
}

#[derive(Debug)]
struct Connection {
    slot: usize,
    server: u16,
    opened: Instant,
    last: Instant,
    /// Director that pinned it, and when.
    pin: Option<(usize, Instant)>,
}

impl Connection {
    fn is_pinned(&self, director: usize, now: Instant) -> bool {
        self.pin.is_some_and(|(by, at)| by == director || now >= at + LAG)
    }
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Packets checked.
    pub(super) packets: u64,
}

impl Clients {
    /// Nobody was there to serve them.
    pub(super) fn lose_all(&mut self) {
        self.connections.clear();
    }

    /// A client opens a connection through `director`.
    pub(super) fn open(&mut self, director: usize, kernel: &Kernel, slot: usize, now: Instant) {
        let of = kernel.slots[slot];
        let pin = of.is_moving().then_some((director, now));
        let connection = Connection { slot, server: of.raw_current(), opened: now, last: now, pin };
        self.connections.insert(self.next, connection);
        self.next += 1;
    }

    /// Connections there are.
    pub(super) fn ids(&mut self, now: Instant) -> Vec<u64> {
        self.connections.retain(|_, connection| now < connection.last + IDLE);
        self.connections.keys().copied().collect()
    }

    /// A packet of a connection comes to `director`; an error if it goes astray.
    pub(super) fn send(
        &mut self,
        id: u64,
        director: usize,
        kernel: &Kernel,
        now: Instant,
    ) -> Result<(), String> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let of = kernel.slots[connection.slot];
        let pinned = connection.is_pinned(director, now);
        let to = match of.state() {
            Some(SlotState::Moving | SlotState::Pinned) if pinned => connection.server,
            Some(SlotState::Moving) => of.raw_previous(),
            _ => of.raw_current(),
        };
        self.packets += 1;
        if to != connection.server {
            let young = now < connection.opened + LAG || connection.pin.is_some_and(|(_, at)| now < at + LAG);
            let told =
                format!("connection {id} of {connection:?} goes to {to} at director {director}: {of:?}");
            return if young { Ok(()) } else { Err(told) };
        }
        connection.last = now;
        if of.is_moving() && connection.pin.is_none() {
            connection.pin = Some((director, now));
        }
        Ok(())
    }

    /// What the pins at a director do to its slots: where they say otherwise, a slot is looked up, and where none does any
    /// more, it settles.
    pub(super) fn settle(&self, director: usize, kernel: &mut Kernel, now: Instant) {
        for (at, slot) in kernel.slots.iter_mut().enumerate() {
            let owner = slot.raw_current();
            let mut pinned = self.connections.values().filter(|connection| connection.slot == at);
            let elsewhere =
                pinned.any(|connection| connection.server != owner && connection.is_pinned(director, now));
            *slot = match slot.state() {
                Some(SlotState::Settled) if elsewhere => Slot::new(SlotState::Pinned, owner, owner),
                Some(SlotState::Pinned) if !elsewhere => Slot::settled(owner),
                _ => *slot,
            };
        }
    }
}
