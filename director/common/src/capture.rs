//! What both sides share of a capture: which packets are wanted, and what is said about each.
//!
//! The program hands a packet to user space by `bpf_perf_event_output`: a [`CaptureEvent`], then the first bytes of
//! the frame, which the kernel copies by itself. So nothing needs to be proven about their length, a frame of any
//! size costs no stack, and the buffers exist only while somebody reads them: a ring buffer map would be as large
//! always, and could take a packet only in pieces of constant size.

use crate::tables::Plain;
use crate::verdict::OUTCOME_COUNTERS;

/// Words of [`CaptureFilter::outcomes`].
const WORDS: usize = 4;

const _: () = assert!(OUTCOME_COUNTERS <= WORDS * 32);

/// Which packets are captured: the only element of its map. Read only while [`Config::FLAG_CAPTURE`] or
/// [`Config::FLAG_CAPTURE_AFTER`] is set.
///
/// [`Config::FLAG_CAPTURE`]: crate::tables::Config::FLAG_CAPTURE
/// [`Config::FLAG_CAPTURE_AFTER`]: crate::tables::Config::FLAG_CAPTURE_AFTER
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureFilter {
    /// The outcomes wanted: bit `n % 32` of word `n / 32` for the counter number `n`.
    pub outcomes: [u32; WORDS],
    /// Most bytes of a frame that are kept.
    pub snaplen: u32,
    /// 1 if only packets of `service` are wanted, else 0.
    pub of_service: u32,
    /// A service's index.
    pub service: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<CaptureFilter>() == 32);
// SAFETY: `repr(C)` of u32 only (8 x 4 = 32).
unsafe impl Plain for CaptureFilter {}

impl CaptureFilter {
    /// Wants the outcome with this counter number too.
    pub fn want(&mut self, outcome: u32) {
        if let Some(word) = self.outcomes.get_mut((outcome / 32) as usize) {
            *word |= 1 << (outcome % 32);
        }
    }

    /// Whether a packet with this outcome, owned by this service, is wanted.
    #[inline(always)]
    pub fn matches(&self, outcome: u32, service: u32) -> bool {
        // Not `get`: the verifier learns the bound from the mask alone.
        let [a, b, c, d] = self.outcomes;
        let word = match (outcome >> 5) & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        };
        word >> (outcome & 31) & 1 != 0 && (self.of_service == 0 || self.service == service)
    }
}

/// What is known of a captured packet; its first bytes follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureEvent {
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Interface it came in by.
    pub ifindex: u32,
    /// Number of its outcome's counter.
    pub outcome: u32,
    /// Index of its service, or [`Decision::NO_SERVICE`](crate::Decision::NO_SERVICE).
    pub service: u32,
    /// Real server's index in the real-server map, or [`Self::NO_REAL`].
    pub real: u32,
    /// Length of the frame in bytes.
    pub length: u32,
    /// How many of them follow. (The kernel pads what it hands over.)
    pub captured: u32,
}

const _: () = assert!(size_of::<CaptureEvent>() == 32);
// SAFETY: `repr(C)` of integers without padding (8 + 6 x 4 = 32).
unsafe impl Plain for CaptureEvent {}

impl CaptureEvent {
    /// [`Self::real`] of a packet that is not forwarded.
    pub const NO_REAL: u32 = u32::MAX;

    /// The event in the native byte order's form of its bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let [t0, t1, t2, t3, t4, t5, t6, t7, rest @ ..] = *bytes;
        let word = |at: usize| {
            let bytes = rest.get(at.wrapping_mul(4)..).and_then(<[u8]>::first_chunk::<4>);
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        Self {
            time_ns: u64::from_ne_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            ifindex: word(0),
            outcome: word(1),
            service: word(2),
            real: word(3),
            length: word(4),
            captured: word(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Outcome;

    #[test]
    fn a_filter_takes_the_outcomes_it_wants_and_no_other() {
        for (wanted, _) in Outcome::all() {
            let mut filter = CaptureFilter::default();
            filter.want(wanted);
            for (number, outcome) in Outcome::all() {
                assert_eq!(filter.matches(number, 7), number == wanted, "{outcome:?}");
            }
        }
    }

    #[test]
    fn a_filter_for_a_service_takes_no_packet_of_another_or_of_none() {
        let mut filter = CaptureFilter { of_service: 1, service: 3, ..CaptureFilter::default() };
        filter.want(0);
        assert!(filter.matches(0, 3));
        assert!(
            !filter.matches(0, 4) && !filter.matches(0, crate::Decision::NO_SERVICE) && !filter.matches(1, 3)
        );
    }
}
