//! From single probe results to a state: the counters `rise` and `fall`. Pure; time is an argument.

use std::time::Instant;

use serde::Serialize;

/// What is held of a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Neither `rise` successes nor `fall` failures in a row have been seen yet.
    Unknown,
    /// Live: connections may be sent to it.
    Up,
    /// Not live.
    Down,
}

impl State {
    /// Name in logs, status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What an observation did to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The state that had only been assumed has now been observed; it is the same.
    Confirmed(State),
    /// The state is another one.
    Turned {
        /// State before.
        from: State,
        /// State from now on.
        to: State,
    },
}

/// The counter machine of one real server.
///
/// `fall` failures in a row make it down and `rise` successes in a row make it up; nothing else changes the
/// state. A state given at the start is an assumption until a run of results has confirmed or refuted it.
#[derive(Clone, Debug)]
pub struct Judge {
    rise: u32,
    fall: u32,
    state: State,
    observed: bool,
    since: Instant,
    successes: u32,
    failures: u32,
}

impl Judge {
    /// A machine in state `initial` at time `now`. A `rise` or `fall` of 0 counts as 1.
    pub fn new(rise: u32, fall: u32, initial: State, now: Instant) -> Self {
        Self {
            rise: rise.max(1),
            fall: fall.max(1),
            state: initial,
            observed: false,
            since: now,
            successes: 0,
            failures: 0,
        }
    }

    /// Takes one probe result that came at `now`.
    #[must_use = "a change has to be published"]
    pub fn handle_result(&mut self, passed: bool, now: Instant) -> Option<Change> {
        let reached = if passed {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            (self.successes >= self.rise).then_some(State::Up)?
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            (self.failures >= self.fall).then_some(State::Down)?
        };
        let known = std::mem::replace(&mut self.observed, true);
        if reached == self.state {
            return (!known).then_some(Change::Confirmed(reached));
        }
        let from = std::mem::replace(&mut self.state, reached);
        self.since = now;
        Some(Change::Turned { from, to: reached })
    }

    /// The state held at present.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the state rests on results rather than on an assumption.
    pub fn observed(&self) -> bool {
        self.observed
    }

    /// When the present state began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Successes in a row, up to now.
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// Failures in a row, up to now.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// The definition, computed from the whole history: the last run of results long enough decides.
    fn oracle(rise: u32, fall: u32, initial: State, history: &[bool]) -> State {
        let mut state = initial;
        for end in 1..=history.len() {
            let last = history[end - 1];
            let run = history[..end].iter().rev().take_while(|result| **result == last).count();
            match last {
                true if run >= rise as usize => state = State::Up,
                false if run >= fall as usize => state = State::Down,
                _ => {}
            }
        }
        state
    }

    fn any_state() -> impl Strategy<Value = State> {
        prop_oneof![Just(State::Unknown), Just(State::Up), Just(State::Down)]
    }

    proptest! {
        #[test]
        fn only_runs_of_rise_or_fall_change_the_state(
            rise in 1_u32..6,
            fall in 1_u32..6,
            initial in any_state(),
            history in proptest::collection::vec(any::<bool>(), 0..60),
        ) {
            let begin = Instant::now();
            let mut judge = Judge::new(rise, fall, initial, begin);
            for (index, passed) in history.iter().enumerate() {
                let before = judge.state();
                let known = judge.observed();
                let now = begin + Duration::from_secs(index as u64 + 1);
                let change = judge.handle_result(*passed, now);
                let after = oracle(rise, fall, initial, &history[..=index]);
                prop_assert_eq!(judge.state(), after);
                if before == after {
                    prop_assert!(change.is_none() || (!known && change == Some(Change::Confirmed(after))));
                } else {
                    prop_assert_eq!(change, Some(Change::Turned { from: before, to: after }));
                    prop_assert_eq!(judge.since(), now);
                }
            }
        }
    }

    #[test]
    fn assumed_up_is_confirmed_once() {
        let now = Instant::now();
        let mut judge = Judge::new(2, 3, State::Up, now);
        assert_eq!(judge.handle_result(true, now), None);
        assert_eq!(judge.handle_result(true, now), Some(Change::Confirmed(State::Up)));
        assert_eq!(judge.handle_result(true, now), None);
        assert_eq!(judge.successes(), 3);
    }

    #[test]
    fn a_single_success_resets_the_failures() {
        let now = Instant::now();
        let mut judge = Judge::new(1, 3, State::Up, now);
        for passed in [false, false, true, false, false] {
            assert!(!matches!(judge.handle_result(passed, now), Some(Change::Turned { .. })));
        }
        let turned = Change::Turned { from: State::Up, to: State::Down };
        assert_eq!(judge.handle_result(false, now), Some(turned));
    }
}
