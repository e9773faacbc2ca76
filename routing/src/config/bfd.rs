//! How BFD watches the neighbours of an interface.

use std::{num::NonZeroU8, time::Duration};

use serde::{Deserialize, Serialize};

use super::{ConfigError, range};
use crate::bfd::Parameters;

/// BFD for the neighbours of an interface (RFC 5880 asynchronous mode, RFC 5881 single hop).
///
/// The two ends may differ: each packet interval is the longer of what its sender offers and its receiver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BfdConfig {
    /// The shortest interval between packets, in both directions; 10 ms to 60 s.
    pub interval: Duration,
    /// How many intervals without a packet of ours make the neighbour take the path for broken, and likewise here
    /// by the neighbour's multiplier.
    pub multiplier: NonZeroU8,
}

impl Default for BfdConfig {
    /// 300 ms x 3, as FRR and most switches.
    fn default() -> Self {
        let Parameters { desired_min_tx: interval, multiplier, .. } = Parameters::default();
        Self { interval, multiplier }
    }
}

impl BfdConfig {
    /// The longest interval: slower than OSPF's own Hellos, BFD finds nothing that they do not.
    pub const MAX_INTERVAL: Duration = Duration::from_secs(60);

    /// What a session is asked for.
    pub(crate) const fn parameters(self) -> Parameters {
        Parameters::symmetric(self.interval, self.multiplier)
    }

    pub(super) fn validate(self, place: &str) -> Result<(), ConfigError> {
        let holds = (Parameters::MIN_INTERVAL..=Self::MAX_INTERVAL).contains(&self.interval);
        let milliseconds = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        range(place, "bfd interval", milliseconds, holds, "10 to 60000 milliseconds")
    }
}
