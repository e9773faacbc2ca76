//! The slot hash: which slot a flow has, in few steps and by a secret.
//!
//! A sum of products, of each 32-bit word of the source with a secret 64-bit coefficient (multilinear hashing: Lemire
//! and Kaser, "Strongly universal string hashing is fast", 2014), and then keyed multiplications between shifts,
//! which spread what the sum has in its low bits over all of them. Two sources, whoever chose them, have the same
//! sum by chance alone, with a probability of at most 2^-33 over the secrets: so nobody who does not know the cluster's
//! secret can make sources that share a slot, nor pick the real server of one. The second step is no line any more:
//! from what servers a client is seen to reach the coefficients do not follow by linear algebra.
//!
//! SipHash, of which this took the place, promises more (its outputs tell nothing of others) and takes about eight
//! times as many instructions in BPF, which has no rotation; it makes the secrets out of the cluster's key.

use crate::siphash::{HashKey, siphash};
use crate::tables::{Address, HashInput, Plain};

/// The secrets of the slot hash, as a packet uses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowHash {
    /// What every sum begins with.
    begin: u64,
    /// Coefficients of the source address's words, IPv4 in its mapped form.
    words: [u64; 4],
    /// Coefficient of the source port.
    port: u64,
    /// Odd: multiplication by it loses nothing.
    spread: u64,
}

const _: () = assert!(size_of::<FlowHash>() == 56);
// SAFETY: `repr(C)` of seven u64.
unsafe impl Plain for FlowHash {}

impl FlowHash {
    /// The secrets that follow from a key: SipHash-2-4 of their numbers.
    pub fn new(key: HashKey) -> Self {
        let secret = |number: u8| siphash::<2, 4, 1>(key, [number]);
        Self {
            begin: secret(0),
            words: [secret(1), secret(2), secret(3), secret(4)],
            port: secret(5),
            spread: secret(6) | 1,
        }
    }

    /// The hash of a source address and, where the service says so, a source port in host order. Its upper half picks
    /// the [slot](crate::slot::slot_of).
    #[inline(always)]
    pub fn of(&self, source: Address, port: u16, input: HashInput) -> u64 {
        let ([a, b, c, d], [w, x, y, z]) = (source.words().map(|word| u64::from(word.to_le())), self.words);
        let port = match input {
            HashInput::Source => 0,
            HashInput::SourcePort => u64::from(port),
        };
        let sum = self
            .begin
            .wrapping_add(a.wrapping_mul(w))
            .wrapping_add(b.wrapping_mul(x))
            .wrapping_add(c.wrapping_mul(y))
            .wrapping_add(d.wrapping_mul(z))
            .wrapping_add(port.wrapping_mul(self.port));
        let once = (sum ^ (sum >> 32)).wrapping_mul(self.spread);
        let twice = (once ^ (once >> 29)).wrapping_mul(self.spread);
        twice ^ (twice >> 32)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::slot::{SLOTS, SMALL_SLOTS, slot_of};

    fn key(number: u64) -> FlowHash {
        FlowHash::new(HashKey { k0: number, k1: 0 })
    }

    /// The encoding is what a cluster's directors agree on: it never changes.
    #[test]
    fn the_hash_is_what_it_always_was() {
        let hash = FlowHash::new(HashKey::from_bytes(*b"sixteen byte key"));
        let (v4, v6) = (Address::from_ipv4([192, 0, 2, 7]), Address(*b"an IPv6 address."));
        let all = [HashInput::Source, HashInput::SourcePort]
            .map(|input| (hash.of(v4, 0x1234, input), hash.of(v6, 0x1234, input)));
        assert_eq!(
            all,
            [
                (49_568_579_226_292_489, 8_607_955_593_960_900_242),
                (5_537_209_357_126_356_354, 7_761_227_025_768_986_485)
            ]
        );
    }

    /// Sources as networks have them: consecutive, by subnets, by hosts of equal number, with one bit set; and ports.
    fn sources() -> Vec<(&'static str, Vec<(Address, u16)>)> {
        let v4 = |number: u32| (Address::from_ipv4(number.to_be_bytes()), 0);
        let v6 = |subnet: u32, host: u64| {
            let mut bytes = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes[4..8].copy_from_slice(&subnet.to_be_bytes());
            bytes[8..].copy_from_slice(&host.to_be_bytes());
            (Address(bytes), 0)
        };
        let many = 0..200_000_u32;
        std::vec![
            ("consecutive", many.clone().map(|n| v4(0x0a00_0000 + n)).collect()),
            ("every 256th", many.clone().map(|n| v4(n << 8 | 1)).collect()),
            ("every 4096th", many.clone().map(|n| v4(n.rotate_left(12))).collect()),
            ("ports of one client", (1024..=65_535).map(|n| (v4(7).0, n)).collect()),
            ("consecutive, IPv6", many.clone().map(|n| v6(0, u64::from(n))).collect()),
            ("subnets, IPv6", many.clone().map(|n| v6(n, 1)).collect()),
            ("EUI-64, IPv6", many.map(|n| v6(0, 0x0200_00ff_fe00_0000 | u64::from(n))).collect()),
            ("vendors, IPv6", (0..100_000).map(|n| v6(0, 0x0200_00ff_fe00_0000 | n << 40)).collect()),
        ]
    }

    #[test]
    fn structured_sources_fill_slots_evenly() {
        for number in 0..20 {
            let hash = key(number);
            for (name, sources) in sources() {
                for slots in [251_u32, SMALL_SLOTS as u32] {
                    let mut count = std::vec![0_u32; slots as usize];
                    for (source, port) in &sources {
                        count[slot_of(hash.of(*source, *port, HashInput::SourcePort), slots) as usize] += 1;
                    }
                    let mean = sources.len() as f64 / f64::from(slots);
                    let chi: f64 = count.iter().map(|n| (f64::from(*n) - mean).powi(2) / mean).sum();
                    // Chi squared has the mean `slots - 1` and twice that as variance: eight deviations.
                    let bound = f64::from(slots) + 8.0 * (2.0 * f64::from(slots)).sqrt();
                    assert!(chi < bound, "{name}, key {number}, {slots} slots: {chi} of {bound}");
                }
            }
        }
    }

    /// Half of the bits change with each bit of a source, over many keys: what a hash by luck of one would not do.
    #[test]
    fn every_bit_of_a_source_counts() {
        let pairs = 400;
        for bit in 0..128 {
            let mut changed = 0;
            for number in 0..pairs {
                let hash = key(number);
                let mut bytes =
                    u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834).to_be_bytes();
                let before = hash.of(Address(bytes), 0, HashInput::Source);
                bytes[bit / 8] ^= 1 << (bit % 8);
                let after = hash.of(Address(bytes), 0, HashInput::Source);
                changed += ((before ^ after) >> 32).count_ones();
            }
            let share = f64::from(changed) / (pairs as f64 * 32.0);
            assert!((0.44..0.56).contains(&share), "bit {bit}: {share}");
        }
    }

    #[test]
    fn sources_chosen_without_the_key_share_slots_by_chance_alone() {
        // Pairs that a product by an odd number, or a sum of two of them, would not tell apart.
        let top = |a: u8, b: u8| {
            let mut bytes = [0; 16];
            (bytes[a as usize], bytes[b as usize]) = (0x80, 0x80);
            bytes
        };
        for other in [top(0, 4), top(3, 7), top(3, 11), top(7, 15), top(12, 15)] {
            let same = (0..20_000).filter(|number| {
                let hash = key(*number);
                let slot = |address| slot_of(hash.of(Address(address), 0, HashInput::Source), SLOTS as u32);
                slot([0; 16]) == slot(other)
            });
            // 20,000 keys and 65,537 slots: a third of one is expected.
            assert!(same.count() <= 4, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn source_hash_ignores_the_port(source: [u8; 16], a: u16, b: u16, key: [u8; 16]) {
            let (hash, source) = (FlowHash::new(HashKey::from_bytes(key)), Address(source));
            prop_assert_eq!(hash.of(source, a, HashInput::Source), hash.of(source, b, HashInput::Source));
        }
    }
}
