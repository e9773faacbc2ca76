//! Pins that other directors see: their connections, should those come here.
//!
//! They are in the same map of the kernel as our own, so that a packet of a slot which is not settled is looked up
//! once.
//! That map holds what a packet needs; whose a replica is, and how long its owner gives it, is remembered here. What is
//! in the map is never written over: it may be a pin that a packet has made just now, and a program may have it in
//! hand.
//! It is removed, and another added. Replicas leave a quarter of the map to our own connections.
//!
//! | a replica that is | is | and is told to the others |
//! |---|---|---|
//! | held | as its owner says | by its owner |
//! | ours | one that packets have come for here, or that was an orphan: a pin of our own too | by us, as well |
//! | an orphan | one whose owner is gone: kept for one more idle time | by everybody, for who joins later |
//!
//! Of several views of a connection by full NAT, and of several connections with one lease, [`super::views`] says which one
//! counts, whether packets of it have come here or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use director_common::hash::FlowHash;
use director_common::packet::PROTOCOL_TCP;
use director_common::pin::{Pin, ServerId};
use director_common::tables::{FlowKey, Lease};
use director_proto::pins::{Begin, Server};
use director_proto::sync::BootId;
use syncd::pins::{Delivery, FlowMap, RemotePin, staleness};

use super::Dataplane;
use super::apply::packed;
use super::connections::{Connections, Entry};
use super::error::ApplyError;
use super::plan::Placement;
use super::sweep::Owners;
use super::templates;
use leased::Leased;

mod leased;

/// Seconds by which what two directors say of one connection's last packet may differ though it is the same.
const CLOCKS: u64 = 4;

/// What a [`Dataplane::apply_pins`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinReport {
    /// Replicas added to the kernel's map.
    pub added: usize,
    /// Replicas removed from it.
    pub removed: usize,
    /// Pins that say no more than the slots do.
    pub redundant: usize,
    /// Pins of services that are not known here.
    pub strangers: u32,
    /// Pins of known services to servers that are not known here.
    pub unknown_servers: u32,
    /// Pins that found no room.
    pub refused: usize,
    /// Pins of connections that this director has at another real server: its own view stands.
    pub conflicts: usize,
}

impl PinReport {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.added += other.added;
        self.removed += other.removed;
        self.redundant += other.redundant;
        self.strangers = self.strangers.saturating_add(other.strangers);
        self.unknown_servers = self.unknown_servers.saturating_add(other.unknown_servers);
        self.refused += other.refused;
        self.conflicts += other.conflicts;
    }
}

/// Whose a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Held,
    Ours,
    Orphan,
}

/// What is remembered of a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replica {
    pub(super) server: ServerId,
    pub(super) lease: Lease,
    pub(super) owner: Ipv4Addr,
    pub(super) kind: Kind,
    pub(super) is_closing: bool,
    /// Second until which its owner gives it.
    pub(super) until: u32,
    /// Seconds that its connection may be idle here.
    pub(super) life: u32,
    /// What the kernel was given as the second of the last packet: a later one is of a packet that came here.
    pub(super) seen: u64,
    /// Snapshot that named it last.
    pub(super) snapshot: u32,
}

impl Replica {
    /// A director says again that it has this connection, until then.
    fn tell(&mut self, from: Ipv4Addr, until: u32, snapshot: u32) {
        match self.kind {
            Kind::Ours => self.until = self.until.max(until),
            // Its owner is back. The others may have it from here: were it not told any more, it would end there.
            Kind::Orphan if self.owner == from => (self.kind, self.until) = (Kind::Ours, until),
            Kind::Orphan => self.until = self.until.max(until),
            // Whoever sees its packets gives it the longest.
            Kind::Held if self.owner != from && until <= self.until => {}
            Kind::Held => (self.owner, self.until, self.snapshot) = (from, until, snapshot),
        }
    }

    /// Whether an entry of the kernel's map is this one's: not one that began here since, from the same client's port.
    fn is(&self, entry: &Entry) -> bool {
        (entry.pin.server(), entry.lease) == (self.server, self.lease)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    known: FlowMap<Replica>,
    owners: BTreeMap<Ipv4Addr, (BootId, u32)>,
    /// Snapshots so far.
    snapshots: u32,
    /// Most there may be.
    room: usize,
}

impl Replicas {
    /// Room for so many.
    pub(super) fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Second until which another director gives a pin, if it has told of it.
    pub(super) fn until(&self, flow: &FlowKey) -> Option<u32> {
        self.known.get(flow).map(|replica| replica.until)
    }

    /// Second until which an entry is kept that another director has told of: a lease is not free here before its
    /// connection has had its time there, which is told only in steps.
    pub(super) fn kept_until(&self, flow: &FlowKey) -> Option<u32> {
        let replica = self.known.get(flow)?;
        let later = if replica.lease.is_some() { staleness(replica.life) + CLOCKS as u32 } else { 0 };
        Some(replica.until.saturating_add(later))
    }

    /// Whether a pin that a walk has met is for us to tell the others of; of orphans only if `orphans` are asked for.
    pub(super) fn tells(&mut self, entry: &Entry, orphans: bool) -> bool {
        let Entry { flow, pin, .. } = entry;
        let Some(replica) = self.known.get_mut(flow) else { return true };
        if !replica.is(entry) {
            self.forget(flow);
            return true;
        }
        if pin.seen > replica.seen {
            replica.kind = Kind::Ours;
        }
        match replica.kind {
            Kind::Held => false,
            Kind::Ours => true,
            Kind::Orphan => orphans,
        }
    }

    /// Whether a connection is known by others alone: no packet of it has come here, as its entry `pin` says.
    fn is_idle(&self, flow: &FlowKey, pin: &Pin) -> bool {
        let of_others = |replica: &&Replica| replica.kind != Kind::Ours && pin.seen <= replica.seen;
        self.known.get(flow).filter(of_others).is_some()
    }

    /// Whether an entry is as `director` has told, and nobody knows better.
    fn is_told_by(&self, director: Ipv4Addr, entry: &Entry) -> bool {
        let tells = |replica: &&Replica| {
            replica.kind == Kind::Held
                && replica.owner == director
                && replica.is(entry)
                && entry.pin.seen <= replica.seen
        };
        self.known.get(&entry.flow).filter(tells).is_some()
    }

    /// Forgets what the kernel's map does not have any more.
    pub(super) fn forget(&mut self, flow: &FlowKey) {
        self.known.remove(flow);
    }

    /// The last snapshot of a director.
    pub(super) fn snapshot_of(&self, owner: Ipv4Addr) -> u32 {
        self.owners.get(&owner).map_or(0, |(_, snapshot)| *snapshot)
    }

    /// Remembers a replica that comes into the kernel's map.
    pub(super) fn note(&mut self, flow: FlowKey, replica: Replica) {
        self.known.insert(flow, replica);
    }

    /// Another director tells of what is in the kernel's map as `entry`, in the same words: `told`.
    pub(super) fn renew(&mut self, flow: &FlowKey, entry: &Entry, told: Replica) {
        let known =
            self.known.entry(*flow).or_insert(Replica { kind: Kind::Ours, seen: entry.pin.seen, ..told });
        if !known.is(entry) {
            *known = Replica { kind: Kind::Ours, seen: entry.pin.seen, ..told };
        }
        if entry.pin.seen > known.seen {
            known.kind = Kind::Ours;
        }
        known.tell(told.owner, told.until, told.snapshot);
    }

    fn begin_snapshot(&mut self, owner: Ipv4Addr, boot_id: BootId, now: u32) {
        self.snapshots = self.snapshots.wrapping_add(1);
        let before = self.owners.insert(owner, (boot_id, self.snapshots));
        if before.is_none_or(|(before, _)| before != boot_id) {
            // What a machine knew before it was started anew it may have lost, but the connections are as they were.
            self.orphan(owner, now);
        }
    }

    /// Its owner may have seen packets that it did not tell of any more, and others are lost while the switches look
    /// for another way: from now on, the connection may be idle for its whole time again.
    fn orphan(&mut self, owner: Ipv4Addr, now: u32) {
        let held = |replica: &&mut Replica| replica.owner == owner && replica.kind == Kind::Held;
        for replica in self.known.values_mut().filter(held) {
            replica.kind = Kind::Orphan;
            replica.until = replica.until.max(now.saturating_add(replica.life));
        }
    }

    /// What the owner has not named in the snapshot that has ended.
    fn unnamed(&self, owner: Ipv4Addr) -> Vec<FlowKey> {
        let snapshot = self.snapshot_of(owner);
        let is_unnamed = |replica: &Replica| {
            replica.owner == owner && replica.kind == Kind::Held && replica.snapshot != snapshot
        };
        self.known.iter().filter(|(_, replica)| is_unnamed(replica)).map(|(flow, _)| *flow).collect()
    }
}

/// Changes to the kernel's map, made all together.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) removed: Vec<FlowKey>,
    pub(super) added: Vec<(FlowKey, Pin)>,
    /// Of connections with leases what does not agree with what is known here, or is new.
    leased: Vec<Leased>,
    /// Connections that have taken the lease anew that they had, as their age says.
    younger: Vec<(FlowKey, u32)>,
    /// Services some of whose slots are looked up from now on.
    reopened: BTreeSet<String>,
}

impl Dataplane {
    /// Puts another director's pins in force at second `now`. Slots that were settled here, and have connections
    /// elsewhere, are looked up from now on. What this director knows better, because packets come here, it keeps.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn apply_pins(&mut self, delivery: &Delivery, now: u32) -> Result<PinReport, ApplyError> {
        let hash = self.maps.flow_hash()?;
        let (from, boot_id) = (delivery.receipt.from, delivery.receipt.boot_id);
        if delivery.begins == Some(Begin::Snapshot) {
            self.replicas.begin_snapshot(from, boot_id, now);
        }
        if let Some(locals) = &delivery.locals {
            self.numbering.tell(from, boot_id, locals);
        }
        let mut report = PinReport::default();
        let mut changes = Changes::default();
        let mut by_server: Vec<Vec<&RemotePin>> = vec![Vec::new(); delivery.servers.len()];
        for pin in &delivery.pins {
            by_server[pin.server as usize].push(pin);
        }
        for (server, pins) in delivery.servers.iter().zip(by_server) {
            let Some(placement) = self.plan.services.get_mut(&server.service) else {
                report.strangers += pins.len() as u32;
                continue;
            };
            let Some(id) = find(placement, server) else {
                report.unknown_servers += pins.len() as u32;
                continue;
            };
            let (templates, pins): (Vec<_>, Vec<_>) =
                pins.into_iter().partition(|pin| pin.flow.is_template());
            for pin in templates {
                let whose = (&**server, id, from);
                let (replicas, pins) = (&mut self.replicas, &self.maps.pins);
                templates::take(replicas, pins, placement, whose, &hash, pin, now, &mut changes, &mut report);
            }
            for pin in pins {
                let mut lease = Lease::NONE;
                if placement.is_full_nat {
                    let Some(local) =
                        pin.local.filter(|local| local.address.is_v4() == server.address.is_ipv4())
                    else {
                        // Of before the service had full NAT: it cannot go on.
                        report.redundant += 1;
                        continue;
                    };
                    let Some(number) = self.numbering.number(&mut self.maps.locals, local.address)? else {
                        report.refused += 1;
                        continue;
                    };
                    lease = Lease { number, port: local.port };
                }
                let replicas = &mut self.replicas;
                take(
                    replicas,
                    &self.maps.pins,
                    placement,
                    (id, lease, from),
                    &hash,
                    pin,
                    now,
                    &mut changes,
                    &mut report,
                )?;
            }
            if placement.slots.has_reopened() {
                changes.reopened.insert(server.service.clone());
            }
        }
        let removed = self.keys_here(&delivery.removed);
        self.end_replicas(from, &removed, &mut changes)?;
        if delivery.ends_snapshot {
            let unnamed = self.replicas.unnamed(from);
            self.end_replicas(from, &unnamed, &mut changes)?;
        }
        self.write_replicas(changes, now, &mut report)?;
        if self.numbering.is_dead(from) {
            // Said before it died, and taken only now.
            self.replicas.orphan(from, now);
        }
        self.sweep.demand();
        Ok(report)
    }

    /// A director runs, at second `now`, by a run of this id: what an earlier one had is nobody's until it says so again,
    /// and if it has lost all that it learns from here.
    pub fn note_run(&mut self, owner: Ipv4Addr, boot_id: BootId, now: u32) {
        if self.replicas.owners.get(&owner).is_some_and(|(known, _)| *known != boot_id) {
            self.replicas.orphan(owner, now);
        }
        self.numbering.revive(owner, boot_id);
        self.export.demand();
    }

    /// The owner of replicas is dead at second `now`: they are nobody's then.
    pub fn orphan_pins(&mut self, owner: Ipv4Addr, now: u32) {
        self.replicas.orphan(owner, now);
        self.numbering.bury(owner);
    }

    /// Connections of other directors that are known here.
    pub fn replicas(&self) -> usize {
        self.replicas.len()
    }

    /// Removes what its owner has no more, unless packets have come for it here.
    fn end_replicas(
        &mut self,
        owner: Ipv4Addr,
        flows: &[FlowKey],
        changes: &mut Changes,
    ) -> Result<(), ApplyError> {
        for flow in flows {
            let Some(replica) = self.replicas.known.get_mut(flow) else { continue };
            if replica.owner != owner || replica.kind != Kind::Held {
                continue;
            }
            match self.maps.pins.entry_of(flow) {
                Some(entry) if !replica.is(&entry) => self.replicas.forget(flow),
                Some(entry) if entry.pin.seen > replica.seen => replica.kind = Kind::Ours,
                _ => {
                    self.replicas.known.remove(flow);
                    changes.removed.push(*flow);
                }
            }
        }
        Ok(())
    }

    fn write_replicas(
        &mut self,
        changes: Changes,
        now: u32,
        report: &mut PinReport,
    ) -> Result<(), ApplyError> {
        // A slot first, since one that is settled is not looked up. Nothing waits for it: without its pin a connection
        // goes where it went before.
        for name in &changes.reopened {
            if let Some(placement) = self.plan.services.get(name) {
                self.maps.set_table(placement.table, &packed(placement.slots.slots()))?;
            }
        }
        let (owners, config) = (self.owners(), self.maps.config()?);
        self.remove_pins(&owners, &config, &changes.removed);
        report.removed = changes.removed.len();
        for (flow, age) in &changes.younger {
            if let Some(entry) = self.maps.pins.entry_of(flow) {
                self.rejuvenate(&owners, &config, &entry, *age, now);
            }
        }
        for leased in &changes.leased {
            self.put_leased(&owners, &config, leased, now, report);
        }
        for (flow, pin) in &changes.added {
            let has_room = self.replicas.known.len() <= self.replicas.room;
            if has_room && self.add_replica(&owners, flow, pin) {
                report.added += 1;
                continue;
            }
            let found = has_room.then(|| self.maps.pins.entry_of(flow)).flatten();
            match found {
                // Ours, and the other director's as well: it lives as long as either says.
                Some(own) if own.pin.server() == pin.server() => {
                    if let Some(replica) = self.replicas.known.get_mut(flow) {
                        (replica.kind, replica.seen) = (Kind::Ours, own.pin.seen);
                    }
                }
                Some(own) if self.is_outdated(&owners, &own, pin) => {
                    self.remove_pins(&owners, &config, &[*flow]);
                    report.removed += 1;
                    if self.add_replica(&owners, flow, pin) {
                        report.added += 1;
                    } else {
                        self.replicas.forget(flow);
                        report.refused += 1;
                    }
                }
                Some(_) => {
                    self.replicas.forget(flow);
                    report.conflicts += 1;
                }
                None => {
                    self.replicas.forget(flow);
                    report.refused += 1;
                }
            }
        }
        Ok(())
    }
}

impl Dataplane {
    /// Adds a replica to the kernel's map, and counts it.
    fn add_replica(&mut self, owners: &Owners, flow: &FlowKey, pin: &Pin) -> bool {
        let added = self.maps.pins.add(flow, Lease::NONE, pin);
        if added {
            self.count(owners, flow, pin);
        }
        added
    }

    fn count(&self, owners: &Owners, flow: &FlowKey, pin: &Pin) {
        if let Some((index, is_active)) = self.counted(owners, flow, pin) {
            self.maps.loads.arrive(index, is_active);
        }
    }

    /// Whether what this director has of a tracked connection without a lease has been overtaken: another one has seen later packets, and
    /// has it elsewhere. So it is after some time without any, as when this director was cut off, and the client has used
    /// the port anew.
    fn is_outdated(&self, owners: &Owners, own: &Entry, pin: &Pin) -> bool {
        own.pin.seen + CLOCKS < pin.seen
            && !pin.state().is_closing()
            && self.counted(owners, &own.flow, pin).is_some()
    }
}

/// A server as it is known here.
fn find(placement: &Placement, server: &Server) -> Option<ServerId> {
    let mut servers = placement.servers.iter();
    let (position, found) =
        servers.find(|(_, known)| (known.address, known.port) == (server.address, server.port))?;
    Some(ServerId::new(*position, found.generation))
}

/// Takes one pin of another director.
#[expect(clippy::too_many_arguments, reason = "the parts of one data plane, borrowed apart")]
fn take(
    replicas: &mut Replicas,
    map: &Connections,
    placement: &mut Placement,
    (server, lease, from): (ServerId, Lease, Ipv4Addr),
    hash: &FlowHash,
    pin: &RemotePin,
    now: u32,
    changes: &mut Changes,
    report: &mut PinReport,
) -> Result<(), ApplyError> {
    let flow = &pin.flow;
    let life = placement.timeouts.of_pin(pin.state, flow.protocol == PROTOCOL_TCP);
    // Whatever the other says: no connection is kept for longer than here.
    let remaining = pin.remaining.min(life);
    let until = now.saturating_add(remaining);
    let slot = placement.slot_of(hash, flow);
    let of = placement.slots.slots().get(slot as usize).copied();
    let is_needed = remaining > 0
        && (placement.is_tracked()
            || of.is_some_and(|of| of.is_moving() || of.raw_current() != server.position()));
    let snapshot = replicas.snapshot_of(from);
    let entry = replicas.known.get(flow).and_then(|_| map.entry_of(flow));
    if entry.is_some_and(|entry| replicas.known.get(flow).is_some_and(|known| !known.is(&entry))) {
        replicas.forget(flow);
    }
    if let Some(known) = replicas.known.get_mut(flow) {
        let ours = match known.kind {
            Kind::Held | Kind::Orphan => entry.is_some_and(|entry| entry.pin.seen > known.seen),
            Kind::Ours => true,
        };
        if ours {
            known.kind = Kind::Ours;
        }
        let same = (known.server, known.lease) == (server, lease);
        if same && is_needed && known.is_closing == pin.state.is_closing() {
            known.tell(from, until, snapshot);
            if lease.is_some() {
                changes.younger.push((*flow, pin.age));
            }
            return Ok(());
        }
        if ours && !lease.is_some() {
            report.conflicts += usize::from(!same);
            return Ok(());
        }
        // What has a lease goes only when it is certain that the other view counts.
        if !lease.is_some() || same && !ours && !is_needed {
            changes.removed.push(*flow);
            replicas.known.remove(flow);
        }
    }
    if !is_needed {
        report.redundant += 1;
        return Ok(());
    }
    let seen = u64::from(now.saturating_sub(life - remaining));
    let (owner, is_closing) = (from, pin.state.is_closing());
    let kind = Kind::Held;
    let replica = Replica { server, lease, owner, kind, is_closing, until, life, seen, snapshot };
    let (flow, entry) = (*flow, Pin::new(server, pin.state, seen as u32));
    if lease.is_some() {
        changes.leased.push(Leased { flow, pin: entry, age: pin.age, replica });
    } else {
        replicas.known.insert(flow, replica);
        changes.added.push((flow, entry));
    }
    // Should a sweep be under way, it may have passed the place where this one will be.
    if placement.is_tracked() {
        placement.slots.keep_tracked(slot, server.position());
    } else {
        placement.slots.pin(slot);
        placement.slots.keep(slot, server.position(), false);
    }
    Ok(())
}
