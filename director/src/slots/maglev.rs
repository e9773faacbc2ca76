//! Maglev seeding (Eisenbud et al., NSDI 2016, section 3.4), with weights and exact shares.
//!
//! Each server has a permutation of the slots from two hashes of its identity, and the servers take turns
//! claiming the next free slot of theirs. A server takes its turn in proportion to its weight and stops at
//! its share, so that the counts are the weighted ideal, rounded by the largest remainder.

use director_proto::tables::{NO_REAL, TableReal};
use sha2::{Digest as _, Sha256};

use super::identity;

/// Deals all `size` slots to the servers of positive weight.
pub(super) fn seed(reals: &[TableReal], size: usize) -> Vec<u16> {
    let mut slots = vec![NO_REAL; size];
    let mut claimants: Vec<Claimant> = (0u16..)
        .zip(reals)
        .filter(|(_, real)| real.share() > 0)
        .map(|(position, real)| Claimant::new(position, real, size))
        .collect();
    // Turns go by identity, not by position: the seed depends on the set of servers alone.
    claimants.sort_by_key(|claimant| claimant.identity);
    share(&mut claimants, size);
    let heaviest = claimants.iter().map(|claimant| claimant.weight).max().unwrap_or(0);
    let mut free = if claimants.is_empty() { 0 } else { size };
    while free > 0 {
        for claimant in &mut claimants {
            claimant.credit += claimant.weight;
            if claimant.credit < heaviest || claimant.share == 0 {
                continue;
            }
            claimant.credit -= heaviest;
            claimant.share -= 1;
            free -= 1;
            let slot = claimant.next_free(&slots);
            slots[slot] = claimant.position;
        }
    }
    slots
}

struct Claimant {
    position: u16,
    identity: [u8; 18],
    weight: u64,
    /// Slots still to claim.
    share: u64,
    credit: u64,
    at: usize,
    skip: usize,
}

impl Claimant {
    fn new(position: u16, real: &TableReal, size: usize) -> Self {
        let identity = identity(real);
        let hash = Sha256::digest(identity);
        let word = |at: usize| {
            u64::from_be_bytes(hash[at..at + 8].try_into().expect("invariant: a digest has 32 bytes"))
        };
        Self {
            position,
            identity,
            weight: real.share().into(),
            share: 0,
            credit: 0,
            at: (word(0) % size as u64) as usize,
            skip: (word(8) % (size as u64 - 1)) as usize + 1,
        }
    }

    /// The next slot of this server's permutation that nobody holds; there is one, since shares add up.
    fn next_free(&mut self, slots: &[u16]) -> usize {
        loop {
            let slot = self.at;
            self.at = (self.at + self.skip) % slots.len();
            if slots[slot] == NO_REAL {
                return slot;
            }
        }
    }
}

/// Splits the slots by weight: the whole part for each, what is left by largest remainder, then identity.
fn share(claimants: &mut [Claimant], size: usize) {
    let total: u128 = claimants.iter().map(|claimant| u128::from(claimant.weight)).sum();
    let mut left = size as u128;
    let mut remainders = Vec::with_capacity(claimants.len());
    for (index, claimant) in claimants.iter_mut().enumerate() {
        let ideal = u128::from(claimant.weight) * size as u128;
        claimant.share = u64::try_from(ideal / total).expect("invariant: a share is at most all slots");
        left -= ideal / total;
        remainders.push((std::cmp::Reverse(ideal % total), index));
    }
    remainders.sort_unstable();
    for (_, index) in remainders.into_iter().take(usize::try_from(left).unwrap_or(0)) {
        claimants[index].share += 1;
    }
}
