//! The windows of one service: which of its slots move, since when, and when each may be settled again.
//!
//! Pure: no map and no clock, so that every history can be played on a virtual one. The data plane writes
//! [`SlotWindows::slots`] to the kernel whenever a method says that they have changed, and waits until no packet is
//! under way that saw the old ones.
//!
//! What a slot becomes is for the rules of [`director_common::slot`] to say; when its time is over, and when no pin is
//! left that says otherwise, is kept here:
//!
//! | a slot that is | becomes | when |
//! |---|---|---|
//! | moving to another owner | held by that one | its window has passed: what lives has its pin |
//! | held | pinned | the margin has passed: no director lets it move any more |
//! | pinned | settled | a whole sweep has found no pin to another server |

use std::collections::BTreeSet;
use std::time::Duration;

use director_common::pin::{Pin, PinState};
use director_common::slot::Changed;
use director_common::{Slot, SlotState};

/// How long an idle connection is kept: its pin, and with it a server that has left. As in IPVS, whose defaults
/// these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A TCP connection under way.
    pub established: Duration,
    /// A TCP connection after a FIN or a RST of the client.
    pub fin: Duration,
    /// A flow of datagrams.
    pub udp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            established: Duration::from_secs(900),
            fin: Duration::from_secs(120),
            udp: Duration::from_secs(300),
        }
    }
}

/// Longest timeout in seconds: eight days.
const MAX_TIMEOUT: u32 = 8 * 86_400;

/// A timeout in whole seconds, rounded up.
pub(super) fn seconds(timeout: Duration) -> u32 {
    let rounded = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    u32::try_from(rounded).map_or(MAX_TIMEOUT, |seconds| seconds.clamp(1, MAX_TIMEOUT))
}

impl Timeouts {
    /// Seconds for which slots move: the longest that a connection may be silent and still be alive.
    pub fn window(&self, tcp: bool, udp: bool) -> u32 {
        let of_tcp = if tcp { seconds(self.established).max(seconds(self.fin)) } else { 0 };
        let of_udp = if udp { seconds(self.udp) } else { 0 };
        of_tcp.max(of_udp).max(1)
    }

    /// Seconds for which a pin in this state outlives its last packet.
    pub fn of_pin(&self, state: PinState, tcp: bool) -> u32 {
        let idle = seconds(if tcp { self.established } else { self.udp });
        match state {
            PinState::Open => idle,
            PinState::Opening => idle.min(PinState::OPENING_TIMEOUT),
            PinState::Finished | PinState::Reset => seconds(self.fin),
        }
    }

    /// Whether a pin has had its time at second `now`.
    pub fn is_expired(&self, pin: &Pin, tcp: bool, now: u32) -> bool {
        // A packet may have come after `now` was asked for.
        u64::from(now).saturating_sub(pin.seen) > u64::from(self.of_pin(pin.state(), tcp)) + CLOCK_STEP
    }
}

/// Seconds by which two readings of the same moment may differ: packets are told whole seconds of a coarse clock.
pub(super) const CLOCK_STEP: u64 = 2;

/// What a sweep over all pins has found of one service so far.
#[derive(Clone, Debug, Default)]
struct Pass {
    /// Slots that some connection is pinned away from.
    foreign: BTreeSet<u32>,
    /// Servers that some connection is pinned to, by position.
    named: BTreeSet<u16>,
    pins: u64,
}

/// The slots of one service through their states.
#[derive(Clone, Debug)]
pub struct SlotWindows {
    slots: Vec<Slot>,
    /// Second at which each slot began to move; empty while none does.
    opened: Vec<u32>,
    /// What the sweep under way has found, unless the slots have changed since it began.
    pass: Option<Pass>,
    /// Pins that the last whole sweep left.
    pins: u64,
    /// Settled slots have become pinned since somebody asked.
    reopened: bool,
}

impl SlotWindows {
    /// Slots as they are found; those that move have done so since second `opened`, at the latest.
    pub fn new(slots: Vec<Slot>, opened: u32) -> Self {
        let moving = slots.iter().any(|slot| is_moving(*slot));
        let opened = if moving { vec![opened; slots.len()] } else { Vec::new() };
        Self { slots, opened, pass: None, pins: 0, reopened: false }
    }

    /// The slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Pins that the last whole sweep left.
    pub fn pins(&self) -> u64 {
        self.pins
    }

    /// Slots that move, and slots that are pinned.
    pub fn counts(&self) -> (usize, usize) {
        let of = |state| self.slots.iter().filter(|slot| slot.state() == Some(state)).count();
        (of(SlotState::Moving), of(SlotState::Pinned))
    }

    /// Some slot is not settled.
    pub fn is_open(&self) -> bool {
        self.slots.iter().any(|slot| !slot.is_settled())
    }

    /// Some slot moves.
    pub fn is_moving(&self) -> bool {
        self.moving().next().is_some()
    }

    /// Second at which the last slot began to move, if one does.
    pub fn opened(&self) -> Option<u32> {
        self.moving().map(|(_, opened)| opened).max()
    }

    /// Positions that some slot names, now or for what was before.
    pub fn named(&self) -> BTreeSet<u16> {
        let mut named = BTreeSet::new();
        for slot in &self.slots {
            named.extend(slot.current());
            named.extend(slot.previous().filter(|_| is_moving(*slot)));
        }
        named
    }

    /// Gives the slots to `owners` (positions, [`Slot::NO_POSITION`] for none), one for each, at second `now`.
    /// Servers that `is_gone` are not waited for. False if nothing changes.
    pub fn change(&mut self, owners: &[u16], is_gone: impl Fn(u16) -> bool, now: u32) -> bool {
        if owners.len() != self.slots.len() {
            *self = Self::new(owners.iter().map(|owner| Slot::settled(*owner)).collect(), now);
            return true;
        }
        let mut changed = false;
        for (at, owner) in owners.iter().enumerate() {
            let Some(new) = self.slots[at].give(*owner, &is_gone) else { continue };
            changed = true;
            self.set(at, new, now);
        }
        if changed {
            self.pass = None;
        }
        changed
    }

    /// The epoch that began at second `since` is over: what it has made slots hold they do for a margin from second `now`
    /// on. False if that is none.
    pub fn prolong(&mut self, since: u32, now: u32) -> bool {
        let mut any = false;
        for (slot, opened) in self.slots.iter().zip(&mut self.opened) {
            if slot.is_held() && *opened >= since {
                (*opened, any) = (now, true);
            }
        }
        any
    }

    /// Slots that `owners` would give to another server look their connections up and pin them from second `now` on, and
    /// go on belonging to whom they do; how many that are. Those that move to another server do so anyhow.
    pub fn hold(&mut self, owners: &[u16], is_gone: impl Fn(u16) -> bool, now: u32) -> usize {
        if owners.len() != self.slots.len() {
            return 0;
        }
        let mut held = 0;
        for (at, owner) in owners.iter().enumerate() {
            let Some(slot) = self.slots[at].hold(*owner, &is_gone) else { continue };
            self.set(at, Changed { slot, restarts: true }, now);
            held += 1;
        }
        if held > 0 {
            self.pass = None;
        }
        held
    }

    /// Settles every slot at its owner at once, where nothing is tracked.
    pub fn settle_at(&mut self, owners: &[u16]) -> bool {
        let slots: Vec<Slot> = owners.iter().map(|owner| Slot::settled(*owner)).collect();
        let changed = slots != self.slots;
        if changed {
            *self = Self::new(slots, 0);
        }
        changed
    }

    /// Begins every window anew at second `now`: connections of moving slots may have found no room for a pin.
    pub fn extend(&mut self, now: u32) {
        self.opened.fill(now);
    }

    /// Says that the slots which began to move at second `from` really did at `to`.
    pub fn correct(&mut self, from: u32, to: u32) {
        self.opened.iter_mut().filter(|opened| **opened == from).for_each(|opened| *opened = to);
    }

    /// Takes over how the slots are at a director that has missed nothing, under the same tables and with the positions
    /// of this one: `theirs` says of a slot what it is there, and since which second if it moves. False if nothing
    /// changes.
    pub fn follow(&mut self, theirs: impl Fn(usize) -> (Slot, u32), now: u32) -> bool {
        let mut changed = false;
        for at in 0..self.slots.len() {
            let (slot, opened) = theirs(at);
            let Some(new) = self.slots[at].follow(slot) else { continue };
            changed = true;
            self.set(at, new, if is_moving(slot) { opened } else { now });
        }
        if changed {
            self.pass = None;
        }
        changed
    }

    fn set(&mut self, at: usize, new: Changed, now: u32) {
        self.slots[at] = new.slot;
        if new.restarts {
            self.opened.resize(self.slots.len(), 0);
            self.opened[at] = now;
        }
    }

    /// Since which second a slot moves, if it does.
    pub fn moves_since(&self, at: usize) -> Option<u32> {
        is_moving(*self.slots.get(at)?).then(|| self.opened.get(at).copied().unwrap_or(0))
    }

    /// Ends what has had its time at second `now`: windows of `window` seconds, and after them, or after an epoch that
    /// has come to nothing, margins of `margin` seconds. Returns how many slots have ceased to move to another owner, and
    /// how many to move at all.
    ///
    /// What has begun since second `under_way`, that of an epoch which is not over, does not end: another director may
    /// still forward by the tables before.
    pub fn close(&mut self, window: u32, margin: u32, under_way: Option<u32>, now: u32) -> (usize, usize) {
        let time = |slot: Slot| u64::from(if slot.is_held() { margin } else { window }) + CLOCK_STEP;
        let is_due = |(at, opened): &(usize, u32)| {
            under_way.is_none_or(|since| *opened < since)
                && u64::from(now.saturating_sub(*opened)) > time(self.slots[*at])
        };
        let due: Vec<usize> = self.moving().filter(is_due).map(|(at, _)| at).collect();
        let (mut held, mut closed) = (0, 0);
        for at in &due {
            let slot = self.slots[*at].close();
            let still_moves = is_moving(slot);
            self.set(*at, Changed { slot, restarts: still_moves }, now);
            *if still_moves { &mut held } else { &mut closed } += 1;
        }
        if !due.is_empty() {
            self.pass = None;
            if !self.slots.iter().any(|slot| is_moving(*slot)) {
                self.opened = Vec::new();
            }
        }
        (held, closed)
    }

    /// Seconds until the last slot has ceased to move, if one does.
    pub fn closes_in(&self, window: u32, margin: u32, now: u32) -> Option<u32> {
        let left = |(at, opened): (usize, u32)| {
            let until = |time: u32| opened.saturating_add(time).saturating_sub(now);
            match self.slots[at].is_held() {
                true => until(margin),
                false => until(window).saturating_add(margin),
            }
        };
        self.moving().map(left).max()
    }

    /// A sweep over all pins begins.
    pub fn begin_pass(&mut self) {
        self.pass = Some(Pass::default());
    }

    /// The sweep has met a pin of a connection in slot `slot` to the server at `position`; false if it is to be
    /// removed, having had its time or saying no more than the slot does.
    pub fn keep(&mut self, slot: u32, position: u16, is_expired: bool) -> bool {
        let Some(of) = self.slots.get(slot as usize).copied() else { return false };
        let foreign = of.state() == Some(SlotState::Pinned) && of.raw_current() != position;
        if is_expired || !(foreign || is_moving(of)) {
            return false;
        }
        if let Some(pass) = &mut self.pass {
            pass.pins += 1;
            pass.named.insert(position);
            if foreign {
                pass.foreign.insert(slot);
            }
        }
        true
    }

    /// The sweep has met an entry of a tracked connection, to the server at `position`, that stays whatever its slot says.
    pub fn keep_tracked(&mut self, slot: u32, position: u16) {
        let current = self.slots.get(slot as usize).map(|of| of.raw_current());
        if let Some(pass) = &mut self.pass {
            pass.pins += 1;
            pass.named.insert(position);
            if current.is_some_and(|current| current != position) {
                pass.foreign.insert(slot);
            }
        }
    }

    /// Makes every settled slot pinned: connections that were tracked may be anywhere.
    pub fn pin_all(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            self.pin(slot);
        }
        self.reopened = false;
    }

    /// The sweep is at its end. Pinned slots that it has met no pin of are settled; how many were. Nothing is known
    /// (`None`) if the slots changed on the way; else the servers that connections are pinned to.
    pub fn end_pass(&mut self) -> (usize, Option<BTreeSet<u16>>) {
        let Some(pass) = self.pass.take() else { return (0, None) };
        self.pins = pass.pins;
        let mut settled = 0;
        for (at, slot) in (0_u32..).zip(&mut self.slots) {
            if slot.state() == Some(SlotState::Pinned) && !pass.foreign.contains(&at) {
                *slot = Slot::settled(slot.raw_current());
                settled += 1;
            }
        }
        (settled, Some(pass.named))
    }

    /// Makes a settled slot pinned, for a connection of it that another server has; false if it was not settled.
    pub fn pin(&mut self, slot: u32) -> bool {
        match self.slots.get_mut(slot as usize) {
            Some(slot) if slot.is_settled() => {
                *slot = pinned(slot.raw_current());
                self.pass = None;
                self.reopened = true;
                true
            }
            _ => false,
        }
    }

    /// Whether [`Self::pin`] has changed slots since this was asked last.
    pub fn has_reopened(&mut self) -> bool {
        std::mem::take(&mut self.reopened)
    }

    fn moving(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let opened = self.opened.iter().copied().enumerate();
        opened.filter(|(at, _)| is_moving(self.slots[*at]))
    }
}

fn is_moving(slot: Slot) -> bool {
    slot.state() == Some(SlotState::Moving)
}

fn pinned(position: u16) -> Slot {
    Slot::new(SlotState::Pinned, position, position)
}
