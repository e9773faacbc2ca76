//! Which service has which index, slot table and block of real servers.
//!
//! The kernel's maps are the truth: this is read from them when the data plane is opened, and kept in step by
//! `apply`. Real servers of one service are a block of consecutive entries, some spare at its end. Their positions in
//! it are the data plane's own: a server keeps its position while a slot names it or a connection is pinned to it, and
//! a position is given to another only afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::MapError;
use director_common::Slot;
use director_common::hash::FlowHash;
use director_common::pin::{QuicEntry, QuicKey};
use director_common::slot::slot_of_flow;
use director_common::tables::{
    Address, FlowKey, HashInput, MAX_SERVICES, ReplyEntry, ReplyKey, ServiceEntry, WindowEntry, table_slots,
};

use super::NextHop;
use super::free::Free;
use super::keys::{Key, Prefix};
use super::maps::{Maps, Shared, ip_address};
use super::rosters::Rota;
use super::window::{SlotWindows, Timeouts};

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

/// A real server that has a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) generation: u32,
    /// It is in the service no more, and only connections that it has keep it here.
    pub(super) is_leaving: bool,
}

/// A service in the kernel.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) index: u32,
    pub(super) table: u32,
    pub(super) block: Block,
    pub(super) hash: HashInput,
    pub(super) slots: SlotWindows,
    /// By position.
    pub(super) servers: BTreeMap<u16, Server>,
    /// Servers that have left elsewhere, and are to get a position.
    pub(super) guests: Vec<(IpAddr, u16)>,
    pub(super) timeouts: Timeouts,
    /// Whose turn it is, if its connections are tracked.
    pub(super) rota: Option<Rota>,
    /// The cursor at which that began.
    pub(super) begun: u64,
    /// What the kernel's memory of the windows is.
    pub(super) window: WindowEntry,
    /// Its connections have leases.
    pub(super) is_full_nat: bool,
    /// [`ServiceEntry::flags`].
    pub(super) flags: u32,
    /// Positions of servers whose templates do not count, because they have left or are drained.
    pub(super) barred: BTreeSet<u16>,
    /// Templates by position, as the last whole sweep has met them.
    pub(super) templates: BTreeMap<u16, u64>,
    /// Those that the sweep under way has met.
    pub(super) counting: BTreeMap<u16, u64>,
}

impl Placement {
    /// Whether every connection of it is tracked, counted, and told to the other directors.
    pub(super) fn is_tracked(&self) -> bool {
        self.rota.is_some()
    }

    /// The slot of a flow.
    pub(super) fn slot_of(&self, hash: &FlowHash, flow: &FlowKey) -> u32 {
        let source = self.client(&flow.source);
        slot_of_flow(hash, source, flow.source_port, self.hash, table_slots(self.table))
    }

    /// The timeouts that an earlier process noted.
    fn noted_timeouts(window: &WindowEntry) -> Timeouts {
        let of = |seconds: u32| std::time::Duration::from_secs(seconds.into());
        Timeouts { established: of(window.established), fin: of(window.fin), udp: of(window.udp) }
    }
}

/// All of them, and what of the kernel's maps is taken.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) services: BTreeMap<String, Placement>,
    /// What the keys lead to.
    pub(super) keys: BTreeMap<Key, ServiceEntry>,
    /// The class of each prefix.
    pub(super) classes: BTreeMap<Prefix, u32>,
    /// What is in the map of QUIC server ids.
    pub(super) quic_ids: BTreeMap<QuicKey, QuicEntry>,
    /// What is in the map of real servers' answers.
    pub(super) replies: BTreeMap<ReplyKey, ReplyEntry>,
    /// Highest generation that any server's entry ever had.
    pub(super) generation: u32,
    /// Tables and blocks that packets on their way may still use.
    pub(super) retired_tables: BTreeSet<u32>,
    /// Blocks with the index of the service that keeps what they counted.
    pub(super) retired_blocks: Vec<(Block, u32)>,
    /// What is free for the change in hand.
    pub(super) free: Free,
}

impl Plan {
    /// Reads the plan from the maps.
    pub(super) fn read(maps: &mut Maps) -> Result<Self, MapError> {
        let mut plan = Self { keys: maps.keys()?, classes: maps.classes()?, ..Self::default() };
        maps.adopt_short_keys(&plan.keys)?;
        plan.replies = maps.replies()?;
        let mut owned: BTreeMap<u32, Vec<ServiceEntry>> = BTreeMap::new();
        for (_, entry) in plan.keys.iter().filter(|(key, _)| !key.is_marker()) {
            owned.entry(entry.service).or_default().push(*entry);
        }
        for item in maps.quic_ids.iter() {
            let (Shared(key), Shared(entry)) = item?;
            plan.quic_ids.insert(key, entry);
        }
        for index in 0..MAX_SERVICES as u32 {
            plan.generation = plan.generation.max(maps.window(index)?.generation);
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
            self.retired_blocks.push((Block::of(other), index));
        }
        let Some(slots) = maps.table(entry.table)? else { return Ok(()) };
        let slots = slots.iter().map(|bits| Slot::from_bits(*bits)).collect();
        let window = maps.window(index)?;
        let block = Block::of(entry);
        let placement = Placement {
            index,
            table: entry.table,
            block,
            hash: entry.hash_input(),
            slots: SlotWindows::new(slots, window.opened),
            servers: read_servers(maps, block)?,
            guests: Vec::new(),
            timeouts: Placement::noted_timeouts(&window),
            // What it was in detail the next specification says; until then its entries are kept as what they are.
            rota: entry.is_tracked().then(Rota::default),
            begun: 0,
            window,
            is_full_nat: entry.is_full_nat(),
            flags: entry.flags,
            barred: BTreeSet::new(),
            templates: BTreeMap::new(),
            counting: BTreeMap::new(),
        };
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

/// The servers of a block. Which of them are leaving only a specification can say.
fn read_servers(maps: &Maps, block: Block) -> Result<BTreeMap<u16, Server>, MapError> {
    let mut servers = BTreeMap::new();
    for (position, index) in (0..).zip(block.indices()) {
        let real = maps.real(index)?;
        if real.generation != 0 {
            let (address, port, generation) = (ip_address(real.address), real.port, real.generation);
            servers.insert(position, Server { address, port, generation, is_leaving: false });
        }
    }
    Ok(servers)
}
