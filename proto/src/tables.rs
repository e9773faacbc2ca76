//! Slot tables as the cluster shares them: what is replicated, versioned, digested and kept on disk.
//!
//! A [`TableSet`] is the whole of what directors must agree on: the hash key and one [`ServiceTable`] per
//! virtual service. It carries the [`Epoch`] under which it was decided; the higher epoch wins everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

pub use delta::{Delta, DeltaError, ServicePatch};
pub use slots::Slots;

mod delta;
mod slots;

/// Version of a [`TableSet`]. Ordered by number, then by the router id of the leader that decided it, so
/// that two sides of a healed partition agree on the winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Epoch {
    /// Counts decisions; 0 is never used by a table in force.
    pub number: u64,
    /// Router id of the director that decided.
    pub leader: Ipv4Addr,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.number, self.leader)
    }
}

/// A real server as a table knows it; its position in [`ServiceTable::reals`] is what slots hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct TableReal {
    /// Address of the real server (RIP).
    pub address: IpAddr,
    /// Port on the real server; equal to the service's port where forwarding does not rewrite ports.
    pub port: u16,
    /// Weight by configuration; 0 for a position whose server has gone. Positions are
    /// stable: a position is reused only once no slot names it.
    pub weight: u32,
    /// The cluster takes it for dead: it has no slots, and no connection is kept for it.
    pub dead: bool,
}

impl TableReal {
    /// What its share of the slots follows: the weight, unless it is dead.
    pub fn share(&self) -> u32 {
        if self.dead { 0 } else { self.weight }
    }
}

/// The slot table of one virtual service.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ServiceTable {
    /// Scheduler that seeded the table (`mh` or `ch`).
    pub scheduler: String,
    /// Real servers by position.
    pub reals: Vec<TableReal>,
    /// One entry per slot: position in `reals`, or [`NO_REAL`] while the service has no real server.
    #[serde(skip)]
    pub slots: Slots,
    /// The service as the cluster has agreed on it, in the words of a configuration file; at most [`MAX_DEFINITION`]
    /// bytes. Empty where nobody has said: then each director goes by its own file.
    #[serde(skip)]
    pub definition: Arc<str>,
}

/// Slots of a table unless its service asks for [`SMALL_SLOTS`]: a prime, so that every skip of a Maglev permutation
/// visits all of them.
pub const SLOTS: usize = 65_537;

/// Slots of a small table, for many services of few real servers: a prime too.
pub const SMALL_SLOTS: usize = 4_093;

/// Slot value of a service without any real server.
pub const NO_REAL: u16 = u16::MAX;

/// All tables of a cluster at one epoch.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TableSet {
    /// Version of this set.
    pub epoch: Epoch,
    /// Key of the slot hash, secret to the cluster (16 bytes).
    #[serde(skip)]
    pub hash_key: [u8; 16],
    /// Table of each service, by the service's name.
    pub services: BTreeMap<String, ServiceTable>,
}

/// Longest name of a service or scheduler, in bytes.
pub const MAX_NAME: usize = 255;

/// Most services of a cluster.
pub const MAX_SERVICES: usize = 16_384;

/// Most slots of all services together, which bounds a director's memory: small tables for [`MAX_SERVICES`], or
/// large ones for 1,023 services.
pub const MAX_TOTAL_SLOTS: usize = 1 << 26;

/// Most positions of all services together.
pub const MAX_TOTAL_REALS: usize = 1 << 20;

/// Most positions of one table; few enough that a table's encoding stays near the size of its slots.
pub const MAX_REALS: usize = 4096;

/// Longest definition of a service, in bytes: [`MAX_REALS`] real servers of 250 bytes.
pub const MAX_DEFINITION: usize = 1 << 20;

/// Most bytes of all definitions together.
pub const MAX_DEFINITIONS: usize = 1 << 25;

/// Why tables cannot be used by anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More than [`MAX_SERVICES`].
    #[error("{count} services, at most {MAX_SERVICES} are supported")]
    TooManyServices {
        /// Services found.
        count: usize,
    },
    /// A name is empty or longer than [`MAX_NAME`].
    #[error("a name of {length} bytes, it must have 1 to {MAX_NAME}")]
    NameLength {
        /// Bytes found.
        length: usize,
    },
    /// More than one of the limits on all tables together.
    #[error("{count} {what} in all tables together, at most {limit} are supported")]
    TooManyTogether {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Neither [`SLOTS`] nor [`SMALL_SLOTS`].
    #[error("service {service}: {count} slots instead of {SLOTS} or {SMALL_SLOTS}")]
    SlotCount {
        /// Name of the service.
        service: String,
        /// Slots found.
        count: usize,
    },
    /// More than [`MAX_REALS`].
    #[error("service {service}: {count} real servers, at most {MAX_REALS} are supported")]
    TooManyReals {
        /// Name of the service.
        service: String,
        /// Positions found.
        count: usize,
    },
    /// More than [`MAX_DEFINITION`].
    #[error("service {service}: a definition of {length} bytes, at most {MAX_DEFINITION} are supported")]
    DefinitionLength {
        /// Name of the service.
        service: String,
        /// Bytes found.
        length: usize,
    },
    /// A slot names a position that does not exist.
    #[error("service {service}: slot {slot} names position {position} of {reals}")]
    Position {
        /// Name of the service.
        service: String,
        /// Index of the slot.
        slot: usize,
        /// What it holds.
        position: u16,
        /// Positions there are.
        reals: usize,
    },
}

/// What two directors compare to know whether they hold the same tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Version {
    /// Epoch of the tables.
    pub epoch: Epoch,
    /// [`TableSet::digest`].
    pub digest: Digest,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.epoch, self.digest)
    }
}

/// SHA-256 over a canonical encoding, shown as its first 8 bytes in hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl ServiceTable {
    /// Checks sizes and that every slot names a position. `name` is the service's.
    pub fn check(&self, name: &str) -> Result<(), TableError> {
        check_name(name)?;
        check_name(&self.scheduler)?;
        let service = || name.to_owned();
        if !is_table_size(self.slots.len()) {
            return Err(TableError::SlotCount { service: service(), count: self.slots.len() });
        }
        let reals = self.reals.len();
        if reals > MAX_REALS {
            return Err(TableError::TooManyReals { service: service(), count: reals });
        }
        let length = self.definition.len();
        if length > MAX_DEFINITION {
            return Err(TableError::DefinitionLength { service: service(), length });
        }
        let outside = |&(_, &position): &(usize, &u16)| position != NO_REAL && usize::from(position) >= reals;
        match self.slots.iter().enumerate().find(outside) {
            Some((slot, &position)) => {
                Err(TableError::Position { service: service(), slot, position, reals })
            }
            None => Ok(()),
        }
    }

    /// Digest of real servers, slots and definition. Equal digests forward equally (under one hash key).
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        self.feed(&mut hash);
        Digest(hash.finalize().into())
    }

    fn feed(&self, hash: &mut Sha256) {
        feed_bytes(hash, self.scheduler.as_bytes());
        hash.update((self.reals.len() as u64).to_le_bytes());
        for real in &self.reals {
            match real.address {
                IpAddr::V4(address) => hash.update(address.to_ipv6_mapped().octets()),
                IpAddr::V6(address) => hash.update(address.octets()),
            }
            hash.update(real.port.to_le_bytes());
            hash.update(real.weight.to_le_bytes());
            hash.update([u8::from(real.dead)]);
        }
        hash.update((self.slots.len() as u64).to_le_bytes());
        hash.update(self.slots.digest().0);
        feed_bytes(hash, self.definition.as_bytes());
    }
}

/// Whether a table may have this many slots.
pub const fn is_table_size(slots: usize) -> bool {
    slots == SLOTS || slots == SMALL_SLOTS
}

fn check_name(name: &str) -> Result<(), TableError> {
    match name.len() {
        1..=MAX_NAME => Ok(()),
        length => Err(TableError::NameLength { length }),
    }
}

impl TableSet {
    /// Checks the number of services, each of them, and all together.
    pub fn check(&self) -> Result<(), TableError> {
        self.check_size()?;
        self.services.iter().try_for_each(|(name, table)| table.check(name))
    }

    /// Checks the limits on all tables together.
    fn check_size(&self) -> Result<(), TableError> {
        if self.services.len() > MAX_SERVICES {
            return Err(TableError::TooManyServices { count: self.services.len() });
        }
        let sum = |of: fn(&ServiceTable) -> usize| self.services.values().map(of).sum::<usize>();
        for (what, count, limit) in [
            ("slots", sum(|table| table.slots.len()), MAX_TOTAL_SLOTS),
            ("real servers", sum(|table| table.reals.len()), MAX_TOTAL_REALS),
            ("bytes of definitions", sum(|table| table.definition.len()), MAX_DEFINITIONS),
        ] {
            if count > limit {
                return Err(TableError::TooManyTogether { what, count, limit });
            }
        }
        Ok(())
    }

    /// Epoch and digest. Hashes the slots of each table that was not hashed before.
    pub fn version(&self) -> Version {
        Version { epoch: self.epoch, digest: self.digest() }
    }

    /// Digest of epoch, hash key and every table: what two directors compare to know that they agree.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(self.epoch.number.to_le_bytes());
        hash.update(self.epoch.leader.octets());
        hash.update(self.hash_key);
        hash.update((self.services.len() as u64).to_le_bytes());
        for (name, table) in &self.services {
            feed_bytes(&mut hash, name.as_bytes());
            table.feed(&mut hash);
        }
        Digest(hash.finalize().into())
    }
}

/// Length first, so that no two sequences of fields share an encoding.
fn feed_bytes(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
