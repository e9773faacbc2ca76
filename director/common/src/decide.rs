//! Which outcome a packet gets.
//!
//! The order of the questions is the order of cost: what is not for a service leaves after one or two look-ups
//! and is never changed; only a packet that a service owns is checked in full. Before the destination is
//! known to be a VIP a malformed packet is the kernel's to judge; after, it is dropped under its own name.

use crate::packet::{
    self, ETHERTYPE_IPV4, Ethernet, Frame, Ipv4, Ipv4Error, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Ports,
    TransportError,
};
use crate::slot::slot_of_flow;
use crate::tables::{Address, Config, HashInput, Interface, RealEntry, ServiceEntry, ServiceKey, Tables};
use crate::verdict::{DropReason, Forward, PassReason, Verdict};

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
    /// Where it goes, if it is forwarded.
    pub forward: Forward,
    /// The way there, if it is forwarded: a reference into the tables, since link addresses copied byte by byte
    /// would fill the small stack of the program in the kernel.
    pub way: Option<&'a RealEntry>,
}

impl Decision<'_> {
    /// [`Self::service`] of a packet that no service owns.
    pub const NO_SERVICE: u32 = u32::MAX;
}

/// Decides what becomes of the packet in `frame`, which came in by the interface `ifindex`. Changes nothing:
/// [`rewrite`] does, if the verdict is to forward.
#[inline(always)]
pub fn decide<'a>(frame: &impl Frame, ifindex: u32, tables: &'a impl Tables) -> Decision<'a> {
    let mut decision = Decision {
        verdict: Verdict::Pass(PassReason::NoService),
        service: Decision::NO_SERVICE,
        bytes: 0,
        forward: Forward::default(),
        way: None,
    };
    decision.verdict = match judge(frame, ifindex, tables, &mut decision) {
        Ok(()) if decision.forward.ifindex == ifindex => Verdict::Transmit,
        Ok(()) => Verdict::Redirect,
        Err(verdict) => verdict,
    };
    decision
}

/// Applies a decision to forward to the frame it was made for: link addresses, time to live, checksum.
///
/// The time to live is decremented, as a router does and as LVS does on its way to a real server: should two
/// directors ever send a packet to each other, it dies instead of circling for ever.
///
/// # Errors
/// [`DropReason::RewriteFailed`] if the decision is not to forward, or the frame is shorter than the one decided
/// on.
#[inline(always)]
pub fn rewrite(frame: &mut impl Frame, decision: &Decision<'_>) -> Result<(), DropReason> {
    let way = decision.way.ok_or(DropReason::RewriteFailed)?;
    Ethernet::emit_addresses(frame, way.destination_mac, way.source_mac)
        .and_then(|()| Ipv4::emit_decremented_ttl(frame, decision.forward.ttl, decision.forward.checksum))
        .ok_or(DropReason::RewriteFailed)
}

/// Fills in `decision`; an error is the verdict of a packet that is not forwarded.
#[inline(always)]
fn judge<'a>(
    frame: &impl Frame,
    ifindex: u32,
    tables: &'a impl Tables,
    decision: &mut Decision<'a>,
) -> Result<(), Verdict> {
    let ethernet = Ethernet::parse(frame).ok_or(Verdict::Pass(PassReason::ShortFrame))?;
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return Err(Verdict::Pass(PassReason::NotIpv4));
    }
    let ipv4 = Ipv4::parse(frame).map_err(|error| {
        Verdict::Pass(match error {
            Ipv4Error::Short => PassReason::ShortHeader,
            Ipv4Error::Version => PassReason::BadVersion,
            Ipv4Error::HeaderLength => PassReason::BadHeaderLength,
        })
    })?;
    let config = tables.config().ok_or(Verdict::Pass(PassReason::NotConfigured))?;
    let service = find_service(frame, &ipv4, config, tables, &mut decision.forward)?;
    let interface = match tables.interface(ifindex) {
        Some(interface) if interface.mac == ethernet.destination => interface,
        _ => return Err(Verdict::Pass(PassReason::OtherStation)),
    };
    decision.service = service.service;
    decision.bytes = u32::from(ipv4.total_len);
    check(frame, &ipv4, service, &mut decision.forward).map_err(Verdict::Drop)?;
    let way =
        choose(tables, config, service, interface, &ipv4, &mut decision.forward).map_err(Verdict::Drop)?;
    decision.way = Some(way);
    Ok(())
}

/// The service for the packet's destination. Notes the flow on the way; a later fragment has no ports, so all
/// those of one client count as one flow.
#[inline(always)]
fn find_service<'a>(
    frame: &impl Frame,
    ipv4: &Ipv4,
    config: &Config,
    tables: &'a impl Tables,
    forward: &mut Forward,
) -> Result<&'a ServiceEntry, Verdict> {
    let address = Address::from_ipv4(ipv4.destination);
    let protocol = ipv4.protocol;
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        let reason =
            if protocol == PROTOCOL_ICMP { PassReason::IcmpToVip } else { PassReason::ProtocolToVip };
        return Err(unless_vip(address, tables, Verdict::Pass(reason)));
    }
    forward.flow.source = Address::from_ipv4(ipv4.source);
    forward.flow.destination = address;
    forward.flow.protocol = protocol;
    if ipv4.fragment_offset != 0 {
        return match tables.service(&ServiceKey::fragment(address, protocol)) {
            Some(service) => Ok(service),
            None => Err(unless_vip(address, tables, Verdict::Drop(DropReason::Fragment))),
        };
    }
    let Some(ports) = Ports::parse(frame, ipv4) else {
        return Err(unless_vip(address, tables, Verdict::Drop(DropReason::ShortTransport)));
    };
    forward.flow.source_port = ports.source;
    forward.flow.destination_port = ports.destination;
    if let Some(service) = tables.service(&ServiceKey::service(address, protocol, ports.destination)) {
        return Ok(service);
    }
    if config.has(Config::FLAG_ANY_PORT)
        && let Some(service) = tables.service(&ServiceKey::service(address, protocol, 0))
    {
        return Ok(service);
    }
    Err(Verdict::Pass(PassReason::NoService))
}

/// `verdict` if `address` is a VIP, else the packet is none of ours.
#[inline(always)]
fn unless_vip(address: Address, tables: &impl Tables, verdict: Verdict) -> Verdict {
    match tables.service(&ServiceKey::vip(address)) {
        Some(_) => verdict,
        None => Verdict::Pass(PassReason::NoService),
    }
}

/// Checks all of a packet that a service owns, and notes what of it forwarding needs.
#[inline(always)]
fn check(
    frame: &impl Frame,
    ipv4: &Ipv4,
    service: &ServiceEntry,
    forward: &mut Forward,
) -> Result<(), DropReason> {
    let payload_len = ipv4.payload_len().ok_or(DropReason::BadLength)?;
    if !ipv4.length_fits(frame) {
        return Err(DropReason::BadLength);
    }
    if !ipv4.checksum_holds(frame) {
        return Err(DropReason::BadChecksum);
    }
    if ipv4.fragment_offset == 0 {
        let opens = packet::check_transport(frame, ipv4, payload_len).map_err(|error| match error {
            TransportError::Short => DropReason::ShortTransport,
            TransportError::Length => DropReason::BadTransport,
        })?;
        forward.opens = u8::from(opens);
    }
    if ipv4.is_fragment() && service.hash_input() == HashInput::SourcePort {
        return Err(DropReason::FragmentNeedsPort);
    }
    if ipv4.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    forward.ttl = ipv4.ttl;
    forward.checksum = ipv4.checksum;
    Ok(())
}

/// Chooses the real server that owns the flow's slot, and notes the way to it.
#[inline(always)]
fn choose<'a>(
    tables: &'a impl Tables,
    config: &Config,
    service: &ServiceEntry,
    interface: &Interface,
    ipv4: &Ipv4,
    forward: &mut Forward,
) -> Result<&'a RealEntry, DropReason> {
    let (index, real) = pick_real(tables, config, service, forward)?;
    if real.ifindex == 0 {
        return Err(DropReason::NoNextHop);
    }
    if interface.is_native() && real.mtu != 0 && ipv4.total_len > real.mtu {
        return Err(DropReason::TooBig);
    }
    forward.real = index;
    forward.ifindex = real.ifindex;
    Ok(real)
}

/// The real server that owns the flow's slot, and its index.
#[inline(always)]
fn pick_real<'a>(
    tables: &'a impl Tables,
    config: &Config,
    service: &ServiceEntry,
    forward: &Forward,
) -> Result<(u32, &'a RealEntry), DropReason> {
    let flow = &forward.flow;
    let number = slot_of_flow(config.hash_key, flow.source, flow.source_port, service.hash_input());
    let slot = tables.slot(service.table, number).ok_or(DropReason::BadTable)?;
    // Nothing is tracked yet, so the current owner takes the packet in every state.
    let position = u32::from(slot.current().ok_or(DropReason::NoRealServer)?);
    if position >= service.real_count {
        return Err(DropReason::BadTable);
    }
    let index = service.real_base.wrapping_add(position);
    Ok((index, tables.real(index).ok_or(DropReason::BadTable)?))
}
