//! SipHash-c-d (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012).
//!
//! Makes the secrets of the [slot hash](crate::hash) out of the cluster's key.

/// A 16-byte key, as the two little-endian words the algorithm uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HashKey {
    /// Bytes 0 to 7.
    pub k0: u64,
    /// Bytes 8 to 15.
    pub k1: u64,
}

impl HashKey {
    /// The key made of these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let all = u128::from_le_bytes(bytes);
        Self { k0: all as u64, k1: (all >> 64) as u64 }
    }

    /// The bytes this key was made of.
    pub const fn to_bytes(self) -> [u8; 16] {
        (((self.k1 as u128) << 64) | self.k0 as u128).to_le_bytes()
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    const fn new(key: HashKey) -> Self {
        Self {
            v0: key.k0 ^ 0x736f_6d65_7073_6575,
            v1: key.k1 ^ 0x646f_7261_6e64_6f6d,
            v2: key.k0 ^ 0x6c79_6765_6e65_7261,
            v3: key.k1 ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    fn rounds<const N: usize>(&mut self) {
        for _ in 0..N {
            self.round();
        }
    }

    #[inline(always)]
    fn end<const C: usize, const D: usize>(mut self, last: u64) -> u64 {
        self.block::<C>(last);
        self.v2 ^= 0xff;
        self.rounds::<D>();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }

    #[inline(always)]
    fn block<const C: usize>(&mut self, word: u64) {
        self.v3 ^= word;
        self.rounds::<C>();
        self.v0 ^= word;
    }
}

/// SipHash with `C` compression and `D` finalisation rounds of the `N` bytes of `input`.
///
/// The length is a constant so that in the kernel every loop unrolls and no bound is checked.
#[inline(always)]
pub fn siphash<const C: usize, const D: usize, const N: usize>(key: HashKey, input: [u8; N]) -> u64 {
    let mut pending = 0_u64;
    let mut filled = 0_u32;
    let (blocks, rest) = input.as_chunks::<8>();
    let mut state = State::new(key);
    for block in blocks {
        state.block::<C>(u64::from_le_bytes(*block));
    }
    for byte in rest {
        pending |= u64::from(*byte) << filled;
        filled = filled.wrapping_add(8);
    }
    state.end::<C, D>(pending | ((N as u64) << 56))
}

/// SipHash-1-3, which Rust's own hash tables rest on.
#[inline(always)]
pub fn siphash13<const N: usize>(key: HashKey, input: [u8; N]) -> u64 {
    siphash::<1, 3, N>(key, input)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::hash::Hasher as _;
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn counting<const N: usize>() -> [u8; N] {
        core::array::from_fn(|index| index as u8)
    }

    /// The vectors of the authors' reference implementation (`vectors_sip64`) for inputs 00, 00 01, ….
    #[test]
    fn siphash_2_4_matches_published_vectors() {
        let key = HashKey::from_bytes(KEY);
        assert_eq!(siphash::<2, 4, 0>(key, counting()), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash::<2, 4, 1>(key, counting()), 0x74f8_39c5_93dc_67fd);
        assert_eq!(siphash::<2, 4, 2>(key, counting()), 0x0d6c_8009_d9a9_4f5a);
        assert_eq!(siphash::<2, 4, 8>(key, counting()), 0x93f5_f579_9a93_2462);
        // Appendix A of the paper.
        assert_eq!(siphash::<2, 4, 15>(key, counting()), 0xa129_ca61_49be_45e5);
    }

    fn standard<const N: usize>(input: [u8; N]) -> u64 {
        // The standard library's hasher is SipHash-1-3 under a zero key.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&input);
        hasher.finish()
    }

    proptest! {
        #[test]
        fn siphash_1_3_equals_the_standard_library(a: [u8; 4], b: [u8; 6], c: [u8; 16], d: [u8; 18]) {
            let zero = HashKey::default();
            prop_assert_eq!(siphash13(zero, a), standard(a));
            prop_assert_eq!(siphash13(zero, b), standard(b));
            prop_assert_eq!(siphash13(zero, c), standard(c));
            prop_assert_eq!(siphash13(zero, d), standard(d));
        }

        #[test]
        fn key_bytes_round_trip(bytes: [u8; 16]) {
            prop_assert_eq!(HashKey::from_bytes(bytes).to_bytes(), bytes);
        }
    }
}
