//! The `ch` scheduler: a ring of virtual nodes from the crate `consistent_hash`, expanded to slots.
//!
//! The crate hashes through `std::hash::Hash`; what it is fed here are explicit bytes, so that the result
//! does not depend on the machine. The ring is used to fill tables only: it allocates per look-up.

use std::hash::{Hash, Hasher};

use consistent_hash::{DefaultHash, Node, StaticHashRing};
use director_proto::tables::{NO_REAL, TableReal};

use super::identity;

/// Virtual nodes of a server with the unit weight (see [`unit`]).
const VIRTUAL_NODES: u64 = 400;

/// Deals all `size` slots to the servers of positive weight, each to the next virtual node on the ring.
pub(super) fn seed(reals: &[TableReal], size: usize) -> Vec<u16> {
    let unit = unit(reals);
    let nodes: Vec<_> = (0u16..)
        .zip(reals)
        .filter(|(_, real)| real.share() > 0)
        .map(|(position, real)| {
            let quantity = (VIRTUAL_NODES * u64::from(real.share()) / unit).max(1);
            Node::new(Key::<18>(identity(real)))
                .value(position)
                .quantity(usize::try_from(quantity).expect("invariant: at most 800 virtual nodes"))
        })
        .collect();
    if nodes.is_empty() {
        return vec![NO_REAL; size];
    }
    let ring = StaticHashRing::new(DefaultHash, nodes.into_iter());
    (0..size as u32)
        .map(|slot| ring.calc_candidates(&Key(slot.to_be_bytes())).next().map_or(NO_REAL, |node| node.value))
        .collect()
}

/// The weight that has [`VIRTUAL_NODES`]: the largest power of two not above the heaviest server's, so
/// that a change of one weight seldom changes the others' virtual nodes, and their number stays bounded.
fn unit(reals: &[TableReal]) -> u64 {
    let heaviest = reals.iter().map(|real| real.share()).max().unwrap_or(0).max(1);
    1 << (31 - heaviest.leading_zeros())
}

/// A ring key that feeds its bytes to the hasher, and nothing else.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<const N: usize>([u8; N]);

impl<const N: usize> Hash for Key<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}
