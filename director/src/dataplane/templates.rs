//! Persistence: how templates end, and how directors agree on them.
//!
//! A template ([`director_common::template`]) has its time after the client's last new connection, and then is *due*: it
//! ends unless some connection that it led to its server is known still. That takes a whole sweep to find out: what is
//! due when a sweep meets it is removed at the end of the next one, if that has met no such connection and no new one has
//! begun. So it lives a sweep longer than it must, which is a second or two, where IPVS asks once a minute.
//!
//! Connections of one client reach several directors, which may have made different templates before they heard of each
//! other's. Then the one whose server has the lower rank counts, by a hash that all directors have: so they agree without
//! a word, and connections that have begun stay where they are.
//!
//! On the way between directors the service is in a template's key by its name, since numbers are each director's own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use director_common::hash::FlowHash;
use director_common::pin::{Pin, PinState, ServerId};
use director_common::tables::{Address, FlowKey, HashInput, Lease, ServiceEntry};
use director_proto::pins::Server;
use sha2::{Digest as _, Sha256};
use syncd::pins::{FlowMap, LocalPin, RemotePin};

use super::Dataplane;
use super::connections::{Connections, Cursor, Entry};
use super::error::ReadError;
use super::maps::{address, ip_address};
use super::plan::Placement;
use super::replicas::{Changes, Kind, PinReport, Replica, Replicas};
use super::sweep::{Owners, TickReport};
use super::window::CLOCK_STEP;

/// A template, in words that every director understands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TemplateRecord {
    /// Name of the service.
    pub service: String,
    /// The client: an address, or the first one of its network.
    pub client: IpAddr,
    /// Address and port of the real server.
    pub real: SocketAddr,
    /// Some connection of the client has gone on.
    pub is_assured: bool,
    /// Seconds since the last new connection.
    pub idle: u32,
    /// Seconds until it ends, if no connection begins and none is known then.
    pub remaining: u32,
}

/// The templates that are due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Those that the sweep before this one has met, without those of which this one has met a connection.
    checked: FlowMap<Entry>,
    /// Those that this one has met.
    next: FlowMap<Entry>,
}

impl Due {
    /// A connection is known of whoever has the template `key`, at this server.
    fn spare(&mut self, key: &FlowKey, server: ServerId) {
        if self.checked.get(key).is_some_and(|entry| entry.pin.server() == server) {
            self.checked.remove(key);
        }
    }
}

/// What stands for a service in the keys of templates on their way: sixteen bytes of the SHA-256 of its name.
pub fn identity(service: &str) -> Address {
    let digest = Sha256::new().chain_update(b"template ").chain_update(service).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Address(bytes)
}

impl Placement {
    /// Whether clients stay with their servers.
    pub(super) fn is_persistent(&self) -> bool {
        self.window.persistent != 0
    }

    /// Who the sender of a packet is to the service.
    pub(super) fn client(&self, source: &Address) -> Address {
        ServiceEntry { flags: self.flags, ..ServiceEntry::default() }.client(source)
    }

    /// Whether the template `key` counts, which names the server at `position`.
    fn has_template(&self, key: &FlowKey, position: u16) -> bool {
        self.is_persistent()
            && !self.barred.contains(&position)
            && *key == FlowKey::template(key.source, self.index)
    }

    /// Seconds for which a template outlives its client's last new connection.
    fn life(&self, state: PinState) -> u32 {
        match state {
            PinState::Opening => self.window.persistent.min(PinState::OPENING_TIMEOUT),
            _ => self.window.persistent,
        }
    }

    /// Whether a template has had its time at second `now`.
    fn is_due(&self, pin: &Pin, now: u32) -> bool {
        u64::from(now).saturating_sub(pin.seen) > u64::from(self.life(pin.state())) + CLOCK_STEP
    }
}

impl Dataplane {
    /// A sweep begins: what was due in the last one is looked at again. Connections that are half-open now count; those
    /// that cease to be meanwhile the sweep meets, and any that begins later gives its template a new time.
    pub(super) fn begin_templates(&mut self) {
        self.sweep.due.checked = std::mem::take(&mut self.sweep.due.next);
        for placement in self.plan.services.values_mut() {
            placement.counting.clear();
        }
        if self.sweep.due.checked.is_empty() {
            return;
        }
        let (owners, mut found, mut cursor) = (self.owners(), Vec::new(), Cursor::Start);
        while cursor != Cursor::End {
            cursor = self.maps.half_open.read(cursor, &mut found);
            for entry in found.drain(..).filter(|entry| !entry.flow.is_template()) {
                self.spare_template(&owners, &entry.flow, &entry.pin);
            }
        }
    }

    /// The template of a connection that is known does not end, if it led there.
    pub(super) fn spare_template(&mut self, owners: &Owners, flow: &FlowKey, pin: &Pin) {
        if self.sweep.due.checked.is_empty() {
            return;
        }
        let Some((name, _)) = owners.get(&pin.server().generation()) else { return };
        let Some(placement) = self.plan.services.get(name).filter(|placement| placement.is_persistent())
        else {
            return;
        };
        let key = FlowKey::template(placement.client(&flow.source), placement.index);
        self.sweep.due.spare(&key, pin.server());
    }

    /// Whether a template that the sweep has met among the pins stays, at least until the next one.
    pub(super) fn keeps_template(&mut self, owners: &Owners, entry: &Entry, now: u32) -> bool {
        let Entry { flow, pin, .. } = entry;
        let Some((name, position)) = owners.get(&pin.server().generation()) else { return false };
        let Some(placement) = self.plan.services.get_mut(name) else { return false };
        if !placement.has_template(flow, *position) {
            return false;
        }
        *placement.counting.entry(*position).or_default() += 1;
        let until = self.replicas.until(flow);
        if placement.is_due(pin, now)
            && until.is_none_or(|until| until <= now)
            && !self.sweep.due.checked.contains_key(flow)
        {
            self.sweep.due.next.insert(*flow, *entry);
        }
        true
    }

    /// Whether a template that a walk has met among the half-open connections stays.
    pub(super) fn keeps_new_template(&self, owners: &Owners, entry: &Entry, now: u32) -> bool {
        let owner = owners.get(&entry.pin.server().generation());
        let placed = owner.and_then(|(name, position)| Some((self.plan.services.get(name)?, *position)));
        placed.is_some_and(|(placement, position)| {
            placement.has_template(&entry.flow, position) && !placement.is_due(&entry.pin, now)
        })
    }

    /// A sweep ends at second `now`: removes what was due and has neither connections nor begun a new one, here or where
    /// another director is.
    pub(super) fn end_templates(&mut self, now: u32, report: &mut TickReport) {
        for (flow, entry) in std::mem::take(&mut self.sweep.due.checked) {
            let is_over = self.replicas.until(&flow).is_none_or(|until| until <= now);
            if is_over && self.maps.pins.remove(&entry) {
                report.removed += 1;
                self.replicas.forget(&flow);
            }
        }
        for placement in self.plan.services.values_mut() {
            placement.templates = std::mem::take(&mut placement.counting);
        }
    }

    /// Templates by service, address and port of their servers, as the last whole sweep has met them.
    pub fn template_counts(&self) -> BTreeMap<(String, IpAddr, u16), u64> {
        let mut counts = BTreeMap::new();
        let persistent = self.plan.services.iter().filter(|(_, placement)| placement.is_persistent());
        for (name, placement) in persistent {
            for (position, server) in &placement.servers {
                let count = placement.templates.get(position).copied().unwrap_or(0);
                counts.insert((name.clone(), server.address, server.port), count);
            }
        }
        counts
    }

    /// Every template at second `now`, in order.
    ///
    /// # Errors
    /// [`ReadError`] if the kernel refuses.
    pub fn templates(&self, now: u32) -> Result<Vec<TemplateRecord>, ReadError> {
        let (owners, mut records) = (self.owners(), Vec::new());
        for (map, is_assured) in [(&self.maps.pins, true), (&self.maps.half_open, false)] {
            let (mut found, mut cursor) = (Vec::new(), Cursor::Start);
            while cursor != Cursor::End {
                cursor = map.read(cursor, &mut found);
            }
            for Entry { flow, pin, .. } in found.into_iter().filter(|entry| entry.flow.is_template()) {
                let Some((name, position)) = owners.get(&pin.server().generation()) else { continue };
                let Some(placement) = self.plan.services.get(name) else { continue };
                let Some(server) = placement.servers.get(position) else { continue };
                if !placement.has_template(&flow, *position) {
                    continue;
                }
                let idle = u32::try_from(u64::from(now).saturating_sub(pin.seen)).unwrap_or(u32::MAX);
                let until = self.replicas.until(&flow).unwrap_or(0).saturating_sub(now);
                records.push(TemplateRecord {
                    service: name.clone(),
                    client: ip_address(flow.source),
                    real: SocketAddr::new(server.address, server.port),
                    is_assured,
                    idle,
                    remaining: placement.life(pin.state()).saturating_sub(idle).max(until),
                });
            }
        }
        records.sort_unstable();
        Ok(records)
    }

    /// A template that a walk has met, as the other directors are told of it.
    pub(super) fn local_template(
        &mut self,
        name: &str,
        position: u16,
        entry: Entry,
        now: u32,
    ) -> Option<LocalPin> {
        let Entry { flow, pin, .. } = entry;
        let placement = self.plan.services.get(name)?;
        if !placement.has_template(&flow, position) {
            return None;
        }
        let idle = u32::try_from(u64::from(now).saturating_sub(pin.seen)).unwrap_or(u32::MAX);
        let until = self.replicas.until(&flow).unwrap_or(0).saturating_sub(now);
        // What has had its time is kept by connections, or goes within two sweeps. The others know those connections, too,
        // and judge by themselves: were they given more time, they would give it back, and there would be no end.
        let remaining = placement.life(pin.state()).saturating_sub(idle).max(until).max(1);
        let flow = FlowKey { destination: identity(name), ..flow };
        let server = self.export.server(name, placement.servers.get(&position)?);
        Some(LocalPin { flow, server, state: PinState::Open, remaining, local: None, age: 0 })
    }

    /// The keys here of what another director says is no more.
    pub(super) fn keys_here(&self, removed: &[FlowKey]) -> Vec<FlowKey> {
        let mut numbers: Option<Numbers> = None;
        let here = |flow: &FlowKey| {
            if !flow.is_template() {
                return Some(*flow);
            }
            let numbers = numbers.get_or_insert_with(|| {
                let services = self.plan.services.iter();
                services.map(|(name, placement)| (identity(name), placement.index)).collect()
            });
            Some(FlowKey::template(flow.source, *numbers.get(&flow.destination)?))
        };
        removed.iter().filter_map(here).collect()
    }
}

/// Numbers of services by their [`identity`].
type Numbers = BTreeMap<Address, u32>;

/// Of two servers that two directors have given one client, that with the lower rank stays.
fn rank(hash: &FlowHash, client: &Address, server: (IpAddr, u16)) -> (u64, (IpAddr, u16)) {
    let ([a, b, c, d], [e, f, g, h]) = (client.words(), address(server.0).words());
    let both = Address::from_words([a ^ e, b ^ f, c ^ g, d ^ h]);
    (hash.of(both, server.1, HashInput::SourcePort), server)
}

/// Takes one template of another director, `from`, which names the server `id`.
#[expect(clippy::too_many_arguments, reason = "the parts of one data plane, borrowed apart")]
pub(super) fn take(
    replicas: &mut Replicas,
    map: &Connections,
    placement: &Placement,
    (server, id, from): (&Server, ServerId, Ipv4Addr),
    hash: &FlowHash,
    pin: &RemotePin,
    now: u32,
    changes: &mut Changes,
    report: &mut PinReport,
) {
    if pin.flow.destination != identity(&server.service) {
        report.strangers += 1;
        return;
    }
    let flow = FlowKey::template(pin.flow.source, placement.index);
    let remaining = pin.remaining.min(placement.window.persistent);
    if remaining == 0 || !placement.has_template(&flow, id.position()) {
        report.redundant += 1;
        return;
    }
    let (life, until) = (placement.window.persistent, now.saturating_add(remaining));
    let seen = u64::from(now.saturating_sub(life - remaining));
    let snapshot = replicas.snapshot_of(from);
    let replica = Replica {
        server: id,
        lease: Lease::NONE,
        owner: from,
        kind: Kind::Held,
        is_closing: false,
        until,
        life,
        seen,
        snapshot,
    };
    if let Some(own) = map.entry_of(&flow) {
        if own.pin.server() == id {
            replicas.renew(&flow, &own, replica);
            return;
        }
        let of_own = placement.servers.get(&own.pin.server().position()).filter(|known| {
            known.generation == own.pin.server().generation()
                && placement.has_template(&flow, own.pin.server().position())
        });
        let theirs = rank(hash, &flow.source, (server.address, server.port));
        if of_own.is_some_and(|own| rank(hash, &flow.source, (own.address, own.port)) < theirs) {
            report.conflicts += 1;
            return;
        }
        changes.removed.push(flow);
    }
    replicas.note(flow, replica);
    changes.added.push((flow, Pin::new(id, PinState::Open, seen as u32)));
}
