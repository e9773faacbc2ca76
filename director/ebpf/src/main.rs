//! The XDP program: entry, bounds, maps, counters. What happens to a packet is decided in `director-common`.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet; building `core` for it is not either.
#![feature(asm_experimental_arch)]

mod capture;
mod frame;
mod maps;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use director_common::capture::CaptureEvent;
use director_common::counters::TrafficCounters;
use director_common::decide::rewrite;
use director_common::tables::{Config, FlowKey};
use director_common::{Action, Decision, Forward, Tables as _, Verdict, decide};

use capture::capture;
use frame::XdpFrame;
use maps::KernelTables;

/// Entry point for every packet of an interface.
#[xdp]
pub fn director(context: XdpContext) -> u32 {
    // SAFETY: the kernel passes a valid context for the duration of the program.
    let ifindex = unsafe { (*context.ctx).ingress_ifindex };
    let mut frame = XdpFrame::new(&context);
    let Some(flow) = maps::scratch() else { return XDP_PASS };
    let decision = decide(&frame, ifindex, &KernelTables, flow);
    let (mut action, mut outcome) = decision.verdict.disposition();
    let mut forwarded = decision.verdict.is_forward();
    let watched = maps::config().map_or(0, |config| config.flags & Config::CAPTURE_FLAGS);
    if watched & Config::FLAG_CAPTURE != 0 {
        watch(&context, &decision, outcome, forwarded);
    }
    if decision.verdict.rewrites()
        && let Err(reason) = rewrite(&mut frame, &decision)
    {
        (action, outcome) = Verdict::Drop(reason).disposition();
        forwarded = false;
        if decision.forward.pin == Forward::PIN_STORED {
            KernelTables.remove_pin(flow);
        }
    }
    if watched & Config::FLAG_CAPTURE_AFTER != 0 {
        watch(&context, &decision, outcome, forwarded);
    }
    account(&decision, forwarded, flow);
    maps::count_outcome(outcome);
    match action {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        Action::Transmit => XDP_TX,
        // The interface is that of a next hop which user space keeps fresh, so there is no map of devices to
        // keep in step with; the kernel batches these as it does redirects through a map.
        // SAFETY: a helper without memory arguments.
        Action::Redirect => unsafe { bpf_redirect(decision.forward.ifindex, 0) as u32 },
    }
}

/// Captures the packet as it is now, if somebody wants it.
#[inline(always)]
fn watch(context: &XdpContext, decision: &Decision<'_>, outcome: u32, forwarded: bool) {
    let real = if forwarded { decision.forward.real } else { CaptureEvent::NO_REAL };
    capture(context, outcome, decision.service, real);
}

/// Counts a packet that a service owns: for the service, its real server and, if wanted, its flow.
#[inline(always)]
fn account(decision: &Decision<'_>, forwarded: bool, flow: &FlowKey) {
    if decision.service == Decision::NO_SERVICE {
        return;
    }
    let (forward, bytes) = (&decision.forward, u64::from(decision.bytes));
    let opens = u64::from(forwarded && forward.opens != 0);
    let unpinned = u64::from(forwarded && forward.pin == Forward::PIN_REFUSED);
    if let Some(counters) = maps::service_counters(decision.service) {
        count_in(counters, bytes, opens);
        counters.dropped += u64::from(!forwarded);
        counters.unpinned += unpinned;
    }
    if !forwarded {
        return;
    }
    if let Some(counters) = maps::real_counters(forward.real) {
        count_in(counters, bytes, opens);
    }
    if maps::config().is_some_and(|config| config.has(Config::FLAG_FLOW_ACCOUNTING)) {
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        maps::count_flow(flow, decision.service, forward.real, bytes, now);
    }
}

#[inline(always)]
fn count_in(counters: &mut TrafficCounters, bytes: u64, opens: u64) {
    counters.packets_in += 1;
    counters.bytes_in += bytes;
    counters.connections += opens;
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; were there a call left, the verifier would refuse the endless loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
