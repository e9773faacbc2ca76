//! The tables of pins, of half-open connections, and of leases.
//!
//! A look-up is a function of the program's own, which the verifier goes through once by itself: what it would find in
//! each of sixteen places it would follow on from each otherwise.

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use director_common::Tables as _;
use director_common::pin::table::{self, Buckets, NOWHERE, PinBucket, Trace, WAYS};
use director_common::pin::{Pin, PinCell};
use director_common::tables::{Config, FlowKey, FlowRecord, Lease, LeaseRecord};

use crate::maps::KernelTables;

/// The words of a bucket: of cells there is no BTF.
type Words = [u64; size_of::<PinBucket>() / 8];
type Entries = Array<Words, 1, { BPF_F_MMAPABLE as usize }>;
/// Whose the entries of a bucket are.
type Owners<R> = Array<[R; WAYS], 1, { BPF_F_MMAPABLE as usize }>;

/// User space sets the real sizes of these when it creates them, and removes what has had its time.
#[btf_map]
static PINS: Entries = Array::new();
#[btf_map]
static PIN_FLOWS: Owners<FlowRecord> = Array::new();
/// Tracked connections that have begun and not gone on yet.
#[btf_map]
static HALF_OPEN: Entries = Array::new();
#[btf_map]
static HALF_OPEN_FLOWS: Owners<FlowRecord> = Array::new();
/// Local addresses and ports that connections have, by what comes back to them.
#[btf_map]
static LEASES: Entries = Array::new();
#[btf_map]
static LEASE_OWNERS: Owners<LeaseRecord> = Array::new();

/// One of them, whose entries are each somebody's by an `R`.
pub struct PinTable<R: 'static> {
    entries: &'static Entries,
    owners: &'static Owners<R>,
    buckets: fn(&Config) -> u32,
    find: extern "C" fn(u64, u64) -> u32,
    claim: extern "C" fn(u64, u64) -> u32,
}

/// Connections that are known.
pub const KNOWN: PinTable<FlowRecord> = PinTable {
    entries: &PINS,
    owners: &PIN_FLOWS,
    buckets: |config| config.pin_buckets,
    find: find_pin,
    claim: claim_pin,
};

/// Connections that have begun.
pub const BEGUN: PinTable<FlowRecord> = PinTable {
    entries: &HALF_OPEN,
    owners: &HALF_OPEN_FLOWS,
    buckets: |config| config.half_open_buckets,
    find: find_half_open,
    claim: claim_half_open,
};

/// Leases.
pub const LEASED: PinTable<LeaseRecord> = PinTable {
    entries: &LEASES,
    owners: &LEASE_OWNERS,
    buckets: |config| config.lease_buckets,
    find: find_lease,
    claim: claim_lease,
};

/// Where the pin of a connection with this trace is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_pin(first: u64, second: u64) -> u32 {
    KNOWN.look(first, second)
}

/// The same of a half-open connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_half_open(first: u64, second: u64) -> u32 {
    BEGUN.look(first, second)
}

/// Claims an entry for the pin of a connection with this trace.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn claim_pin(first: u64, second: u64) -> u32 {
    KNOWN.take(first, second)
}

/// The same for a half-open connection.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn claim_half_open(first: u64, second: u64) -> u32 {
    BEGUN.take(first, second)
}

/// Where the lease with this trace is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_lease(first: u64, second: u64) -> u32 {
    LEASED.look(first, second)
}

/// Claims an entry for the lease with this trace.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn claim_lease(first: u64, second: u64) -> u32 {
    LEASED.take(first, second)
}

/// 1 if no entry but number `number` is the lease with this trace, else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_only_lease(first: u64, second: u64, number: u32) -> u32 {
    let Some(config) = KernelTables.config() else { return 0 };
    u32::from(table::is_alone(&LEASED, config.lease_buckets, &Trace { first, second }, number))
}

impl<R> Buckets for PinTable<R> {
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&PinBucket> {
        // SAFETY: as many words, aligned to pages, of cells that are plain words; arrays stay mapped.
        self.entries.get(number).map(|words| unsafe { &*(&raw const *words).cast::<PinBucket>() })
    }

    #[inline(always)]
    fn exchange(&self, cell: &PinCell, old: u64, new: u64) -> bool {
        exchange(cell, old, new)
    }
}

/// Makes a cell's word another if it is still what it was.
#[inline(always)]
pub fn exchange(cell: &PinCell, old: u64, new: u64) -> bool {
    let mut found = old;
    // SAFETY: an aligned word of a map's element, which stays mapped.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({0} + 0, r0, {1})",
            in(reg) cell.word_ptr(),
            in(reg) new,
            inout("r0") found,
        );
    }
    found == old
}

impl<R: Copy> PinTable<R> {
    #[inline(always)]
    fn look(&self, first: u64, second: u64) -> u32 {
        let Some(config) = KernelTables.config() else { return NOWHERE };
        table::find(self, (self.buckets)(config), &Trace { first, second })
    }

    #[inline(always)]
    fn take(&self, first: u64, second: u64) -> u32 {
        let Some(config) = KernelTables.config() else { return NOWHERE };
        table::claim(self, (self.buckets)(config), &Trace { first, second }, table::CLAIMED)
    }

    /// A connection's entry.
    ///
    /// Should user space remove it meanwhile, it had not been used for its whole time. If another connection has it by
    /// the next moment, that one is kept a little longer, or this one goes where that one does: its server is not asked
    /// for twice.
    #[inline(always)]
    pub fn get(&self, flow: &FlowKey) -> Option<&'static PinCell> {
        let trace = KernelTables.config()?.pins.of(flow);
        let number = (self.find)(trace.first, trace.second);
        self.cell(number)
    }

    /// The entry with this trace: what it holds, and whose it is in `owner`.
    #[inline(always)]
    pub fn owned(&self, trace: &Trace, owner: &mut R) -> Option<Pin> {
        let number = (self.find)(trace.first, trace.second);
        let pin = self.cell(number)?.load();
        let (bucket, way) = table::place_of(number);
        let owners = self.owners.get(bucket)?;
        // SAFETY: there are as many ways; nobody writes there while the entry is this one, which the caller finds out.
        *owner = unsafe { (&raw const *owners).cast::<R>().add(way).read() };
        Some(pin)
    }

    #[inline(always)]
    fn cell(&self, number: u32) -> Option<&'static PinCell> {
        if number == NOWHERE {
            return None;
        }
        let (bucket, way) = table::place_of(number);
        // SAFETY: as in `bucket`; there are as many ways.
        self.entries.get(bucket).map(|words| unsafe { &*(&raw const *words).cast::<PinCell>().add(way) })
    }

    /// Adds an entry for whoever has none and says its number; [`NOWHERE`] if it has one, or there is no room. Whose it is
    /// `write` is to say, at a place that is nobody else's yet.
    #[inline(always)]
    pub fn add(&self, trace: &Trace, pin: &Pin, write: impl FnOnce(*mut R)) -> u32 {
        let number = (self.claim)(trace.first, trace.second);
        let Some(cell) = self.cell(number) else { return NOWHERE };
        let (bucket, way) = table::place_of(number);
        if let Some(owners) = self.owners.get_ptr_mut(bucket) {
            // SAFETY: an element of an array, which has as many ways.
            write(unsafe { owners.cast::<R>().add(way) });
        }
        cell.fill(trace.tag(), pin.seen as u32);
        // In order, on every processor.
        if exchange(cell, table::CLAIMED, trace.word(pin)) { number } else { NOWHERE }
    }

    /// Removes a connection's entry; false if it has none.
    #[inline(always)]
    pub fn remove(&self, flow: &FlowKey) -> bool {
        let Some(config) = KernelTables.config() else { return false };
        let trace = config.pins.of(flow);
        let number = (self.find)(trace.first, trace.second);
        self.cell(number).is_some_and(|cell| table::release(self, cell, &trace, &cell.load()))
    }
}

impl PinTable<FlowRecord> {
    /// Adds an entry for a connection that has none; false if it has one, or there is no room.
    #[inline(always)]
    pub fn add_flow(&self, flow: &FlowKey, lease: Lease, pin: &Pin) -> bool {
        let Some(config) = KernelTables.config() else { return false };
        // Straight from one to the other: made on the stack before, the record would fill it.
        let write = |record: *mut FlowRecord| {
            const { assert!(size_of::<FlowKey>() == size_of::<FlowRecord>()) };
            // SAFETY: a place for this connection alone; a record is the flow, with its lease where that has zeroes.
            unsafe {
                record.cast::<FlowKey>().write(*flow);
                (*record).set_lease(lease);
            }
        };
        self.add(&config.pins.of(flow), pin, write) != NOWHERE
    }
}

impl PinTable<LeaseRecord> {
    /// Takes what nobody else has; false if somebody does, or there is no room.
    #[inline(always)]
    pub fn take_alone(&self, trace: &Trace, owner: &LeaseRecord, pin: &Pin) -> bool {
        // SAFETY: a place for this lease alone.
        let number = self.add(trace, pin, |record| unsafe { record.write(*owner) });
        if number == NOWHERE {
            return false;
        }
        if is_only_lease(trace.first, trace.second, number) != 0 {
            return true;
        }
        if let Some(cell) = self.cell(number) {
            table::release(self, cell, trace, pin);
        }
        false
    }

    /// Gives back what was taken just now.
    #[inline(always)]
    pub fn give_back(&self, trace: &Trace, pin: &Pin) {
        let number = (self.find)(trace.first, trace.second);
        if let Some(cell) = self.cell(number) {
            table::release(self, cell, trace, pin);
        }
    }
}
