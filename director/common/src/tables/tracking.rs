//! What the choice of a server for each new connection goes by, in services that are tracked.

use super::Plain;
use crate::schedulers::least::MAX_SCAN;
use crate::schedulers::{MAX_WHEEL, Server};

/// Most servers that one choice compares.
pub const MAX_CANDIDATES: usize = MAX_SCAN as usize;

/// A real server's connections, and what it takes. In the map its index is that of the
/// [`RealEntry`](super::RealEntry). The program and user space change the counts under each other's eyes, each by
/// atomic additions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LoadEntry {
    /// Connections under way, on this director and, where they are replicated, on the others.
    pub active: u64,
    /// Other connections that are remembered.
    pub inactive: u64,
    /// Share of new connections relative to the service's others; 0 takes none.
    pub weight: u32,
    /// See [`Thresholds`](crate::schedulers::Thresholds).
    pub upper: u32,
    /// See [`Thresholds`](crate::schedulers::Thresholds).
    pub lower: u32,
    /// 1 if the server takes no new connections until it has fewer, else 0.
    pub overloaded: u32,
}

const _: () = assert!(size_of::<LoadEntry>() == 32);
// SAFETY: `repr(C)` of integers without padding (2 x 8 + 4 x 4 = 32).
unsafe impl Plain for LoadEntry {}

/// A count as it is, which is less than 2^32; one that a race has left below zero is none.
#[inline(always)]
const fn count(value: u64) -> u32 {
    // Without a branch: the kernel's verifier follows each.
    (value & (value >> 63).wrapping_sub(1)) as u32
}

impl LoadEntry {
    /// The server as a scheduler sees it.
    #[inline(always)]
    pub const fn server(&self) -> Server {
        Server {
            weight: self.weight,
            active: count(self.active),
            inactive: count(self.inactive),
            overloaded: self.overloaded,
        }
    }

    /// Active and inactive connections.
    #[inline(always)]
    pub const fn total(&self) -> u64 {
        (count(self.active) as u64).wrapping_add(count(self.inactive) as u64)
    }
}

/// Whom a tracked service's new connections may go to, by position. Replaced as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Roster {
    /// Entries of `wheel`.
    pub length: u32,
    /// Entries of `candidates`.
    pub count: u32,
    /// Who takes what nobody of these takes; [`Self::NOBODY`] if that is refused.
    pub sorry: u32,
    /// Zero.
    pub reserved: u32,
    /// The servers to compare. All that the service has, where they are no more than these.
    pub candidates: [u16; MAX_CANDIDATES],
    /// A whole turn, see [`Wheel`](crate::schedulers::Wheel).
    pub wheel: [u16; MAX_WHEEL],
}

const _: () = assert!(size_of::<Roster>() == 16 + 2 * MAX_CANDIDATES + 2 * MAX_WHEEL);
const _: () = assert!(MAX_CANDIDATES.is_power_of_two() && MAX_WHEEL.is_power_of_two());
// SAFETY: `repr(C)` of integers without padding (4 x 4 + 2 x 64 + 2 x 4096).
unsafe impl Plain for Roster {}

impl Roster {
    /// A position that names nobody.
    pub const NOBODY: u32 = u32::MAX;
    /// Nobody at all.
    pub const EMPTY: Self = Self {
        length: 0,
        count: 0,
        sorry: Self::NOBODY,
        reserved: 0,
        candidates: [0; MAX_CANDIDATES],
        wheel: [0; MAX_WHEEL],
    };

    /// The position in entry `at` of the wheel.
    #[inline(always)]
    pub fn on_wheel(&self, at: u32) -> u32 {
        // Masked, which for the kernel's verifier is the proof that it is within.
        self.wheel.get(at as usize & (MAX_WHEEL - 1)).map_or(Self::NOBODY, |position| u32::from(*position))
    }

    /// The position of candidate `at`.
    #[inline(always)]
    pub fn candidate(&self, at: u32) -> u32 {
        let position = self.candidates.get(at as usize & (MAX_CANDIDATES - 1));
        position.map_or(Self::NOBODY, |position| u32::from(*position))
    }
}
