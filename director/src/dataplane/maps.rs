//! Typed handles of the maps.
//!
//! What they cost of the kernel's memory, at 16,384 services' room (`C` is the number of possible processors):
//!
//! | map | follows | bytes |
//! |---|---|---|
//! | `SERVICES` | its limit, then use | 1 MiB of buckets, about 100 a key |
//! | `SERVICES_V4` | its limit, then use | 1 MiB of buckets, about 80 a key |
//! | `CLASSES`, `RANGES` | use | about 80 a prefix, 100 a block of ports |
//! | `TABLES` | use | 1 MiB for 4 tables of 65,537 slots, 64 KiB for all shelves |
//! | `SMALL_TABLES` | use | 1 MiB for 64 tables of 4,093 slots (10,000 services: 164 MB), 4 KiB for all shelves |
//! | `REALS` | its limit | 2.5 MiB |
//! | `REAL_STATS` | its limit | 65,536 x 56 x `C`: 3.5 MiB a processor |
//! | `SHORTCUTS` | its limit | 65,536 x 32 x `C`: 2 MiB a processor |
//! | `SERVICE_STATS` | its limit | 16,384 x 56 x `C`: 0.9 MiB a processor |
//! | `RETIRED` | its limit | 512 KiB |
//! | `NAMES` | its limit | 1 MiB |
//! | `REPLIES` | its limit, then use | 2 MiB of buckets, about 100 a port of a real server with NAT |
//! | `LOADS` | its limit | 2 MiB |
//! | `ROSTERS` | use | 128 KiB of buckets, about 8,400 a tracked service |
//! | `CURSORS` | its limit | 128 KiB |
//! | `PINS`, `HALF_OPEN` and their `_FLOWS` | the options | 90 a connection |
//! | `LEASES`, `LEASE_OWNERS` | those, where there are local addresses | 51 a connection |
//! | `FLOWS` | the option | about 150 a flow, if flows are accounted |
//!
//! Arrays have their limit from the start, since only they are looked up without a hash.

use std::collections::{BTreeMap, BTreeSet};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::lpm_trie::{Key as TrieKey, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod, util};
use director_common::counters::{FlowCounters, ShortcutCounters, TrafficCounters};
use director_common::hash::FlowHash;
use director_common::pin::table::{FlowBucket, PinBucket};
use director_common::pin::{QuicEntry, QuicKey};
use director_common::siphash::HashKey;
use director_common::tables::{
    Address, Config, FlowKey, Interface, LeaseBucket, LoadEntry, MAX_CLASSES, MAX_INTERFACES,
    MAX_LOCAL_NUMBERS, MAX_QUIC_IDS, MAX_RANGE_KEYS, MAX_REALS, MAX_REPLY_KEYS, MAX_SERVICE_KEYS,
    MAX_SERVICES, MAX_TABLES, NEAR_INTERFACES, Plain, RangeKey, RealEntry, ReplyEntry, ReplyKey, Roster,
    SHELF, SMALL_SHELF, SMALL_TABLE, ServiceEntry, ServiceKey, ServiceKeyV4, ServiceName, WindowEntry,
    is_small,
};
use director_common::verdict::OUTCOME_COUNTERS;
use director_common::{SLOTS, SMALL_SLOTS};

use super::capture::CaptureMaps;
use super::connections::Connections;
use super::counts::Counts;
use super::error::OpenError;
use super::explain::{Buckets, Fragments};
use super::keys::{Key, Prefix};
use super::leases::LeaseTable;
use super::loads::Loads;
use super::locals::LocalMap;
use super::shelves::Shelves;
use super::{NextHop, with_way};

/// Every map of the object, by name. `CONFIG` comes last: where it is, the others are.
pub(super) const NAMES: [&str; 30] = [
    "SERVICES",
    "SERVICES_V4",
    "CLASSES",
    "RANGES",
    "TABLES",
    "SMALL_TABLES",
    "REALS",
    "INTERFACES",
    "NEAR",
    "NAMES",
    "OUTCOMES",
    "SERVICE_STATS",
    "REAL_STATS",
    "SHORTCUTS",
    "RETIRED",
    "FLOWS",
    "PINS",
    "PIN_FLOWS",
    "HALF_OPEN",
    "HALF_OPEN_FLOWS",
    "LEASES",
    "LEASE_OWNERS",
    "LOCAL_ADDRESSES",
    "LOADS",
    "ROSTERS",
    "CURSORS",
    "QUIC_IDS",
    "REPLIES",
    "WINDOWS",
    "CONFIG",
];

/// Key size, value size and number of entries (`None` for any) of a map.
pub(super) fn shape(name: &str) -> (u32, u32, Option<u32>) {
    const fn of<K, V>(entries: usize) -> (u32, u32, Option<u32>) {
        (size_of::<K>() as u32, size_of::<V>() as u32, Some(entries as u32))
    }
    match name {
        "SERVICES" => of::<ServiceKey, ServiceEntry>(MAX_SERVICE_KEYS),
        "SERVICES_V4" => of::<ServiceKeyV4, ServiceEntry>(MAX_SERVICE_KEYS),
        "CLASSES" => of::<TrieKey<Address>, u32>(MAX_CLASSES),
        "RANGES" => of::<TrieKey<RangeKey>, ServiceEntry>(MAX_RANGE_KEYS),
        "TABLES" => of::<u32, u32>(MAX_TABLES / SHELF),
        "SMALL_TABLES" => of::<u32, u32>(MAX_TABLES / SMALL_SHELF),
        "REALS" => of::<u32, RealEntry>(MAX_REALS),
        "INTERFACES" => of::<u32, Interface>(MAX_INTERFACES),
        "NEAR" => of::<u32, Interface>(NEAR_INTERFACES),
        "NAMES" => of::<u32, ServiceName>(MAX_SERVICES),
        "OUTCOMES" => of::<u32, u64>(OUTCOME_COUNTERS),
        "SERVICE_STATS" => of::<u32, TrafficCounters>(MAX_SERVICES),
        "REAL_STATS" => of::<u32, TrafficCounters>(MAX_REALS),
        "SHORTCUTS" => of::<u32, ShortcutCounters>(MAX_REALS),
        "RETIRED" => of::<u32, ShortcutCounters>(MAX_SERVICES + 1),
        "LOADS" => of::<u32, LoadEntry>(MAX_REALS),
        "ROSTERS" => of::<u32, Roster>(MAX_SERVICES),
        "CURSORS" => of::<u32, u64>(MAX_SERVICES),
        "PINS" | "HALF_OPEN" | "LEASES" => (size_of::<u32>() as u32, size_of::<PinBucket>() as u32, None),
        "PIN_FLOWS" | "HALF_OPEN_FLOWS" => (size_of::<u32>() as u32, size_of::<FlowBucket>() as u32, None),
        "LEASE_OWNERS" => (size_of::<u32>() as u32, size_of::<LeaseBucket>() as u32, None),
        "LOCAL_ADDRESSES" => of::<u32, Address>(MAX_LOCAL_NUMBERS),
        "QUIC_IDS" => of::<QuicKey, QuicEntry>(MAX_QUIC_IDS),
        "REPLIES" => of::<ReplyKey, ReplyEntry>(MAX_REPLY_KEYS),
        "WINDOWS" => of::<u32, WindowEntry>(MAX_SERVICES),
        "CONFIG" => of::<u32, Config>(1),
        _ => (size_of::<FlowKey>() as u32, size_of::<FlowCounters>() as u32, None),
    }
}

/// A type both sides share, in the form the map handles want it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Shared<T>(pub(super) T);

// SAFETY: `Plain` promises what `Pod` asks for, and the wrapper is transparent.
unsafe impl<T: Plain> Pod for Shared<T> {}

/// All maps.
pub(super) struct Maps {
    config: Array<MapData, Shared<Config>>,
    services: HashMap<MapData, Shared<ServiceKey>, Shared<ServiceEntry>>,
    services_v4: HashMap<MapData, Shared<ServiceKeyV4>, Shared<ServiceEntry>>,
    classes: LpmTrie<MapData, Shared<Address>, u32>,
    ranges: LpmTrie<MapData, Shared<RangeKey>, Shared<ServiceEntry>>,
    tables: Shelves<SLOTS>,
    small_tables: Shelves<SMALL_SLOTS>,
    reals: Array<MapData, Shared<RealEntry>>,
    interfaces: HashMap<MapData, u32, Shared<Interface>>,
    near: Array<MapData, Shared<Interface>>,
    names: Array<MapData, Shared<ServiceName>>,
    pub(super) counts: Counts,
    pub(super) flows: HashMap<MapData, Shared<FlowKey>, Shared<FlowCounters>>,
    pub(super) pins: Connections,
    pub(super) half_open: Connections,
    pub(super) leases: LeaseTable,
    pub(super) locals: LocalMap,
    pub(super) loads: Loads,
    pub(super) rosters: HashMap<MapData, u32, Shared<Roster>>,
    pub(super) cursors: Array<MapData, u64>,
    pub(super) quic_ids: HashMap<MapData, Shared<QuicKey>, Shared<QuicEntry>>,
    replies: HashMap<MapData, Shared<ReplyKey>, Shared<ReplyEntry>>,
    windows: Array<MapData, Shared<WindowEntry>>,
    pub(super) fragments: Fragments,
    pub(super) buckets: Buckets,
    pub(super) capture: CaptureMaps,
    pub(super) processors: usize,
    /// Where in the real-server map an address stands: a next hop that changes must not read all of it.
    places: BTreeMap<Address, BTreeSet<u32>>,
}

pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, OpenError> {
    let map = ebpf.take_map(name).ok_or(OpenError::Object(name))?;
    Ok(T::try_from(map)?)
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, OpenError> {
        let processors = util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        let config: Array<MapData, Shared<Config>> = take(ebpf, "CONFIG")?;
        let mut connections =
            |entries, flows| Ok::<_, OpenError>(Connections::new(take(ebpf, entries)?, take(ebpf, flows)?)?);
        let (pins, half_open) =
            (connections("PINS", "PIN_FLOWS")?, connections("HALF_OPEN", "HALF_OPEN_FLOWS")?);
        Ok(Self {
            config,
            services: take(ebpf, "SERVICES")?,
            services_v4: take(ebpf, "SERVICES_V4")?,
            classes: take(ebpf, "CLASSES")?,
            ranges: take(ebpf, "RANGES")?,
            tables: Shelves::new(take(ebpf, "TABLES")?, SHELF),
            small_tables: Shelves::new(take(ebpf, "SMALL_TABLES")?, SMALL_SHELF),
            reals: take(ebpf, "REALS")?,
            interfaces: take(ebpf, "INTERFACES")?,
            near: take(ebpf, "NEAR")?,
            names: take(ebpf, "NAMES")?,
            counts: Counts::take(ebpf, processors)?,
            flows: take(ebpf, "FLOWS")?,
            pins,
            half_open,
            leases: LeaseTable::new(take(ebpf, "LEASES")?, take(ebpf, "LEASE_OWNERS")?)?,
            locals: take(ebpf, "LOCAL_ADDRESSES")?,
            loads: take(ebpf, "LOADS")?,
            rosters: take(ebpf, "ROSTERS")?,
            cursors: take(ebpf, "CURSORS")?,
            quic_ids: take(ebpf, "QUIC_IDS")?,
            replies: take(ebpf, "REPLIES")?,
            windows: take(ebpf, "WINDOWS")?,
            fragments: take(ebpf, "FRAGMENTS")?,
            buckets: take(ebpf, "BUCKETS")?,
            capture: CaptureMaps::take(ebpf)?,
            processors,
            places: BTreeMap::new(),
        })
    }

    /// Replaces the settings by what `change` makes of them, if that differs.
    pub(super) fn write_config(&mut self, change: impl FnOnce(Config) -> Config) -> Result<(), MapError> {
        let Shared(old) = self.config.get(&0, 0)?;
        let new = change(old);
        if new != old { self.config.set(0, Shared(new), 0) } else { Ok(()) }
    }

    /// Finds connections by the secrets in the settings.
    pub(super) fn adopt_pin_hash(&mut self) -> Result<(), MapError> {
        let hash = self.config()?.pins;
        self.pins.set_hash(hash);
        self.half_open.set_hash(hash);
        Ok(())
    }

    /// The settings.
    pub(super) fn config(&self) -> Result<Config, MapError> {
        Ok(self.config.get(&0, 0)?.0)
    }

    /// The key of the slot hash.
    pub(super) fn hash_key(&self) -> Result<HashKey, MapError> {
        Ok(self.config.get(&0, 0)?.0.hash_key)
    }

    /// The slot hash.
    pub(super) fn flow_hash(&self) -> Result<FlowHash, MapError> {
        Ok(self.config.get(&0, 0)?.0.hash)
    }

    /// A real server's entry.
    pub(super) fn real(&self, index: u32) -> Result<RealEntry, MapError> {
        Ok(self.reals.get(&index, 0)?.0)
    }

    /// Writes the entry of a real server that no packet reaches yet, and starts its counters from zero; `service` is the
    /// index of the service that had the entry before.
    pub(super) fn new_real(&mut self, index: u32, entry: RealEntry, service: u32) -> Result<(), MapError> {
        self.counts.open_real(index, service)?;
        let old = self.real(index)?.address;
        self.forget_real(index, old);
        self.loads.set(index, LoadEntry::default());
        self.reals.set(index, Shared(entry), 0)?;
        self.note_real(index, entry.address);
        Ok(())
    }

    /// Notes the real servers that an earlier process wrote.
    pub(super) fn adopt_reals(&mut self, indices: Vec<u32>) -> Result<(), MapError> {
        for index in indices {
            let address = self.real(index)?.address;
            self.note_real(index, address);
        }
        Ok(())
    }

    fn note_real(&mut self, index: u32, address: Address) {
        if address != Address::default() {
            self.places.entry(address).or_default().insert(index);
        }
    }

    fn forget_real(&mut self, index: u32, address: Address) {
        if let Some(places) = self.places.get_mut(&address) {
            places.remove(&index);
            if places.is_empty() {
                self.places.remove(&address);
            }
        }
    }

    /// The entries of the real server with this address.
    pub(super) fn places_of(&self, address: Address) -> Vec<u32> {
        self.places.get(&address).into_iter().flatten().copied().collect()
    }

    /// Empties a real server's entry that no table names any more: pins to it are void, and packets under way that
    /// saw an older table find no way. `service` is the index of its service.
    pub(super) fn clear_real(&mut self, index: u32, service: u32) -> Result<(), MapError> {
        self.counts.close_real(index, service)?;
        let old = self.real(index)?;
        self.forget_real(index, old.address);
        self.loads.set(index, LoadEntry::default());
        self.reals.set(index, Shared(RealEntry { ifindex: 0, generation: 0, ..old }), 0)?;
        self.reals.set(index, Shared(RealEntry::default()), 0)
    }

    /// What is remembered of a service's windows, by service index.
    pub(super) fn window(&self, index: u32) -> Result<WindowEntry, MapError> {
        Ok(self.windows.get(&index, 0)?.0)
    }

    /// Remembers a service's windows.
    pub(super) fn set_window(&mut self, index: u32, entry: WindowEntry) -> Result<(), MapError> {
        self.windows.set(index, Shared(entry), 0)
    }

    /// Replaces the way in a real server's entry. An element of an array is not replaced at once, so a program
    /// that reads it meanwhile could mix two ways: therefore it reads "no way" while the rest changes.
    pub(super) fn set_way(
        &mut self,
        index: u32,
        old: RealEntry,
        way: Option<NextHop>,
    ) -> Result<(), MapError> {
        let new = with_way(old, way);
        if new == old {
            return Ok(());
        }
        if old.ifindex != 0 {
            self.reals.set(index, Shared(RealEntry { ifindex: 0, ..old }), 0)?;
        }
        self.reals.set(index, Shared(RealEntry { ifindex: 0, ..new }), 0)?;
        if new.ifindex != 0 {
            self.reals.set(index, Shared(new), 0)?;
        }
        Ok(())
    }

    /// Replaces whom a tracked service chooses from, and where on its wheel it is.
    pub(super) fn set_roster(
        &mut self,
        index: u32,
        roster: Roster,
        cursor: Option<u64>,
    ) -> Result<(), MapError> {
        self.rosters.insert(index, Shared(roster), 0)?;
        match cursor {
            Some(cursor) => self.cursors.set(index, cursor, 0),
            None => Ok(()),
        }
    }

    /// Forgets whom a service chose from.
    pub(super) fn remove_roster(&mut self, index: u32) -> Result<(), MapError> {
        match self.rosters.remove(&index) {
            // It had none.
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            result => result,
        }
    }

    /// A service's name by index; `None` where the index is free.
    pub(super) fn name(&self, index: u32) -> Result<Option<String>, MapError> {
        let Shared(name) = self.names.get(&index, 0)?;
        let bytes = usize::try_from(name.length).ok().and_then(|length| name.bytes.get(..length));
        Ok(bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    }

    /// Takes an index for a service, counters from zero, or frees it.
    pub(super) fn set_name(&mut self, index: u32, name: Option<&str>) -> Result<(), MapError> {
        let mut value = ServiceName { length: 0, reserved: 0, bytes: [0; _] };
        if let Some(name) = name {
            self.counts.open_service(index)?;
            value.length = name.len() as u32;
            value.bytes[..name.len()].copy_from_slice(name.as_bytes());
        } else {
            self.counts.close_service(index)?;
        }
        self.names.set(index, Shared(value), 0)
    }

    /// Every key and what it leads to.
    pub(super) fn keys(&self) -> Result<BTreeMap<Key, ServiceEntry>, MapError> {
        let exact = self.services.iter().map(|item| {
            let (Shared(key), Shared(entry)) = item?;
            Ok((Key::Exact(key), entry))
        });
        let ranges = self.ranges.iter().map(|item| {
            let (key, Shared(entry)) = item?;
            Ok((Key::Range(key.data().0, key.prefix_len()), entry))
        });
        exact.chain(ranges).collect()
    }

    /// Makes the short forms of keys agree with `keys`, which are all there are: an earlier process may have died
    /// between the two.
    pub(super) fn adopt_short_keys(&mut self, keys: &BTreeMap<Key, ServiceEntry>) -> Result<(), MapError> {
        let short = |(key, entry): (&Key, &ServiceEntry)| match key {
            Key::Exact(key) => ServiceKeyV4::of(key).map(|short| (short, *entry)),
            Key::Range(..) => None,
        };
        let wanted: BTreeMap<_, _> = keys.iter().filter_map(short).collect();
        let found = self.services_v4.iter().map(|item| item.map(|(Shared(key), Shared(entry))| (key, entry)));
        let found: BTreeMap<_, _> = found.collect::<Result<_, _>>()?;
        for (key, entry) in wanted.iter().filter(|(key, entry)| found.get(key) != Some(entry)) {
            self.services_v4.insert(Shared(*key), Shared(*entry), 0)?;
        }
        for key in found.keys().filter(|key| !wanted.contains_key(key)) {
            self.services_v4.remove(&Shared(*key))?;
        }
        Ok(())
    }

    /// Sets what a key leads to: for a packet it is the old entry or the new one.
    pub(super) fn set_key(&mut self, key: Key, entry: ServiceEntry) -> Result<(), MapError> {
        match key {
            Key::Exact(key) => {
                self.services.insert(Shared(key), Shared(entry), 0)?;
                ServiceKeyV4::of(&key)
                    .map_or(Ok(()), |short| self.services_v4.insert(Shared(short), Shared(entry), 0))
            }
            Key::Range(key, bits) => self.ranges.insert(&TrieKey::new(bits, Shared(key)), Shared(entry), 0),
        }
    }

    /// Removes a key.
    pub(super) fn remove_key(&mut self, key: Key) -> Result<(), MapError> {
        match key {
            Key::Exact(key) => {
                if let Some(short) = ServiceKeyV4::of(&key) {
                    self.services_v4.remove(&Shared(short))?;
                }
                self.services.remove(&Shared(key))
            }
            Key::Range(key, bits) => self.ranges.remove(&TrieKey::new(bits, Shared(key))),
        }
    }

    /// Whose answer what comes from a real server is, for every port with NAT.
    pub(super) fn replies(&self) -> Result<BTreeMap<ReplyKey, ReplyEntry>, MapError> {
        self.replies.iter().map(|item| item.map(|(Shared(key), Shared(entry))| (key, entry))).collect()
    }

    /// The same of one.
    pub(super) fn reply(&self, key: ReplyKey) -> Result<ReplyEntry, MapError> {
        self.replies.get(&Shared(key), 0).map(|Shared(entry)| entry)
    }

    /// Says whose answer what comes from a real server is.
    pub(super) fn set_reply(&mut self, key: ReplyKey, entry: ReplyEntry) -> Result<(), MapError> {
        self.replies.insert(Shared(key), Shared(entry), 0)
    }

    /// Forgets it.
    pub(super) fn remove_reply(&mut self, key: ReplyKey) -> Result<(), MapError> {
        self.replies.remove(&Shared(key))
    }

    /// The class of every prefix.
    pub(super) fn classes(&self) -> Result<BTreeMap<Prefix, u32>, MapError> {
        let prefix =
            |key: TrieKey<Shared<Address>>| Prefix { address: key.data().0, length: key.prefix_len() };
        self.classes.iter().map(|item| item.map(|(key, class)| (prefix(key), class))).collect()
    }

    /// Gives a prefix a class, which holds all it shall.
    pub(super) fn set_class(&mut self, prefix: Prefix, class: u32) -> Result<(), MapError> {
        self.classes.insert(&TrieKey::new(prefix.length, Shared(prefix.address)), class, 0)
    }

    /// Takes its class from a prefix.
    pub(super) fn remove_class(&mut self, prefix: Prefix) -> Result<(), MapError> {
        self.classes.remove(&TrieKey::new(prefix.length, Shared(prefix.address)))
    }

    /// Reads a slot table; `None` where there is none.
    pub(super) fn table(&mut self, table: u32) -> Result<Option<Box<[u32]>>, MapError> {
        if is_small(table) { self.small_tables.read(table & !SMALL_TABLE) } else { self.tables.read(table) }
    }

    /// The same, without any shelf being kept open.
    pub(super) fn peek_table(&self, table: u32) -> Result<Option<Box<[u32]>>, MapError> {
        if is_small(table) { self.small_tables.peek(table & !SMALL_TABLE) } else { self.tables.peek(table) }
    }

    /// The service of a key.
    pub(super) fn service(&self, key: ServiceKey) -> Result<ServiceEntry, MapError> {
        self.services.get(&Shared(key), 0).map(|Shared(entry)| entry)
    }

    /// The class of the longest prefix that has an address.
    pub(super) fn class_of(&self, address: Address) -> Result<u32, MapError> {
        self.classes.get(&TrieKey::new(128, Shared(address)), 0)
    }

    /// The service that owns the narrowest range of a class with a port.
    pub(super) fn range(&self, key: RangeKey) -> Result<ServiceEntry, MapError> {
        let bits = 8 * u32::try_from(size_of::<RangeKey>()).expect("invariant: a key is small");
        self.ranges.get(&TrieKey::new(bits, Shared(key)), 0).map(|Shared(entry)| entry)
    }

    /// Writes a complete slot table, of the size its index says, where no service has one.
    pub(super) fn set_table(&mut self, table: u32, slots: &[u32]) -> Result<(), MapError> {
        let wrong = |_| MapError::InvalidValueSize { size: size_of_val(slots), expected: 4 * SLOTS };
        if is_small(table) {
            self.small_tables.write(table & !SMALL_TABLE, slots.try_into().map_err(wrong)?)
        } else {
            self.tables.write(table, slots.try_into().map_err(wrong)?)
        }
    }

    /// Gives the memory of tables back that are not among those `in_use`, and returns after a grace period: every
    /// program that ran when this was called has ended.
    pub(super) fn release_tables(&mut self, in_use: &[u32]) -> Result<(), MapError> {
        let (small, large): (Vec<u32>, Vec<u32>) = in_use.iter().partition(|table| is_small(**table));
        let waited = self.tables.trim(large.into_iter())?;
        let waited = self.small_tables.trim(small.into_iter().map(|table| table & !SMALL_TABLE))? || waited;
        if !waited {
            self.wait()?;
        }
        Ok(())
    }

    /// Returns after every program that ran when this was called has ended.
    pub(super) fn wait(&mut self) -> Result<(), MapError> {
        // Without any shelf there is no table, so nothing that a program could still use.
        let _ = self.tables.wait()? || self.small_tables.wait()?;
        Ok(())
    }

    /// Tells the program an interface's link address.
    pub(super) fn set_interface(&mut self, ifindex: u32, mac: [u8; 6], native: bool) -> Result<(), MapError> {
        let flags = Interface::FLAG_KNOWN | if native { Interface::FLAG_NATIVE } else { 0 };
        let interface = Shared(Interface { mac, flags });
        self.interfaces.insert(ifindex, interface, 0)?;
        if is_near(ifindex) { self.near.set(ifindex, interface, 0) } else { Ok(()) }
    }

    /// What the program was told of an interface.
    pub(super) fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interfaces.get(&ifindex, 0).ok().map(|Shared(interface)| interface)
    }

    /// Forgets an interface.
    pub(super) fn remove_interface(&mut self, ifindex: u32) {
        // Not there is what is wanted.
        let _ = self.interfaces.remove(&ifindex);
        if is_near(ifindex) {
            // An element that exists takes any value.
            let _ = self.near.set(ifindex, Shared(Interface::default()), 0);
        }
    }
}

/// Whether the program looks for an interface in the array.
fn is_near(ifindex: u32) -> bool {
    usize::try_from(ifindex).is_ok_and(|ifindex| ifindex < NEAR_INTERFACES)
}

/// An address as the maps hold it.
pub(super) fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.octets()),
        IpAddr::V6(address) => Address(address.octets()),
    }
}

/// The address in a map's entry.
pub(crate) fn ip_address(address: Address) -> IpAddr {
    match address.ipv4() {
        Some(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        None => IpAddr::V6(Ipv6Addr::from(address.0)),
    }
}
