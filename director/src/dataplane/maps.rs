//! Typed handles of the maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::{Ebpf, Pod, util};
use director_common::counters::{FlowCounters, TrafficCounters};
use director_common::siphash::HashKey;
use director_common::tables::{
    Address, Config, FlowKey, Interface, MAX_INTERFACES, MAX_REALS, MAX_SERVICE_KEYS, MAX_SERVICES,
    MAX_TABLES, NEAR_INTERFACES, Plain, RealEntry, ServiceEntry, ServiceKey, ServiceName, SlotTable,
};
use director_common::verdict::OUTCOME_COUNTERS;

use super::apply::empty_table;
use super::error::OpenError;
use super::{NextHop, with_way};

/// Every map of the object, by name. `CONFIG` comes last: where it is, the others are.
pub(super) const NAMES: [&str; 11] = [
    "SERVICES",
    "TABLES",
    "REALS",
    "INTERFACES",
    "NEAR",
    "NAMES",
    "OUTCOMES",
    "SERVICE_STATS",
    "REAL_STATS",
    "FLOWS",
    "CONFIG",
];

/// Key size, value size and number of entries (`None` for any) of a map.
pub(super) fn shape(name: &str) -> (u32, u32, Option<u32>) {
    const fn of<K, V>(entries: usize) -> (u32, u32, Option<u32>) {
        (size_of::<K>() as u32, size_of::<V>() as u32, Some(entries as u32))
    }
    match name {
        "SERVICES" => of::<ServiceKey, ServiceEntry>(MAX_SERVICE_KEYS),
        "TABLES" => of::<u32, u32>(MAX_TABLES),
        "REALS" => of::<u32, RealEntry>(MAX_REALS),
        "INTERFACES" => of::<u32, Interface>(MAX_INTERFACES),
        "NEAR" => of::<u32, Interface>(NEAR_INTERFACES),
        "NAMES" => of::<u32, ServiceName>(MAX_SERVICES),
        "OUTCOMES" => of::<u32, u64>(OUTCOME_COUNTERS),
        "SERVICE_STATS" => of::<u32, TrafficCounters>(MAX_SERVICES),
        "REAL_STATS" => of::<u32, TrafficCounters>(MAX_REALS),
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

/// A slot table's map: one element.
pub(super) type TableMap = Array<MapData, SlotTable>;

/// All maps.
pub(super) struct Maps {
    config: Array<MapData, Shared<Config>>,
    pub(super) services: HashMap<MapData, Shared<ServiceKey>, Shared<ServiceEntry>>,
    tables: ArrayOfMaps<MapData, TableMap>,
    reals: Array<MapData, Shared<RealEntry>>,
    interfaces: HashMap<MapData, u32, Shared<Interface>>,
    near: Array<MapData, Shared<Interface>>,
    names: Array<MapData, Shared<ServiceName>>,
    pub(super) outcomes: PerCpuArray<MapData, u64>,
    pub(super) service_stats: PerCpuArray<MapData, Shared<TrafficCounters>>,
    pub(super) real_stats: PerCpuArray<MapData, Shared<TrafficCounters>>,
    pub(super) flows: HashMap<MapData, Shared<FlowKey>, Shared<FlowCounters>>,
    empty: Option<TableMap>,
    processors: usize,
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, OpenError> {
    let map = ebpf.take_map(name).ok_or(OpenError::Object(name))?;
    Ok(T::try_from(map)?)
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, OpenError> {
        let processors = util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        Ok(Self {
            config: take(ebpf, "CONFIG")?,
            services: take(ebpf, "SERVICES")?,
            tables: take(ebpf, "TABLES")?,
            reals: take(ebpf, "REALS")?,
            interfaces: take(ebpf, "INTERFACES")?,
            near: take(ebpf, "NEAR")?,
            names: take(ebpf, "NAMES")?,
            outcomes: take(ebpf, "OUTCOMES")?,
            service_stats: take(ebpf, "SERVICE_STATS")?,
            real_stats: take(ebpf, "REAL_STATS")?,
            flows: take(ebpf, "FLOWS")?,
            empty: None,
            processors,
        })
    }

    /// Replaces the settings by what `change` makes of them, if that differs.
    pub(super) fn write_config(&mut self, change: impl FnOnce(Config) -> Config) -> Result<(), MapError> {
        let Shared(old) = self.config.get(&0, 0)?;
        let new = change(old);
        if new != old { self.config.set(0, Shared(new), 0) } else { Ok(()) }
    }

    /// The key of the slot hash.
    pub(super) fn hash_key(&self) -> Result<HashKey, MapError> {
        Ok(self.config.get(&0, 0)?.0.hash_key)
    }

    /// A real server's entry.
    pub(super) fn real(&self, index: u32) -> Result<RealEntry, MapError> {
        Ok(self.reals.get(&index, 0)?.0)
    }

    /// Writes the entry of a real server that no packet reaches yet, and starts its counters from zero.
    pub(super) fn new_real(&mut self, index: u32, entry: RealEntry) -> Result<(), MapError> {
        let zero = PerCpuValues::try_from(vec![Shared(TrafficCounters::default()); self.processors])?;
        self.real_stats.set(index, zero, 0)?;
        self.reals.set(index, Shared(entry), 0)
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
            let zero = PerCpuValues::try_from(vec![Shared(TrafficCounters::default()); self.processors])?;
            self.service_stats.set(index, zero, 0)?;
            value.length = name.len() as u32;
            value.bytes[..name.len()].copy_from_slice(name.as_bytes());
        }
        self.names.set(index, Shared(value), 0)
    }

    /// Reads a slot table; `None` where the index has none.
    pub(super) fn table(&self, index: u32) -> Result<Option<Box<SlotTable>>, MapError> {
        match self.tables.get(&index, 0) {
            Ok(table) => Ok(Some(Box::new(table.get(&0, 0)?))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts a complete slot table under an index that no service uses.
    pub(super) fn set_table(&mut self, index: u32, slots: &SlotTable) -> Result<(), MapError> {
        let mut table = TableMap::create(1, 0)?;
        table.set(0, slots, 0)?;
        self.tables.set(index, &table, 0)
    }

    /// Empties a table index, by a table without real servers that all empty indices share.
    ///
    /// The kernel returns from this only after every program that ran when it began has ended: it waits for a
    /// grace period whenever user space changes a map of maps.
    pub(super) fn clear_table(&mut self, index: u32) -> Result<(), MapError> {
        let empty = match self.empty.take() {
            Some(empty) => empty,
            None => {
                let mut empty = TableMap::create(1, 0)?;
                let slots = empty_table();
                empty.set(0, slots.as_ref(), 0)?;
                empty
            }
        };
        let result = self.tables.set(index, &empty, 0);
        self.empty = Some(empty);
        result
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
pub(super) fn ip_address(address: Address) -> IpAddr {
    match address.ipv4() {
        Some(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        None => IpAddr::V6(Ipv6Addr::from(address.0)),
    }
}
