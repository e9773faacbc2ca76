//! The changes that make the kernel equal to a specification.
//!
//! Order is everything. What is new (real servers, tables) is complete before a key leads to it; a key is
//! switched by replacing its entry, which is atomic; what is old is cleared only when no key leads to it, and
//! reused only when every program that could have seen it has ended.

use std::collections::BTreeSet;

use director_common::Slot;
use director_common::siphash::HashKey;
use director_common::tables::{Config, RealEntry, ServiceEntry};

use super::error::ApplyError;
use super::free::Free;
use super::keys::{Key, Keys, Prefix, look_ups};
use super::maps;
use super::plan::{Block, Placement};
use super::spec::{HashInput, RealSpec, ServiceSpec, check, pack};
use super::{Dataplane, EchoPolicy, with_way};

/// What [`Dataplane::apply`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Services that are new.
    pub added: Vec<String>,
    /// Services that have a new slot table.
    pub switched: Vec<String>,
    /// Services that went.
    pub removed: Vec<String>,
    /// Service addresses added, changed or removed, markers of VIPs and fragments included.
    pub keys_changed: usize,
    /// Real servers written.
    pub reals_written: usize,
}

impl ApplyReport {
    /// Nothing was to do.
    pub fn is_unchanged(&self) -> bool {
        *self == Self::default()
    }
}

impl Dataplane {
    /// Makes the data plane hold exactly these services, by the fewest changes: each service's switch to
    /// another table is atomic for each of its addresses, and unknown services are removed. Services of an
    /// earlier process are matched by name.
    ///
    /// Returns after a grace period of the kernel (some 10 ms) if a table was replaced.
    ///
    /// # Errors
    /// [`ApplyError::Spec`] before anything is changed; [`ApplyError::Full`] or [`ApplyError::Map`] when part of
    /// it may be: every service is then entirely old or entirely new.
    pub fn apply(&mut self, services: &[ServiceSpec<'_>]) -> Result<ApplyReport, ApplyError> {
        let keys = check(services, &self.options.tunnel_sources, &self.plan.classes)?;
        let mut report = ApplyReport::default();
        self.plan.free = Free::of(&self.plan);
        // Where the program has to look, and that an address is a VIP, is told before there is anything to find.
        let (before, after) =
            (look_ups(self.plan.keys.keys(), !self.plan.classes.is_empty()), keys.look_ups());
        self.set_look_ups(before | after)?;
        for (vip, served) in &keys.vips {
            self.set_key(*vip, self.marker(*served), &mut report)?;
        }
        for (service, keys) in services.iter().zip(&keys.services) {
            self.apply_service(service, keys, &mut report)?;
        }
        self.apply_classes(&keys, &mut report)?;
        self.remove_keys(&keys, &mut report)?;
        self.set_look_ups(after)?;
        let wanted: BTreeSet<&str> = services.iter().map(|service| service.name).collect();
        self.remove_services(&wanted, &mut report)?;
        self.clear_retired()?;
        Ok(report)
    }

    /// The key of the slot hash in force.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn hash_key(&self) -> Result<[u8; 16], ApplyError> {
        Ok(HashKey::to_bytes(self.maps.hash_key()?))
    }

    /// The marker of a VIP, which says who answers echo requests to it.
    fn marker(&self, served: bool) -> ServiceEntry {
        let flags = match self.options.echo {
            EchoPolicy::WhileServed if served => ServiceEntry::FLAG_ECHO,
            EchoPolicy::WhileServed => 0,
            EchoPolicy::Always => ServiceEntry::FLAG_ECHO,
            EchoPolicy::Kernel => ServiceEntry::FLAG_ECHO_KERNEL,
        };
        ServiceEntry { flags, ..ServiceEntry::default() }
    }

    /// Sets the flags that say where the program looks besides for exact keys.
    fn set_look_ups(&mut self, wanted: u32) -> Result<(), ApplyError> {
        let all = Config::FLAG_ANY_PORT | Config::FLAG_CLASSES;
        self.maps.write_config(|config| Config { flags: config.flags & !all | wanted, ..config })?;
        Ok(())
    }

    /// Leads prefixes to their classes, which are complete, and others no longer to theirs.
    fn apply_classes(&mut self, keys: &Keys, report: &mut ApplyReport) -> Result<(), ApplyError> {
        for (prefix, class) in &keys.classes {
            if self.plan.classes.get(prefix) != Some(class) {
                self.maps.set_class(*prefix, *class)?;
                self.plan.classes.insert(*prefix, *class);
                report.keys_changed += 1;
            }
        }
        let gone = |prefix: &&Prefix| !keys.classes.contains_key(prefix);
        let stale: Vec<Prefix> = self.plan.classes.keys().filter(gone).copied().collect();
        for prefix in &stale {
            self.maps.remove_class(*prefix)?;
            self.plan.classes.remove(prefix);
            report.keys_changed += 1;
        }
        if !stale.is_empty() {
            // A packet that has found such a class is still to find what is in it.
            self.maps.wait()?;
        }
        Ok(())
    }

    fn apply_service(
        &mut self,
        service: &ServiceSpec<'_>,
        keys: &[Key],
        report: &mut ApplyReport,
    ) -> Result<(), ApplyError> {
        let slots = pack(service.slots);
        let kept_block = self.block_to_keep(service)?;
        let known = self.plan.services.get(service.name);
        let kept_table = known.filter(|old| kept_block.is_some() && old.slots == slots).map(|old| old.table);
        let index = match known {
            Some(placement) => placement.index,
            None => self.new_index(service.name, report)?,
        };
        let block = match kept_block {
            Some(block) => block,
            None => self.plan.free.block(service.reals.len()).ok_or_else(|| full(service, "real servers"))?,
        };
        self.write_reals(service, block, kept_block.is_none(), report)?;
        let table = match kept_table {
            Some(table) => table,
            None => self.write_table(service, &slots, report)?,
        };
        let flags = match service.hash {
            HashInput::Source => 0,
            HashInput::SourcePort => ServiceEntry::FLAG_HASH_PORT,
        };
        let (forwarding, tunnel_port) = service.forwarding.packed();
        let (real_base, real_count) = (block.base, block.count);
        let entry =
            ServiceEntry { service: index, table, real_base, real_count, flags, forwarding, tunnel_port };
        let new = Placement { index, table, block, slots };
        if let Some(old) = self.plan.services.insert(service.name.to_owned(), new) {
            self.retire(&old, Some((table, block)));
        }
        keys.iter().try_for_each(|key| self.set_key(*key, entry, report))
    }

    /// The service's block, if every position that slots in force name keeps its server: then what is new can
    /// be written in place.
    fn block_to_keep(&self, service: &ServiceSpec<'_>) -> Result<Option<Block>, ApplyError> {
        let Some(placement) = self.plan.services.get(service.name) else { return Ok(None) };
        if service.reals.len() > placement.block.count as usize {
            return Ok(None);
        }
        let named: BTreeSet<u16> =
            placement.slots.iter().filter_map(|bits| Slot::from_bits(*bits).current()).collect();
        for position in named {
            let Some(real) = service.reals.get(usize::from(position)) else { continue };
            let entry = self.maps.real(placement.block.base + u32::from(position))?;
            if !is_server(&entry, real) {
                return Ok(None);
            }
        }
        Ok(Some(placement.block))
    }

    fn new_index(&mut self, name: &str, report: &mut ApplyReport) -> Result<u32, ApplyError> {
        let limit = director_common::tables::MAX_SERVICES;
        let index = self.plan.free.index().ok_or_else(|| ApplyError::Full {
            service: name.to_owned(),
            what: "service indices",
            limit,
        })?;
        self.maps.set_name(index, Some(name))?;
        report.added.push(name.to_owned());
        Ok(index)
    }

    fn write_reals(
        &mut self,
        service: &ServiceSpec<'_>,
        block: Block,
        new_block: bool,
        report: &mut ApplyReport,
    ) -> Result<(), ApplyError> {
        for (position, index) in block.indices().enumerate() {
            let Some(real) = service.reals.get(position) else {
                if new_block {
                    self.maps.new_real(index, RealEntry::default())?;
                }
                continue;
            };
            if !new_block && is_server(&self.maps.real(index)?, real) {
                continue;
            }
            let address = maps::address(real.address);
            let entry = RealEntry { port: real.port, address, ..RealEntry::default() };
            let way = self.next_hops.get(&real.address).copied();
            self.maps.new_real(index, with_way(entry, way))?;
            report.reals_written += 1;
        }
        Ok(())
    }

    fn write_table(
        &mut self,
        service: &ServiceSpec<'_>,
        slots: &[u32],
        report: &mut ApplyReport,
    ) -> Result<u32, ApplyError> {
        let table = self.plan.free.table(slots.len()).ok_or_else(|| full(service, "slot tables"))?;
        self.maps.set_table(table, slots)?;
        if self.plan.services.contains_key(service.name) {
            report.switched.push(service.name.to_owned());
        }
        Ok(table)
    }

    fn set_key(&mut self, key: Key, entry: ServiceEntry, report: &mut ApplyReport) -> Result<(), ApplyError> {
        if self.plan.keys.get(&key) == Some(&entry) {
            return Ok(());
        }
        self.maps.set_key(key, entry)?;
        self.plan.keys.insert(key, entry);
        report.keys_changed += 1;
        Ok(())
    }

    fn remove_keys(&mut self, wanted: &Keys, report: &mut ApplyReport) -> Result<(), ApplyError> {
        let wanted: BTreeSet<&Key> = wanted.services.iter().flatten().chain(wanted.vips.keys()).collect();
        let stale: Vec<Key> = self.plan.keys.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in stale {
            self.maps.remove_key(key)?;
            self.plan.keys.remove(&key);
            report.keys_changed += 1;
        }
        Ok(())
    }

    fn remove_services(
        &mut self,
        wanted: &BTreeSet<&str>,
        report: &mut ApplyReport,
    ) -> Result<(), ApplyError> {
        let stale: Vec<String> =
            self.plan.names().filter(|name| !wanted.contains(name)).map(str::to_owned).collect();
        for name in stale {
            if let Some(placement) = self.plan.services.remove(&name) {
                self.maps.set_name(placement.index, None)?;
                self.retire(&placement, None);
            }
            report.removed.push(name);
        }
        Ok(())
    }

    /// Notes what of `old` is not in use any more, given the table and block that took its place.
    fn retire(&mut self, old: &Placement, new: Option<(u32, Block)>) {
        if new.is_none_or(|(table, _)| table != old.table) {
            self.plan.retired_tables.insert(old.table);
        }
        if new.is_none_or(|(_, block)| block != old.block) {
            self.plan.retired_blocks.push(old.block);
        }
    }

    /// Gives back the tables that no key leads to. The kernel waits for a grace period in this, so that afterwards
    /// they and the blocks of real servers that went with them are free.
    fn clear_retired(&mut self) -> Result<(), ApplyError> {
        if self.plan.retired_tables.is_empty() && self.plan.retired_blocks.is_empty() {
            return Ok(());
        }
        let in_use: Vec<u32> = self.plan.services.values().map(|placement| placement.table).collect();
        self.maps.release_tables(&in_use)?;
        self.plan.retired_tables.clear();
        self.plan.retired_blocks.clear();
        Ok(())
    }
}

fn is_server(entry: &RealEntry, real: &RealSpec) -> bool {
    entry.address == maps::address(real.address) && entry.port == real.port
}

fn full(service: &ServiceSpec<'_>, what: &'static str) -> ApplyError {
    let limit = if what == "slot tables" {
        director_common::tables::MAX_TABLES
    } else {
        director_common::tables::MAX_REALS
    };
    ApplyError::Full { service: service.name.to_owned(), what, limit }
}
