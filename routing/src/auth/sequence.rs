//! Cryptographic sequence numbers: those we send, which only grow, and those we heard.
//!
//! Numbers come from the time of day, so that they grow over restarts without a file. The unit is an eighth
//! of a second, coarse enough for 32 bits to last until 2043. Packets in quick succession run ahead of the
//! clock, which then catches up; how far is bounded, so that a successor, whose first number is at that bound,
//! is never behind who crashed a moment ago.

use std::time::Duration;

/// 2026-01-01 in seconds since 1970, where ticks begin.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// Ticks in a second.
const TICKS: u64 = 8;
/// How many ticks numbers of version 2 may be ahead of the clock.
const AHEAD: u64 = 2 * TICKS;

/// Ticks from the epoch to a time of day; 0 before it.
fn ticks(now: Duration) -> u64 {
    let since = now.saturating_sub(EPOCH);
    since.as_secs() * TICKS + u64::from(since.subsec_millis()) * TICKS / 1_000
}

/// Version 2: 32 bits (RFC 2328 section D.4.3). At the bound, and at the end of the numbers, the last one is
/// repeated: a number is refused when it is less than the last one, not when it is equal.
pub(super) fn next_32(last: Option<u64>, now: Duration) -> u64 {
    let bound = ticks(now) + AHEAD;
    let next = match last {
        Some(last) if last == bound => last,
        // Beyond the bound only after the clock was set back.
        Some(last) => (last + 1).max(ticks(now)),
        None => bound,
    };
    next.min(u32::MAX.into())
}

/// Version 3: 64 bits (RFC 7166 section 4.1), which no two packets share: in the upper half the tick of our
/// start, in the lower the one of now. FRR 8.4 and later compare the halves apart and want the lower one to
/// grow as well.
pub(super) fn next_64(last: Option<u64>, started: Duration, now: Duration) -> u64 {
    let next = last.map_or(0, |last| last.saturating_add(1));
    let low = ticks(now) & u64::from(u32::MAX);
    next.max((ticks(started) << 32) | low)
}

/// What a packet proved by its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(super) sequence: u64,
    /// Numbers are compared within one lane: version 3 has one for each packet type.
    pub(super) lane: usize,
    /// A number that was heard before is refused.
    pub(super) strict: bool,
}

/// The latest numbers heard from a neighbour. They go with the neighbour (RFC 2328 section D.3: a neighbour
/// in state Down has none).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heard([Option<u64>; 5]);

impl Heard {
    /// What stands against a packet, if it goes back.
    pub(crate) fn objection(&self, proof: Proof) -> Option<String> {
        let last = self.0.get(proof.lane).copied().flatten()?;
        let (number, strict) = (proof.sequence, proof.strict);
        let backward = number < last || (strict && number == last);
        backward.then(|| {
            let wanted = if strict { "more than" } else { "at least" };
            format!("sequence number {number}, but {wanted} {last} is due")
        })
    }

    /// Remembers a packet.
    pub(crate) fn note(&mut self, proof: Proof) {
        if let Some(last) = self.0.get_mut(proof.lane) {
            *last = (*last).max(Some(proof.sequence));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Duration {
        EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn numbers_grow_over_a_restart() {
        let (mut v2, mut v3) = (None, None);
        for step in 0..100 {
            v2 = Some(next_32(v2, at(step * 200)));
            v3 = Some(next_64(v3, at(0), at(step * 200)));
        }
        assert!(next_32(None, at(21_000)) > v2.expect("sent"));
        assert!(next_64(None, at(21_000), at(21_000)) > v3.expect("sent"));
    }

    #[test]
    fn successor_of_one_that_crashed_in_a_burst_is_not_behind() {
        let (mut v2, mut v3) = (None, None);
        for _ in 0..1_000 {
            v2 = Some(next_32(v2, at(500)));
            v3 = Some(next_64(v3, at(0), at(500)));
        }
        assert!(next_32(None, at(500)) >= v2.expect("sent"));
        assert!(next_64(None, at(500), at(500)) > v3.expect("sent"));
    }

    #[test]
    fn numbers_of_version_2_differ_except_in_a_burst() {
        let start = next_32(None, at(0));
        assert_eq!(next_32(Some(start), at(0)), start, "at the bound");
        let later = next_32(Some(start), at(1_000));
        assert_eq!(later, start + 1);
        assert_eq!(next_32(Some(later), at(1_000)), later + 1);
    }

    #[test]
    fn both_halves_of_a_64_bit_number_grow_over_a_restart() {
        let before = next_64(None, at(0), at(90_000));
        let after = next_64(None, at(91_000), at(91_000));
        assert!(after >> 32 > before >> 32);
        assert!(after & 0xffff_ffff > before & 0xffff_ffff);
    }

    #[test]
    fn end_of_32_bits_is_no_step_back() {
        let end = u64::from(u32::MAX);
        assert_eq!(next_32(Some(end), at(0)), end);
        assert_eq!(next_32(None, EPOCH + Duration::from_secs(600_000_000)), end);
    }

    proptest! {
        #[test]
        fn no_number_goes_back_whatever_the_clock_does(
            clock in proptest::collection::vec(0u64..400_000_000_000, 1..40)
        ) {
            let (mut v2, mut v3) = (None, None);
            for millis in clock {
                let next = (next_32(v2, at(millis)), next_64(v3, at(0), at(millis)));
                prop_assert!(v2.is_none_or(|last| next.0 >= last) && v3.is_none_or(|last| next.1 > last));
                (v2, v3) = (Some(next.0), Some(next.1));
            }
        }
    }

    #[test]
    fn equal_numbers_pass_in_version_2_alone() {
        let mut heard = Heard::default();
        let proof = |sequence, strict| Proof { sequence, lane: 0, strict };
        assert_eq!(heard.objection(proof(0, true)), None, "nothing heard yet");
        heard.note(proof(7, false));
        assert_eq!(heard.objection(proof(7, false)), None);
        assert!(heard.objection(proof(7, true)).expect("refused").contains("more than 7"));
        assert!(heard.objection(proof(6, false)).expect("refused").contains("at least 7"));
        assert_eq!(heard.objection(Proof { sequence: 1, lane: 1, strict: true }), None, "another lane");
    }
}
