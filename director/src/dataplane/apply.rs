//! The changes that make the kernel equal to a specification.
//!
//! Order is everything. What is new (real servers, tables) is complete before a key leads to it; a key is
//! switched by replacing its entry, which is atomic; what is old is cleared only when no key leads to it, and
//! reused only when every program that could have seen it has ended. When a window opened is noted before its slots
//! move, and again afterwards: a process that dies in between may close it late, but never early.

use std::collections::{BTreeMap, BTreeSet};

use director_common::Slot;
use director_common::pin::{QuicEntry, QuicKey};
use director_common::siphash::HashKey;
use director_common::tables::{Config, MAX_REALS, MAX_TABLES, RealEntry, ServiceEntry, WindowEntry};

use super::counts::NOBODY;
use super::error::ApplyError;
use super::free::Free;
use super::keys::{Key, Keys, Prefix, look_ups};
use super::maps::{self, Shared};
use super::plan::{Block, Placement};
use super::rosters::Turn;
use super::seats::Seating;
use super::spec::{
    Datagrams, Forwarding, HashInput, Ports, Protocol, RealSpec, ServiceSpec, Tracking, check,
};
use super::window::{SlotWindows, seconds};
use super::{Dataplane, EchoPolicy, monotonic_seconds, with_way};

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
        let keys = check(services, &self.options.tunnel_sources, &self.options.locals, &self.plan.classes)?;
        let mut report = ApplyReport::default();
        self.plan.free = Free::of(&self.plan);
        // Where the program has to look, and that an address is a VIP, is told before there is anything to find.
        let (before, after) =
            (look_ups(self.plan.keys.keys(), !self.plan.classes.is_empty()), keys.look_ups());
        let (before, after) = (before | self.nat_in_force(), after | nat(services));
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
        self.prune_quic_ids()?;
        self.settle_replies(services)?;
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
        let all = Config::FLAG_ANY_PORT | Config::FLAG_CLASSES | Config::FLAG_NAT | Config::FLAG_FULL_NAT;
        self.maps.write_config(|config| Config { flags: config.flags & !all | wanted, ..config })?;
        Ok(())
    }

    /// The flags for what services with NAT have left in the kernel.
    fn nat_in_force(&self) -> u32 {
        let any_port = self.plan.replies.keys().any(|key| key.protocol != 0 && key.port == 0);
        let full = self.plan.services.values().any(|placement| placement.is_full_nat);
        nat_flags(!self.plan.replies.is_empty(), any_port) | full_nat_flag(full)
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
        let now = monotonic_seconds();
        let old = self.plan.services.get(service.name);
        let seating = Seating::new(old, service, &mut self.plan.generation);
        let (slots, changed) = slots_of(old, service, &seating, now);
        let kept_block = old.map(|old| old.block).filter(|block| seating.size() <= block.count as usize);
        let kept_table = old.filter(|_| kept_block.is_some() && !changed).map(|old| old.table);
        let (index, window) = match old {
            Some(old) => (old.index, old.window),
            None => (self.new_index(service.name, report)?, WindowEntry::default()),
        };
        let block = match kept_block {
            Some(block) => block,
            None => self
                .plan
                .free
                .block(seating.size())
                .ok_or_else(|| full(service, "real servers", MAX_REALS))?,
        };
        let window = self.note_window(index, window_entry(window, service, &slots, self.plan.generation))?;
        self.write_reals(&seating, block, kept_block.map(|_| index), report)?;
        let turn = self.write_roster(service, &seating, index, block)?;
        let table = match kept_table {
            Some(table) => table,
            None => self.write_table(service, &slots, report)?,
        };
        self.add_quic_ids(index, service, &seating)?;
        self.add_replies(service, index, block, &seating.servers)?;
        let hash = match service.hash {
            HashInput::Source => 0,
            HashInput::SourcePort => ServiceEntry::FLAG_HASH_PORT,
        };
        let flags = hash | service.datagrams.flags() | service.tracking.map_or(0, Tracking::flags);
        let (forwarding, tunnel_port) = service.forwarding.packed();
        let (real_base, real_count) = (block.base, block.count);
        let entry =
            ServiceEntry { service: index, table, real_base, real_count, flags, forwarding, tunnel_port };
        let barred = seating.barred(service);
        let Seating { servers, gone, .. } = seating;
        let (hash, timeouts) = (service.hash, service.timeouts);
        let old = self.plan.services.get(service.name);
        let was_tracked = old.map(Placement::is_tracked);
        let templates = old.map(|old| old.templates.clone()).unwrap_or_default();
        let (Turn { rota, begun }, guests) = (turn, Vec::new());
        let is_full_nat = entry.is_full_nat();
        let new = Placement {
            index,
            table,
            block,
            hash,
            slots,
            servers,
            guests,
            timeouts,
            rota,
            begun,
            window,
            is_full_nat,
            flags,
            barred,
            templates,
            counting: BTreeMap::new(),
        };
        if let Some(old) = self.plan.services.insert(service.name.to_owned(), new) {
            self.retire(&old, Some((table, block)));
        }
        keys.iter().try_for_each(|key| self.set_key(*key, entry, report))?;
        self.end_roster(service, index, was_tracked, kept_block.is_none())?;
        if kept_block.is_some() {
            for position in gone {
                self.maps.clear_real(block.base + u32::from(position), index)?;
            }
        }
        self.correct_window(service.name, now)
    }

    /// Notes what a later process must know of a service's windows.
    fn note_window(&mut self, index: u32, window: WindowEntry) -> Result<WindowEntry, ApplyError> {
        if self.maps.window(index)? != window {
            self.maps.set_window(index, window)?;
        }
        Ok(window)
    }

    /// Slots that began to move at `begun` did so only now, when the table is in force.
    fn correct_window(&mut self, service: &str, begun: u32) -> Result<(), ApplyError> {
        let now = monotonic_seconds();
        let Some(placement) = self.plan.services.get_mut(service).filter(|_| now != begun) else {
            return Ok(());
        };
        placement.slots.correct(begun, now);
        placement.window.opened = placement.slots.opened().unwrap_or(0);
        let (index, window) = (placement.index, placement.window);
        self.note_window(index, window)?;
        Ok(())
    }

    /// Makes known the QUIC server ids of a service.
    fn add_quic_ids(
        &mut self,
        index: u32,
        service: &ServiceSpec<'_>,
        seating: &Seating,
    ) -> Result<(), ApplyError> {
        if !matches!(service.datagrams, Datagrams::Quic { .. }) {
            return Ok(());
        }
        for (position, server) in &seating.servers {
            let of_server = |real: &&RealSpec| (real.address, real.port) == (server.address, server.port);
            let Some(id) = service.reals.iter().find(of_server).and_then(|real| real.quic_id) else {
                continue;
            };
            let key = QuicKey { service: index, id };
            let entry = QuicEntry { position: u32::from(*position), generation: server.generation };
            if self.plan.quic_ids.get(&key) != Some(&entry) {
                self.maps.quic_ids.insert(Shared(key), Shared(entry), 0)?;
                self.plan.quic_ids.insert(key, entry);
            }
        }
        Ok(())
    }

    /// Forgets the QUIC server ids of servers that are gone.
    pub(super) fn prune_quic_ids(&mut self) -> Result<(), ApplyError> {
        let known: BTreeSet<(u32, u32)> = self
            .plan
            .services
            .values()
            .flat_map(|placement| {
                placement.servers.values().map(|server| (placement.index, server.generation))
            })
            .collect();
        let stale = self
            .plan
            .quic_ids
            .iter()
            .filter(|(key, entry)| !known.contains(&(key.service, entry.generation)));
        let stale: Vec<QuicKey> = stale.map(|(key, _)| *key).collect();
        for key in stale {
            self.maps.quic_ids.remove(&Shared(key))?;
            self.plan.quic_ids.remove(&key);
        }
        Ok(())
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

    /// Writes the new real servers; `kept` is the service's index, if it keeps its block.
    fn write_reals(
        &mut self,
        seating: &Seating,
        block: Block,
        kept: Option<u32>,
        report: &mut ApplyReport,
    ) -> Result<(), ApplyError> {
        let (new_block, before) = (kept.is_none(), kept.unwrap_or(NOBODY));
        for (position, index) in (0..).zip(block.indices()) {
            let Some(server) = seating.servers.get(&position) else {
                if new_block {
                    self.maps.new_real(index, RealEntry::default(), before)?;
                }
                continue;
            };
            if !new_block && !seating.new.contains(&position) {
                continue;
            }
            let (port, generation) = (server.port, server.generation);
            let address = maps::address(server.address);
            let entry = RealEntry { port, address, generation, ..RealEntry::default() };
            let way = self.next_hops.get(&server.address).copied();
            self.maps.new_real(index, with_way(entry, way), before)?;
            report.reals_written += 1;
        }
        Ok(())
    }

    fn write_table(
        &mut self,
        service: &ServiceSpec<'_>,
        slots: &SlotWindows,
        report: &mut ApplyReport,
    ) -> Result<u32, ApplyError> {
        let table = self.plan.free.table(slots.slots().len());
        let table = table.ok_or_else(|| full(service, "slot tables", MAX_TABLES))?;
        self.maps.set_table(table, &packed(slots.slots()))?;
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
                self.maps.remove_roster(placement.index)?;
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
            let service = if new.is_some() { old.index } else { NOBODY };
            self.plan.retired_blocks.push((old.block, service));
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
        for (block, service) in std::mem::take(&mut self.plan.retired_blocks) {
            block.indices().try_for_each(|index| self.maps.counts.close_real(index, service))?;
        }
        Ok(())
    }
}

/// A service's slots under a specification, and whether they differ from those in force.
fn slots_of(
    old: Option<&Placement>,
    service: &ServiceSpec<'_>,
    seating: &Seating,
    now: u32,
) -> (SlotWindows, bool) {
    let settled =
        || SlotWindows::new(seating.owners.iter().map(|owner| Slot::settled(*owner)).collect(), now);
    let Some(old) = old else { return (settled(), true) };
    let mut slots = old.slots.clone();
    // With another hash every connection has another slot, whose owners are no help.
    let mut changed = if tracks(service) && old.hash == service.hash {
        slots.change(&seating.owners, |position| seating.is_gone(position), now)
    } else {
        slots.settle_at(&seating.owners)
    };
    if old.is_tracked() && service.tracking.is_none() {
        slots.pin_all();
        changed = true;
    }
    (slots, changed)
}

/// Whether the service has connections to keep.
pub(super) fn tracks(service: &ServiceSpec<'_>) -> bool {
    service.datagrams != Datagrams::OnePacket || service.has(Protocol::Tcp)
}

/// The flags for what services with NAT need.
fn nat(services: &[ServiceSpec<'_>]) -> u32 {
    let nat = || services.iter().filter(|service| service.forwarding == Forwarding::Nat);
    let any_port = nat().flat_map(|service| &service.addresses).any(|address| address.ports == Ports::ALL);
    let full = services.iter().any(|service| service.forwarding == Forwarding::FullNat);
    nat_flags(nat().next().is_some(), any_port) | full_nat_flag(full)
}

const fn full_nat_flag(any: bool) -> u32 {
    if any { Config::FLAG_FULL_NAT } else { 0 }
}

const fn nat_flags(any: bool, any_port: bool) -> u32 {
    match (any, any_port) {
        (true, true) => Config::FLAG_NAT | Config::FLAG_ANY_PORT,
        (true, false) => Config::FLAG_NAT,
        _ => 0,
    }
}

fn window_entry(
    old: WindowEntry,
    service: &ServiceSpec<'_>,
    slots: &SlotWindows,
    generation: u32,
) -> WindowEntry {
    let timeouts = &service.timeouts;
    let persistence = service.tracking.and_then(|tracking| tracking.persistence);
    WindowEntry {
        opened: slots.opened().unwrap_or(0),
        generation: generation.max(old.generation),
        established: seconds(timeouts.established),
        fin: seconds(timeouts.fin),
        udp: seconds(timeouts.udp),
        window: timeouts.window(service.has(Protocol::Tcp), service.has(Protocol::Udp)),
        unpinned: old.unpinned,
        persistent: persistence.map_or(0, |persistence| seconds(persistence.timeout)),
        reserved: 0,
    }
}

/// Slots as the kernel holds them.
pub(super) fn packed(slots: &[Slot]) -> Box<[u32]> {
    slots.iter().map(|slot| slot.bits()).collect()
}

pub(super) fn full(service: &ServiceSpec<'_>, what: &'static str, limit: usize) -> ApplyError {
    ApplyError::Full { service: service.name.to_owned(), what, limit }
}
