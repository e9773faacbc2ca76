//! Full NAT: the node's local addresses, and how leases of them end.
//!
//! The program takes a lease when a connection begins ([`director_common::lease`]), and never gives one back. It is free
//! again
//!
//! - a tick after the connection's entry was removed because its time was up: that was longer than the real server
//!   remembers a connection;
//! - some time later ([`LINGER`]) if the entry has gone in another way, or is of another connection from the same
//!   client's port by now. That is found by walking through all leases, again and again.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use aya::maps::{Array, MapData, MapError};
use director_common::pin::table::{
    self, Buckets, PinBucket, Trace, WAYS, cell, marked, names_somebody, place_of,
};
use director_common::pin::{Pin, PinCell, PinState};
use director_common::tables::{
    Address, Config, FlowKey, Lease, LeaseBucket, LeaseRecord, Locals, MAX_LOCAL_NUMBERS,
};

use super::connections::{Cursor, Entry, STEP, exchange};
use super::error::OpenError;
use super::maps::{self, Maps, Shared, ip_address};
use super::shared::Mapping;
use super::spec::Ports;
use super::sweep::{Owners, PINS_PER_TICK};
use super::{Dataplane, Options};

/// Seconds for which a lease is nobody else's after its connection's entry has gone before its time: as long as IPVS
/// keeps a connection that has ended, and twice as long as Linux does.
const LINGER: u32 = 120;

/// The state of a lease that a connection has.
const HELD: PinState = PinState::Open;
/// The state of one of which none was found; `seen` is since when.
const VACANT: PinState = PinState::Finished;

/// Addresses and ports of this node that stand for clients, by full NAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAddresses {
    /// The addresses, of either family. The kernel must answer for them: they are addresses of this node.
    pub addresses: Vec<IpAddr>,
    /// The ports. None of them should be one that the kernel gives to sockets of the node at those addresses.
    pub ports: Ports,
}

impl Default for LocalAddresses {
    /// No address; ports below those that Linux gives to sockets (`net.ipv4.ip_local_port_range`).
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: Ports { first: 1_024, last: 32_767 } }
    }
}

impl LocalAddresses {
    /// Whether there is one of the family of `address`.
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|local| local.is_ipv4() == address.is_ipv4())
    }

    /// The first one that is no address of this node, if any: nobody would answer for it.
    pub fn stranger(&self) -> Option<IpAddr> {
        // An address that is no address of the node's cannot be bound to (EADDRNOTAVAIL).
        let is_ours = |address: &&IpAddr| UdpSocket::bind(SocketAddr::new(**address, 0)).is_err();
        self.addresses.iter().find(is_ours).copied()
    }
}

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

    /// Gives back the lease that is found by `trace`.
    fn give_back(&self, trace: &Trace) {
        if let Some(cell) = cell(self, table::find(self, self.buckets(), trace)) {
            table::release(self, cell, trace, &cell.load());
        }
    }

    /// Marks a lease that was met, at second `now`, and leaves it alone if it has changed.
    fn mark(&self, met: &Met, state: PinState, now: u32) {
        let Some(cell) = cell(self, met.number) else { return };
        cell.touch(&met.pin, now);
        self.exchange(cell, met.word, marked(met.word, &Pin::new(met.pin.server(), state, now)));
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

/// The addresses of leases, by their numbers.
pub(super) type LocalMap = Array<MapData, Shared<Address>>;

/// Numbers the local addresses: one that has a number keeps it, also if it is not among `wanted` any more, while there is
/// a lease of it.
///
/// # Errors
/// [`OpenError::Map`] if the kernel refuses.
pub(super) fn number(maps: &mut Maps, wanted: &LocalAddresses) -> Result<Locals, OpenError> {
    let (mut leased, mut found, mut cursor) = ([false; MAX_LOCAL_NUMBERS], Vec::new(), Cursor::Start);
    while cursor != Cursor::End {
        cursor = maps.leases.read(cursor, &mut found);
        for met in found.drain(..) {
            leased[usize::from(Lease::unpacked(met.pin.server()).number)] = true;
        }
    }
    let mut known = Vec::new();
    for number in 0..MAX_LOCAL_NUMBERS as u32 {
        known.push(maps.locals.get(&number, 0)?.0);
    }
    let (first_port, last_port) = (wanted.ports.first, wanted.ports.last);
    let mut locals = Locals { first_port, last_port, ..Locals::default() };
    let is_wanted =
        |known: &Address| wanted.addresses.iter().any(|address| maps::address(*address) == *known);
    for address in &wanted.addresses {
        let mapped = maps::address(*address);
        let free = |(number, known): (usize, &Address)| {
            number != 0 && (*known == Address::default() || !leased[number] && !is_wanted(known))
        };
        let number = match known.iter().position(|known| *known == mapped) {
            Some(number) => number,
            None => match known.iter().enumerate().position(free) {
                Some(number) => number,
                None => return Err(OpenError::Locals { address: *address }),
            },
        };
        known[number] = mapped;
        let number = u8::try_from(number).expect("invariant: as many numbers as a byte has");
        maps.locals.set(u32::from(number), Shared(mapped), 0)?;
        let (list, count) = match address {
            IpAddr::V4(_) => (&mut locals.v4, &mut locals.v4_count),
            IpAddr::V6(_) => (&mut locals.v6, &mut locals.v6_count),
        };
        let place = list.get_mut(usize::from(*count)).ok_or(OpenError::Locals { address: *address })?;
        (*place, *count) = (number, *count + 1);
    }
    Ok(locals)
}

/// Leases that there is to be room for: one for every connection, where there are local addresses at all.
pub(super) fn room(options: &Options) -> u32 {
    if options.locals.addresses.is_empty() { 1 } else { options.pins.saturating_add(options.half_open) }
}

impl Dataplane {
    /// The address and port that stand for a client, if its connection has a lease.
    pub(super) fn local_of(&self, lease: Lease) -> Option<SocketAddr> {
        let Shared(address) = self.maps.locals.get(&u32::from(lease.number), 0).ok()?;
        lease.is_some().then(|| SocketAddr::new(ip_address(address), lease.port))
    }

    /// Notes that the entry of a connection was removed, for it had its time.
    pub(super) fn note_ended(&mut self, entry: Entry) {
        if entry.lease.is_some() {
            self.lease_walk.ended.push(entry);
        }
    }

    /// Gives back the leases of connections whose entries the last tick has removed. Not at once: the program may just
    /// have moved one from the half-open ones to the others, and not be done with it.
    fn end_leases(&mut self) {
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

    fn end_lease(&self, owners: &Owners, config: &Config, entry: &Entry) {
        let Some(local) = self.local_of(entry.lease) else { return };
        let Some((name, position)) = owners.get(&entry.pin.server().generation()) else { return };
        let server = self.plan.services.get(name).and_then(|placement| placement.servers.get(position));
        let Some(server) = server else { return };
        let back = FlowKey {
            source: maps::address(server.address),
            destination: maps::address(local.ip()),
            source_port: if server.port == 0 { entry.flow.destination_port } else { server.port },
            destination_port: local.port(),
            protocol: entry.flow.protocol,
            ..FlowKey::default()
        };
        self.maps.leases.give_back(&config.pins.of(&back));
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
        self.end_leases();
        let begins = self.lease_walk.cursor == Cursor::Start;
        if begins {
            let wanted = self.plan.services.values().any(|placement| placement.is_full_nat);
            if self.lease_walk.is_idle && !wanted {
                return;
            }
            self.lease_walk.has_met = false;
        }
        let mut seen = 0;
        while self.lease_walk.cursor != Cursor::End && seen < PINS_PER_TICK {
            let mut found = Vec::new();
            self.lease_walk.cursor = self.maps.leases.read(self.lease_walk.cursor, &mut found);
            seen += found.len() + STEP as usize;
            self.lease_walk.has_met |= !found.is_empty();
            for met in found {
                self.sweep_lease(&met, now);
            }
        }
        if self.lease_walk.cursor == Cursor::End {
            (self.lease_walk.cursor, self.lease_walk.is_idle) = (Cursor::Start, !self.lease_walk.has_met);
        }
    }

    fn sweep_lease(&self, met: &Met, now: u32) {
        let lease = Lease::unpacked(met.pin.server());
        let trace = Trace { first: met.owner.first, second: met.owner.second };
        match (self.is_held(&trace, lease), met.pin.state()) {
            (true, HELD) => {}
            (true, _) => self.maps.leases.mark(met, HELD, now),
            (false, VACANT) => {
                if u64::from(now) >= met.pin.seen + u64::from(LINGER) {
                    self.maps.leases.free(met);
                }
            }
            (false, _) => self.maps.leases.mark(met, VACANT, now),
        }
    }
}
