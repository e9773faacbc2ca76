//! What real servers answer by NAT: it comes to a director, any of them, on its way to the client, and is to come from
//! the VIP.
//!
//! Nothing is remembered for it (see [`crate::tables::ReplyEntry`]) but the ports of fragmented datagrams, and no pin
//! or slot is asked. With full NAT it comes to the director that sent the request, as an answer to the lease that it
//! gave the connection (see [`crate::lease`]). The way on is the kernel's route to the client. What is no such answer stays untouched: real
//! servers have business of their own, and the node itself asks them how they are.

use super::{Decision, answer_expired, check, fragment, may_answer};
use crate::packet::icmp::{self, Icmp};
use crate::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Frame, Ip, PROTOCOL_TCP, PROTOCOL_UDP, Ports, parse_at,
};
use crate::tables::{
    Address, Config, Endpoint, FlowKey, FragmentEntry, ReplyEntry, ReplyKey, RouteEntry, RouteQuery, Routes,
    Tables,
};
use crate::verdict::{AnswerReason, DropReason, Forward, PassReason, ReplyReason, Verdict};

/// Most IPv6 extension headers of an answer: that of a fragment. One with more is not taken for an answer.
const EXTENSIONS: usize = 1;

/// The verdict on a packet that is none of ours.
const NONE: Verdict = Verdict::Pass(PassReason::NoService);

/// Decides about the packet in `frame`, which came in by the interface `ifindex` and of which `decision` says so far
/// that no service owns it. Its flow, from the real server to the client, is left in `flow`.
#[inline(always)]
pub fn decide_reply<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    routes: &'a impl Routes,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) {
    decision.verdict = judge(frame, ifindex, tables, routes, flow, decision);
}

/// Fills in `decision` but for the verdict.
#[inline(always)]
fn judge<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    routes: &'a impl Routes,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) -> Verdict {
    let forward = &mut decision.forward;
    let Some((ethernet, ip)) = identify(frame, ifindex, tables, flow, forward) else { return NONE };
    let (Some(config), Some(interface)) = (tables.config(), tables.interface(ifindex)) else { return NONE };
    decision.ip = ip;
    if ip.fragment_offset != 0 && !find_ports(tables, &ip, flow, forward) {
        return NONE;
    }
    let Some(reply) = find(config, tables, flow, decision) else { return NONE };
    let forward = &mut decision.forward;
    forward.related = frame.launder(usize::from(forward.related)) as u16;
    forward.inner = frame.launder(usize::from(forward.inner)) as u16;
    // In generic mode a frame may be a large one that is segmented again.
    let bytes = if interface.is_native() { ip.total_len as u16 } else { 0 };
    let Some(route) =
        routes.route(&query(&ip, flow, &reply.vip, decision.client_end, forward, bytes, ifindex))
    else {
        return wayless(decision);
    };
    match route.answer {
        RouteEntry::STAYS => return wayless(decision),
        RouteEntry::DISABLED => return Verdict::Pass(PassReason::ForwardingOff),
        _ => {}
    }
    decision.service = reply.service;
    decision.bytes = ip.total_len as u32;
    decision.forward.real = reply.real;
    decision.reply = Some(reply);
    decision.route = Some(route);
    match check(frame, &ip) {
        Ok(signals) => decision.forward.signals = frame.launder(usize::from(signals)) as u16,
        Err(reason) => return Verdict::Drop(reason),
    }
    if ip.hop_limit <= 1 {
        return answer_expired(config, tables, flow, decision);
    }
    let mut by_kernel = ethernet.is_tagged();
    match route.answer {
        RouteEntry::REFUSED => return Verdict::Drop(DropReason::ReplyRefused),
        RouteEntry::TOO_BIG if ip.dont_fragment => {
            decision.mtu = route.mtu;
            if !may_answer(decision, flow) || !tables.take_token(config.icmp_rate) {
                return Verdict::Drop(DropReason::TooBig);
            }
            return Verdict::Answer(AnswerReason::TooBig);
        }
        RouteEntry::TOO_BIG | RouteEntry::BY_KERNEL => by_kernel = true,
        _ => {}
    }
    if ip.more_fragments && ip.fragment_offset == 0 {
        fragment::note(tables, flow, decision.ip.identification, 0, 0);
    }
    // Interfaces that have the program can send what it redirects, as they say themselves.
    if by_kernel || tables.interface(route.ifindex).is_none() {
        return Verdict::Reply(ReplyReason::ByKernel);
    }
    decision.forward.ifindex = route.ifindex;
    if route.ifindex == ifindex {
        return Verdict::Reply(ReplyReason::Transmitted);
    }
    Verdict::Reply(ReplyReason::Redirected)
}

/// The verdict on an answer for which the kernel has no way. By NAT it may be the kernel's own business; by full NAT it is to
/// a lease, of which the kernel knows nothing, and it would reset a connection that goes on when there is a way again.
#[inline(always)]
fn wayless(decision: &Decision<'_>) -> Verdict {
    if decision.client_end.is_some() { Verdict::Drop(DropReason::ReplyRefused) } else { NONE }
}

/// The packet's headers and, in `flow`, the flow of what may be an answer, or that an ICMP error is about. A later
/// fragment has no ports yet ([`find_ports`]).
#[inline(always)]
pub fn identify(
    frame: &impl Frame,
    ifindex: u32,
    tables: &impl Tables,
    flow: &mut FlowKey,
    forward: &mut Forward,
) -> Option<(Ethernet, Ip)> {
    (*flow, *forward) = (FlowKey::default(), Forward::default());
    let ethernet = Ethernet::parse(frame)?;
    if ethernet.ethertype != ETHERTYPE_IPV4 && ethernet.ethertype != ETHERTYPE_IPV6 {
        return None;
    }
    let is_v6 = ethernet.ethertype == ETHERTYPE_IPV6;
    let ip = parse_at::<EXTENSIONS>(frame, is_v6, ethernet.len, flow).ok()?;
    if tables.interface(ifindex)?.mac != ethernet.destination || ip.broken.is_some() {
        return None;
    }
    if ip.protocol == ip.icmp() {
        let to = flow.destination;
        if ip.is_fragment() || Icmp::parse(frame, &ip)? != Icmp::Error {
            return None;
        }
        // The flow of what it is about, from its destination to its source: the way of an answer.
        let inner = icmp::parse_inner(frame, &ip, flow)?;
        if flow.destination != to || (inner.protocol != PROTOCOL_TCP && inner.protocol != PROTOCOL_UDP) {
            return None;
        }
        flow.protocol = inner.protocol;
        (forward.related, forward.inner) = (1, inner.payload as u16);
    } else if ip.protocol != PROTOCOL_TCP && ip.protocol != PROTOCOL_UDP {
        return None;
    } else {
        flow.protocol = ip.protocol;
        if ip.fragment_offset == 0 {
            let ports = Ports::parse(frame, &ip)?;
            (flow.source_port, flow.destination_port) = (ports.source, ports.destination);
        }
    }
    Some((ethernet, ip))
}

/// Gives a later fragment the ports of its first one; false if that has not been seen lately.
#[inline(always)]
pub fn find_ports(tables: &impl Tables, ip: &Ip, flow: &mut FlowKey, forward: &mut Forward) -> bool {
    let mut first = FragmentEntry::default();
    if !fragment::find_first(tables, flow, ip.identification, &mut first) {
        return false;
    }
    (flow.source_port, flow.destination_port) = (first.source_port, first.destination_port);
    forward.follows = 1;
    true
}

/// As whose the packet is to leave, if it is an answer, or an ICMP error about a client's packet.
#[inline(always)]
fn find<'a>(
    config: &Config,
    tables: &'a impl Tables,
    flow: &FlowKey,
    decision: &mut Decision<'a>,
) -> Option<&'a ReplyEntry> {
    if config.has(Config::FLAG_FULL_NAT)
        && let Some(found) = tables.returned(flow)
    {
        decision.client_end = Some(&found.client);
        return Some(&found.reply);
    }
    let key = ReplyKey::of(flow.source, flow.protocol, flow.source_port);
    if let Some(found) = tables.reply(&key) {
        return Some(found);
    }
    if config.has(Config::FLAG_ANY_PORT) { tables.reply(&ReplyKey { port: 0, ..key }) } else { None }
}

/// What the routes are asked: the way of the packet as it is to leave.
#[inline(always)]
fn query(
    ip: &Ip,
    flow: &FlowKey,
    vip: &Address,
    client: Option<&Endpoint>,
    forward: &Forward,
    bytes: u16,
    ifindex: u32,
) -> RouteQuery {
    let mut query = RouteQuery {
        source: *vip,
        destination: flow.destination,
        protocol: ip.protocol,
        traffic_class: ip.traffic_class,
        bytes,
        ifindex,
        ..RouteQuery::default()
    };
    if let Some(client) = client {
        query.destination = client.address;
    }
    // All fragments of a datagram go one way.
    if forward.related == 0 && !ip.is_fragment() {
        (query.source_port, query.destination_port) = (flow.source_port, flow.destination_port);
    }
    query
}
