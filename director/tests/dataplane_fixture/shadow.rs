//! A table of connections as the kernel's is filled: who finds room there is a matter of buckets, not of a number alone.

use std::path::Path;

use aya::maps::{Array, Map, MapData};
use director_common::pin::table::{self, Buckets, NOWHERE, PinBucket, PinHash, cell};
use director_common::pin::{Pin, PinCell};
use director_common::tables::{Config, FlowKey};

/// The words of the settings.
type Words = [u64; size_of::<Config>() / 8];

/// The settings of the data plane that is pinned in `folder`.
pub fn config(folder: &Path) -> Config {
    let data = MapData::from_pin(folder.join("CONFIG")).expect("pinned settings");
    let map: Array<MapData, Words> = Map::Array(data).try_into().expect("an array of settings");
    let words = map.get(&0, 0).expect("settings");
    // SAFETY: plain integers of that size.
    unsafe { std::mem::transmute(words) }
}

/// Entries of whoever is in the kernel's table.
#[derive(Debug)]
pub struct Shadow {
    buckets: Vec<PinBucket>,
    hash: PinHash,
}

impl Buckets for Shadow {
    fn bucket(&self, number: u32) -> Option<&PinBucket> {
        self.buckets.get(number as usize)
    }
    fn exchange(&self, cell: &PinCell, old: u64, new: u64) -> bool {
        let is = cell.word() == old;
        if is {
            cell.set_word(new);
        }
        is
    }
}

impl Shadow {
    pub fn new(buckets: u32, hash: PinHash) -> Self {
        Self { buckets: (0..buckets).map(|_| PinBucket::default()).collect(), hash }
    }

    fn count(&self) -> u32 {
        self.buckets.len() as u32
    }

    /// Takes a place for a connection; false if there is none.
    pub fn add(&self, flow: &FlowKey, pin: &Pin) -> bool {
        let trace = self.hash.of(flow);
        let number = table::claim(self, self.count(), &trace, table::CLAIMED);
        if number == NOWHERE {
            return false;
        }
        let cell = cell(self, number).expect("as it was claimed");
        cell.fill(trace.tag(), 0);
        cell.set_word(trace.word(pin));
        true
    }

    /// Gives its place back.
    pub fn remove(&self, flow: &FlowKey) {
        let trace = self.hash.of(flow);
        if let Some(cell) = cell(self, table::find(self, self.count(), &trace)) {
            cell.set_word(0);
        }
    }
}
