//! The XDP program of a real server: entry, maps, counters. What comes out of a tunnel, and how, is decided in
//! `director_common::decapsulate`.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet; building `core` for it is not either.
#![feature(asm_experimental_arch)]

#[path = "../frame.rs"]
mod frame;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use director_common::Action;
use director_common::decapsulate::{Endpoint, RECEPTION_COUNTERS, Reception, Settings, decapsulate, strip};
use director_common::tables::{Address, FlowKey};

use frame::XdpFrame;

/// As in the director: elements are freed after a grace period.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
/// Most addresses and prefixes of each kind.
const MAX_ADDRESSES: usize = 16_384;

#[btf_map]
static SETTINGS: Array<u32, 1> = Array::new();
/// VIPs that the host serves.
#[btf_map]
static VIPS: HashMap<Address, u32, MAX_ADDRESSES, ON_DEMAND> = HashMap::new();
/// Addresses at which tunnels end.
#[btf_map]
static LOCALS: HashMap<Address, u32, MAX_ADDRESSES, ON_DEMAND> = HashMap::new();
/// Prefixes of the directors' addresses.
#[btf_map]
static SOURCES: LpmTrie<Address, u32, MAX_ADDRESSES> = LpmTrie::new();
#[btf_map]
static RECEPTIONS: PerCpuArray<u64, RECEPTION_COUNTERS> = PerCpuArray::new();
/// Room for one packet's addresses, on each processor: the stack holds 512 bytes for everything.
#[btf_map]
static SCRATCH: PerCpuArray<FlowKey, 1> = PerCpuArray::new();

/// The maps as [`Endpoint`].
struct KernelEndpoint;

impl Endpoint for KernelEndpoint {
    #[inline(always)]
    fn settings(&self) -> Settings {
        Settings(SETTINGS.get(0).copied().unwrap_or_default())
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        // SAFETY: only whether the element is there is asked.
        unsafe { LOCALS.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_listed(&self, source: &Address) -> bool {
        SOURCES.get(&Key::new(128, *source)).is_some()
    }

    #[inline(always)]
    fn serves(&self, vip: &Address) -> bool {
        // SAFETY: as in `is_local`.
        unsafe { VIPS.get(vip) }.is_some()
    }
}

/// Entry point for every packet of an interface.
#[xdp]
pub fn agent(context: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(&context);
    let Some(flow) = SCRATCH.get_ptr_mut(0) else { return XDP_PASS };
    // SAFETY: an element of this processor, taken once for each run of the program.
    let flow = unsafe { &mut *flow };
    let decision = decapsulate(&frame, &KernelEndpoint, flow);
    let mut reception = decision.reception;
    if reception == Reception::Decapsulated
        && let Err(failure) = strip(&mut frame, &decision)
    {
        reception = failure;
    }
    if let Some(counter) = RECEPTIONS.get_ptr_mut(reception as u32) {
        // SAFETY: an element of this processor; nothing interrupts an XDP program on its processor with another.
        unsafe { *counter += 1 };
    }
    match reception.action() {
        Action::Drop => XDP_DROP,
        Action::Pass | Action::Transmit | Action::Redirect => XDP_PASS,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; were there a call left, the verifier would refuse the endless loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
