//! When routes are calculated: the back-off of RFC 8405. A single change is worked on at once, a burst after a
//! short delay, endless churn after a long one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Time, is_due};

/// The five parameters (RFC 8405 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpfDelays {
    /// Delay of the first calculation after quiet (`INITIAL_SPF_DELAY`).
    pub initial: Duration,
    /// Delay of further ones while the changes of one failure still come in (`SHORT_SPF_DELAY`).
    pub short: Duration,
    /// Delay while changes do not end (`LONG_SPF_DELAY`).
    pub long: Duration,
    /// How long the changes of one failure take to come in (`TIME_TO_LEARN_INTERVAL`).
    pub time_to_learn: Duration,
    /// Quiet is when nothing has changed for this long (`HOLDDOWN_INTERVAL`); longer than `time_to_learn`.
    pub hold_down: Duration,
}

impl Default for SpfDelays {
    /// 0, 50 ms, 2 s and a hold-down of 3 s, as the RFC suggests. The time to learn is 2 s rather than one: the
    /// second instance of an
    /// LSA comes a second after the first, and belongs to the same failure.
    fn default() -> Self {
        Self {
            initial: Duration::ZERO,
            short: Duration::from_millis(50),
            long: Duration::from_secs(2),
            time_to_learn: Duration::from_secs(2),
            hold_down: Duration::from_secs(3),
        }
    }
}

/// States of the machine (section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpfState {
    /// No change for the hold-down interval.
    #[default]
    Quiet,
    /// Changes that may all belong to one failure.
    ShortWait,
    /// Changes that do not end.
    LongWait,
}

/// The machine with its three timers.
#[derive(Debug, Default)]
pub(super) struct SpfTimer {
    delays: SpfDelays,
    state: SpfState,
    /// `SPF_TIMER`.
    due: Option<Time>,
    /// `LEARN_TIMER`.
    learned_at: Option<Time>,
    /// `HOLDDOWN_TIMER`.
    quiet_at: Option<Time>,
}

impl SpfTimer {
    pub(super) fn new(delays: SpfDelays) -> Self {
        Self { delays, ..Self::default() }
    }

    /// Other delays, from the next event on.
    pub(super) fn reconfigure(&mut self, delays: SpfDelays) {
        self.delays = delays;
    }

    /// When the next calculation is due. The other two timers need no turn of their own: what they change shows
    /// at the next event.
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// The state at `now`.
    pub(super) fn state(&mut self, now: Time) -> SpfState {
        self.run_timers(now);
        self.state
    }

    /// "IGP event" (section 5.1, transitions 1, 2 and 4).
    pub(super) fn handle_event(&mut self, now: Time) {
        self.run_timers(now);
        let SpfDelays { initial, short, long, time_to_learn, hold_down } = self.delays;
        self.quiet_at = Some(now + hold_down);
        let delay = match self.state {
            SpfState::Quiet => {
                self.state = SpfState::ShortWait;
                self.learned_at = Some(now + time_to_learn);
                initial
            }
            SpfState::ShortWait => short,
            SpfState::LongWait => long,
        };
        self.due.get_or_insert(now + delay);
    }

    /// Whether it is time to calculate; the timer is spent by that (transitions 7 to 9).
    pub(super) fn poll_due(&mut self, now: Time) -> bool {
        let due = is_due(self.due, now);
        if due {
            self.due = None;
        }
        due
    }

    /// `LEARN_TIMER` and `HOLDDOWN_TIMER` (transitions 3, 5 and 6), in the order in which they expire.
    fn run_timers(&mut self, now: Time) {
        if self.state == SpfState::ShortWait && is_due(self.learned_at, now) {
            self.learned_at = None;
            self.state = SpfState::LongWait;
        }
        if self.state != SpfState::Quiet && is_due(self.quiet_at, now) {
            (self.learned_at, self.quiet_at) = (None, None);
            self.state = SpfState::Quiet;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_start(Duration::from_millis(millis))
    }

    /// Events at the given milliseconds; when each calculation ran, and the state after it.
    fn runs(events: &[u64], until: u64) -> Vec<(u64, SpfState)> {
        let mut timer = SpfTimer::new(SpfDelays::default());
        let mut runs = Vec::new();
        for now in 0..=until {
            if events.contains(&now) {
                timer.handle_event(at(now));
            }
            if timer.poll_due(at(now)) {
                runs.push((now, timer.state(at(now))));
            }
        }
        runs
    }

    /// "Transition 1: IGP event while in QUIET state … If SPF_TIMER is not already running, start it with value
    /// INITIAL_SPF_DELAY. Start LEARN_TIMER … Start HOLDDOWN_TIMER … Transition to SHORT_WAIT state."
    #[test]
    fn single_change_after_quiet_is_worked_on_at_once() {
        assert_eq!(runs(&[100], 3000), [(100, SpfState::ShortWait)]);
        assert_eq!(runs(&[100, 3100], 6000), [(100, SpfState::ShortWait), (3100, SpfState::ShortWait)]);
    }

    /// "Transition 2: IGP event while in SHORT_WAIT … If SPF_TIMER is not already running, start it with value
    /// SHORT_SPF_DELAY."
    #[test]
    fn burst_is_worked_on_after_the_short_delay_in_one_run() {
        let short = SpfState::ShortWait;
        assert_eq!(runs(&[100, 110, 120, 150], 1000), [(100, short), (160, short)]);
    }

    /// "Transition 3: LEARN_TIMER expiration … Transition to LONG_WAIT state", "Transition 4: IGP event while in
    /// LONG_WAIT … Reset HOLDDOWN_TIMER … start it with value LONG_SPF_DELAY."
    #[test]
    fn endless_churn_is_worked_on_every_long_delay() {
        let churn: Vec<u64> = (0..400).map(|n| n * 25).collect(); // ten seconds of it
        let late: Vec<u64> = runs(&churn, 12_000).iter().map(|(at, _)| *at).filter(|at| *at > 2100).collect();
        assert!((3..=4).contains(&late.len()), "{late:?}");
        assert!(
            late.windows(2).all(|pair| pair[1] - pair[0] >= 2000),
            "one for each LONG_SPF_DELAY: {late:?}"
        );
    }

    /// "Transition 5: HOLDDOWN_TIMER expiration while in LONG_WAIT … Transition to QUIET state", and 6 from
    /// SHORT_WAIT.
    #[test]
    fn hold_down_without_events_leads_back_to_quiet() {
        let runs = runs(&[0, 2500, 7500], 10_000);
        assert_eq!(runs, [(0, SpfState::ShortWait), (4500, SpfState::LongWait), (7500, SpfState::ShortWait)]);
    }
}
