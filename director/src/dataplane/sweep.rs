//! What time does: windows close, pins expire, slots settle, servers that have left are let go.
//!
//! [`Dataplane::tick`] is called once a second, or whenever it can be: being late keeps connections, pins and servers
//! longer than needed, and never loses one. A sweep over all pins is spread over as many ticks as it takes. What it
//! concludes holds, since a slot that is not moving gets no new pin but of another director's, which is told to a sweep
//! under way, and one that changed meanwhile is left to the
//! next sweep.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use director_common::hash::FlowHash;
use director_common::packet::PROTOCOL_TCP;
use director_common::pin::Pin;
use director_common::tables::{Config, FlowKey, LoadEntry};

use super::Dataplane;
use super::apply::packed;
use super::connections::{Connections, Cursor, Entry, STEP};
use super::error::{ApplyError, ReadError};
use super::maps::ip_address;
use super::plan::Placement;
use super::templates::Due;
use super::window::seconds;

/// What a [`Dataplane::tick`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TickReport {
    /// Slots whose windows are over: they are held for a margin.
    pub held: usize,
    /// Slots that have ceased to move.
    pub closed: usize,
    /// Slots that have settled.
    pub settled: usize,
    /// Pins removed: their time was up, or their slot says the same.
    pub removed: usize,
    /// Servers that have left and are let go: nothing names them any more.
    pub released: Vec<IpAddr>,
    /// Services with connections that found no room for a pin since the last tick: their windows stay open.
    pub refused: Vec<String>,
    /// A sweep over all pins came to its end.
    pub swept: bool,
}

/// How much of a service is changing.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Slots that move, from 0 to 1 of all.
    pub moving: f64,
    /// Slots that are pinned, from 0 to 1 of all.
    pub pinned: f64,
    /// Pins that the last whole sweep left.
    pub pins: u64,
    /// Time until the last slot has ceased to move, if one does.
    pub closes_in: Option<Duration>,
    /// Real servers that have left and still have connections.
    pub leaving: Vec<(IpAddr, u16)>,
}

/// A pin, in words that every director understands: not by positions, and not by anybody's clock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinRecord {
    /// The client.
    pub source: SocketAddr,
    /// The VIP and port.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Name of the service.
    pub service: String,
    /// Address and port of the real server.
    pub real: SocketAddr,
    /// The client has sent a FIN or a RST.
    pub is_closing: bool,
    /// Seconds since its last packet.
    pub idle: u32,
    /// Seconds until it expires, if no packet comes.
    pub remaining: u32,
    /// The address and port that stand for the client, by full NAT.
    pub local: Option<SocketAddr>,
}

/// The sweep under way.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    cursor: Cursor,
    is_running: bool,
    /// The last whole sweep met pins, or none has been made yet.
    is_needed: bool,
    /// The last walk through half-open connections met some.
    has_half_open: bool,
    /// Where that walk is.
    half_open: Cursor,
    /// Services whose slots the kernel has refused to take so far.
    unwritten: BTreeSet<String>,
    /// Templates whose time is up.
    pub(super) due: Due,
}

impl Sweep {
    /// The first tick of a process sweeps: what was left to it is not known.
    pub(super) fn new() -> Self {
        Self { is_needed: true, has_half_open: true, ..Self::default() }
    }

    /// There are pins again.
    pub(super) fn demand(&mut self) {
        self.is_needed = true;
    }
}

/// Whose a pin is: the service's name, and the server's position there.
pub(super) type Owners = BTreeMap<u32, (String, u16)>;

impl Dataplane {
    /// Does what is due at second `now` of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses. The next tick tries again.
    pub fn tick(&mut self, now: u32) -> Result<TickReport, ApplyError> {
        let mut report = TickReport::default();
        // Those of the tick before: see there.
        self.end_leases();
        // Before anything is concluded from slots, the kernel must have them.
        self.rewrite_tables([])?;
        self.extend_windows(now, &mut report)?;
        self.close_windows(now, &mut report)?;
        self.sweep(now, &mut report)?;
        self.sweep_half_open(now, &mut report);
        self.sweep_leases(now);
        self.relieve_servers();
        Ok(report)
    }

    /// Takes the mark off overloaded servers that have few enough connections now: the program takes connections off
    /// the counts, but only user space says what follows.
    fn relieve_servers(&self) {
        for placement in self.plan.services.values().filter(|placement| placement.is_tracked()) {
            for position in placement.servers.keys() {
                self.maps.loads.relieve(placement.block.base + u32::from(*position));
            }
        }
    }

    /// Addresses of real servers that are in no specification any more and still have connections: the ways to them
    /// are needed as before.
    pub fn retained(&self) -> BTreeSet<IpAddr> {
        let servers = self.plan.services.values().flat_map(|placement| placement.servers.values());
        servers.filter(|server| server.is_leaving).map(|server| server.address).collect()
    }

    /// How much of each service is changing at second `now`, by name.
    pub fn windows(&self, now: u32) -> BTreeMap<String, Window> {
        let window = |placement: &Placement| {
            let slots = &placement.slots;
            let (moving, pinned) = slots.counts();
            let all = slots.slots().len().max(1) as f64;
            let closes_in = slots.closes_in(placement.window.window, seconds(self.options.margin), now);
            let leaving = placement.servers.values().filter(|server| server.is_leaving);
            Window {
                moving: moving as f64 / all,
                pinned: pinned as f64 / all,
                pins: slots.pins(),
                closes_in: closes_in.map(|left| Duration::from_secs(left.into())),
                leaving: leaving.map(|server| (server.address, server.port)).collect(),
            }
        };
        self.plan.services.iter().map(|(name, placement)| (name.clone(), window(placement))).collect()
    }

    /// Every live pin at second `now`, in order.
    ///
    /// # Errors
    /// [`ReadError`] if the kernel refuses.
    pub fn pins(&self, now: u32) -> Result<Vec<PinRecord>, ReadError> {
        self.records(&self.maps.pins, now)
    }

    /// Every connection of tracked services that has begun and not gone on yet, at second `now`, in order.
    ///
    /// # Errors
    /// [`ReadError`] if the kernel refuses.
    pub fn half_open(&self, now: u32) -> Result<Vec<PinRecord>, ReadError> {
        self.records(&self.maps.half_open, now)
    }

    fn records(&self, map: &Connections, now: u32) -> Result<Vec<PinRecord>, ReadError> {
        let owners = self.owners();
        let mut pins = Vec::new();
        let mut cursor = Cursor::Start;
        while cursor != Cursor::End {
            cursor = map.read(cursor, &mut pins);
        }
        let record = |Entry { flow, pin, lease, .. }: Entry| {
            if flow.is_template() {
                return None;
            }
            let (name, position) = owners.get(&pin.server().generation())?;
            let placement = self.plan.services.get(name)?;
            let server = placement.servers.get(position)?;
            let tcp = flow.protocol == PROTOCOL_TCP;
            if placement.timeouts.is_expired(&pin, tcp, now) {
                return None;
            }
            let age = u64::from(now).saturating_sub(pin.seen);
            let life = placement.timeouts.of_pin(pin.state(), tcp);
            Some(PinRecord {
                source: SocketAddr::new(ip_address(flow.source), flow.source_port),
                destination: SocketAddr::new(ip_address(flow.destination), flow.destination_port),
                protocol: flow.protocol,
                service: name.clone(),
                real: SocketAddr::new(server.address, server.port),
                is_closing: pin.state().is_closing(),
                idle: u32::try_from(age).unwrap_or(u32::MAX),
                remaining: life.saturating_sub(u32::try_from(age).unwrap_or(u32::MAX)),
                local: self.local_of(lease),
            })
        };
        let mut records: Vec<PinRecord> = pins.into_iter().filter_map(record).collect();
        records.sort_unstable();
        Ok(records)
    }

    /// The windows of services whose connections found no room for a pin begin anew: what has no pin must go on going
    /// to the previous owner.
    fn extend_windows(&mut self, now: u32, report: &mut TickReport) -> Result<(), ApplyError> {
        for (name, placement) in &mut self.plan.services {
            if !placement.slots.is_moving() {
                continue;
            }
            let unpinned = self.maps.counts.service(placement.index)?.unpinned;
            if unpinned == placement.window.unpinned {
                continue;
            }
            placement.slots.extend(now);
            placement.window.opened = now;
            placement.window.unpinned = unpinned;
            self.maps.set_window(placement.index, placement.window)?;
            report.refused.push(name.clone());
        }
        Ok(())
    }

    fn close_windows(&mut self, now: u32, report: &mut TickReport) -> Result<(), ApplyError> {
        let mut changed = Vec::new();
        let margin = seconds(self.options.margin);
        for (name, placement) in &mut self.plan.services {
            let (held, closed) = placement.slots.close(placement.window.window, margin, self.under_way, now);
            if held > 0 {
                // Noted before the slots change: a process that dies in between holds them for too long, not too short.
                placement.window.opened = now;
                self.maps.set_window(placement.index, placement.window)?;
            }
            if held + closed > 0 {
                (report.held, report.closed) = (report.held + held, report.closed + closed);
                changed.push(name.clone());
            }
        }
        self.rewrite_tables(changed)
    }

    /// Puts the slots of these services into the kernel, in place of those of the same tables; returns when no program
    /// is under way that saw the old ones. Should the kernel refuse one, the next tick tries all again.
    ///
    /// Only states and previous owners change here, and a packet looks at one slot: none needs a table that is all of
    /// one moment.
    pub(super) fn rewrite_tables(
        &mut self,
        names: impl IntoIterator<Item = String>,
    ) -> Result<(), ApplyError> {
        self.sweep.unwritten.extend(names);
        if self.sweep.unwritten.is_empty() {
            return Ok(());
        }
        for name in &self.sweep.unwritten {
            if let Some(placement) = self.plan.services.get(name) {
                self.maps.set_table(placement.table, &packed(placement.slots.slots()))?;
            }
        }
        self.maps.wait()?;
        self.sweep.unwritten.clear();
        Ok(())
    }

    fn sweep(&mut self, now: u32, report: &mut TickReport) -> Result<(), ApplyError> {
        if !self.sweep.is_running {
            let leaves = |placement: &Placement| placement.servers.values().any(|server| server.is_leaving);
            let services = || self.plan.services.values();
            if !self.sweep.is_needed
                && !services()
                    .any(|service| service.slots.is_open() || service.is_tracked() || leaves(service))
            {
                return Ok(());
            }
            self.plan.services.values_mut().for_each(|placement| placement.slots.begin_pass());
            (self.sweep.cursor, self.sweep.is_running, self.sweep.is_needed) = (Cursor::Start, true, false);
            self.begin_templates();
        }
        let (hash, owners) = (self.maps.flow_hash()?, self.owners());
        let mut seen = 0;
        while self.sweep.cursor != Cursor::End && seen < self.options.swept_at_once {
            let mut pins = Vec::new();
            let next = self.maps.pins.read(self.sweep.cursor, &mut pins);
            seen += pins.len() + STEP as usize;
            for entry in pins {
                report.removed += usize::from(self.sweep_one(&hash, &owners, entry, now));
            }
            self.sweep.cursor = next;
        }
        if self.sweep.cursor == Cursor::End {
            self.end_sweep(now, report)?;
        }
        Ok(())
    }

    /// Removes a pin that the sweep has met, unless it stays. One that a packet changes meanwhile is looked at again: it is
    /// alive.
    fn sweep_one(&mut self, hash: &FlowHash, owners: &Owners, mut entry: Entry, now: u32) -> bool {
        while !self.keeps(hash, owners, &entry, now) {
            if self.maps.pins.remove(&entry) {
                self.uncount(owners, &entry.flow, &entry.pin);
                self.note_ended(entry);
                // There may be another entry of the same connection.
                if self.maps.pins.get(&entry.flow).is_none() {
                    self.replicas.forget(&entry.flow);
                }
                return true;
            }
            let Some(again) = self.maps.pins.again(&entry) else { break };
            entry = again;
        }
        false
    }

    /// Whether a pin that the sweep has met stays.
    fn keeps(&mut self, hash: &FlowHash, owners: &Owners, entry: &Entry, now: u32) -> bool {
        let (flow, pin) = (&entry.flow, &entry.pin);
        if flow.is_template() {
            let keeps = self.keeps_template(owners, entry, now);
            self.sweep.is_needed |= keeps;
            return keeps;
        }
        let Some((name, position)) = owners.get(&pin.server().generation()) else { return false };
        let Some(placement) = self.plan.services.get_mut(name) else { return false };
        let slot = placement.slot_of(hash, flow);
        let expired = placement.timeouts.is_expired(pin, flow.protocol == PROTOCOL_TCP, now)
            && self.replicas.kept_until(flow).is_none_or(|until| until <= now);
        let keeps = if placement.is_tracked() && !expired {
            placement.slots.keep_tracked(slot, *position);
            true
        } else {
            placement.slots.keep(slot, *position, expired)
        };
        self.sweep.is_needed |= keeps;
        if keeps {
            self.spare_template(owners, flow, pin);
        }
        keeps
    }

    /// Removes pins, and takes those of tracked connections off the counts.
    pub(super) fn remove_pins(&self, owners: &Owners, config: &Config, flows: &[FlowKey]) {
        for flow in flows {
            if let Some(entry) = self.maps.pins.take(flow) {
                self.uncount(owners, flow, &entry.pin);
                self.abandon_lease(owners, config, &entry);
            }
        }
    }

    /// Where a tracked connection is counted: the real server's index, and whether as an active one.
    pub(super) fn counted(&self, owners: &Owners, flow: &FlowKey, pin: &Pin) -> Option<(u32, bool)> {
        if flow.is_template() {
            return None;
        }
        let (name, position) = owners.get(&pin.server().generation())?;
        let placement = self.plan.services.get(name).filter(|placement| placement.is_tracked())?;
        let is_active = flow.protocol == PROTOCOL_TCP && pin.state().is_active();
        Some((placement.block.base + u32::from(*position), is_active))
    }

    pub(super) fn uncount(&self, owners: &Owners, flow: &FlowKey, pin: &Pin) {
        if let Some((index, was_active)) = self.counted(owners, flow, pin) {
            self.maps.loads.depart(index, was_active);
        }
    }

    /// Counts the connections of all tracked services anew, from those that there are: a process that died may have
    /// removed some and not counted that, and before a service was tracked nobody counted. What the program counts
    /// meanwhile stays counted; a connection that begins, ends or goes on while its table is walked through may be off by
    /// one.
    pub(super) fn recount(&self) {
        let owners = self.owners();
        let tracked = || self.plan.services.values().filter(|placement| placement.is_tracked());
        let indices = tracked().flat_map(|placement| {
            placement.servers.keys().map(|position| placement.block.base + u32::from(*position))
        });
        let before: BTreeMap<u32, LoadEntry> =
            indices.map(|index| (index, self.maps.loads.get(index))).collect();
        let (mut pins, mut counts) = (Vec::new(), BTreeMap::<u32, (u64, u64)>::new());
        for map in [&self.maps.pins, &self.maps.half_open] {
            let mut cursor = Cursor::Start;
            while cursor != Cursor::End {
                cursor = map.read(cursor, &mut pins);
                for Entry { flow, pin, .. } in pins.drain(..) {
                    let Some((index, is_active)) = self.counted(&owners, &flow, &pin) else { continue };
                    let (active, inactive) = counts.entry(index).or_default();
                    *(if is_active { active } else { inactive }) += 1;
                }
            }
        }
        for (index, before) in before {
            let (active, inactive) = counts.get(&index).copied().unwrap_or_default();
            self.maps.loads.correct(
                index,
                active.wrapping_sub(before.active),
                inactive.wrapping_sub(before.inactive),
            );
        }
    }

    /// Removes the half-open connections that have had their time, or that nobody tracks any more.
    fn sweep_half_open(&mut self, now: u32, report: &mut TickReport) {
        let begins = self.sweep.half_open == Cursor::Start;
        if begins && !self.sweep.has_half_open && !self.plan.services.values().any(Placement::is_tracked) {
            return;
        }
        let (owners, mut seen) = (self.owners(), 0);
        if begins {
            self.sweep.has_half_open = false;
        }
        while self.sweep.half_open != Cursor::End && seen < self.options.swept_at_once {
            let mut pins = Vec::new();
            self.sweep.half_open = self.maps.half_open.read(self.sweep.half_open, &mut pins);
            seen += pins.len() + STEP as usize;
            for entry in pins {
                let (flow, pin) = (&entry.flow, &entry.pin);
                let owner = owners.get(&pin.server().generation());
                let placement = owner.and_then(|(name, _)| self.plan.services.get(name));
                let stays = match flow.is_template() {
                    true => self.keeps_new_template(&owners, &entry, now),
                    false => placement.is_some_and(|placement| {
                        placement.is_tracked()
                            && !placement.timeouts.is_expired(pin, flow.protocol == PROTOCOL_TCP, now)
                    }),
                };
                if !stays && self.maps.half_open.remove(&entry) {
                    self.uncount(&owners, flow, pin);
                    self.note_ended(entry);
                    report.removed += 1;
                } else {
                    // Also one that has changed just now: the next walk sees.
                    self.sweep.has_half_open = true;
                }
            }
        }
        if self.sweep.half_open == Cursor::End {
            self.sweep.half_open = Cursor::Start;
        }
    }

    fn end_sweep(&mut self, now: u32, report: &mut TickReport) -> Result<(), ApplyError> {
        self.sweep.is_running = false;
        report.swept = true;
        self.end_templates(now, report);
        let mut changed = Vec::new();
        let mut released = Vec::new();
        for (name, placement) in &mut self.plan.services {
            let (settled, pinned) = placement.slots.end_pass();
            if settled > 0 {
                report.settled += settled;
                changed.push(name.clone());
            }
            let Some(mut named) = pinned else { continue };
            named.extend(placement.slots.named());
            let block = placement.block;
            placement.servers.retain(|position, server| {
                let stays = !server.is_leaving || named.contains(position);
                if !stays {
                    released.push((block.base + u32::from(*position), placement.index, server.address));
                }
                stays
            });
        }
        self.rewrite_tables(changed)?;
        for (index, service, address) in released {
            self.maps.clear_real(index, service)?;
            report.released.push(address);
        }
        self.prune_quic_ids()?;
        self.prune_replies()
    }

    pub(super) fn owners(&self) -> Owners {
        let mut owners = Owners::new();
        for (name, placement) in &self.plan.services {
            for (position, server) in &placement.servers {
                owners.insert(server.generation, (name.clone(), *position));
            }
        }
        owners
    }
}
