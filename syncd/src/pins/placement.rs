//! Who holds a copy of which connection: two pure functions, [`Placement::filter`] and [`Placement::replicas`].
//!
//! Up to [`MESH`] directors, everybody holds everything. Beyond, a connection that only its table entry knows has
//! [`HOMES`] homes on a ring of the directors; whoever meets it elsewhere would have to ask a home, which nobody does
//! yet. Therefore pins, which are few, go to everybody up to [`PIN_MESH`] directors: a director without the pin sends
//! the connection to the wrong real server.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use consistent_hash::{DefaultHash, Node, StaticHashRing};
use director_common::siphash::{HashKey, siphash13};
use director_common::tables::FlowKey;

/// Most directors of which each holds every connection.
pub const MESH: usize = 8;

/// Most directors of which each holds every pin.
pub const PIN_MESH: usize = 32;

/// Directors that hold a connection where not all do.
pub const HOMES: usize = 2;

/// Virtual nodes of a director on the ring: its share of connections is within a fifth of even.
const VIRTUAL_NODES: usize = 400;

/// Pieces that connections are homed by. The ring allocates for each look-up, so it is asked once for each piece.
const PIECES: usize = 4_096;

/// Why a director remembers a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It does not: the tables say where the connection is.
    Derivable,
    /// It is at another real server than its slot says, or may be soon.
    Pin,
    /// Its service chooses a real server for each connection, so that nothing else says where it is.
    Tracked,
}

/// Who holds a copy of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// Nobody needs one.
    None,
    /// Every director.
    All,
    /// These; both are one where there is no other.
    Homes([Ipv4Addr; HOMES]),
}

impl Replicas {
    /// Whether this director is among them.
    pub fn has(&self, director: Ipv4Addr) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Homes(homes) => homes.contains(&director),
        }
    }
}

/// The directors that share connections. Equal members and keys give equal answers on every director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    members: BTreeSet<Ipv4Addr>,
    key: HashKey,
    /// Homes of each piece; empty where nobody needs them.
    homes: Vec<[Ipv4Addr; HOMES]>,
}

impl Placement {
    /// The placement among `members`, this director included; `key` is the cluster's secret, so that nobody outside
    /// can choose whom its connections burden.
    pub fn new(members: BTreeSet<Ipv4Addr>, key: [u8; 16]) -> Self {
        let homes = if members.len() > MESH { homes(&members) } else { Vec::new() };
        Self { members, key: HashKey::from_bytes(key), homes }
    }

    /// The members.
    pub fn members(&self) -> &BTreeSet<Ipv4Addr> {
        &self.members
    }

    /// Whether anybody else has to know a connection of this class.
    pub fn filter(&self, class: Class) -> bool {
        class != Class::Derivable && self.members.len() > 1
    }

    /// Who holds a copy of a connection of this class.
    pub fn replicas(&self, class: Class, flow: &FlowKey) -> Replicas {
        let mesh = match class {
            Class::Derivable => return Replicas::None,
            Class::Pin => PIN_MESH,
            Class::Tracked => MESH,
        };
        if self.members.len() <= mesh {
            return Replicas::All;
        }
        let piece = self.piece(flow);
        self.homes.get(piece).map_or(Replicas::All, |homes| Replicas::Homes(*homes))
    }

    fn piece(&self, flow: &FlowKey) -> usize {
        let mut bytes = [0; 37];
        bytes[..16].copy_from_slice(&flow.source.0);
        bytes[16..32].copy_from_slice(&flow.destination.0);
        bytes[32..34].copy_from_slice(&flow.source_port.to_be_bytes());
        bytes[34..36].copy_from_slice(&flow.destination_port.to_be_bytes());
        bytes[36] = flow.protocol;
        (siphash13(self.key, bytes) >> 52) as usize % PIECES
    }
}

fn homes(members: &BTreeSet<Ipv4Addr>) -> Vec<[Ipv4Addr; HOMES]> {
    let nodes: Vec<_> = members
        .iter()
        .map(|member| Node::new(Key(member.octets())).value(*member).quantity(VIRTUAL_NODES))
        .collect();
    let ring = StaticHashRing::new(DefaultHash, nodes.into_iter());
    (0..PIECES as u32)
        .map(|piece| {
            let mut candidates = ring.calc_candidates(&Key(piece.to_be_bytes())).map(|node| node.value);
            let first = candidates.next().unwrap_or(Ipv4Addr::UNSPECIFIED);
            [first, candidates.next().unwrap_or(first)]
        })
        .collect()
}

/// A ring key that feeds its bytes to the hasher and nothing else: equal on every machine.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key([u8; 4]);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use director_common::tables::Address;

    use super::*;

    fn placement(count: u8) -> Placement {
        Placement::new((1..=count).map(|last| Ipv4Addr::new(10, 255, 0, last)).collect(), [7; 16])
    }

    fn flows() -> impl Iterator<Item = FlowKey> {
        (0..20_000_u32).map(|client| FlowKey {
            source: Address::from_ipv4(client.to_be_bytes()),
            source_port: 1_000,
            destination_port: 80,
            protocol: 6,
            ..FlowKey::default()
        })
    }

    #[test]
    fn a_mesh_holds_everything_everywhere_and_what_follows_from_tables_nowhere() {
        let flow = flows().next().expect("one");
        for (count, class, expected) in [
            (8, Class::Tracked, Replicas::All),
            (32, Class::Pin, Replicas::All),
            (8, Class::Derivable, Replicas::None),
            (256, Class::Derivable, Replicas::None),
        ] {
            let placement = placement(count.min(255) as u8);
            assert_eq!(placement.replicas(class, &flow), expected, "{count} {class:?}");
            assert_eq!(placement.filter(class), class != Class::Derivable);
        }
        assert!(!placement(1).filter(Class::Pin), "nobody else is there");
    }

    #[test]
    fn beyond_a_mesh_every_connection_has_two_homes_and_every_director_its_share() {
        for (count, class) in [(9, Class::Tracked), (33, Class::Pin), (200, Class::Pin)] {
            let placement = placement(count);
            let mut held: BTreeMap<Ipv4Addr, u32> = BTreeMap::new();
            for flow in flows() {
                let Replicas::Homes([one, two]) = placement.replicas(class, &flow) else {
                    panic!("no homes")
                };
                assert_ne!(one, two);
                *held.entry(one).or_default() += 1;
                *held.entry(two).or_default() += 1;
            }
            let ideal = 40_000.0 / f64::from(count);
            let most = held.values().max().copied().unwrap_or(0);
            assert_eq!(held.len(), usize::from(count));
            assert!(f64::from(most) < ideal * 1.7, "{count}: {most} of {ideal}");
        }
    }

    #[test]
    fn the_loss_of_a_director_moves_only_what_it_held() {
        let before = placement(40);
        let mut members = before.members().clone();
        let lost = Ipv4Addr::new(10, 255, 0, 17);
        members.remove(&lost);
        let after = Placement::new(members, [7; 16]);
        for flow in flows() {
            let (old, new) = (before.replicas(Class::Pin, &flow), after.replicas(Class::Pin, &flow));
            assert!(old == new || old.has(lost), "{old:?} became {new:?}");
        }
    }
}
