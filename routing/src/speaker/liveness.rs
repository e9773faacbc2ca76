//! Which paths BFD is to watch, and what it means when one fails (RFC 5882).
//!
//! A neighbour is watched from 2-Way on: then it hears us, so that a session can come up, and its Hellos would
//! otherwise be the only way to notice its end. An adjacency never waits for its session (RFC 5882 section 4.1): a
//! switch without BFD is a neighbour like any other, watched by its Hellos alone.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Interface, InterfaceId, Machine, Neighbor, NeighborEvent, NeighborState, Output, Protocol};

/// A neighbour whose path BFD is to watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched {
    /// Where it is.
    pub interface: InterfaceId,
    /// Index of the device: one that was made anew under the same name is another one.
    pub device: u32,
    /// Our address: the one that OSPF packets are sent from.
    pub local: IpAddr,
    /// The neighbour's, likewise.
    pub peer: IpAddr,
}

impl<V: Protocol> Machine<V> {
    /// Tells the driver whom to watch, if that changed.
    pub(super) fn tell_watched(&mut self) {
        let of = |(id, interface): (&InterfaceId, &Interface<V>)| watched_on(*id, interface);
        let watched: BTreeSet<_> = self.interfaces.iter().flat_map(of).collect();
        if watched != self.watched {
            self.watched.clone_from(&watched);
            self.outputs.push_back(Output::Watch(watched));
        }
    }

    /// The path to a neighbour failed: nothing can reach it, which is what KillNbr says (RFC 2328 section 10.2).
    pub(super) fn handle_path_down(&mut self, id: InterfaceId, peer: IpAddr) {
        let Some(interface) = self.interfaces.get(&id) else { return };
        // "If a planned restart is about to take place … the session failure SHOULD NOT" end the help (RFC 5882
        // section 4.3.2.2): BFD restarts with the control plane there.
        let restarts = |neighbor: &Neighbor<V>| neighbor.help.is_some();
        let is_it = |neighbor: &Neighbor<V>| neighbor.address.into() == peer && !restarts(neighbor);
        let there = interface.neighbors.iter().filter(|(_, neighbor)| is_it(neighbor));
        for key in there.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.neighbor_event(id, key, NeighborEvent::KillNbr);
        }
    }
}

fn watched_on<V: Protocol>(id: InterfaceId, interface: &Interface<V>) -> Vec<Watched> {
    let Some(local) = interface.address().filter(|_| interface.config.bfd.is_some()) else {
        return Vec::new();
    };
    let known = interface.neighbors.values().filter(|neighbor| neighbor.state >= NeighborState::TwoWay);
    let device = interface.link.index;
    known
        .map(|neighbor| Watched { interface: id, device, local: local.into(), peer: neighbor.address.into() })
        .collect()
}
