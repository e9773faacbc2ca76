//! Cryptographic sequence numbers: those we send, each greater than all before it, and those we heard.
//!
//! One count serves all packets of a speaker. It follows the time of day, so that it grows over restarts without a
//! file; the unit is an eighth of a second, coarse enough for 32 bits to last until 2043. Packets in quick succession
//! run ahead of the clock, which then catches up. A successor that has nothing but the clock begins a minute ahead of
//! it, as its predecessor did, and so is above one that has sent less than eight packets a second since its start, and
//! whose last burst was of less than 480.
//!
//! With a file there is no such condition: what is reserved in it covers every number that may be used before the next
//! reservation, and the next life begins above it, whatever the clock says.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// 2026-01-01 in seconds since 1970, where ticks begin.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// Ticks in a second.
const TICKS: u64 = 8;
/// How many ticks the first number of a life is ahead of the clock.
const AHEAD: u64 = 60 * TICKS;
/// Numbers reserved at a time. The clock alone needs the half of them in 8.5 minutes; packets may need the other half
/// while a disk is slow.
const BLOCK: u64 = 8192;

/// The highest upper half: a count that needs more than 32 bits carries into it.
const LAST_LIFE: u64 = u32::MAX as u64 - 1;

/// Ticks from the epoch to a time of day; 0 before it.
fn ticks(now: Duration) -> u64 {
    let since = now.saturating_sub(EPOCH);
    since.as_secs().saturating_mul(TICKS).saturating_add(u64::from(since.subsec_millis()) * TICKS / 1_000)
}

/// The number of one packet, as either version has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The count at the first packet of this life.
    first: u64,
    /// The count at this packet.
    count: u64,
}

impl Number {
    /// Version 2: 32 bits (RFC 2328 section D.4.3). Behind the last number there is none, so that one is repeated.
    #[must_use]
    pub fn of_32_bits(self) -> u32 {
        u32::try_from(self.count).unwrap_or(u32::MAX)
    }

    /// Version 3: 64 bits, with an upper half that is greater in every life (RFC 7166 section 4.1). FRR 8.4 and later
    /// compare the halves apart, and the lower one grows over restarts as well.
    #[must_use]
    pub fn of_64_bits(self) -> u64 {
        let life = self.first.min(LAST_LIFE);
        (life << 32).saturating_add(self.count)
    }
}

/// The count of one speaker.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Numbers {
    /// The count at the first packet.
    first: Option<u64>,
    /// No number up to this one is free, whether it was used here or by an earlier life.
    last: Option<u64>,
    /// What was last asked to be kept for the next life; none where nobody keeps anything.
    reserved: Option<u64>,
}

impl Numbers {
    /// Goes on above what an earlier life reserved, none if nothing is known of it; from now on reservations are asked
    /// for.
    pub(crate) fn keep(&mut self, earlier: Option<u64>) {
        self.last = self.last.max(earlier);
        self.reserved = Some(0);
    }

    /// What the next packet will have at `now`.
    fn upcoming(&self, now: Duration) -> u64 {
        let clock = ticks(now).saturating_add(if self.first.is_none() { AHEAD } else { 0 });
        self.last.map_or(clock, |last| last.saturating_add(1).max(clock))
    }

    /// The number of a packet that is sent at `now`.
    pub(super) fn next(&mut self, now: Duration) -> Number {
        let count = self.upcoming(now);
        self.last = Some(count);
        Number { first: *self.first.get_or_insert(count), count }
    }

    /// The highest number of the next block, when half of the current one is used up: the next life is to begin above
    /// it.
    pub(crate) fn reserve(&mut self, now: Duration) -> Option<u64> {
        let upcoming = self.upcoming(now);
        let reserved = self.reserved.filter(|reserved| *reserved < upcoming.saturating_add(BLOCK / 2))?;
        let next = upcoming.saturating_add(BLOCK);
        self.reserved = Some(next);
        (next > reserved).then_some(next)
    }
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
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
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

    /// Both forms of the next number.
    fn next(numbers: &mut Numbers, now: Duration) -> (u32, u64) {
        let number = numbers.next(now);
        (number.of_32_bits(), number.of_64_bits())
    }

    /// A life without a file that sends `packets` at once and one each 200 ms for a minute after that.
    fn life(from: u64, packets: usize) -> (u32, u64) {
        let mut numbers = Numbers::default();
        for _ in 0..packets {
            next(&mut numbers, at(from));
        }
        (0..300).map(|step| next(&mut numbers, at(from + step * 200))).last().expect("some")
    }

    #[test]
    fn every_packet_has_a_greater_number() {
        let mut numbers = Numbers::default();
        let mut last = next(&mut numbers, at(0));
        for step in 0..1_000 {
            let number = next(&mut numbers, at(step / 100));
            assert!(number.0 > last.0 && number.1 > last.1, "{number:?} after {last:?}");
            last = number;
        }
    }

    #[test]
    fn numbers_grow_over_a_restart_by_the_clock_alone() {
        for packets in [0, 150] {
            let before = life(0, packets);
            let after = next(&mut Numbers::default(), at(61_000));
            assert!(after.0 > before.0 && after.1 > before.1, "{after:?} after {before:?}");
        }
    }

    #[test]
    fn both_halves_of_a_64_bit_number_grow_over_a_restart() {
        let (_, before) = life(0, 1);
        let (_, after) = next(&mut Numbers::default(), at(61_000));
        assert!(after >> 32 > before >> 32);
        assert!(after & 0xffff_ffff > before & 0xffff_ffff);
    }

    #[test]
    fn a_block_is_reserved_before_the_last_one_is_half_used() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.reserve(at(0)), None, "nobody keeps it");
        numbers.keep(None);
        let first = numbers.reserve(at(0)).expect("before the first packet");
        assert_eq!(numbers.reserve(at(0)), None, "once");
        let mut second = None;
        while second.is_none() {
            let (used, _) = next(&mut numbers, at(0));
            assert!(u64::from(used) <= first, "{used} is not reserved");
            second = numbers.reserve(at(0));
        }
        assert!(second > Some(first));
        assert!(numbers.reserve(at(8_000_000)).is_some(), "the clock uses numbers up as well");
    }

    #[test]
    fn end_of_32_bits_is_no_step_back() {
        let mut numbers = Numbers::default();
        numbers.keep(Some(u64::from(u32::MAX)));
        let (one, other) = (next(&mut numbers, at(0)), next(&mut numbers, at(0)));
        assert_eq!([one.0, other.0], [u32::MAX; 2]);
        assert!(other.1 > one.1, "64 bits go on");
        numbers.keep(Some(u64::MAX));
        assert_eq!(next(&mut numbers, at(0)).0, u32::MAX);
        let reserved = [numbers.reserve(Duration::MAX), numbers.reserve(Duration::MAX)];
        assert_eq!(reserved, [Some(u64::MAX), None], "there are no more");
    }

    proptest! {
        /// Lives of bursts and pauses, with clocks that are set in between, each with what the one before it reserved.
        #[test]
        fn numbers_grow_over_lives_whatever_the_clock_does(
            lives in proptest::collection::vec(
                proptest::collection::vec((0u64..400_000_000_000, 1usize..40), 1..10), 1..6)
        ) {
            let (mut kept, mut last) = (None, None);
            for life in lives {
                let mut numbers = Numbers::default();
                numbers.keep(kept);
                for (millis, packets) in life {
                    kept = numbers.reserve(at(millis)).or(kept);
                    for _ in 0..packets {
                        let number = next(&mut numbers, at(millis));
                        prop_assert!(Some(u64::from(number.0)) <= kept, "reserved in time");
                        prop_assert!(last.is_none_or(|last: (u32, u64)| number.0 > last.0 && number.1 > last.1));
                        last = Some(number);
                    }
                }
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
