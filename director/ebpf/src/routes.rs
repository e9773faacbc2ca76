//! The kernel's routes.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use director_common::Frame;
use director_common::tables::{RouteEntry, RouteQuery, Routes};

/// Room for the way of the packet that a processor has in hand.
#[btf_map]
static ROUTE: PerCpuArray<RouteEntry, 1> = PerCpuArray::new();

// `AF_INET` and `AF_INET6`.
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
// `BPF_FIB_LKUP_RET_*` (`linux/bpf.h`).
const SUCCESS: i64 = 0;
const BLACKHOLE: i64 = 1;
const PROHIBIT: i64 = 3;
const NOT_FORWARDED: i64 = 4;
const FORWARDING_DISABLED: i64 = 5;
const FRAGMENTATION_NEEDED: i64 = 8;

/// The routes, asked about the packet of this run.
pub struct KernelRoutes<'a>(pub &'a XdpContext);

impl Routes for KernelRoutes<'_> {
    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Option<&RouteEntry> {
        // SAFETY: all of it is integers.
        let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        question.l4_protocol = query.protocol;
        question.sport = query.source_port.to_be();
        question.dport = query.destination_port.to_be();
        question.__bindgen_anon_1.tot_len = query.bytes;
        question.ifindex = query.ifindex;
        let ([.., source], [.., destination]) = (query.source.words(), query.destination.words());
        if query.source.is_v4() {
            question.family = FAMILY_V4;
            question.__bindgen_anon_2.tos = query.traffic_class;
            question.__bindgen_anon_3.ipv4_src = source;
            question.__bindgen_anon_4.ipv4_dst = destination;
        } else {
            question.family = FAMILY_V6;
            question.__bindgen_anon_2.flowinfo = (u32::from(query.traffic_class) << 20).to_be();
            question.__bindgen_anon_3.ipv6_src = query.source.words();
            question.__bindgen_anon_4.ipv6_dst = query.destination.words();
        }
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context is that of this run, and the question has the size that is said.
        let code = unsafe { bpf_fib_lookup(self.0.as_ptr(), &raw mut question, size, 0) };
        answer(code as i64, &question)
    }
}

/// The room, with what the kernel has answered; `None` if it could not be asked.
#[inline(always)]
fn answer(code: i64, found: &bpf_fib_lookup) -> Option<&'static RouteEntry> {
    // SAFETY: an element of this processor, that nothing else writes until the packet has left.
    let route = unsafe { &mut *ROUTE.get_ptr_mut(0)? };
    route.ifindex = found.ifindex;
    (route.destination_mac, route.source_mac) = (found.dmac, found.smac);
    // SAFETY: the kernel has written an integer there, or left the question.
    route.mtu = u32::from(unsafe { found.__bindgen_anon_1.mtu_result });
    route.answer = match code {
        // Linux 6.1 calls a neighbour known while it still looks for it.
        SUCCESS if found.dmac == [0; 6] => RouteEntry::BY_KERNEL,
        SUCCESS => RouteEntry::FORWARD,
        BLACKHOLE..=PROHIBIT => RouteEntry::REFUSED,
        NOT_FORWARDED => RouteEntry::STAYS,
        FORWARDING_DISABLED => RouteEntry::DISABLED,
        FRAGMENTATION_NEEDED => RouteEntry::TOO_BIG,
        // An error of the question itself.
        ..0 => return None,
        _ => RouteEntry::BY_KERNEL,
    };
    Some(route)
}

/// The way that was found for the packet in hand.
#[inline(always)]
pub fn found() -> Option<&'static RouteEntry> {
    ROUTE.get(0)
}

/// Puts the answer in the place of the question that is in the frame.
#[inline(always)]
pub fn tell(frame: &mut impl Frame, routes: &impl Routes) -> Option<()> {
    let bytes: [u8; size_of::<RouteQuery>()] = frame.read(0)?;
    // SAFETY: plain integers of that size.
    let query: RouteQuery = unsafe { core::mem::transmute(bytes) };
    let answer = *routes.route(&query)?;
    // SAFETY: as above.
    frame.write::<{ size_of::<RouteEntry>() }>(0, unsafe { core::mem::transmute(answer) })
}
