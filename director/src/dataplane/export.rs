//! This director's own pins, for the others: a walk through the map, again and again.

use std::collections::HashMap;
use std::sync::Arc;

use director_common::packet::PROTOCOL_TCP;
use director_common::tables::{Config, LeaseRecord};
use director_proto::pins::Server;
use syncd::pins::LocalPin;

use super::Dataplane;
use super::connections::{Cursor, Entry, STEP};
use super::error::ReadError;
use super::leases::back_of;
use super::plan::Server as Known;
use super::views;

/// Where the walk is.
#[derive(Debug, Default)]
pub(super) struct Export {
    cursor: Cursor,
    /// Pins met in this walk.
    met: usize,
    /// Walks one after the other that have met nothing.
    empty: u8,
    /// The servers of pins by generation, so that all pins of one share it.
    servers: HashMap<u32, Arc<Server>>,
}

impl Export {
    /// A server of a service, which all its pins share.
    pub(super) fn server(&mut self, service: &str, known: &Known) -> Arc<Server> {
        let server = self.servers.entry(known.generation).or_insert_with(|| {
            Arc::new(Server { service: service.to_owned(), address: known.address, port: known.port })
        });
        Arc::clone(server)
    }

    /// Somebody waits until all has been met.
    pub(super) fn demand(&mut self) {
        self.empty = 0;
    }
}

/// Empty walks after which there is nothing more to tell: a pin is over when two have not met it.
const ENOUGH: u8 = 2;

impl Dataplane {
    /// Whether there may be pins to tell the others of.
    pub fn may_have_pins(&self) -> bool {
        self.export.empty < ENOUGH
            || self.plan.services.values().any(|service| service.slots.is_open() || service.is_tracked())
    }

    /// Goes on with the walk for about `budget` pins at second `now`, and appends those that are alive to `pins`; of
    /// replicas only those that packets have come for here, and of those whose owner is gone only if `orphans` are
    /// asked for. True if the walk has come to its end: the next
    /// call begins another.
    ///
    /// # Errors
    /// [`ReadError`] if the kernel refuses.
    pub fn walk_pins(
        &mut self,
        now: u32,
        budget: usize,
        orphans: bool,
        pins: &mut Vec<LocalPin>,
    ) -> Result<bool, ReadError> {
        let (owners, config) = (self.owners(), self.maps.config()?);
        let (mut seen, mut found) = (0, Vec::new());
        while seen < budget {
            self.export.cursor = self.maps.pins.read(self.export.cursor, &mut found);
            seen += found.len() + STEP as usize / 8;
            for entry in found.drain(..) {
                if !self.replicas.tells(&entry, orphans) {
                    continue;
                }
                let Some((name, position)) = owners.get(&entry.pin.server().generation()) else { continue };
                pins.extend(self.local(&config, (name, *position), entry, now));
            }
            if self.export.cursor == Cursor::End {
                let is_empty = self.export.met + pins.len() == 0;
                self.export.empty = if is_empty { self.export.empty.saturating_add(1) } else { 0 };
                (self.export.cursor, self.export.met) = (Cursor::Start, 0);
                if is_empty {
                    self.export.servers.clear();
                }
                return Ok(true);
            }
        }
        self.export.met += pins.len();
        Ok(false)
    }

    fn local(
        &mut self,
        config: &Config,
        (name, position): (&str, u16),
        entry: Entry,
        now: u32,
    ) -> Option<LocalPin> {
        if entry.flow.is_template() {
            return self.local_template(name, position, entry, now);
        }
        let Entry { flow, pin, lease, .. } = entry;
        let placement = self.plan.services.get(name)?;
        // One from before its service had full NAT ends with its next packet.
        let local = placement.is_full_nat.then(|| self.numbering.end(lease));
        if local == Some(None) {
            return None;
        }
        let tcp = flow.protocol == PROTOCOL_TCP;
        let age = u64::from(now).saturating_sub(pin.seen);
        let life = placement.timeouts.of_pin(pin.state(), tcp);
        let until = self.replicas.until(&flow).unwrap_or(0);
        let remaining =
            life.saturating_sub(u32::try_from(age).unwrap_or(u32::MAX)).max(until.saturating_sub(now));
        if remaining == 0 {
            return None;
        }
        let known = placement.servers.get(&position)?;
        let (server, local) = (self.export.server(name, known), local.flatten());
        let age = local.map_or(0, |local| {
            let owner = LeaseRecord::from(config.pins.of(&flow));
            let found = self.maps.leases.find(&config.pins.of(&back_of(known, &flow, local)));
            let taken = found.filter(|(_, holder)| *holder == owner).map(|(held, _)| held.seen as u32);
            // One that is not there any more is nobody's, and goes before every other.
            taken.map_or(u32::MAX, |taken| views::age(now, taken))
        });
        Some(LocalPin { flow, server, state: pin.state(), remaining, local, age })
    }
}
