//! Slots: how a hash picks one, and what is packed into it.

use crate::hash::FlowHash;
use crate::tables::{Address, HashInput};

mod rules;

pub use rules::Changed;

/// Slots of a service's table unless it asks for [`SMALL_SLOTS`]: a prime, well above 100 times the real servers a
/// service usually has.
pub const SLOTS: usize = 65_537;

/// Slots of a small table, for services of few real servers of which there are thousands: the prime that IPVS's
/// `mh` has by default, a sixteenth of the memory.
pub const SMALL_SLOTS: usize = 4_093;

/// Highest position of a real server within its service; [`Slot::NO_POSITION`] is one above.
pub const MAX_POSITION: u16 = Slot::NO_POSITION - 1;

/// What a slot's owner is up to (see the design's slot states).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// The current server takes every packet; nothing is tracked.
    Settled = 0,
    /// Of what has no pin, new connections go to the current server, others to the previous one; both get a pin.
    Moving = 1,
    /// The current server takes what has no pin.
    Pinned = 2,
}

/// One slot: 2 bits of state, 15 bits current position, 15 bits previous position.
///
/// A position is local to the service: it indexes the service's block of real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Slot(u32);

impl Slot {
    /// The position that names no real server.
    pub const NO_POSITION: u16 = 0x7fff;

    /// A slot of a service without any real server.
    pub const EMPTY: Self = Self::settled(Self::NO_POSITION);

    /// A slot owned by `position`, nothing tracked. Only the low 15 bits of `position` are kept.
    pub const fn settled(position: u16) -> Self {
        Self::new(SlotState::Settled, position, position)
    }

    /// A slot with all its parts. Only the low 15 bits of each position are kept.
    pub const fn new(state: SlotState, current: u16, previous: u16) -> Self {
        let current = (current & Self::NO_POSITION) as u32;
        let previous = (previous & Self::NO_POSITION) as u32;
        Self(((state as u32) << 30) | (current << 15) | previous)
    }

    /// The slot packed in `bits`, as the kernel's table holds it.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The packed form.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The state, or `None` for the one bit pattern that means nothing.
    #[inline(always)]
    pub const fn state(self) -> Option<SlotState> {
        match self.0 >> 30 {
            0 => Some(SlotState::Settled),
            1 => Some(SlotState::Moving),
            2 => Some(SlotState::Pinned),
            _ => None,
        }
    }

    /// Position of the current owner, `None` where there is none.
    #[inline(always)]
    pub const fn current(self) -> Option<u16> {
        Self::position(self.raw_current())
    }

    /// Position of the previous owner, `None` where there was none.
    #[inline(always)]
    pub const fn previous(self) -> Option<u16> {
        Self::position(self.raw_previous())
    }

    /// Nothing is tracked: the current owner takes every packet.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.0 >> 30 == SlotState::Settled as u32
    }

    /// The slot is [`SlotState::Moving`] and has a previous owner.
    #[inline(always)]
    pub const fn is_moving(self) -> bool {
        self.0 >> 30 == SlotState::Moving as u32 && self.raw_previous() != Self::NO_POSITION
    }

    /// Position of the current owner, or [`Self::NO_POSITION`].
    #[inline(always)]
    pub const fn raw_current(self) -> u16 {
        (self.0 >> 15) as u16 & Self::NO_POSITION
    }

    /// Position of the previous owner, or [`Self::NO_POSITION`].
    #[inline(always)]
    pub const fn raw_previous(self) -> u16 {
        self.0 as u16 & Self::NO_POSITION
    }

    #[inline(always)]
    const fn position(raw: u16) -> Option<u16> {
        if raw == Self::NO_POSITION { None } else { Some(raw) }
    }
}

/// The slot that `hash` picks in a table of `slots`: its upper 32 bits scaled to `0..slots`.
///
/// Multiply and shift instead of a remainder: no division (20 to 40 cycles on common machines, and BPF has
/// no wide multiplication to replace it by). With [`SLOTS`] each slot owns 65,535 or 65,536 of the 2^32 values, a
/// bias of 0.002 %; with fewer it is less.
#[inline(always)]
pub const fn slot_of(hash: u64, slots: u32) -> u32 {
    ((hash >> 32).wrapping_mul(slots as u64) >> 32) as u32
}

/// The slot of a flow in a table of `slots`: [`slot_of`] its hash.
#[inline(always)]
pub fn slot_of_flow(hash: &FlowHash, source: Address, port: u16, input: HashInput, slots: u32) -> u32 {
    slot_of(hash.of(source, port, input), slots)
}

/// Bits that differ between flows, for a tunnel: what of the hash no slot depends on, and the source port, which
/// may not be in the hash.
#[inline(always)]
pub const fn entropy_of(hash: u64, port: u16) -> u32 {
    // 2^32 divided by the golden ratio spreads the port over all bits.
    (hash as u32) ^ (port as u32).wrapping_mul(0x9e37_79b1).rotate_left(16)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::*;
    use crate::siphash::HashKey;

    #[test]
    fn every_hash_picks_a_slot_and_every_slot_is_picked() {
        for slots in [SLOTS, SMALL_SLOTS] {
            assert_eq!(slot_of(0, slots as u32), 0);
            assert_eq!(slot_of(u64::MAX, slots as u32), slots as u32 - 1);
            let mut hit = std::vec![false; slots];
            for top in (0..=u32::MAX).step_by(60_000) {
                hit[slot_of(u64::from(top) << 32, slots as u32) as usize] = true;
            }
            assert!(hit.iter().all(|slot| *slot));
        }
    }

    #[test]
    fn random_sources_fill_slots_evenly() {
        let hash = FlowHash::new(HashKey::from_bytes(*b"sixteen byte key"));
        let mut count = std::vec![0_u32; 16];
        for source in 0..160_000_u32 {
            let source = Address::from_ipv4(source.to_be_bytes());
            let slot = slot_of_flow(&hash, source, 0, HashInput::Source, SLOTS as u32);
            count[slot as usize * 16 / SLOTS] += 1;
        }
        // Binomial with mean 10,000 and deviation 97: six deviations either side.
        assert!(count.iter().all(|n| (9_400..10_600).contains(n)), "{count:?}");
    }

    proptest! {
        #[test]
        fn parts_round_trip(state in 0_u8..3, current in 0_u16..=0x7fff, previous in 0_u16..=0x7fff) {
            let state = [SlotState::Settled, SlotState::Moving, SlotState::Pinned][usize::from(state)];
            let slot = Slot::from_bits(Slot::new(state, current, previous).bits());
            prop_assert_eq!(slot.state(), Some(state));
            prop_assert_eq!(slot.current().unwrap_or(Slot::NO_POSITION), current);
            prop_assert_eq!(slot.previous().unwrap_or(Slot::NO_POSITION), previous);
        }
    }
}
