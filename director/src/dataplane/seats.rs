//! Who sits where: the positions of a service's real servers in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use director_common::Slot;

use super::plan::{Placement, Server};
use super::spec::{Datagrams, Protocol, RealSpec, ServiceSpec};

/// The positions that a specification leads to.
#[derive(Debug)]
pub(super) struct Seating {
    /// Everybody who has a position.
    pub(super) servers: BTreeMap<u16, Server>,
    /// Positions of those who have just got one.
    pub(super) new: BTreeSet<u16>,
    /// Positions of those who have lost theirs.
    pub(super) gone: BTreeSet<u16>,
    /// The owner of each slot: a position, or [`Slot::NO_POSITION`].
    pub(super) owners: Vec<u16>,
}

impl Seating {
    /// Servers that are known keep their positions. One that is no longer in the specification does too, as long as
    /// connections may be pinned to it; one that does not serve loses its own at once. Who comes gets the lowest
    /// position that no server has and no slot in force names. `generation` is the last one given.
    pub(super) fn new(old: Option<&Placement>, service: &ServiceSpec<'_>, generation: &mut u32) -> Self {
        let mut places: BTreeMap<_, u16> = BTreeMap::new();
        let (mut servers, mut gone, mut taken) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        if let Some(old) = old {
            taken = old.slots.named();
            taken.extend(old.servers.keys());
            let forgets = service.datagrams == Datagrams::OnePacket && !service.has(Protocol::Tcp);
            for (position, server) in &old.servers {
                let place = (server.address, server.port);
                let real = service.reals.iter().find(|real| (real.address, real.port) == place);
                if real.map_or(forgets, |real| !real.alive) {
                    gone.insert(*position);
                    continue;
                }
                places.insert(place, *position);
                servers.insert(*position, Server { is_leaving: real.is_none(), ..*server });
            }
        }
        let mut free = (0..).filter(|position| !taken.contains(position));
        let mut new = BTreeSet::new();
        let mut positions = Vec::new();
        for real in &service.reals {
            if !real.alive {
                positions.push(Slot::NO_POSITION);
                continue;
            }
            let position = *places.entry((real.address, real.port)).or_insert_with(|| {
                let position = free.next().unwrap_or(Slot::NO_POSITION);
                // 4 billion servers later a pin as old as the first would have to be alive.
                *generation = generation.checked_add(1).unwrap_or(1);
                let (address, port, generation) = (real.address, real.port, *generation);
                servers.insert(position, Server { address, port, generation, is_leaving: false });
                new.insert(position);
                position
            });
            positions.push(position);
        }
        // Another director has connections of theirs; one that the specification calls dead has none.
        for place in old.iter().flat_map(|old| &old.guests) {
            let known = service.reals.iter().any(|real| (real.address, real.port) == *place);
            if known || places.contains_key(place) {
                continue;
            }
            let position = free.next().unwrap_or(Slot::NO_POSITION);
            *generation = generation.checked_add(1).unwrap_or(1);
            let (address, port) = *place;
            servers.insert(position, Server { address, port, generation: *generation, is_leaving: true });
            places.insert(*place, position);
            new.insert(position);
        }
        let owner = |slot: &u16| positions.get(usize::from(*slot)).copied().unwrap_or(Slot::NO_POSITION);
        let owners = service.slots.iter().map(owner).collect();
        Self { servers, new, gone, owners }
    }

    /// Positions of servers that get no new connections of clients that they had: those that have left, and where the
    /// service says so those of weight 0.
    pub(super) fn barred(&self, service: &ServiceSpec<'_>) -> BTreeSet<u16> {
        let persistence = service.tracking.and_then(|tracking| tracking.persistence);
        let expires = persistence.is_some_and(|persistence| persistence.expire_quiescent);
        let is_barred = |server: &Server| {
            let of_server = |real: &&RealSpec| (real.address, real.port) == (server.address, server.port);
            let real = service.reals.iter().find(of_server);
            real.is_none_or(|real| real.is_left || expires && real.weight == 0)
        };
        self.servers.iter().filter(|(_, server)| is_barred(server)).map(|(position, _)| *position).collect()
    }

    /// Entries that a block must have for it.
    pub(super) fn size(&self) -> usize {
        self.servers.keys().last().map_or(0, |last| usize::from(*last) + 1)
    }

    /// The server at this position, if there was one, has nothing any more that could be kept.
    pub(super) fn is_gone(&self, position: u16) -> bool {
        !self.servers.contains_key(&position)
    }
}
