//! What the owner of a session asks for, and how an interval is jittered.

use std::num::NonZeroU8;
use std::time::Duration;

use serde::Serialize;

/// RFC 5880 section 6.8.3: "When bfd.SessionState is not Up, the system MUST set bfd.DesiredMinTxInterval to a
/// value of not less than one second".
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// The intervals and the multiplier one end of a session asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// The shortest interval at which to transmit while Up.
    pub desired_min_tx: Duration,
    /// The shortest interval at which to be sent to.
    pub required_min_rx: Duration,
    /// How many of the negotiated intervals may pass without a packet before the peer takes us for dead.
    pub multiplier: NonZeroU8,
}

/// The reason why [`Parameters`] cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParametersError {
    /// An interval is out of range.
    #[error(
        "{name} of {given:?} is out of range: write {min:?} to {max:?}",
        min = Parameters::MIN_INTERVAL,
        max = Parameters::MAX_INTERVAL
    )]
    Interval {
        /// The field.
        name: &'static str,
        /// The value.
        given: Duration,
    },
}

impl Parameters {
    /// The shortest interval accepted: what FRR and BIRD accept as well. Below it, a scheduler decides, not a link.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
    /// The longest interval accepted; the field on the wire holds 4,294 seconds.
    pub const MAX_INTERVAL: Duration = Duration::from_secs(4_294);

    /// The same interval in both directions.
    pub const fn symmetric(interval: Duration, multiplier: NonZeroU8) -> Self {
        Self { desired_min_tx: interval, required_min_rx: interval, multiplier }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The interval that is out of range.
    pub fn check(&self) -> Result<(), ParametersError> {
        let intervals = [("desired_min_tx", self.desired_min_tx), ("required_min_rx", self.required_min_rx)];
        for (name, given) in intervals {
            if !(Self::MIN_INTERVAL..=Self::MAX_INTERVAL).contains(&given) {
                return Err(ParametersError::Interval { name, given });
            }
        }
        Ok(())
    }
}

impl Default for Parameters {
    /// 300 ms x 3, what FRR and switches use unless told otherwise.
    fn default() -> Self {
        Self::symmetric(Duration::from_millis(300), NonZeroU8::MIN.saturating_add(2))
    }
}

/// `interval` less the random part of RFC 5880 section 6.8.7; `random` is uniform over its whole range.
///
/// "The periodic transmission of BFD Control packets MUST be jittered on a per-packet basis by up to 25% ... If
/// bfd.DetectMult is equal to 1, the interval between transmitted BFD Control packets MUST be no more than 90% of
/// the negotiated transmission interval, and MUST be no less than 75% of the negotiated transmission interval."
pub(super) fn jittered(interval: Duration, multiplier: NonZeroU8, random: u32) -> Duration {
    let (longest, span) = if multiplier.get() == 1 { (90, 15) } else { (100, 25) };
    let longest = interval * longest / 100;
    // 0 to `span` percent of the interval, in steps of 1 / 65536 of it.
    longest - interval * span / 100 * (random >> 16) / (1 << 16)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn jitter_keeps_its_bounds_and_reaches_them() {
        let interval = Duration::from_millis(100);
        for (multiplier, shortest, longest) in [(1, 75, 90), (2, 75, 100), (3, 75, 100), (255, 75, 100)] {
            let multiplier = NonZeroU8::new(multiplier).unwrap();
            assert_eq!(jittered(interval, multiplier, 0), Duration::from_millis(longest));
            let least = jittered(interval, multiplier, u32::MAX);
            let bound = Duration::from_millis(shortest);
            assert!(least >= bound && least < bound + Duration::from_micros(10), "{least:?}");
        }
    }

    #[test]
    fn longest_interval_does_not_overflow() {
        let interval = Duration::from_micros(u64::from(u32::MAX));
        assert!(jittered(interval, NonZeroU8::MAX, u32::MAX) >= interval * 3 / 4);
    }

    #[test]
    fn interval_out_of_range_is_refused_with_its_name() {
        let mut parameters = Parameters::default();
        assert_eq!(parameters.check(), Ok(()));
        parameters.required_min_rx = Duration::from_millis(9);
        let error = parameters.check().unwrap_err().to_string();
        assert_eq!(error, "required_min_rx of 9ms is out of range: write 10ms to 4294s");
        parameters = Parameters::symmetric(Duration::from_secs(4295), NonZeroU8::MIN);
        assert!(parameters.check().unwrap_err().to_string().starts_with("desired_min_tx of 4295s"));
    }
}
