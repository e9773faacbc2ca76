//! Packets for whoever watches: see `director_common::capture`.

use core::ptr::from_ref;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_CURRENT_CPU, xdp_md};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_perf_event_output};
use aya_ebpf::programs::XdpContext;
use director_common::capture::CaptureEvent;

use crate::maps::{CAPTURE, CAPTURE_EVENTS, CAPTURE_LOST, CAPTURE_SCRATCH};

/// Hands the frame to user space as it is now, if the filter wants its outcome.
///
/// A function of its own in the kernel too, checked once however often it is called. Returns 1 if it was handed over,
/// else 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn capture(context: *mut xdp_md, outcome: u32, service: u32, real: u32) -> u32 {
    let context = XdpContext::new(context);
    u32::from(hand_over(&context, outcome, service, real).is_some())
}

/// As [`capture`]; `None` if it is not wanted or lost.
#[inline(always)]
fn hand_over(context: &XdpContext, outcome: u32, service: u32, real: u32) -> Option<()> {
    let event = CAPTURE_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: an element of this processor, which nothing else uses while the program runs; the context is that of
    // this run.
    unsafe {
        (*event).outcome = outcome;
        (*event).service = service;
        (*event).real = real;
        (*event).ifindex = (*context.ctx).ingress_ifindex;
        (*event).length = (context.data_end() - context.data()) as u32;
    }
    let filter = CAPTURE.get(0)?;
    // SAFETY: as above.
    if unsafe { !filter.matches((*event).outcome, (*event).service) } {
        return None;
    }
    // SAFETY: as above; the kernel copies `captured` bytes of the frame behind the event, and refuses if there are
    // fewer.
    let failed = unsafe {
        (*event).captured = (*event).length.min(filter.snaplen);
        (*event).time_ns = bpf_ktime_get_ns();
        let flags = u64::from((*event).captured) << 32 | u64::from(BPF_F_CURRENT_CPU as u32);
        let size = size_of::<CaptureEvent>() as u64;
        // The map's own method does not tell whether it worked.
        let map = from_ref(&CAPTURE_EVENTS).cast_mut().cast();
        bpf_perf_event_output(context.as_ptr(), map, flags, event.cast(), size) != 0
    };
    if failed {
        let lost = CAPTURE_LOST.get_ptr_mut(0)?;
        // SAFETY: as above.
        unsafe { *lost += 1 };
        return None;
    }
    Some(())
}
