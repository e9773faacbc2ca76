//! The clock of the pure core: a moment is the time since the speaker was made, handed in by whoever drives
//! it, so a test or a replayed recording decides what time it is.

use std::{ops::Add, time::Duration};

use serde::{Deserialize, Serialize};

/// A moment on the speaker's own monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(Duration);

impl Time {
    /// The moment the clock started.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The moment `since_start` after the clock started.
    #[must_use]
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// How long after the clock started this is.
    #[must_use]
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this is; zero if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}
