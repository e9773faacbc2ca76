//! Full NAT, in functions of the program's own: what decides has no stack left for it.
//!
//! Each of them finds its question in a room of this processor's, and leaves its answer there.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use director_common::decide;
use director_common::lease::{self, Leases};
use director_common::pin::Pin;
use director_common::pin::table::Trace;
use director_common::tables::{
    Address, Config, Endpoint, FlowKey, FlowRecord, Lease, LeaseRecord, MAX_LOCAL_NUMBERS, Return,
    ServiceEntry,
};
use director_common::{Forward, Tables as _};

use crate::appointment;
use crate::frame::XdpFrame;
use crate::maps::{self, KernelTables};
use crate::pins::{BEGUN, KNOWN, LEASED};

/// The addresses that stand for clients, by their numbers.
#[btf_map]
static LOCAL_ADDRESSES: Array<Address, MAX_LOCAL_NUMBERS> = Array::new();

/// A question and its answer.
#[derive(Clone, Copy)]
#[repr(C)]
struct Room {
    flow: FlowKey,
    record: FlowRecord,
    found: Return,
    local: Endpoint,
    /// 1 if `found` is what the packet in hand becomes, else 0.
    is_found: u32,
}

/// One for each processor.
#[btf_map]
static LEASE_ROOM: PerCpuArray<Room, 1> = PerCpuArray::new();

#[inline(always)]
fn room() -> Option<&'static mut Room> {
    // SAFETY: an element of this processor; nothing interrupts the program on it with another, and each of its functions
    // takes it once and gives it up before it calls another.
    LEASE_ROOM.get_ptr_mut(0).map(|room| unsafe { &mut *room })
}

/// Puts a question about a flow.
#[inline(always)]
fn put(flow: &FlowKey) {
    if let Some(room) = room() {
        room.flow = *flow;
    }
}

impl Leases for KernelTables {
    #[inline(always)]
    fn local_address(&self, number: u8) -> Option<&Address> {
        LOCAL_ADDRESSES.get(u32::from(number))
    }

    #[inline(always)]
    fn take(&self, trace: &Trace, pin: &Pin, owner: &LeaseRecord) -> bool {
        LEASED.take_alone(trace, owner, pin)
    }

    #[inline(always)]
    fn give_back(&self, trace: &Trace, pin: &Pin) {
        LEASED.give_back(trace, pin);
    }

    #[inline(always)]
    fn lease(&self, trace: &Trace, owner: &mut LeaseRecord) -> Option<Pin> {
        LEASED.owned(trace, owner)
    }

    #[inline(always)]
    fn connection(&self, trace: &Trace, record: &mut FlowRecord) -> Option<Pin> {
        if let Some(pin) = KNOWN.owned(trace, record) {
            return Some(pin);
        }
        BEGUN.owned(trace, record)
    }

    #[inline(always)]
    fn begin(&self, flow: &FlowKey, pin: &Pin, lease: Lease) -> bool {
        BEGUN.add_flow(flow, lease, pin)
    }
}

/// Begins a connection with the real server that was chosen for it, if [`assign`](crate::assign) has asked for that.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn open_connection() -> u32 {
    let position = appointment::to_open();
    if position == appointment::NOTHING {
        return 0;
    }
    let Some(judged) = maps::scratch() else { return 0 };
    let opened = lease::open_at(&KernelTables, &judged.entry, &judged.flow, position);
    appointment::set_opened(opened);
    opened
}

/// As whom the packets of a flow leave: 1 if it has a lease, else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_local() -> u32 {
    let Some(room) = room() else { return 0 };
    let Room { flow, record, local, .. } = room;
    match lease::local(&KernelTables, flow, record) {
        Some(found) => {
            *local = found;
            1
        }
        None => 0,
    }
}

/// What a packet for no service becomes that may be from a real server to a lease: 1 if it is, else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_return(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    // SAFETY: the kernel passes a valid context for the duration of the program.
    let ifindex = unsafe { (*context.ctx).ingress_ifindex };
    let (Some(room), Some(config)) = (room(), KernelTables.config()) else { return 0 };
    room.is_found = 0;
    if !config.has(Config::FLAG_FULL_NAT) {
        return 0;
    }
    let Room { flow, record, found, is_found, .. } = room;
    let mut forward = Forward::default();
    let frame = XdpFrame::new(&context);
    let Some((_, ip)) = decide::identify(&frame, ifindex, &KernelTables, flow, &mut forward) else {
        return 0;
    };
    if ip.fragment_offset != 0 && !decide::find_ports(&KernelTables, &ip, flow, &mut forward) {
        return 0;
    }
    *is_found = u32::from(lease::returned(&KernelTables, flow, record, found));
    *is_found
}

/// See [`Tables::promote`](director_common::Tables::promote). To be asked in a function that has the stack for it.
#[inline(always)]
pub fn promote(flow: &FlowKey, pin: &Pin) -> bool {
    let Some(config) = KernelTables.config() else { return false };
    let (trace, mut record) = (config.pins.of(flow), FlowRecord::new(flow, Lease::NONE));
    // By one that somebody else has taken away meanwhile there is no lease.
    let _ = BEGUN.owned(&trace, &mut record);
    KNOWN.add_flow(flow, record.lease(), pin)
}

/// See [`Tables::open`](director_common::Tables::open).
#[inline(always)]
pub fn open(service: &ServiceEntry, wanted: u32) -> u32 {
    appointment::ask_to_open(service, wanted)
}

/// See [`Tables::local`](director_common::Tables::local).
#[inline(always)]
pub fn local(flow: &FlowKey) -> Option<&'static Endpoint> {
    put(flow);
    if find_local() == 0 {
        return None;
    }
    room().map(|room| &room.local)
}

/// See [`Tables::returned`](director_common::Tables::returned): what [`find_return`] has found of the packet in hand.
#[inline(always)]
pub fn returned() -> Option<&'static Return> {
    room().filter(|room| room.is_found != 0).map(|room| &room.found)
}
