//! The maps, and access to them as `decide` wants it.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerfEventByteArray};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use director_common::capture::{CaptureEvent, CaptureFilter};
use director_common::counters::{FlowCounters, ShortcutCounters, TrafficCounters};
use director_common::pin::table::marked;
use director_common::pin::{Pin, PinCell, QuicEntry, QuicKey};
use director_common::shortcut::Forwarded;
use director_common::tables::{
    Address, Config, Endpoint, FlowKey, FragmentEntry, Interface, Lease, LoadEntry, MAX_CLASSES,
    MAX_FRAGMENTS, MAX_INTERFACES, MAX_QUIC_IDS, MAX_RANGE_KEYS, MAX_REALS, MAX_REPLY_KEYS, MAX_SERVICE_KEYS,
    MAX_SERVICES, MAX_TABLES, NEAR_INTERFACES, RangeKey, RealEntry, ReplyEntry, ReplyKey, Return, Roster,
    SHELF, SMALL_SHELF, ServiceEntry, ServiceKey, ServiceKeyV4, ServiceName, SlotTable, SmallTable, Tables,
    TokenBucket, WindowEntry, is_small, shelf_of,
};
use director_common::verdict::OUTCOME_COUNTERS;
use director_common::{SLOTS, SMALL_SLOTS, Slot};

use crate::appointment;
use crate::frame::opaque;
use crate::judged::Judged;
use crate::{leases, pins};

/// Elements are allocated one by one and freed after a grace period: a preallocated hash hands a replaced
/// element out again at once, under the eyes of a program that still reads it.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static SERVICES: HashMap<ServiceKey, ServiceEntry, MAX_SERVICE_KEYS, ON_DEMAND> = HashMap::new();
/// Those of [`SERVICES`] that have the short form, by it: 8 bytes are hashed and compared in half the time of 20.
#[btf_map]
static SERVICES_V4: HashMap<ServiceKeyV4, ServiceEntry, MAX_SERVICE_KEYS, ON_DEMAND> = HashMap::new();
/// Class of each prefix. (Tries allocate on demand, as they must.)
#[btf_map]
static CLASSES: LpmTrie<Address, u32, MAX_CLASSES> = LpmTrie::new();
#[btf_map]
static RANGES: LpmTrie<RangeKey, ServiceEntry, MAX_RANGE_KEYS> = LpmTrie::new();
#[btf_map]
static TABLES: ArrayOfMaps<Array<SlotTable, SHELF>, { MAX_TABLES / SHELF }> = ArrayOfMaps::new();
#[btf_map]
static SMALL_TABLES: ArrayOfMaps<Array<SmallTable, SMALL_SHELF>, { MAX_TABLES / SMALL_SHELF }> =
    ArrayOfMaps::new();
#[btf_map]
static REALS: Array<RealEntry, MAX_REALS> = Array::new();
#[btf_map]
static REPLIES: HashMap<ReplyKey, ReplyEntry, MAX_REPLY_KEYS, ON_DEMAND> = HashMap::new();
#[btf_map]
static INTERFACES: HashMap<u32, Interface, MAX_INTERFACES, ON_DEMAND> = HashMap::new();
/// Those of [`INTERFACES`] with a low index, by it.
#[btf_map]
static NEAR: Array<Interface, NEAR_INTERFACES> = Array::new();
/// Only user space reads and writes these; they are here to be created and pinned with the rest.
#[btf_map]
static NAMES: Array<ServiceName, MAX_SERVICES> = Array::new();
#[btf_map]
static OUTCOMES: PerCpuArray<u64, OUTCOME_COUNTERS> = PerCpuArray::new();
#[btf_map]
static SERVICE_STATS: PerCpuArray<TrafficCounters, MAX_SERVICES> = PerCpuArray::new();
#[btf_map]
static REAL_STATS: PerCpuArray<TrafficCounters, MAX_REALS> = PerCpuArray::new();
/// The only counters of what takes the shortcut; user space works out what it is for the service and the outcomes.
#[btf_map]
static SHORTCUTS: PerCpuArray<ShortcutCounters, MAX_REALS> = PerCpuArray::new();
/// What [`SHORTCUTS`] counted for real servers that are gone, by service; of services that are gone the last entry. Only
/// user space reads and writes these, as NAMES.
#[btf_map]
static RETIRED: Array<ShortcutCounters, { MAX_SERVICES + 1 }> = Array::new();
/// User space sets the real size when it creates the map: 1 where flows are not accounted.
#[btf_map]
static FLOWS: LruHashMap<FlowKey, FlowCounters, 1> = LruHashMap::new();

#[btf_map]
static LOADS: Array<LoadEntry, MAX_REALS, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static ROSTERS: HashMap<u32, Roster, MAX_SERVICES, ON_DEMAND> = HashMap::new();
/// Where on its wheel each service is: connections so far.
#[btf_map]
static CURSORS: Array<u64, MAX_SERVICES> = Array::new();
#[btf_map]
static QUIC_IDS: HashMap<QuicKey, QuicEntry, MAX_QUIC_IDS, ON_DEMAND> = HashMap::new();
/// Only user space reads and writes these, as NAMES.
#[btf_map]
static WINDOWS: Array<WindowEntry, MAX_SERVICES> = Array::new();
#[btf_map]
static FRAGMENTS: LruHashMap<FlowKey, FragmentEntry, MAX_FRAGMENTS> = LruHashMap::new();
/// One for each processor.
#[btf_map]
static BUCKETS: PerCpuArray<TokenBucket, 1> = PerCpuArray::new();
/// Room for what is known of one packet, on each processor: the stack holds 512 bytes for everything. (Bare words: of a
/// struct with Rust's enums in it there is no BTF.)
#[btf_map]
static SCRATCH: PerCpuArray<[u64; SCRATCH_WORDS], 1> = PerCpuArray::new();
/// What is captured, by whoever is told so by the settings.
#[btf_map]
pub static CAPTURE: Array<CaptureFilter, 1> = Array::new();
/// The way to user space: a buffer for each processor, while somebody reads.
#[btf_map]
pub static CAPTURE_EVENTS: PerfEventByteArray = PerfEventByteArray::new();
/// Room for what is said of a captured packet, as [`SCRATCH`].
#[btf_map]
pub static CAPTURE_SCRATCH: PerCpuArray<CaptureEvent, 1> = PerCpuArray::new();
/// Wanted packets for which the buffer had no room.
#[btf_map]
pub static CAPTURE_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The maps as [`Tables`].
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        // SAFETY: user space replaces elements whole and they are freed after a grace period (ON_DEMAND).
        unsafe { SERVICES.get(key) }
    }

    #[inline(always)]
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<&ServiceEntry> {
        // SAFETY: as in `service`.
        unsafe { SERVICES_V4.get(key) }
    }

    #[inline(always)]
    fn class(&self, address: &Address) -> Option<&u32> {
        CLASSES.get(&Key::new(Address::BITS, *address))
    }

    #[inline(always)]
    fn range(&self, key: &RangeKey) -> Option<&ServiceEntry> {
        RANGES.get(&Key::new(RangeKey::BITS, *key))
    }

    #[inline(always)]
    fn slot(&self, table: u32, slot: u32) -> Option<Slot> {
        // Opaque: the compiler knows that the hash was scaled to less and would drop the comparisons, but the verifier
        // of Linux 6.1 knows nothing of a product.
        let slot = opaque(slot as usize);
        let (shelf, place) = shelf_of(table);
        let bits = if is_small(table) {
            let slots = SMALL_TABLES.get_value(shelf, &place)?;
            if slot >= SMALL_SLOTS {
                return None;
            }
            // SAFETY: below the length, as just compared.
            unsafe { slots.get_unchecked(slot) }
        } else {
            let slots = TABLES.get_value(shelf, &place)?;
            if slot >= SLOTS {
                return None;
            }
            // SAFETY: as above.
            unsafe { slots.get_unchecked(slot) }
        };
        Some(Slot::from_bits(*bits))
    }

    #[inline(always)]
    fn real(&self, index: u32) -> Option<&RealEntry> {
        REALS.get(index)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: a helper without arguments.
        seconds(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn take_token(&self, rate: u32) -> bool {
        // SAFETY: as in `count_outcome`.
        BUCKETS.get_ptr_mut(0).is_some_and(|bucket| unsafe { (*bucket).take(self.now(), rate) })
    }

    #[inline(always)]
    fn fragment(&self, key: &FlowKey, entry: &mut FragmentEntry) -> bool {
        // SAFETY: elements of an LRU map stay mapped; of a recycled one the service does not match or the
        // datagram is sent elsewhere, as if it had not been seen.
        match unsafe { FRAGMENTS.get(key) } {
            Some(found) => {
                *entry = *found;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn note_fragment(&self, key: &FlowKey, entry: &FragmentEntry) {
        // A full map evicts; any other failure only means that later fragments find nothing.
        let _ = FRAGMENTS.insert(key, entry, 0);
    }

    #[inline(always)]
    fn pin(&self, key: &FlowKey) -> Option<&PinCell> {
        pins::KNOWN.get(key)
    }

    #[inline(always)]
    fn add_pin(&self, key: &FlowKey, pin: &Pin) -> bool {
        pins::KNOWN.add_flow(key, Lease::NONE, pin)
    }

    #[inline(always)]
    fn remove_pin(&self, key: &FlowKey) -> bool {
        pins::KNOWN.remove(key)
    }

    #[inline(always)]
    fn half_open(&self, key: &FlowKey) -> Option<&PinCell> {
        pins::BEGUN.get(key)
    }

    #[inline(always)]
    fn add_half_open(&self, key: &FlowKey, pin: &Pin) -> bool {
        pins::BEGUN.add_flow(key, Lease::NONE, pin)
    }

    #[inline(always)]
    fn promote(&self, key: &FlowKey, pin: &Pin) -> bool {
        leases::promote(key, pin)
    }

    #[inline(always)]
    fn open(&self, service: &ServiceEntry, _key: &FlowKey, wanted: u32) -> u32 {
        leases::open(service, wanted)
    }

    #[inline(always)]
    fn sorry(&self, service: &ServiceEntry) -> u32 {
        roster(service.service).map_or(Roster::NOBODY, |roster| roster.sorry)
    }

    #[inline(always)]
    fn opened(&self, service: &ServiceEntry) -> u32 {
        appointment::opened(service)
    }

    #[inline(always)]
    fn local(&self, key: &FlowKey) -> Option<&Endpoint> {
        leases::local(key)
    }

    #[inline(always)]
    fn returned(&self, _key: &FlowKey) -> Option<&Return> {
        leases::returned()
    }

    #[inline(always)]
    fn remove_half_open(&self, key: &FlowKey) -> bool {
        pins::BEGUN.remove(key)
    }

    #[inline(always)]
    fn exchange(&self, cell: &PinCell, old: &Pin, next: &Pin) -> bool {
        let word = cell.word();
        pins::exchange(cell, marked(word, old), marked(word, next))
    }

    #[inline(always)]
    fn count(&self, index: u32, active: i64, inactive: i64) {
        let Some(load) = LOADS.get_ptr_mut(index) else { return };
        // SAFETY: an element of an array; others change it meanwhile, each by such additions.
        unsafe {
            if active != 0 {
                add(&raw mut (*load).active, active);
            }
            if inactive != 0 {
                add(&raw mut (*load).inactive, inactive);
            }
            let load = &mut *load;
            if active + inactive > 0 && load.upper != 0 && load.total() >= u64::from(load.upper) {
                load.overloaded = 1;
            }
        }
    }

    #[inline(always)]
    fn quic(&self, key: &QuicKey) -> Option<&QuicEntry> {
        // SAFETY: as in `service`.
        unsafe { QUIC_IDS.get(key) }
    }

    #[inline(always)]
    fn reply(&self, key: &ReplyKey) -> Option<&ReplyEntry> {
        // SAFETY: as in `service`.
        unsafe { REPLIES.get(key) }
    }

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        // The kernel's compiler puts an array's look-up in line and calls a function for a hash's.
        if ifindex < NEAR_INTERFACES as u32 {
            return NEAR.get(ifindex).filter(|interface| interface.is_known());
        }
        // SAFETY: as in `service`.
        unsafe { INTERFACES.get(&ifindex) }
    }
}

/// Nanoseconds as seconds, by a multiplication: a division takes as long as half of a look-up. It is 0.9 s a year ahead,
/// and never goes back.
#[inline(always)]
fn seconds(nanoseconds: u64) -> u32 {
    // 2^54 / 10^9, of units of 2^23 ns: within 64 bits for 270 years.
    ((nanoseconds >> 23).wrapping_mul(18_014_399) >> 31) as u32
}

/// Adds to a number that other processors add to as well.
///
/// # Safety
/// `word` is an aligned word of a map's element.
#[inline(always)]
unsafe fn add(word: *mut u64, amount: i64) {
    // SAFETY: promised by the caller.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) amount) };
}

/// What is known of the load of a real server.
#[inline(always)]
pub fn load(index: u32) -> Option<&'static LoadEntry> {
    LOADS.get(index)
}

/// The servers of a tracked service.
#[inline(always)]
pub fn roster(service: u32) -> Option<&'static Roster> {
    // SAFETY: as in `service`.
    unsafe { ROSTERS.get(&service) }
}

/// Where a service is on its wheel.
#[inline(always)]
pub fn cursor(service: u32) -> u64 {
    CURSORS.get(service).map_or(0, |cursor| *cursor)
}

/// Moves a service on its wheel.
#[inline(always)]
pub fn turn(service: u32, by: u32) {
    if let Some(cursor) = CURSORS.get_ptr_mut(service) {
        // SAFETY: an element of an array.
        unsafe { add(cursor, i64::from(by)) };
    }
}

/// Adds one to an outcome's counter on this processor.
#[inline(always)]
pub fn count_outcome(outcome: u32) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(outcome) {
        // SAFETY: an element of this processor; nothing interrupts an XDP program on its processor with another.
        unsafe { *counter += 1 };
    }
}

/// Counts a packet that took the shortcut, and whether it `turns`: leaves by the interface it came in by.
#[inline(always)]
pub fn count_shortcut(forwarded: &Forwarded, turns: bool) {
    let Some(counters) = SHORTCUTS.get_ptr_mut(forwarded.real) else { return };
    // SAFETY: as in `count_outcome`.
    let counters = unsafe { &mut *counters };
    counters.packets += 1;
    counters.bytes += u64::from(forwarded.bytes);
    counters.connections += u64::from(forwarded.opens);
    counters.transmitted += u64::from(turns);
}

/// Words of [`SCRATCH`].
const SCRATCH_WORDS: usize = 36;
const _: () = assert!(size_of::<Judged>() <= SCRATCH_WORDS * 8);

/// Room for the packet that this processor has in hand.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Judged> {
    // SAFETY: an element of this processor, large enough and aligned, taken once in each function of the program's.
    // Before the first packet it is zeroes, which every field of a `Judged` can be; after, what was written there.
    SCRATCH.get_ptr_mut(0).map(|room| unsafe { &mut *room.cast::<Judged>() })
}

/// This processor's counters of a service.
#[inline(always)]
pub fn service_counters(service: u32) -> Option<&'static mut TrafficCounters> {
    // SAFETY: as in `count_outcome`; the caller holds no other reference to the element.
    SERVICE_STATS.get_ptr_mut(service).map(|counters| unsafe { &mut *counters })
}

/// This processor's counters of a real server.
#[inline(always)]
pub fn real_counters(real: u32) -> Option<&'static mut TrafficCounters> {
    // SAFETY: as in `service_counters`.
    REAL_STATS.get_ptr_mut(real).map(|counters| unsafe { &mut *counters })
}

/// Counts a packet of a flow. A flow's packets come in by one queue, so by one processor: where they do not,
/// a packet may be missed, which is the price of not locking.
#[inline(always)]
pub fn count_flow(key: &FlowKey, service: u32, real: u32, bytes: u64, now: u64) {
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        // SAFETY: elements of an LRU map stay mapped; a recycled one costs a miscount at worst.
        unsafe {
            (*flow).packets += 1;
            (*flow).bytes += bytes;
            (*flow).last_seen_ns = now;
            (*flow).service = service;
            (*flow).real = real;
        }
        return;
    }
    let flow = FlowCounters { packets: 1, bytes, last_seen_ns: now, service, real };
    // A full map evicts; any other failure only loses the account of this packet.
    let _ = FLOWS.insert(key, &flow, 0);
}
