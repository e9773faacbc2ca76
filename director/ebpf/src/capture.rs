//! Packets for whoever watches: see `director_common::capture`.

use core::ptr::from_ref;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_F_CURRENT_CPU;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_perf_event_output};
use aya_ebpf::programs::XdpContext;
use director_common::capture::CaptureEvent;

use crate::maps::{CAPTURE, CAPTURE_EVENTS, CAPTURE_LOST, CAPTURE_SCRATCH};

/// Hands the frame to user space as it is now, if the filter wants its outcome.
///
/// A function of its own in the kernel too: the stack is full where it is called. Here it stays nearly empty, for
/// all that is known goes into the event at once.
#[inline(never)]
pub fn capture(context: &XdpContext, outcome: u32, service: u32, real: u32) {
    let Some(event) = CAPTURE_SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: an element of this processor, which nothing else uses while the program runs; the context is that of
    // this run.
    unsafe {
        (*event).outcome = outcome;
        (*event).service = service;
        (*event).real = real;
        (*event).ifindex = (*context.ctx).ingress_ifindex;
        (*event).length = (context.data_end() - context.data()) as u32;
    }
    let Some(filter) = CAPTURE.get(0) else { return };
    // SAFETY: as above.
    if unsafe { !filter.matches((*event).outcome, (*event).service) } {
        return;
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
    if failed && let Some(lost) = CAPTURE_LOST.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { *lost += 1 };
    }
}
