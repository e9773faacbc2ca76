//! Which outcome a packet gets.
//!
//! The order of the questions is the order of cost: what is not for a service leaves after one or two look-ups
//! and is never changed; only a packet that a service owns is checked in full. Before the destination is
//! known to be a VIP a malformed packet is the kernel's to judge; after, it is dropped under its own name.

mod assign;
mod fragment;
mod icmp;
mod owner;
mod quic;
mod reply;
mod schedule;
mod track;

use crate::lease::flow_of;
use crate::packet::icmp::{ErrorKind, SHOWN_LONG, emit_echo_reply, emit_error};
use crate::packet::{
    self, End, Ethernet, Frame, Ip, Outer, PROTOCOL_TCP, PROTOCOL_UDP, Ports, Translation, TransportError,
};
use crate::pin::signal;
use crate::tables::{
    Address, Config, Endpoint, FlowKey, RealEntry, ReplyEntry, ReplyKey, RouteEntry, Routes, ServiceEntry,
    Tables,
};
use crate::template;
use crate::verdict::{AnswerReason, DropReason, Forward, PassReason, ReplyReason, Verdict};

pub use assign::assign;
pub(crate) use owner::find_owner;
use owner::unless_vip;
pub use reply::{decide_reply, find_ports, identify};

/// A verdict, and what it is accounted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision<'a> {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Index of the service that owns the packet, or [`Self::NO_SERVICE`].
    pub service: u32,
    /// Length of the IP packet in bytes, as it claims; 0 if no service owns it.
    pub bytes: u32,
    /// The largest packet that would have been forwarded, in bytes, if it was too big.
    pub mtu: u32,
    /// Where it goes, if it is forwarded.
    pub forward: Forward,
    /// Its header, if it is forwarded.
    pub ip: Ip,
    /// The way there, if it is forwarded: a reference into the tables, since link addresses copied byte by byte
    /// would fill the small stack of the program in the kernel.
    pub way: Option<&'a RealEntry>,
    /// The service's entry, if it got as far as a real server's choice.
    pub entry: Option<&'a ServiceEntry>,
    /// Our address, if it is forwarded by a tunnel; if it is answered as a router does, where that comes from, or
    /// `None` for the VIP.
    pub tunnel_source: Option<&'a Address>,
    /// As whose it leaves, if it is a real server's answer.
    pub reply: Option<&'a ReplyEntry>,
    /// The way to the client then.
    pub route: Option<&'a RouteEntry>,
    /// What the client's end becomes, by full NAT: the source of what goes to a real server, the destination of an answer.
    pub client_end: Option<&'a Endpoint>,
}

impl Decision<'_> {
    /// [`Self::service`] of a packet that no service owns.
    pub const NO_SERVICE: u32 = u32::MAX;

    /// That no service owns the packet, before anything is known of it.
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            verdict: Verdict::Pass(PassReason::NoService),
            service: Decision::NO_SERVICE,
            bytes: 0,
            mtu: 0,
            forward: Forward::default(),
            ip: Ip::default(),
            way: None,
            entry: None,
            tunnel_source: None,
            reply: None,
            route: None,
            client_end: None,
        }
    }
}

impl Default for Decision<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Decides what becomes of the packet in `frame`, which came in by the interface `ifindex`. Changes no byte of
/// it: [`rewrite`] does, if the verdict is to forward or answer. The flow it belongs to is left in `flow`, whatever was
/// in there: the caller lends the room, since the stack of the program in the kernel is small.
#[inline(always)]
pub fn decide<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a (impl Tables + Routes),
    flow: &mut FlowKey,
) -> Decision<'a> {
    let mut decision = decide_request(frame, ifindex, tables, flow);
    if may_be_reply(decision.verdict, tables) {
        decide_reply(frame, ifindex, tables, tables, flow, &mut decision);
    }
    if let Some(service) = decision.entry.filter(|_| decision.verdict.is_forward()) {
        advance(tables, flow, &decision.forward);
        confirm(tables, service, flow, &decision.forward);
    }
    complete(tables, flow, &mut decision);
    decision
}

/// Whether a packet on which [`decide_request`] has this verdict is one for [`decide_reply`].
#[inline(always)]
pub fn may_be_reply(verdict: Verdict, tables: &impl Tables) -> bool {
    matches!(verdict, Verdict::Pass(PassReason::NoService))
        && tables
            .config()
            .is_some_and(|config| config.flags & (Config::FLAG_NAT | Config::FLAG_FULL_NAT) != 0)
}

/// The step of [`decide()`] after it is known that a packet is forwarded: takes a tracked connection that goes on to the
/// pins.
#[inline(always)]
pub fn advance(tables: &impl Tables, flow: &FlowKey, forward: &Forward) {
    if forward.pin == Forward::PIN_ADVANCES {
        schedule::advance(tables, flow, forward.real, forward.signals);
    }
}

/// The step after that: takes the client's template along, if the service is persistent.
#[inline(always)]
pub fn confirm(tables: &impl Tables, service: &ServiceEntry, flow: &FlowKey, forward: &Forward) {
    if forward.pin == Forward::PIN_ADVANCES && service.is_persistent() {
        template::confirm(tables, service, flow);
    }
}

/// The last step of [`decide()`], for what full NAT changes: finds as whom a client's packet leaves, and notes an answer
/// in its connection's entry. `flow` is as the steps before have left it.
#[inline(always)]
pub fn complete<'a>(tables: &'a impl Tables, flow: &FlowKey, decision: &mut Decision<'a>) {
    if decision.verdict.is_forward() && decision.entry.is_some_and(ServiceEntry::is_full_nat) {
        decision.client_end = tables.local(flow);
        if decision.client_end.is_none() {
            schedule::end(tables, flow, decision.forward.real);
            decision.verdict = Verdict::Drop(DropReason::NoConnection);
        }
    }
    if decision.verdict.is_reply()
        && decision.forward.related == 0
        && let (Some(reply), Some(client)) = (decision.reply, decision.client_end)
    {
        let connection = flow_of(reply, client, flow.protocol);
        schedule::note_reply(tables, &connection, reply.real, decision.forward.signals);
    }
}

/// The part of [`decide()`] that is about packets to a VIP.
#[inline(always)]
fn decide_request<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    flow: &mut FlowKey,
) -> Decision<'a> {
    let mut decision = Decision::new();
    decision.verdict = match examine(frame, ifindex, tables, flow, &mut decision) {
        Ok(service) => assign(frame, ifindex, tables, service, flow, &mut decision),
        Err(verdict) => verdict,
    };
    decision
}

/// Forgets what was stored for a packet that is not forwarded after all.
#[inline(always)]
pub fn forget(tables: &impl Tables, flow: &FlowKey, forward: &Forward) {
    if forward.pin == Forward::PIN_STORED {
        tables.remove_pin(flow);
    }
    if forward.pin == Forward::PIN_OPENED {
        schedule::forget(tables, flow, forward.real);
    }
}

/// Applies a decision to answer or forward to the frame it was made for: the answer instead of the question, or hop
/// limit, checksum, the headers of a tunnel or the addresses and ports that NAT exchanges, link addresses. A VLAN tag
/// stays as it is.
///
/// The hop limit is decremented, as a router does and as LVS does on its way to a real server: should two
/// directors ever send a packet to each other, it dies instead of circling for ever.
///
/// # Errors
/// [`DropReason::RewriteFailed`] if the decision is neither, or the frame is shorter than the one decided
/// on.
#[inline(always)]
pub fn rewrite(frame: &mut impl Frame, decision: &Decision<'_>) -> Result<(), DropReason> {
    rewrite_client_end(frame, decision)?;
    rewrite_rest(frame, decision)
}

/// The part of [`rewrite`] that is the client's end, which full NAT changes; to be done first. (The kernel's program does
/// the two in functions of their own: see [`examine`].)
///
/// # Errors
/// As [`rewrite`].
#[inline(always)]
pub fn rewrite_client_end(frame: &mut impl Frame, decision: &Decision<'_>) -> Result<(), DropReason> {
    let Some(client) = decision.client_end else { return Ok(()) };
    let end = if decision.verdict.is_forward() { End::Source } else { End::Destination };
    let inner = usize::from(decision.forward.inner);
    let there = Translation { end, address: &client.address, port: client.port };
    there.emit(frame, &decision.ip, inner).ok_or(DropReason::RewriteFailed)
}

/// All else of [`rewrite`].
///
/// # Errors
/// As [`rewrite`].
#[inline(always)]
pub fn rewrite_rest(frame: &mut impl Frame, decision: &Decision<'_>) -> Result<(), DropReason> {
    if let Verdict::Answer(reason) = decision.verdict {
        let (kind, source) = match reason {
            AnswerReason::Echo => {
                return emit_echo_reply(frame, &decision.ip).ok_or(DropReason::RewriteFailed);
            }
            AnswerReason::TooBig => (ErrorKind::TooBig, None),
            AnswerReason::TimeExceeded => (ErrorKind::TimeExceeded, decision.tunnel_source),
            AnswerReason::Hairpin => (ErrorKind::Prohibited, None),
        };
        let answered = emit_error(frame, &decision.ip, kind, decision.mtu, source);
        return answered.ok_or(DropReason::RewriteFailed);
    }
    if let Verdict::Reply(reason) = decision.verdict {
        return rewrite_reply(frame, decision, reason).ok_or(DropReason::RewriteFailed);
    }
    let way = decision.way.ok_or(DropReason::RewriteFailed)?;
    let entry = decision.entry.ok_or(DropReason::RewriteFailed)?;
    decision.ip.emit_decremented_hop_limit(frame).ok_or(DropReason::RewriteFailed)?;
    if entry.translates() {
        let real = Translation { end: End::Destination, address: &way.address, port: way.port };
        let inner = usize::from(decision.forward.inner);
        real.emit(frame, &decision.ip, inner).ok_or(DropReason::RewriteFailed)?;
        // Never with a tunnel: the verifier need not go through each of those for every way through this.
        return emit_way(frame, way);
    }
    if let Some(encapsulation) = entry.encapsulation() {
        let outer = Outer {
            encapsulation,
            port: entry.tunnel_port,
            source: decision.tunnel_source.ok_or(DropReason::RewriteFailed)?,
            destination: &way.address,
            entropy: decision.forward.entropy,
        };
        outer.emit(frame, &decision.ip).ok_or(DropReason::RewriteFailed)?;
    }
    emit_way(frame, way)
}

#[inline(always)]
fn emit_way(frame: &mut impl Frame, way: &RealEntry) -> Result<(), DropReason> {
    Ethernet::emit_addresses(frame, way.destination_mac, way.source_mac).ok_or(DropReason::RewriteFailed)
}

/// Makes a real server's answer come from the VIP, and sends it on unless the kernel does, which then is the router
/// that it passes.
#[inline(always)]
fn rewrite_reply(frame: &mut impl Frame, decision: &Decision<'_>, reason: ReplyReason) -> Option<()> {
    let (reply, route) = (decision.reply?, decision.route?);
    if reason != ReplyReason::ByKernel {
        decision.ip.emit_decremented_hop_limit(frame)?;
        Ethernet::emit_addresses(frame, route.destination_mac, route.source_mac)?;
    }
    let vip = Translation { end: End::Source, address: &reply.vip, port: reply.port };
    vip.emit(frame, &decision.ip, usize::from(decision.forward.inner))
}

/// The first step of [`decide()`]: the service that has the packet, if it may go on; then [`assign()`] is next, with
/// `flow` and `decision` as they are left here. Else the verdict on it.
///
/// (The kernel's program has the two steps in functions of its own, which its verifier goes through one by one: in one
/// piece it would go through the second for every way through the first.)
///
/// # Errors
/// The verdict.
#[inline(always)]
pub fn examine<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) -> Result<&'a ServiceEntry, Verdict> {
    *flow = FlowKey::default();
    let ethernet = Ethernet::parse(frame).ok_or(Verdict::Pass(PassReason::ShortFrame))?;
    let ip = Ip::parse(frame, &ethernet, flow).map_err(Verdict::Pass)?;
    let config = tables.config().ok_or(Verdict::Pass(PassReason::NotConfigured))?;
    decision.ip = ip;
    // Both end early by `?`: of a result carried on, the verifier would see bytes of the other variant.
    let service = if ip.protocol == ip.icmp() && ip.broken.is_none() {
        let is_ours =
            || tables.interface(ifindex).is_some_and(|interface| interface.mac == ethernet.destination);
        icmp::find_service(frame, is_ours, config, tables, flow, decision)?
    } else {
        find_service(frame, &ip, config, tables, flow, decision)?
    };
    let forward = &mut decision.forward;
    forward.follows = frame.launder(usize::from(forward.follows)) as u16;
    forward.related = frame.launder(usize::from(forward.related)) as u16;
    forward.inner = frame.launder(usize::from(forward.inner)) as u16;
    if tables.interface(ifindex).is_none_or(|interface| interface.mac != ethernet.destination) {
        return Err(Verdict::Pass(PassReason::OtherStation));
    }
    decision.service = service.service;
    decision.bytes = ip.total_len as u32;
    let signals = check(frame, &ip).map_err(Verdict::Drop)?;
    decision.forward.signals = frame.launder(usize::from(signals)) as u16;
    decision.forward.opens = decision.forward.signals & signal::OPENS;
    // Before a real server is asked for: it is about the way here, whoever serves.
    if ip.hop_limit <= 1 {
        return Err(answer_expired(config, tables, flow, decision));
    }
    if service.is_nat()
        && decision.forward.related == 0
        && tables.reply(&ReplyKey::marker(flow.source)).is_some()
    {
        if !may_answer(decision, flow) || !tables.take_token(config.icmp_rate) {
            return Err(Verdict::Drop(DropReason::Hairpin));
        }
        return Err(Verdict::Answer(AnswerReason::Hairpin));
    }
    decision.entry = Some(service);
    Ok(service)
}

/// The verdict on a packet whose life ends here.
#[inline(always)]
fn answer_expired<'a>(
    config: &'a Config,
    tables: &impl Tables,
    flow: &FlowKey,
    decision: &mut Decision<'a>,
) -> Verdict {
    if !may_answer(decision, flow) || !tables.take_token(config.icmp_rate) {
        return Verdict::Drop(DropReason::TtlExpired);
    }
    decision.tunnel_source = config.tunnel_source(!decision.ip.is_v6());
    Verdict::Answer(AnswerReason::TimeExceeded)
}

/// The service for the packet's destination. Completes the flow on the way; a later fragment whose first one was
/// not seen has no ports, so all those of one client count as one flow.
#[inline(always)]
fn find_service<'a>(
    frame: &impl Frame,
    ip: &Ip,
    config: &Config,
    tables: &'a impl Tables,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) -> Result<&'a ServiceEntry, Verdict> {
    let protocol = ip.protocol;
    if let Some(reason) = ip.broken {
        return Err(unless_vip(&flow.destination, config, tables, Verdict::Drop(reason)));
    }
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        let verdict = Verdict::Pass(PassReason::ProtocolToVip);
        return Err(unless_vip(&flow.destination, config, tables, verdict));
    }
    flow.protocol = protocol;
    if ip.fragment_offset != 0 {
        return fragment::find_service(config, tables, flow, decision);
    }
    let Some(ports) = Ports::parse(frame, ip) else {
        let verdict = Verdict::Drop(DropReason::ShortTransport);
        return Err(unless_vip(&flow.destination, config, tables, verdict));
    };
    flow.source_port = ports.source;
    flow.destination_port = ports.destination;
    find_owner(flow, config, tables).ok_or(Verdict::Pass(PassReason::NoService))
}

/// Checks all of a packet that a service owns; what it says about its connection.
#[inline(always)]
fn check(frame: &impl Frame, ip: &Ip) -> Result<u16, DropReason> {
    let payload_len = ip.payload_len().ok_or(DropReason::BadLength)?;
    if !ip.length_holds(frame) {
        return Err(DropReason::BadLength);
    }
    if !ip.checksum_holds(frame) {
        return Err(DropReason::BadChecksum);
    }
    let mut signals = 0;
    if fragment::overlaps(ip) {
        return Err(DropReason::FragmentOverlap);
    }
    if ip.fragment_offset == 0 {
        signals = packet::check_transport(frame, ip, payload_len).map_err(|error| match error {
            TransportError::Short if ip.more_fragments => DropReason::FragmentTiny,
            TransportError::Short => DropReason::ShortTransport,
            TransportError::Length => DropReason::BadTransport,
        })?;
    }
    Ok(signals)
}

/// Whether an ICMP error may be sent about a packet: never about an error, or to a source that cannot be one (RFC 1122,
/// section 3.2.2; RFC 4443, section 2.4 e), and in IPv4 not about a later fragment. Nor about a short one with options or
/// extension headers, of which the error would have to show all.
#[inline(always)]
fn may_answer(decision: &Decision<'_>, flow: &FlowKey) -> bool {
    let ip = &decision.ip;
    let shows = ip.is_bare() || ip.total_len >= SHOWN_LONG;
    let ([six, ..], [four, ..]) = (flow.source.0, flow.source.low());
    let first = if ip.is_v6() { six } else { four };
    let unicast = if ip.is_v6() { first != 0xff && first != 0 } else { first != 0 && first < 224 };
    (ip.fragment_offset == 0 || ip.is_v6()) && decision.forward.related == 0 && shows && unicast
}
