//! Full NAT: how leases come from other directors, and how they end.
//!
//! The program takes a lease when a connection begins ([`director_common::lease`]), and never gives one back. With a
//! connection that another director tells of comes its lease. One is free again
//!
//! - a tick after the connection's entry was removed because its time was up: that was longer than the real server
//!   remembers a connection;
//! - some time later ([`LINGER`]) if the entry has gone in another way, or is of another connection from the same
//!   client's port by now. That is found by walking through all leases, again and again;
//! - at once, if it is of another director's address: whose it is next is decided there.

use aya::maps::MapError;
use director_common::pin::table::{
    self, Buckets, CLAIMED_BY_USER, PinBucket, Trace, WAYS, cell, marked, names_somebody, place_of,
};
use director_common::pin::{Pin, PinCell, PinState};
use director_common::tables::{Config, Endpoint, FlowKey, Lease, LeaseBucket, LeaseRecord};

use super::connections::{Cursor, Entry, STEP, exchange};
use super::maps;
use super::plan::Server;
use super::shared::Mapping;
use super::sweep::Owners;
use super::views::{self, PRECISION};
use super::{Dataplane, Options};

/// Seconds for which a lease is nobody else's after its connection's entry has gone before its time: as long as IPVS
/// keeps a connection that has ended, and twice as long as Linux does.
const LINGER: u32 = 120;

/// The state of a lease that a connection has; `seen` is when it was taken, also where that was before this machine began
/// to count: then it is below zero, and wraps.
const HELD: PinState = PinState::Open;
/// The state of one of which none was found; `seen` is since when.
const VACANT: PinState = PinState::Finished;

/// The table of leases: see [`director_common::pin::table`].
pub(super) struct LeaseTable {
    entries: Mapping<PinBucket>,
    owners: Mapping<LeaseBucket>,
}

/// A lease as a walk has met it.
#[derive(Clone, Copy, Debug)]
struct Met {
    number: u32,
    /// The entry's word, with the mark.
    word: u64,
    pin: Pin,
    owner: LeaseRecord,
}

impl Buckets for LeaseTable {
    fn bucket(&self, number: u32) -> Option<&PinBucket> {
        // SAFETY: every bit pattern is a bucket, whose cells are read and written as whole words. What the program
        // writes meanwhile it writes in the same way.
        self.entries.at(number).map(|bucket| unsafe { bucket.as_ref() })
    }

    fn exchange(&self, cell: &PinCell, old: u64, new: u64) -> bool {
        exchange(cell, old, new)
    }
}

impl LeaseTable {
    /// The table in these arrays, of which the second says whose the entries of the first are.
    ///
    /// # Errors
    /// If they have not as many buckets.
    pub(super) fn new(entries: Mapping<PinBucket>, owners: Mapping<LeaseBucket>) -> Result<Self, MapError> {
        if entries.len() != owners.len() {
            let error = std::io::Error::other("the arrays of leases differ in length");
            return Err(MapError::IoError(error));
        }
        Ok(Self { entries, owners })
    }

    /// Buckets.
    pub(super) fn buckets(&self) -> u32 {
        self.entries.len()
    }

    /// Appends the next leases to `found`, those of [`STEP`] buckets.
    fn read(&self, cursor: Cursor, found: &mut Vec<Met>) -> Cursor {
        let first = match cursor {
            Cursor::Start => 0,
            Cursor::At(bucket) => bucket,
            Cursor::End => return Cursor::End,
        };
        let end = first.saturating_add(STEP).min(self.buckets());
        found.extend((first * WAYS as u32..end * WAYS as u32).filter_map(|number| self.met(number)));
        if end == self.buckets() { Cursor::End } else { Cursor::At(end) }
    }

    fn met(&self, number: u32) -> Option<Met> {
        let cell = cell(self, number)?;
        loop {
            let word = cell.word();
            if !names_somebody(word) {
                return None;
            }
            let (pin, owner) = (cell.load(), self.owner(number));
            // The program may change it meanwhile, but not for ever: what is read must have been there at one moment.
            if cell.word() == word {
                return Some(Met { number, word, pin, owner });
            }
        }
    }

    fn owner(&self, number: u32) -> LeaseRecord {
        let (bucket, way) = place_of(number);
        let Some(owners) = self.owners.at(bucket) else { return LeaseRecord::default() };
        // SAFETY: within the mapping: there are as many ways; every bit pattern is a record, and whether it was written
        // while it was read the caller finds out.
        unsafe { (&raw const (*owners.as_ptr()).records).cast::<LeaseRecord>().add(way).read_volatile() }
    }

    /// The lease that is found by `trace`, and whose it is.
    pub(super) fn find(&self, trace: &Trace) -> Option<(Pin, LeaseRecord)> {
        let number = table::find(self, self.buckets(), trace);
        self.met(number).map(|met| (met.pin, met.owner))
    }

    /// The numbers of the addresses of all leases, as often as there are any.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u8> + '_ {
        let all = (0..self.buckets() * WAYS as u32).filter_map(|number| self.met(number));
        all.map(|met| Lease::unpacked(met.pin.server()).number)
    }

    /// Frees what an earlier process was about to fill when it was killed.
    pub(super) fn free_claims(&self) {
        for bucket in (0..self.buckets()).filter_map(|number| self.bucket(number)) {
            for cell in &bucket.cells {
                self.exchange(cell, CLAIMED_BY_USER, 0);
            }
        }
    }

    /// Enters a lease for the connection in `owner`, taken at second `taken`, to be found by `trace`; false if somebody has
    /// it, or there is no room.
    fn enter(&self, trace: &Trace, lease: Lease, owner: LeaseRecord, taken: u32) -> bool {
        let number = table::claim(self, self.buckets(), trace, CLAIMED_BY_USER);
        let (bucket, way) = place_of(number);
        let (Some(cell), Some(owners)) = (cell(self, number), self.owners.at(bucket)) else { return false };
        // SAFETY: within the mapping, at a place that is nobody else's while it is claimed.
        unsafe { (&raw mut (*owners.as_ptr()).records).cast::<LeaseRecord>().add(way).write_volatile(owner) };
        let pin = Pin::new(lease.packed(), HELD, taken);
        cell.fill(trace.tag(), taken);
        if !self.exchange(cell, CLAIMED_BY_USER, trace.word(&pin)) {
            return false;
        }
        // The program may have taken the same one in this moment.
        let is_alone = table::is_alone(self, self.buckets(), trace, number);
        if !is_alone {
            table::release(self, cell, trace, &pin);
        }
        is_alone
    }

    /// The lease that is found by `trace` is that of its connection since second `taken`.
    fn set_taken(&self, trace: &Trace, taken: u32) {
        if let Some(met) = self.met(table::find(self, self.buckets(), trace)) {
            self.mark(&met, HELD, taken);
        }
    }

    /// Gives back the lease that is found by `trace` if it is that of the connection in `owner`.
    fn give_back(&self, trace: &Trace, owner: LeaseRecord) {
        let found = self.met(table::find(self, self.buckets(), trace));
        if let Some(met) = found.filter(|met| met.owner == owner) {
            self.free(&met);
        }
    }

    /// Marks a lease that was met, of since second `since`, and leaves it alone if it has changed.
    fn mark(&self, met: &Met, state: PinState, since: u32) {
        let Some(cell) = cell(self, met.number) else { return };
        cell.touch(&met.pin, since);
        self.exchange(cell, met.word, marked(met.word, &Pin::new(met.pin.server(), state, since)));
    }

    /// Frees a lease that was met.
    fn free(&self, met: &Met) -> bool {
        cell(self, met.number).is_some_and(|cell| self.exchange(cell, met.word, 0))
    }
}

/// Where the walk through all leases is.
#[derive(Debug, Default)]
pub(super) struct LeaseWalk {
    cursor: Cursor,
    /// Connections whose entries the last tick has removed, for they had their time.
    ended: Vec<Entry>,
    /// This walk has met some.
    has_met: bool,
    /// The last one found none.
    is_idle: bool,
}

/// Leases that there is to be room for: one for every connection, where there are local addresses at all.
pub(super) fn room(options: &Options) -> u32 {
    if options.locals.addresses.is_empty() { 1 } else { options.pins.saturating_add(options.half_open) }
}

impl Dataplane {
    /// Notes that the entry of a connection was removed, for it had its time.
    pub(super) fn note_ended(&mut self, entry: Entry) {
        if entry.lease.is_some() {
            self.lease_walk.ended.push(entry);
        }
    }

    /// Gives back the leases of connections whose entries the last tick has removed. Not at once: the program may just
    /// have moved one from the half-open ones to the others, and not be done with it.
    pub(super) fn end_leases(&mut self) {
        let ended = std::mem::take(&mut self.lease_walk.ended);
        if ended.is_empty() {
            return;
        }
        let Ok(config) = self.maps.config() else { return };
        let owners = self.owners();
        for entry in ended {
            if !self.is_held(&config.pins.of(&entry.flow), entry.lease) {
                self.end_lease(&owners, &config, &entry);
            }
        }
    }

    /// Whether the connection with this trace has this lease.
    fn is_held(&self, trace: &Trace, lease: Lease) -> bool {
        let has = |entry: Option<Entry>| entry.is_some_and(|entry| entry.lease == lease);
        // In this order: a connection moves from the first to the second, and is in both while it does.
        has(self.maps.half_open.traced(trace)) || has(self.maps.pins.traced(trace))
    }

    /// Where the lease of a connection that is at the server of `pin` is found, and whose it is then.
    pub(super) fn lease_traces(
        &self,
        owners: &Owners,
        config: &Config,
        (flow, pin, lease): (&FlowKey, &Pin, Lease),
    ) -> Option<(Trace, LeaseRecord)> {
        let local = self.numbering.end(lease)?;
        let (name, position) = owners.get(&pin.server().generation())?;
        let server = self.plan.services.get(name)?.servers.get(position)?;
        Some((config.pins.of(&back_of(server, flow, local)), config.pins.of(flow).into()))
    }

    fn end_lease(&self, owners: &Owners, config: &Config, entry: &Entry) {
        let connection = (&entry.flow, &entry.pin, entry.lease);
        if let Some((trace, owner)) = self.lease_traces(owners, config, connection) {
            self.maps.leases.give_back(&trace, owner);
        }
    }

    /// The entry of a connection was removed before its time. A lease of another director's address is free with that; one
    /// of our own nobody else gets for a while.
    pub(super) fn abandon_lease(&self, owners: &Owners, config: &Config, entry: &Entry) {
        if entry.lease.is_some() && !self.numbering.is_own(entry.lease) {
            self.end_lease(owners, config, entry);
        }
    }

    /// For how many seconds the connection of an entry has had its lease; `None` if it has none, or that is void.
    pub(super) fn lease_age(&self, owners: &Owners, config: &Config, entry: &Entry, now: u32) -> Option<u32> {
        let (trace, owner) = self.lease_traces(owners, config, (&entry.flow, &entry.pin, entry.lease))?;
        let (held, holder) = self.maps.leases.find(&trace)?;
        (holder == owner).then(|| views::age(now, held.seen as u32))
    }

    /// The connection, other than `owner`'s, that has the lease which is found by `trace`, and for how many seconds.
    pub(super) fn holder(&self, trace: &Trace, owner: &LeaseRecord, now: u32) -> Option<(Entry, u32)> {
        let (held, holder) = self.maps.leases.find(trace).filter(|(_, holder)| holder != owner)?;
        let (lease, trace) =
            (Lease::unpacked(held.server()), Trace { first: holder.first, second: holder.second });
        let has = |entry: &Entry| entry.lease == lease;
        // In this order, as in `is_held`.
        let begun = self.maps.half_open.traced(&trace).filter(has);
        let entry = begun.or_else(|| self.maps.pins.traced(&trace).filter(has))?;
        Some((entry, views::age(now, held.seen as u32)))
    }

    /// Takes the lease from a connection that has it and has been overruled: it is over. False if a packet of it has come in
    /// this moment.
    pub(super) fn oust(&mut self, owners: &Owners, entry: &Entry) -> bool {
        if !self.maps.half_open.remove(entry) && !self.maps.pins.remove(entry) {
            return false;
        }
        self.replicas.forget(&entry.flow);
        self.uncount(owners, &entry.flow, &entry.pin);
        true
    }

    /// Adds a connection that has had its lease since second `taken`, as another director has told; false if it has an
    /// entry, another connection has the lease, or there is no room.
    pub(super) fn add_leased(
        &mut self,
        (flow, pin, lease): (&FlowKey, &Pin, Lease),
        (trace, owner): (&Trace, LeaseRecord),
        taken: u32,
    ) -> bool {
        if let Some((found, holder)) = self.maps.leases.find(trace)
            && (holder != owner || Lease::unpacked(found.server()) != lease)
        {
            let before = Trace { first: holder.first, second: holder.second };
            if self.is_held(&before, Lease::unpacked(found.server())) {
                return false;
            }
            self.maps.leases.give_back(trace, holder);
        }
        let is_new = self.maps.leases.enter(trace, lease, owner, taken);
        if !is_new {
            match self.maps.leases.find(trace) {
                Some((_, holder)) if holder == owner => self.maps.leases.set_taken(trace, taken),
                _ => return false,
            }
        }
        self.numbering.note_lease(lease.number);
        let added = self.maps.pins.add(flow, lease, pin);
        if !added && is_new {
            self.maps.leases.give_back(trace, owner);
        }
        added
    }

    /// The connection of an entry has its lease for `age` seconds only, as another director says at second `now`.
    pub(super) fn rejuvenate(&self, owners: &Owners, config: &Config, entry: &Entry, age: u32, now: u32) {
        let connection = (&entry.flow, &entry.pin, entry.lease);
        let Some((trace, owner)) = self.lease_traces(owners, config, connection) else { return };
        if let Some((held, holder)) = self.maps.leases.find(&trace)
            && holder == owner
            && views::age(now, held.seen as u32) > age.saturating_add(PRECISION)
        {
            self.maps.leases.set_taken(&trace, now.wrapping_sub(age));
        }
    }

    /// Leases that there are: for tests and for counters.
    pub fn leases(&self) -> usize {
        let (mut found, mut cursor) = (Vec::new(), Cursor::Start);
        while cursor != Cursor::End {
            cursor = self.maps.leases.read(cursor, &mut found);
        }
        found.len()
    }

    /// Goes on with the walk through all leases at second `now`: those that no connection has are free after a while.
    pub(super) fn sweep_leases(&mut self, now: u32) {
        let begins = self.lease_walk.cursor == Cursor::Start;
        if begins {
            let wanted = self.plan.services.values().any(|placement| placement.is_full_nat);
            if self.lease_walk.is_idle && !wanted {
                return;
            }
            self.lease_walk.has_met = false;
            self.numbering.begin_walk();
        }
        let mut seen = 0;
        while self.lease_walk.cursor != Cursor::End && seen < self.options.swept_at_once {
            let mut found = Vec::new();
            self.lease_walk.cursor = self.maps.leases.read(self.lease_walk.cursor, &mut found);
            seen += found.len() + STEP as usize;
            self.lease_walk.has_met |= !found.is_empty();
            for met in found {
                if !self.sweep_lease(&met, now) {
                    self.numbering.meet(Lease::unpacked(met.pin.server()).number);
                }
            }
        }
        if self.lease_walk.cursor == Cursor::End {
            self.numbering.end_walk();
            (self.lease_walk.cursor, self.lease_walk.is_idle) = (Cursor::Start, !self.lease_walk.has_met);
        }
    }

    /// Frees a lease that the walk has met, if it has been nobody's for long enough; true if it did.
    fn sweep_lease(&self, met: &Met, now: u32) -> bool {
        let lease = Lease::unpacked(met.pin.server());
        let trace = Trace { first: met.owner.first, second: met.owner.second };
        match (self.is_held(&trace, lease), met.pin.state()) {
            (true, HELD) => {}
            // It was met in the moment between the two.
            (true, _) => self.maps.leases.mark(met, HELD, met.pin.seen as u32),
            (false, VACANT) => {
                let is_over = u64::from(now) >= met.pin.seen + u64::from(LINGER);
                return is_over && self.maps.leases.free(met);
            }
            (false, _) => self.maps.leases.mark(met, VACANT, now),
        }
        false
    }
}

/// What comes back of a connection to a server.
pub(super) fn back_of(server: &Server, flow: &FlowKey, local: Endpoint) -> FlowKey {
    FlowKey {
        source: maps::address(server.address),
        destination: local.address,
        source_port: if server.port == 0 { flow.destination_port } else { server.port },
        destination_port: local.port,
        protocol: flow.protocol,
        ..FlowKey::default()
    }
}
