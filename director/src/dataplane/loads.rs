//! The counts of real servers' connections, in memory that the kernel shares with us.
//!
//! The program adds what begins, and user space takes off what it removes: both by atomic additions to the same word,
//! which no system call on a map can do.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::{Map, MapError};
use director_common::schedulers::Thresholds;
use director_common::tables::LoadEntry;

use super::shared::Mapping;

/// A [`LoadEntry`] as it lies in shared memory.
#[repr(C)]
struct Load {
    active: AtomicU64,
    inactive: AtomicU64,
    weight: AtomicU32,
    upper: AtomicU32,
    lower: AtomicU32,
    overloaded: AtomicU32,
}

const _: () = assert!(size_of::<Load>() == size_of::<LoadEntry>());

/// The map, in our memory.
pub(super) struct Loads(Mapping<Load>);

impl TryFrom<Map> for Loads {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        Mapping::try_from(map).map(Self)
    }
}

impl Loads {
    fn at(&self, index: u32) -> Option<&Load> {
        // SAFETY: all of it is atomics, and lives as long as `self`.
        self.0.at(index).map(|load| unsafe { load.as_ref() })
    }

    /// What is known of a real server's load.
    pub(super) fn get(&self, index: u32) -> LoadEntry {
        self.at(index).map_or(LoadEntry::default(), |load| LoadEntry {
            active: load.active.load(Ordering::Relaxed),
            inactive: load.inactive.load(Ordering::Relaxed),
            weight: load.weight.load(Ordering::Relaxed),
            upper: load.upper.load(Ordering::Relaxed),
            lower: load.lower.load(Ordering::Relaxed),
            overloaded: load.overloaded.load(Ordering::Relaxed),
        })
    }

    /// Writes all that is known of a real server that no packet is sent to yet.
    pub(super) fn set(&self, index: u32, entry: LoadEntry) {
        let Some(load) = self.at(index) else { return };
        load.active.store(entry.active, Ordering::Relaxed);
        load.inactive.store(entry.inactive, Ordering::Relaxed);
        load.overloaded.store(entry.overloaded, Ordering::Relaxed);
        load.upper.store(entry.upper, Ordering::Relaxed);
        load.lower.store(entry.lower, Ordering::Relaxed);
        load.weight.store(entry.weight, Ordering::Relaxed);
    }

    /// Changes what a real server takes.
    pub(super) fn configure(&self, index: u32, weight: u32, thresholds: Thresholds) {
        let Some(load) = self.at(index) else { return };
        let before = self.get(index);
        let old = Thresholds { upper: before.upper, lower: before.lower };
        load.upper.store(thresholds.upper, Ordering::Relaxed);
        load.lower.store(thresholds.lower, Ordering::Relaxed);
        load.weight.store(weight, Ordering::Relaxed);
        if before.overloaded != 0 && !old.after_change(&thresholds, true) {
            load.overloaded.store(0, Ordering::Relaxed);
        }
    }

    /// Adds to the counts, modulo 2^64, and marks the server as they say.
    pub(super) fn correct(&self, index: u32, active: u64, inactive: u64) {
        let Some(load) = self.at(index) else { return };
        load.active.fetch_add(active, Ordering::Relaxed);
        load.inactive.fetch_add(inactive, Ordering::Relaxed);
        let entry = self.get(index);
        let thresholds = Thresholds { upper: entry.upper, lower: entry.lower };
        let marked = thresholds.after_arrival(entry.overloaded != 0, entry.total());
        let marked = thresholds.after_departure(marked, entry.total());
        load.overloaded.store(u32::from(marked), Ordering::Relaxed);
    }

    /// Counts a connection that another director told of.
    pub(super) fn arrive(&self, index: u32, is_active: bool) {
        let Some(load) = self.at(index) else { return };
        let count = if is_active { &load.active } else { &load.inactive };
        count.fetch_add(1, Ordering::Relaxed);
        let entry = self.get(index);
        let thresholds = Thresholds { upper: entry.upper, lower: entry.lower };
        if entry.overloaded == 0 && thresholds.after_arrival(false, entry.total()) {
            load.overloaded.store(1, Ordering::Relaxed);
        }
    }

    /// Counts a connection that is over.
    pub(super) fn depart(&self, index: u32, was_active: bool) {
        let Some(load) = self.at(index) else { return };
        let count = if was_active { &load.active } else { &load.inactive };
        count.fetch_sub(1, Ordering::Relaxed);
        self.relieve(index);
    }

    /// Takes the mark off an overloaded server that has few enough connections now.
    pub(super) fn relieve(&self, index: u32) {
        let Some(load) = self.at(index) else { return };
        let entry = self.get(index);
        let thresholds = Thresholds { upper: entry.upper, lower: entry.lower };
        if entry.overloaded != 0 && !thresholds.after_departure(true, entry.total()) {
            load.overloaded.store(0, Ordering::Relaxed);
        }
    }
}
