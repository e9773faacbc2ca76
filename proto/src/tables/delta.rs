//! The difference between two table sets: what a change sends instead of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{ServiceTable, TableError, TableReal, TableSet, Version};

/// One in so many slots changed, and a whole table is shorter than the list (6 bytes a change, 2 a slot).
const WORTH_A_PATCH: usize = 3;

/// What leads from one version to the next; the hash key does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Version it applies to.
    pub from: Version,
    /// Version it results in.
    pub to: Version,
    /// New services, and those that changed so much that a patch would be longer.
    pub replaced: BTreeMap<String, ServiceTable>,
    /// Services that changed a little.
    pub patched: BTreeMap<String, ServicePatch>,
    /// Services that are gone.
    pub removed: BTreeSet<String>,
}

/// Changes of one service's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePatch {
    /// Scheduler from now on.
    pub scheduler: String,
    /// Real servers from now on, all of them.
    pub reals: Vec<TableReal>,
    /// Changed slots: index and new position, by ascending index.
    pub slots: Vec<(u32, u16)>,
    /// Definition from now on; `None` where it stays.
    pub definition: Option<Arc<str>>,
}

/// Why a delta cannot be applied; the remedy is a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// It starts from other tables than ours.
    #[error("the delta starts from {from}, not from our {ours}")]
    OtherBase {
        /// Where it starts.
        from: Version,
        /// What we hold.
        ours: Version,
    },
    /// It names a service that its base does not have.
    #[error("the delta changes the unknown service {name}")]
    UnknownService {
        /// The name.
        name: String,
    },
    /// It changes a slot beyond the table.
    #[error("the delta of service {service} changes slot {slot}, which it does not have")]
    Slot {
        /// Name of the service.
        service: String,
        /// The index.
        slot: u32,
    },
    /// Applied, it gives something else than announced.
    #[error("the delta results in {result}, not in the announced {announced}")]
    OtherResult {
        /// What came out.
        result: Version,
        /// What was announced.
        announced: Version,
    },
    /// Applied, it gives tables that nobody can use.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Delta {
    /// The difference from `old` to `new`, whose versions the caller knows; `None` when only a snapshot can
    /// carry it, because the hash key changed.
    pub fn between(old: (&TableSet, Version), new: (&TableSet, Version)) -> Option<Self> {
        let ((old, from), (new, to)) = (old, new);
        if old.hash_key != new.hash_key {
            return None;
        }
        let removed = old.services.keys().filter(|name| !new.services.contains_key(*name)).cloned().collect();
        let mut delta = Self { from, to, replaced: BTreeMap::new(), patched: BTreeMap::new(), removed };
        for (name, table) in &new.services {
            match old.services.get(name).map(|previous| patch(previous, table)) {
                None | Some(Difference::Large) => {
                    delta.replaced.insert(name.clone(), table.clone());
                }
                Some(Difference::Small(patch)) => {
                    delta.patched.insert(name.clone(), patch);
                }
                Some(Difference::None) => {}
            }
        }
        Some(delta)
    }

    /// Applies the delta to `base`, whose version the caller knows, and verifies the result by its digest.
    pub fn apply(&self, base: &TableSet, version: Version) -> Result<TableSet, DeltaError> {
        if self.from != version {
            return Err(DeltaError::OtherBase { from: self.from, ours: version });
        }
        let mut tables = base.clone();
        tables.epoch = self.to.epoch;
        for name in &self.removed {
            if tables.services.remove(name).is_none() {
                return Err(DeltaError::UnknownService { name: name.clone() });
            }
        }
        for (name, patch) in &self.patched {
            let table = tables.services.get_mut(name);
            let table = table.ok_or_else(|| DeltaError::UnknownService { name: name.clone() })?;
            patch.apply(name, table)?;
        }
        tables.services.extend(self.replaced.iter().map(|(name, table)| (name.clone(), table.clone())));
        let result = tables.version();
        if result != self.to {
            return Err(DeltaError::OtherResult { result, announced: self.to });
        }
        tables.check_size()?;
        for name in self.patched.keys().chain(self.replaced.keys()) {
            tables.services.get(name).map_or(Ok(()), |table| table.check(name))?;
        }
        Ok(tables)
    }
}

impl ServicePatch {
    fn apply(&self, service: &str, table: &mut ServiceTable) -> Result<(), DeltaError> {
        table.scheduler.clone_from(&self.scheduler);
        table.reals.clone_from(&self.reals);
        if let Some(definition) = &self.definition {
            table.definition = Arc::clone(definition);
        }
        if self.slots.is_empty() {
            return Ok(());
        }
        let slots: &mut [u16] = &mut table.slots;
        for &(slot, position) in &self.slots {
            let place = usize::try_from(slot).ok().and_then(|index| slots.get_mut(index));
            *place.ok_or_else(|| DeltaError::Slot { service: service.to_owned(), slot })? = position;
        }
        Ok(())
    }
}

enum Difference {
    None,
    Small(ServicePatch),
    Large,
}

fn patch(old: &ServiceTable, new: &ServiceTable) -> Difference {
    if old == new {
        return Difference::None;
    }
    if old.slots.len() != new.slots.len() {
        return Difference::Large;
    }
    let slots: Vec<(u32, u16)> = (0u32..)
        .zip(old.slots.iter().zip(new.slots.iter()))
        .filter(|(_, (old, new))| old != new)
        .map(|(index, (_, new))| (index, *new))
        .collect();
    if slots.len() >= new.slots.len() / WORTH_A_PATCH {
        return Difference::Large;
    }
    let definition = (old.definition != new.definition).then(|| Arc::clone(&new.definition));
    Difference::Small(ServicePatch {
        scheduler: new.scheduler.clone(),
        reals: new.reals.clone(),
        slots,
        definition,
    })
}

#[cfg(test)]
mod tests;
