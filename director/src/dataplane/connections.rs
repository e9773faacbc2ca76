//! The tables of connections ([`director_common::pin::table`]), in memory that the kernel's program shares with us: no
//! system call for a look-up, an addition or a walk.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapError;
use director_common::pin::table::{
    self, Buckets, CLAIMED_BY_USER, FlowBucket, NOWHERE, PinBucket, PinHash, Trace, WAYS, cell,
    names_somebody, place_of,
};
use director_common::pin::{Pin, PinCell};
use director_common::tables::{FlowKey, FlowRecord, Lease};

use super::shared::Mapping;

/// Buckets that a walk goes through at a time.
pub(super) const STEP: u32 = 512;

/// One of the tables.
pub(super) struct Connections {
    entries: Mapping<PinBucket>,
    flows: Mapping<FlowBucket>,
    hash: PinHash,
}

/// An entry as a walk has met it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Its number in the table.
    number: u32,
    /// The connection.
    pub(super) flow: FlowKey,
    /// Its pin.
    pub(super) pin: Pin,
    /// Its lease.
    pub(super) lease: Lease,
}

/// Where a walk through a table goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cursor {
    #[default]
    Start,
    /// At this bucket.
    At(u32),
    End,
}

impl Buckets for Connections {
    fn bucket(&self, number: u32) -> Option<&PinBucket> {
        // SAFETY: every bit pattern is a bucket, whose cells are read and written as whole words. What the program
        // writes meanwhile it writes in the same way.
        self.entries.at(number).map(|bucket| unsafe { bucket.as_ref() })
    }

    fn exchange(&self, cell: &PinCell, old: u64, new: u64) -> bool {
        exchange(cell, old, new)
    }
}

/// Makes a word of a mapping another, if it is `old`.
pub(super) fn exchange(cell: &PinCell, old: u64, new: u64) -> bool {
    // SAFETY: an aligned word of the mapping, which lives as long as `cell`; it is written at once by everybody.
    let word = unsafe { AtomicU64::from_ptr(cell.word_ptr()) };
    word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

impl Connections {
    /// The table in these arrays, of which the second says whose the entries of the first are. Nothing is found before
    /// [`Self::set_hash`].
    ///
    /// # Errors
    /// If they have not as many buckets.
    pub(super) fn new(entries: Mapping<PinBucket>, flows: Mapping<FlowBucket>) -> Result<Self, MapError> {
        if entries.len() != flows.len() {
            return Err(MapError::IoError(io::Error::other("the arrays of connections differ in length")));
        }
        Ok(Self { entries, flows, hash: PinHash::default() })
    }

    /// Buckets.
    pub(super) fn buckets(&self) -> u32 {
        self.entries.len()
    }

    /// Finds connections by these secrets, with which they were or will be added.
    pub(super) fn set_hash(&mut self, hash: PinHash) {
        self.hash = hash;
    }

    fn find(&self, flow: &FlowKey) -> (Trace, Option<&PinCell>) {
        let trace = self.hash.of(flow);
        (trace, cell(self, table::find(self, self.buckets(), &trace)))
    }

    /// Appends the next connections to `found`, those of [`STEP`] buckets.
    pub(super) fn read(&self, cursor: Cursor, found: &mut Vec<Entry>) -> Cursor {
        let first = match cursor {
            Cursor::Start => 0,
            Cursor::At(bucket) => bucket,
            Cursor::End => return Cursor::End,
        };
        let end = first.saturating_add(STEP).min(self.buckets());
        found.extend((first * WAYS as u32..end * WAYS as u32).filter_map(|number| self.entry(number)));
        if end == self.buckets() { Cursor::End } else { Cursor::At(end) }
    }

    /// The entry with this number, if it is somebody's.
    pub(super) fn entry(&self, number: u32) -> Option<Entry> {
        let cell = cell(self, number)?;
        // The program may change it meanwhile, but not for ever: what is read must have been there at one moment.
        loop {
            let word = cell.word();
            if !names_somebody(word) {
                return None;
            }
            let (pin, record, tag) = (cell.load(), self.record(number), cell.tag());
            let (flow, lease) = (record.flow(), record.lease());
            if cell.word() == word {
                return self.hash.of(&flow).is_of(word, tag).then_some(Entry { number, flow, pin, lease });
            }
        }
    }

    /// The same entry as it is now, if it is the same connection's.
    pub(super) fn again(&self, entry: &Entry) -> Option<Entry> {
        self.entry(entry.number).filter(|again| again.flow == entry.flow)
    }

    /// Removes an entry if it is still as it was met.
    pub(super) fn remove(&self, entry: &Entry) -> bool {
        let trace = self.hash.of(&entry.flow);
        cell(self, entry.number).is_some_and(|cell| {
            cell.tag() == trace.tag()
                && cell.load() == entry.pin
                && table::release(self, cell, &trace, &entry.pin)
        })
    }

    /// Frees what an earlier process was about to fill when it was killed.
    pub(super) fn free_claims(&self) {
        for bucket in (0..self.buckets()).filter_map(|number| self.bucket(number)) {
            for cell in &bucket.cells {
                self.exchange(cell, CLAIMED_BY_USER, 0);
            }
        }
    }

    /// Whose the entry with this number is.
    fn record(&self, number: u32) -> FlowRecord {
        let (bucket, way) = place_of(number);
        let Some(flows) = self.flows.at(bucket) else { return FlowRecord::default() };
        // SAFETY: within the mapping: there are as many ways; every bit pattern is a record, and whether it was written
        // while it was read the caller finds out.
        unsafe { (&raw const (*flows.as_ptr()).flows).cast::<FlowRecord>().add(way).read_volatile() }
    }

    /// The entry of the connection with this trace.
    pub(super) fn traced(&self, trace: &Trace) -> Option<Entry> {
        let number = table::find(self, self.buckets(), trace);
        if number == NOWHERE { None } else { self.entry(number) }
    }

    /// The pin of a connection.
    pub(super) fn get(&self, flow: &FlowKey) -> Option<Pin> {
        self.find(flow).1.map(PinCell::load)
    }

    /// The entry of a connection.
    pub(super) fn entry_of(&self, flow: &FlowKey) -> Option<Entry> {
        self.traced(&self.hash.of(flow))
    }

    /// Removes the entry of a connection and returns what it was, if it had one.
    pub(super) fn take(&self, flow: &FlowKey) -> Option<Entry> {
        // The program may change the state meanwhile, but not for ever.
        loop {
            let entry = self.entry_of(flow)?;
            if self.remove(&entry) {
                return Some(entry);
            }
        }
    }

    /// Adds a pin for a connection that has none: false if it has one, or there is no room.
    pub(super) fn add(&self, flow: &FlowKey, lease: Lease, pin: &Pin) -> bool {
        let trace = self.hash.of(flow);
        let number = table::claim(self, self.buckets(), &trace, CLAIMED_BY_USER);
        if number == NOWHERE {
            return false;
        }
        let (bucket, way) = place_of(number);
        let (Some(cell), Some(flows)) = (cell(self, number), self.flows.at(bucket)) else { return false };
        let record = FlowRecord::new(flow, lease);
        // SAFETY: within the mapping, at a place that is nobody else's while it is claimed.
        unsafe { (&raw mut (*flows.as_ptr()).flows).cast::<FlowRecord>().add(way).write_volatile(record) };
        cell.fill(trace.tag(), u32::try_from(pin.seen).unwrap_or(u32::MAX));
        self.exchange(cell, CLAIMED_BY_USER, trace.word(pin))
    }
}
