//! A reminder for a neighbour that may have calculated its routes too early.
//!
//! A link that fails and comes back within the neighbour's MinLSInterval (5 s, RFC 2328 appendix B) leaves the
//! neighbour's Router-LSA as it was: what it wants to say in the end is what it said in the beginning. BIRD (seen with
//! 2.0.12) forgets with the link at which place of its Router-LSA it stands, finds the place again only when the LSA may
//! be made anew, and then, as nothing in it has changed, does not calculate. Until anything else changes in the area it
//! has no next hop over the link, though the adjacency is full and all LSAs are right.
//!
//! So where a neighbour's Router-LSA named us before the adjacency was full, and is still the same when the neighbour
//! could have replaced it, our own Router-LSA is sent with its links in the reverse order. The order means nothing
//! (section 12.4.1), but contents that differ make every router calculate (section 13.2).

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Event, InterfaceId, InterfaceState, Machine, Protocol, Scope, Time};
use crate::packet::wire::{LsaHeader, LsaKey, Version};

/// After this time a neighbour has replaced its Router-LSA, if it means to: MinLSInterval, a second in which BIRD
/// notices that it is over, and one for the way.
const REPLACED: Duration = Duration::from_secs(7);

/// What a neighbour said of itself while the adjacency was forming.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct Said<V: Version> {
    /// The sequence numbers of its own LSAs as it described them; of Router-LSAs that name us from the moment on that the
    /// adjacency is full.
    #[serde(with = "crate::serial::pairs")]
    lsas: BTreeMap<LsaKey<V>, i32>,
    /// When they should have been replaced.
    due: Option<Time>,
}

impl<V: Version> Default for Said<V> {
    fn default() -> Self {
        Self { lsas: BTreeMap::new(), due: None }
    }
}

impl<V: Version> Said<V> {
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// The neighbour describes an LSA of its own.
    pub(super) fn note(&mut self, header: &LsaHeader<V>) {
        self.lsas.insert(header.key, header.sequence);
    }
}

impl<V: Protocol> Machine<V> {
    /// The adjacency has become full.
    pub(super) fn note_said(&mut self, id: InterfaceId, key: Ipv4Addr) {
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let Said { lsas, .. } = std::mem::take(&mut neighbor.said);
        let Some(interface) = self.interfaces.get(&id) else { return };
        if interface.state != InterfaceState::PointToPoint || self.is_resuming() {
            return; // neighbours that help a restart know us, and mean what they say
        }
        let area = interface.config.area;
        let stays = |(key, sequence): &(LsaKey<V>, i32)| self.still_names_us(area, key, *sequence);
        let lsas: BTreeMap<_, _> = lsas.into_iter().filter(stays).collect();
        let due = (!lsas.is_empty()).then_some(self.now + REPLACED);
        if let Some(neighbor) = self.neighbor_mut(id, key) {
            neighbor.said = Said { lsas, due };
        }
    }

    /// The time is over: says our part anew to a neighbour that has not said its own.
    pub(super) fn remind(&mut self, id: InterfaceId, key: Ipv4Addr) {
        let Some(area) = self.interfaces.get(&id).map(|interface| interface.config.area) else { return };
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let (router, said) = (neighbor.router, std::mem::take(&mut neighbor.said));
        if said.lsas.iter().any(|(key, sequence)| self.still_names_us(area, key, *sequence)) {
            self.originator.turn();
            let interface = self.interface_name(id);
            self.event(Event::Reminded { interface, router });
        }
    }

    fn still_names_us(&self, area: Ipv4Addr, key: &LsaKey<V>, sequence: i32) -> bool {
        let held = self.database(Scope::Area(area)).and_then(|database| database.get(key));
        held.is_some_and(|entry| {
            entry.lsa.header.sequence == sequence && V::is_linked(&entry.lsa, self.config.router_id)
        })
    }
}
