//! Which service has which index, slot table and block of real servers.
//!
//! The kernel's maps are the truth: this is read from them when the data plane is opened, and kept in step by
//! `apply`. Real servers of one service are a block of consecutive entries, some spare at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::MapError;
use director_common::tables::{Address, MAX_SERVICES, ServiceEntry};

use super::NextHop;
use super::free::Free;
use super::keys::{Key, Prefix};
use super::maps::{Maps, ip_address};

/// Consecutive entries of the real-server map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    pub(super) base: u32,
    pub(super) count: u32,
}

impl Block {
    fn of(entry: &ServiceEntry) -> Self {
        Self { base: entry.real_base, count: entry.real_count }
    }

    pub(super) fn indices(self) -> std::ops::Range<u32> {
        self.base..self.base.saturating_add(self.count)
    }
}

/// A service in the kernel.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) index: u32,
    pub(super) table: u32,
    pub(super) block: Block,
    pub(super) slots: Box<[u32]>,
}

/// All of them, and what of the kernel's maps is taken.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) services: BTreeMap<String, Placement>,
    /// What the keys lead to.
    pub(super) keys: BTreeMap<Key, ServiceEntry>,
    /// The class of each prefix.
    pub(super) classes: BTreeMap<Prefix, u32>,
    /// Tables and blocks that packets on their way may still use.
    pub(super) retired_tables: BTreeSet<u32>,
    pub(super) retired_blocks: Vec<Block>,
    /// What is free for the change in hand.
    pub(super) free: Free,
}

impl Plan {
    /// Reads the plan from the maps.
    pub(super) fn read(maps: &mut Maps) -> Result<Self, MapError> {
        let mut plan = Self { keys: maps.keys()?, classes: maps.classes()?, ..Self::default() };
        let mut owned: BTreeMap<u32, Vec<ServiceEntry>> = BTreeMap::new();
        for (_, entry) in plan.keys.iter().filter(|(key, _)| !key.is_marker()) {
            owned.entry(entry.service).or_default().push(*entry);
        }
        for index in 0..MAX_SERVICES as u32 {
            if let Some(name) = maps.name(index)? {
                let owned = owned.get(&index).map(Vec::as_slice).unwrap_or_default();
                plan.read_service(maps, index, name, owned)?;
            }
        }
        Ok(plan)
    }

    fn read_service(
        &mut self,
        maps: &mut Maps,
        index: u32,
        name: String,
        owned: &[ServiceEntry],
    ) -> Result<(), MapError> {
        // A name without keys: its process died before it was in force. The index is as good as free.
        let Some(entry) = owned.first() else { return Ok(()) };
        for other in owned.iter().filter(|other| *other != entry) {
            // A process died between the keys of one service. The next specification settles it.
            self.retired_tables.insert(other.table);
            self.retired_blocks.push(Block::of(other));
        }
        let Some(slots) = maps.table(entry.table)? else { return Ok(()) };
        let placement = Placement { index, table: entry.table, block: Block::of(entry), slots };
        self.services.insert(name, placement);
        Ok(())
    }

    /// Names of the services, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Every entry of the real-server map that belongs to some service.
    pub(super) fn real_indices(&self) -> Vec<u32> {
        self.services.values().flat_map(|placement| placement.block.indices()).collect()
    }

    /// The ways to real servers that an earlier process found.
    pub(super) fn next_hops(&self, maps: &Maps) -> Result<BTreeMap<IpAddr, NextHop>, MapError> {
        let mut next_hops = BTreeMap::new();
        for index in self.real_indices() {
            let real = maps.real(index)?;
            if real.address != Address::default() && real.ifindex != 0 {
                let next_hop = NextHop {
                    ifindex: real.ifindex,
                    source_mac: real.source_mac,
                    destination_mac: real.destination_mac,
                    mtu: u32::from(real.mtu),
                };
                next_hops.insert(ip_address(real.address), next_hop);
            }
        }
        Ok(next_hops)
    }
}
