//! The slots of one table, shared between versions of a set: with thousands of services a change touches few, and
//! neither copying nor hashing the others again shall hold anybody up.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};

use super::Digest;

/// One entry per slot: position of its real server, or [`NO_REAL`](super::NO_REAL).
///
/// Reads as a slice. A clone shares the memory until one of the two is written to; so does the digest, which is
/// computed once.
#[derive(Clone)]
pub struct Slots(Arc<Shared>);

struct Shared {
    positions: Vec<u16>,
    digest: OnceLock<Digest>,
}

impl Clone for Shared {
    /// A copy to be changed: it has no digest yet.
    fn clone(&self) -> Self {
        Self { positions: self.positions.clone(), digest: OnceLock::new() }
    }
}

impl Slots {
    /// SHA-256 over the positions, 2 bytes each, little endian.
    pub fn digest(&self) -> Digest {
        *self.0.digest.get_or_init(|| {
            let mut hash = Sha256::new();
            for chunk in self.0.positions.chunks(4096) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|slot| slot.to_le_bytes()).collect();
                hash.update(&bytes);
            }
            Digest(hash.finalize().into())
        })
    }
}

impl From<Vec<u16>> for Slots {
    fn from(positions: Vec<u16>) -> Self {
        Self(Arc::new(Shared { positions, digest: OnceLock::new() }))
    }
}

impl FromIterator<u16> for Slots {
    fn from_iter<I: IntoIterator<Item = u16>>(positions: I) -> Self {
        Vec::from_iter(positions).into()
    }
}

impl Deref for Slots {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &self.0.positions
    }
}

impl DerefMut for Slots {
    /// Copies what is shared: take the slice once, not for each slot.
    fn deref_mut(&mut self) -> &mut [u16] {
        let shared = Arc::make_mut(&mut self.0);
        shared.digest = OnceLock::new();
        &mut shared.positions
    }
}

impl<'a> IntoIterator for &'a Slots {
    type Item = &'a u16;
    type IntoIter = std::slice::Iter<'a, u16>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Slots {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.positions == other.0.positions
    }
}

impl Eq for Slots {}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots ({})", self.len(), self.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_copy_has_a_digest_of_its_own_and_the_original_keeps_its() {
        let original = Slots::from(vec![1, 2, 3]);
        let before = original.digest();
        let mut copy = original.clone();
        assert_eq!(copy.digest(), before);
        copy[1] = 7;
        assert_ne!(copy.digest(), before);
        assert_ne!(copy, original);
        copy[1] = 2;
        assert_eq!((copy.digest(), &copy), (before, &original));
        assert_eq!(original.digest(), before);
    }
}
