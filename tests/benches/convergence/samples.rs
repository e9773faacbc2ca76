//! What was measured, by what happened, who was in our place, and which switch noticed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::place::Brand;

/// What happens to a director, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    KilledBfd50,
    KilledBfd10,
    KilledHellos,
    LinkDown,
    Withdrawn,
    SecondChange,
    Drained,
    Restarted,
    RestartedLater,
    ColdStart,
    PoolExternal,
    PoolStub,
}

impl Event {
    pub(crate) const ALL: [Self; 12] = [
        Self::KilledBfd50,
        Self::KilledBfd10,
        Self::KilledHellos,
        Self::LinkDown,
        Self::Withdrawn,
        Self::SecondChange,
        Self::Drained,
        Self::Restarted,
        Self::RestartedLater,
        Self::ColdStart,
        Self::PoolExternal,
        Self::PoolStub,
    ];

    /// What happens, and what is waited for.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::KilledBfd50 => "killed, BFD 50 ms x 3: next hop gone",
            Self::KilledBfd10 => "killed, BFD 10 ms x 3: next hop gone",
            Self::KilledHellos => "killed, no BFD, hello 1 s, dead 4 s: next hop gone",
            Self::LinkDown => "link down: next hop gone",
            Self::Withdrawn => "VIP withdrawn: next hop gone",
            Self::SecondChange => "withdrawn 0.3 s after another change: next hop gone",
            Self::Drained => "VIP drained by its metric: next hop gone",
            Self::Restarted => "restarted as soon as its death is known: next hop back for good",
            Self::RestartedLater => "restarted 6 s after its death: next hop back for good",
            Self::ColdStart => "cold start, hello 1 s: next hop there",
            Self::PoolExternal => "1,000 VIPs as type 5, one withdrawn: its next hop gone",
            Self::PoolStub => "1,000 VIPs as stub links, one withdrawn: its next hop gone",
        }
    }

    /// What we want of ourselves with FRR as the switch. BIRD calculates once a second, and may take that longer.
    pub(crate) fn target(self) -> Option<Duration> {
        let milliseconds = match self {
            Self::KilledBfd50 => 160,
            Self::KilledBfd10 => 45,
            Self::KilledHellos => 4500,
            Self::LinkDown => 25,
            Self::Withdrawn | Self::Drained => 40,
            Self::SecondChange => 1200,
            Self::Restarted | Self::RestartedLater | Self::ColdStart => 2000,
            Self::PoolExternal => 100,
            Self::PoolStub => return None,
        };
        Some(Duration::from_millis(milliseconds))
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// How long it took; nothing if it did not happen in time.
    pub(crate) took: Option<Duration>,
    /// Next hops lost again afterwards, or other VIPs touched.
    pub(crate) harm: usize,
}

/// Event, who is in our place, and the switch.
pub(crate) type Key = (Event, Brand, Brand);

/// All measurements, from several threads.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    samples: Mutex<BTreeMap<Key, Vec<Sample>>>,
    failures: Mutex<Vec<String>>,
}

impl Samples {
    pub(crate) fn push(&self, key: Key, sample: Sample) {
        let ms = sample.took.map(|took| took.as_secs_f64() * 1e3);
        eprintln!(
            "{:?}, {} in our place, {} as switch: {ms:?} ms, harm {}",
            key.0, key.1, key.2, sample.harm
        );
        lock(&self.samples).entry(key).or_default().push(sample);
    }

    /// Something that kept rows from being measured.
    pub(crate) fn fail(&self, what: String) {
        eprintln!("{what}");
        lock(&self.failures).push(what);
    }

    pub(crate) fn of(&self, key: Key) -> Vec<Sample> {
        lock(&self.samples).get(&key).cloned().unwrap_or_default()
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: no thread panics with the samples")
}
