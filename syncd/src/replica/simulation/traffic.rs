//! Clients of the simulated cluster: connections whose packets come to any director that serves, as switches that rehash
//! at every packet would bring them. No packet may ever meet another real server than its connection's.
//!
//! A director's kernel is modelled by a few slots in the states of DESIGN section 4, and pins that every director knows of
//! after [`LAG`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use director_proto::tables::TableSet;

/// Slots that are looked at.
pub(super) const SLOTS: usize = 6;

/// Time for a pin to reach the other directors.
pub(super) const LAG: Duration = Duration::from_millis(60);

/// Longest silence of a connection; longer, and it is given up.
const IDLE: Duration = Duration::from_millis(1500);

/// Time for which a slot moves, if the epoch is finished by then.
const WINDOW: Duration = Duration::from_secs(2);

/// Time for which it then has one owner and still pins: longer than two directors may be apart, one of which has an
/// epoch under way.
const MARGIN: Duration = Duration::from_secs(6);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Settled,
    Moving(Instant),
    Pinned,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    state: State,
    current: u16,
    previous: u16,
}

impl Slot {
    fn given(self, owner: u16, now: Instant) -> Self {
        let slot = |state, previous| Self { state, current: owner, previous };
        match self.state {
            _ if owner == self.current => self,
            State::Moving(_) if owner == self.previous => slot(State::Moving(now), owner),
            State::Moving(_) if self.current == self.previous => slot(State::Moving(now), self.previous),
            State::Moving(since) => slot(State::Moving(since), self.previous),
            _ => slot(State::Moving(now), self.current),
        }
    }
}

/// The tables in one director's kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    slots: [Slot; SLOTS],
    is_fed: bool,
}

fn owners(tables: &TableSet) -> [u16; SLOTS] {
    let slots = &tables.services["web"].slots;
    std::array::from_fn(|slot| slots[slot])
}

impl Kernel {
    /// PREPARE: slots that will change are looked up from now on.
    pub(super) fn prepare(&mut self, tables: &TableSet, now: Instant) {
        for (slot, owner) in self.slots.iter_mut().zip(owners(tables)) {
            if owner != slot.current && !matches!(slot.state, State::Moving(_)) {
                *slot = Slot { state: State::Moving(now), previous: slot.current, ..*slot };
            }
        }
    }

    /// COMMIT, or roll-back to what is in force.
    pub(super) fn apply(&mut self, tables: &TableSet, now: Instant) {
        for (slot, owner) in self.slots.iter_mut().zip(owners(tables)) {
            *slot = match self.is_fed {
                true => slot.given(owner, now),
                false => Slot { state: State::Settled, current: owner, previous: owner },
            };
        }
        self.is_fed = true;
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
        let pin = matches!(of.state, State::Moving(_)).then_some((director, now));
        let connection = Connection { slot, server: of.current, opened: now, last: now, pin };
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
        let to = match of.state {
            State::Settled => of.current,
            _ if pinned => connection.server,
            State::Moving(_) => of.previous,
            State::Pinned => of.current,
        };
        self.packets += 1;
        if to != connection.server {
            let young = now < connection.opened + LAG || connection.pin.is_some_and(|(_, at)| now < at + LAG);
            let told =
                format!("connection {id} of {connection:?} goes to {to} at director {director}: {of:?}");
            return if young { Ok(()) } else { Err(told) };
        }
        connection.last = now;
        if matches!(of.state, State::Moving(_)) && connection.pin.is_none() {
            connection.pin = Some((director, now));
        }
        Ok(())
    }

    /// What time does to a kernel's slots, while no epoch is under way there.
    pub(super) fn age(&self, kernel: &mut Kernel, now: Instant) {
        for (index, slot) in kernel.slots.iter_mut().enumerate() {
            let foreign = |connection: &Connection| {
                connection.slot == index && connection.pin.is_some() && connection.server != slot.current
            };
            let is_held = slot.current == slot.previous;
            slot.state = match slot.state {
                State::Moving(since) if is_held && now >= since + MARGIN => State::Pinned,
                State::Moving(since) if !is_held && now >= since + WINDOW => {
                    slot.previous = slot.current;
                    State::Moving(now)
                }
                State::Pinned if !self.connections.values().any(foreign) => State::Settled,
                state => state,
            };
        }
    }
}
