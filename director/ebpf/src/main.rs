//! The XDP program: entry, bounds, maps, counters. What happens to a packet is decided in `director-common`.
//!
//! Most packets take the [`shortcut`], by [`hasten`]. What is left is looked at by [`judge`]; if a service has it,
//! [`assign`] finds its real server; if it may be a real server's answer, [`find_return`] looks for its
//! connection and [`judge_reply`] decides; [`advance`] takes a
//! tracked connection that goes on to the pins; [`prepare`] does what
//! comes before all else, for full NAT and for whoever watches; and it goes its way by [`finish`]. Where a new
//! connection's server is to be chosen, [`assign`] asks for it, [`appoint`] chooses, [`open_connection`] gives it a lease
//! if it needs one, and [`assign`] runs once more.
//! Each is a function of its own in the kernel too, for two reasons: the verifier checks it by itself, whereas in one
//! piece it would follow every way through the last once for every way that leads there, and give up; and they use the
//! same 512 bytes of stack, one after the other.
#![no_std]
#![no_main]
// Inline assembly for BPF is not stable yet; building `core` for it is not either.
#![feature(asm_experimental_arch)]

mod appointment;
mod capture;
mod frame;
mod judged;
mod leases;
mod maps;
mod pins;
mod routes;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use director_common::capture::CaptureEvent;
use director_common::counters::TrafficCounters;
use director_common::decide::{self, decide_reply, examine, forget, may_be_reply, rewrite_rest};
use director_common::shortcut;
use director_common::tables::Config;
#[cfg(doc)]
use director_common::tables::{RouteEntry, RouteQuery};
use director_common::{Decision, Forward, Tables as _, Verdict};

use capture::capture;
use frame::XdpFrame;
use judged::Judged;
use leases::{find_return, open_connection};
use maps::KernelTables;
use routes::KernelRoutes;

/// Entry point for every packet of an interface.
#[xdp]
pub fn director(context: XdpContext) -> u32 {
    let action = hasten(context.ctx);
    if action != NOT_TAKEN {
        return action;
    }
    let step = judge(context.ctx);
    if step == TO_BE_ASSIGNED {
        assign(context.ctx);
        if appoint() != 0 {
            open_connection();
            // With the server that it asked for.
            assign(context.ctx);
            appointment::dismiss();
        }
    } else if step == MAY_BE_REPLY {
        find_return(context.ctx);
        judge_reply(context.ctx);
    }
    advance();
    prepare(context.ctx);
    finish(context.ctx)
}

/// Tells what the kernel's routes say, for whoever asks by `BPF_PROG_TEST_RUN`: the packet is a [`RouteQuery`], and
/// becomes a [`RouteEntry`] where there is an answer.
#[xdp]
pub fn route(context: XdpContext) -> u32 {
    routes::tell(&mut XdpFrame::new(&context), &KernelRoutes(&context)).map_or(XDP_DROP, |()| XDP_PASS)
}

/// What [`hasten`] returns of a packet that it has left as it was.
const NOT_TAKEN: u32 = u32::MAX;

/// Forwards a packet for which there is a shortcut.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hasten(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    // SAFETY: the kernel passes a valid context for the duration of the program.
    let ifindex = unsafe { (*context.ctx).ingress_ifindex };
    let Some(forwarded) = shortcut::forward(&mut XdpFrame::new(&context), ifindex, &KernelTables) else {
        return NOT_TAKEN;
    };
    let turns = forwarded.ifindex == ifindex;
    maps::count_shortcut(&forwarded, turns);
    if turns { XDP_TX } else { redirect(forwarded.ifindex) }
}

/// Sends a packet out of an interface, and counts that.
#[inline(always)]
fn leave(interface: u32, ingress: u32) -> u32 {
    if interface == ingress {
        maps::count_outcome(Verdict::Transmit.disposition().1);
        return XDP_TX;
    }
    maps::count_outcome(Verdict::Redirect.disposition().1);
    redirect(interface)
}

/// Sends a packet out of another interface than it came in by.
#[inline(always)]
fn redirect(interface: u32) -> u32 {
    // The interface is that of a next hop which user space or the kernel itself keeps fresh, so there is no map of
    // devices to keep in step with; the kernel batches these as it does redirects through a map.
    // SAFETY: a helper without memory arguments.
    unsafe { bpf_redirect(interface, 0) as u32 }
}

/// What [`judge`] returns of a packet that is for no service, where it may be from one.
const MAY_BE_REPLY: u32 = 2;
/// What [`judge`] returns of a packet that a service has.
const TO_BE_ASSIGNED: u32 = 3;

/// Looks at a packet: [`TO_BE_ASSIGNED`], [`MAY_BE_REPLY`], or 1 if it is decided what becomes of it; 0 if there was no
/// room to note that.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    // SAFETY: as in `hasten`.
    let ifindex = unsafe { (*context.ctx).ingress_ifindex };
    let Some(judged) = maps::scratch() else { return 0 };
    let mut decision = Decision::new();
    match examine(&XdpFrame::new(&context), ifindex, &KernelTables, &mut judged.flow, &mut decision) {
        Ok(service) => {
            judged.set_examined(&decision, service);
            TO_BE_ASSIGNED
        }
        Err(verdict) => {
            decision.verdict = verdict;
            judged.set(&decision);
            if may_be_reply(verdict, &KernelTables) { MAY_BE_REPLY } else { 1 }
        }
    }
}

/// Decides which real server gets a packet that a service has; 0 if there was no room to note that.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn assign(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    // SAFETY: as in `hasten`.
    let ifindex = unsafe { (*context.ctx).ingress_ifindex };
    let Some(judged) = maps::scratch() else { return 0 };
    let mut decision = judged.examined();
    let Judged { flow, entry, .. } = &mut *judged;
    decision.verdict =
        decide::assign(&XdpFrame::new(&context), ifindex, &KernelTables, entry, flow, &mut decision);
    judged.set(&decision);
    1
}

/// Decides what becomes of a packet that is for no service; 0 if there was no room to note that.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge_reply(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    // SAFETY: as in `hasten`.
    let ifindex = unsafe { (*context.ctx).ingress_ifindex };
    let Some(judged) = maps::scratch() else { return 0 };
    let (frame, routes) = (XdpFrame::new(&context), KernelRoutes(&context));
    let mut decision = Decision::new();
    decide_reply(&frame, ifindex, &KernelTables, &routes, &mut judged.flow, &mut decision);
    judged.set(&decision);
    1
}

/// Chooses the server that [`assign`] has asked for; 0 if it has asked for none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn appoint() -> u32 {
    appointment::answer()
}

/// Takes a tracked connection that goes on to the pins; 0 if there was no room to know.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn advance() -> u32 {
    let Some(judged) = maps::scratch() else { return 0 };
    if judged.is_forward() {
        decide::advance(&KernelTables, &judged.flow, &judged.forward);
        if judged.forward.pin == Forward::PIN_ADVANCES {
            confirm_template();
        }
    }
    1
}

/// Takes the template of such a connection's client along; 0 if there was no room to know.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn confirm_template() -> u32 {
    let Some(judged) = maps::scratch() else { return 0 };
    decide::confirm(&KernelTables, &judged.entry, &judged.flow, &judged.forward);
    1
}

/// Shows the packet as it came to whoever watches, and changes the client's end of it where full NAT does; 0 if there was
/// no room to know.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prepare(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    let (Some(judged), Some(config)) = (maps::scratch(), KernelTables.config()) else { return 0 };
    if config.has(Config::FLAG_CAPTURE) {
        watch(&context, judged, judged.outcome, judged.is_forward() || judged.is_reply());
    }
    if !judged.has_client_end() {
        return 1;
    }
    let Some(mut decision) = judged.decision(config) else { return 1 };
    decide::complete(&KernelTables, &judged.flow, &mut decision);
    let failed = match decision.verdict {
        Verdict::Drop(reason) => Err(reason),
        _ => decide::rewrite_client_end(&mut XdpFrame::new(&context), &decision),
    };
    if let Err(reason) = failed {
        forget(&KernelTables, &judged.flow, &judged.forward);
        judged.discard(reason);
    }
    1
}

/// Does what has been decided.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn finish(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    let (Some(judged), Some(config)) = (maps::scratch(), KernelTables.config()) else { return XDP_PASS };
    let (mut action, mut outcome) = (judged.action, judged.outcome);
    let (mut forwarded, mut replied) = (judged.is_forward(), judged.is_reply());
    let mut frame = XdpFrame::new(&context);
    if let Some(decision) = judged.decision(config)
        && let Err(reason) = rewrite_rest(&mut frame, &decision)
    {
        let (dropped, counter) = Verdict::Drop(reason).disposition();
        (action, outcome) = (dropped as u32, counter);
        (forwarded, replied) = (false, false);
        forget(&KernelTables, &judged.flow, &judged.forward);
    }
    if config.has(Config::FLAG_CAPTURE_AFTER) {
        watch(&context, judged, outcome, forwarded || replied);
    }
    account(judged, forwarded, replied, config);
    if forwarded {
        // SAFETY: as in `hasten`.
        return leave(judged.forward.ifindex, unsafe { (*context.ctx).ingress_ifindex });
    }
    maps::count_outcome(outcome);
    match action {
        judged::PASS => XDP_PASS,
        judged::TRANSMIT => XDP_TX,
        // What is forwarded has left by now.
        judged::REDIRECT => redirect(judged.forward.ifindex),
        _ => XDP_DROP,
    }
}

/// Captures the packet as it is now, if somebody wants it.
#[inline(always)]
fn watch(context: &XdpContext, judged: &Judged, outcome: u32, has_real: bool) {
    let real = if has_real { judged.forward.real } else { CaptureEvent::NO_REAL };
    capture(context.ctx, outcome, judged.service, real);
}

/// Counts a packet that a service owns: for the service, its real server and, if wanted, its flow.
#[inline(always)]
fn account(judged: &Judged, forwarded: bool, replied: bool, config: &Config) {
    if judged.service == Decision::NO_SERVICE {
        return;
    }
    if judged.from_real != 0 {
        return account_reply(judged, replied);
    }
    let (forward, bytes) = (&judged.forward, u64::from(judged.bytes));
    let opens = u64::from(forwarded && forward.opens != 0);
    let unpinned = u64::from(forwarded && forward.pin == Forward::PIN_REFUSED);
    if let Some(counters) = maps::service_counters(judged.service) {
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
    if config.has(Config::FLAG_FLOW_ACCOUNTING) {
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        maps::count_flow(&judged.flow, judged.service, forward.real, bytes, now);
    }
}

/// Counts a packet of a real server, for it and its service.
#[inline(always)]
fn account_reply(judged: &Judged, replied: bool) {
    let bytes = u64::from(judged.bytes);
    if let Some(counters) = maps::service_counters(judged.service) {
        count_out(counters, replied, bytes);
        counters.dropped += u64::from(!replied);
    }
    if let Some(counters) = maps::real_counters(judged.forward.real) {
        count_out(counters, replied, bytes);
    }
}

#[inline(always)]
fn count_out(counters: &mut TrafficCounters, replied: bool, bytes: u64) {
    counters.packets_out += u64::from(replied);
    counters.bytes_out += if replied { bytes } else { 0 };
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
