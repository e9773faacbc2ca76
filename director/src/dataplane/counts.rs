//! The counters' maps, and what is counted in several places put together.
//!
//! A packet that takes the shortcut is counted once, for its real server (`SHORTCUTS`), since every counter more costs it a
//! twentieth of its way. What that is for the service and the outcomes is worked out here: a service's real servers are
//! known. Before an entry becomes another's, what it counted goes to `RETIRED`, which only user space writes: to the
//! service's entry, or to the last one, where the service itself is gone. A process that is killed in that moment may count
//! the packets of one real server twice.

use aya::Ebpf;
use aya::maps::{Array, MapData, MapError, PerCpuArray, PerCpuValues};
use director_common::Verdict;
use director_common::counters::{ShortcutCounters, TrafficCounters};
use director_common::tables::MAX_SERVICES;
use director_common::verdict::Outcome;

use super::error::OpenError;
use super::maps::{Shared, take};

/// Whose what is retired becomes that no service has any more.
pub(super) const NOBODY: u32 = MAX_SERVICES as u32;

/// All counters but those of flows.
pub(super) struct Counts {
    outcomes: PerCpuArray<MapData, u64>,
    services: PerCpuArray<MapData, Shared<TrafficCounters>>,
    reals: PerCpuArray<MapData, Shared<TrafficCounters>>,
    shortcuts: PerCpuArray<MapData, Shared<ShortcutCounters>>,
    retired: Array<MapData, Shared<ShortcutCounters>>,
    processors: usize,
}

impl Counts {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, processors: usize) -> Result<Self, OpenError> {
        Ok(Self {
            outcomes: take(ebpf, "OUTCOMES")?,
            services: take(ebpf, "SERVICE_STATS")?,
            reals: take(ebpf, "REAL_STATS")?,
            shortcuts: take(ebpf, "SHORTCUTS")?,
            retired: take(ebpf, "RETIRED")?,
            processors,
        })
    }

    /// Begins to count for a service that takes this index.
    pub(super) fn open_service(&mut self, index: u32) -> Result<(), MapError> {
        self.close_service(index)?;
        self.services.set(index, self.everywhere(TrafficCounters::default())?, 0)
    }

    /// Keeps what a service counted whose index becomes free.
    pub(super) fn close_service(&mut self, index: u32) -> Result<(), MapError> {
        let Shared(past) = self.retired.get(&index, 0)?;
        if past != ShortcutCounters::default() {
            self.retired.set(index, Shared(ShortcutCounters::default()), 0)?;
            self.keep(past, NOBODY)?;
        }
        Ok(())
    }

    /// Begins to count for a real server that takes this index, of the service with the index `service`.
    pub(super) fn open_real(&mut self, index: u32, service: u32) -> Result<(), MapError> {
        self.close_real(index, service)?;
        self.reals.set(index, self.everywhere(TrafficCounters::default())?, 0)
    }

    /// Keeps what a real server counted, to which no packet is sent any more, for its service or for [`NOBODY`].
    pub(super) fn close_real(&mut self, index: u32, service: u32) -> Result<(), MapError> {
        let past = self.shortcut(index)?;
        if past != ShortcutCounters::default() {
            self.shortcuts.set(index, self.everywhere(ShortcutCounters::default())?, 0)?;
            self.keep(past, service)?;
        }
        Ok(())
    }

    fn keep(&mut self, past: ShortcutCounters, service: u32) -> Result<(), MapError> {
        let Shared(mut kept) = self.retired.get(&service, 0)?;
        kept.add(&past);
        self.retired.set(service, Shared(kept), 0)
    }

    fn everywhere<T: Clone>(&self, value: T) -> Result<PerCpuValues<Shared<T>>, MapError>
    where
        Shared<T>: aya::Pod,
    {
        Ok(PerCpuValues::try_from(vec![Shared(value); self.processors])?)
    }

    fn shortcut(&self, index: u32) -> Result<ShortcutCounters, MapError> {
        let mut total = ShortcutCounters::default();
        self.shortcuts.get(&index, 0)?.iter().for_each(|Shared(counters)| total.add(counters));
        Ok(total)
    }

    /// Counters of a real server.
    pub(super) fn real(&self, index: u32) -> Result<TrafficCounters, MapError> {
        let mut total = sum(&self.reals, index)?;
        total.add(&self.shortcut(index)?.traffic());
        Ok(total)
    }

    /// What took the shortcut to these real servers, of the service with the index `service`, and to those it had.
    pub(super) fn shortcuts(
        &self,
        service: u32,
        mut reals: impl Iterator<Item = u32>,
    ) -> Result<ShortcutCounters, MapError> {
        let Shared(past) = self.retired.get(&service, 0)?;
        reals.try_fold(past, |mut total, index| {
            total.add(&self.shortcut(index)?);
            Ok(total)
        })
    }

    /// Counters of a service, but for what took the shortcut.
    pub(super) fn service(&self, index: u32) -> Result<TrafficCounters, MapError> {
        sum(&self.services, index)
    }

    /// Packets by outcome, given what took the shortcut to the real servers of all services there are.
    pub(super) fn outcomes(&self, mut shortcuts: ShortcutCounters) -> Result<Vec<(Outcome, u64)>, MapError> {
        shortcuts.add(&self.retired.get(&NOBODY, 0)?.0);
        let counted = Outcome::all().map(|(index, outcome)| {
            let packets: u64 = self.outcomes.get(&index, 0)?.iter().sum();
            let short = match index {
                _ if index == Verdict::Transmit.disposition().1 => shortcuts.transmitted,
                _ if index == Verdict::Redirect.disposition().1 => shortcuts.redirected(),
                _ => 0,
            };
            Ok((outcome, packets.wrapping_add(short)))
        });
        counted.collect()
    }
}

/// A counter, over all processors.
fn sum(map: &PerCpuArray<MapData, Shared<TrafficCounters>>, index: u32) -> Result<TrafficCounters, MapError> {
    let mut total = TrafficCounters::default();
    map.get(&index, 0)?.iter().for_each(|Shared(counters)| total.add(counters));
    Ok(total)
}
