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
use crate::tables::{
    Address, Config, FlowKey, HashInput, Interface, RealEntry, ServiceEntry, ServiceKey, Tables,
};
use crate::verdict::{DropReason, Forward, PassReason, Verdict};

/// A verdict, and what it is accounted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Index of the service that owns the packet, if one does.
    pub service: Option<u32>,
    /// Length of the IP packet in bytes, 0 if no service owns it.
    pub bytes: u16,
}

impl Decision {
    #[inline(always)]
    const fn pass(reason: PassReason) -> Self {
        Self { verdict: Verdict::Pass(reason), service: None, bytes: 0 }
    }

    #[inline(always)]
    const fn drop(reason: DropReason) -> Self {
        Self { verdict: Verdict::Drop(reason), service: None, bytes: 0 }
    }
}

/// A packet and the service that owns it.
struct Owned {
    config: Config,
    service: ServiceEntry,
    interface: Interface,
    ifindex: u32,
    ipv4: Ipv4,
    ports: Option<Ports>,
}

/// Decides what becomes of the packet in `frame`, which came in by the interface `ifindex`. Changes nothing:
/// [`rewrite`] does, if the verdict is to forward.
#[inline(always)]
pub fn decide(frame: &impl Frame, ifindex: u32, tables: &impl Tables) -> Decision {
    let owned = match find_owner(frame, ifindex, tables) {
        Ok(owned) => owned,
        Err(decision) => return decision,
    };
    let verdict = match forward(frame, tables, &owned) {
        Ok(forward) => Verdict::Forward(forward),
        Err(reason) => Verdict::Drop(reason),
    };
    Decision { verdict, service: Some(owned.service.service), bytes: owned.ipv4.total_len }
}

/// Applies `forward` to the frame it was decided for: link addresses, time to live, checksum.
///
/// The time to live is decremented, as a router does and as LVS has done since Linux 4.2: should two
/// directors ever send a packet to each other, it dies instead of circling for ever.
#[inline(always)]
pub fn rewrite(frame: &mut impl Frame, forward: &Forward) -> Result<(), DropReason> {
    Ethernet::emit_addresses(frame, forward.destination_mac, forward.source_mac)
        .and_then(|()| Ipv4::emit_decremented_ttl(frame, forward.ttl, forward.checksum))
        .ok_or(DropReason::RewriteFailed)
}

/// The service that owns the packet, or the verdict where none does.
#[inline(always)]
fn find_owner(frame: &impl Frame, ifindex: u32, tables: &impl Tables) -> Result<Owned, Decision> {
    let ethernet = Ethernet::parse(frame).ok_or(Decision::pass(PassReason::ShortFrame))?;
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return Err(Decision::pass(PassReason::NotIpv4));
    }
    let ipv4 = Ipv4::parse(frame).map_err(|error| {
        Decision::pass(match error {
            Ipv4Error::Short => PassReason::ShortHeader,
            Ipv4Error::Version => PassReason::BadVersion,
            Ipv4Error::HeaderLength => PassReason::BadHeaderLength,
        })
    })?;
    let config = *tables.config().ok_or(Decision::pass(PassReason::NotConfigured))?;
    let (service, ports) = find_service(frame, &ipv4, &config, tables)?;
    match tables.interface(ifindex) {
        Some(interface) if interface.mac == ethernet.destination => {
            Ok(Owned { config, service, interface, ifindex, ipv4, ports })
        }
        _ => Err(Decision::pass(PassReason::OtherStation)),
    }
}

/// The service for the packet's destination, and the packet's ports if it has any.
#[inline(always)]
fn find_service(
    frame: &impl Frame,
    ipv4: &Ipv4,
    config: &Config,
    tables: &impl Tables,
) -> Result<(ServiceEntry, Option<Ports>), Decision> {
    let address = Address::from_ipv4(ipv4.destination);
    let protocol = ipv4.protocol;
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        let reason =
            if protocol == PROTOCOL_ICMP { PassReason::IcmpToVip } else { PassReason::ProtocolToVip };
        return Err(unless_vip(address, tables, Decision::pass(reason)));
    }
    if ipv4.fragment_offset != 0 {
        return match tables.service(&ServiceKey::fragment(address, protocol)) {
            Some(service) => Ok((service, None)),
            None => Err(unless_vip(address, tables, Decision::drop(DropReason::Fragment))),
        };
    }
    let Some(ports) = Ports::parse(frame, ipv4) else {
        return Err(unless_vip(address, tables, Decision::drop(DropReason::ShortTransport)));
    };
    let mut key = ServiceKey::service(address, protocol, ports.destination);
    if let Some(service) = tables.service(&key) {
        return Ok((service, Some(ports)));
    }
    if config.has(Config::FLAG_ANY_PORT) {
        key.port = 0;
        if let Some(service) = tables.service(&key) {
            return Ok((service, Some(ports)));
        }
    }
    Err(Decision::pass(PassReason::NoService))
}

/// `decision` if `address` is a VIP, else the packet is none of ours.
#[inline(always)]
fn unless_vip(address: Address, tables: &impl Tables, decision: Decision) -> Decision {
    match tables.service(&ServiceKey::vip(address)) {
        Some(_) => decision,
        None => Decision::pass(PassReason::NoService),
    }
}

/// How an owned packet goes to its real server.
#[inline(always)]
fn forward(frame: &impl Frame, tables: &impl Tables, owned: &Owned) -> Result<Forward, DropReason> {
    let ipv4 = &owned.ipv4;
    let payload_len = ipv4.payload_len().ok_or(DropReason::BadLength)?;
    if !ipv4.length_fits(frame) {
        return Err(DropReason::BadLength);
    }
    if !ipv4.checksum_holds(frame) {
        return Err(DropReason::BadChecksum);
    }
    let opens = match owned.ports {
        Some(_) => packet::check_transport(frame, ipv4, payload_len).map_err(|error| match error {
            TransportError::Short => DropReason::ShortTransport,
            TransportError::Length => DropReason::BadTransport,
        })?,
        None => false,
    };
    if ipv4.is_fragment() && owned.service.hash_input() == HashInput::SourcePort {
        return Err(DropReason::FragmentNeedsPort);
    }
    if ipv4.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    let flow = flow_of(owned);
    let (real, entry) = pick_real(tables, owned, &flow)?;
    if owned.interface.is_native() && entry.mtu != 0 && ipv4.total_len > entry.mtu {
        return Err(DropReason::TooBig);
    }
    Ok(Forward {
        real,
        redirect: if entry.ifindex == owned.ifindex { None } else { Some(entry.ifindex) },
        destination_mac: entry.destination_mac,
        source_mac: entry.source_mac,
        ttl: ipv4.ttl,
        checksum: ipv4.checksum,
        flow,
        opens,
    })
}

/// The flow a packet belongs to; a later fragment has no ports, so all of a client's share one.
#[inline(always)]
fn flow_of(owned: &Owned) -> FlowKey {
    let ports = owned.ports.unwrap_or(Ports { source: 0, destination: 0 });
    FlowKey {
        source: Address::from_ipv4(owned.ipv4.source),
        destination: Address::from_ipv4(owned.ipv4.destination),
        source_port: ports.source,
        destination_port: ports.destination,
        protocol: owned.ipv4.protocol,
        reserved: [0; 3],
    }
}

/// The real server that owns the flow's slot, with its index.
#[inline(always)]
fn pick_real<'a>(
    tables: &'a impl Tables,
    owned: &Owned,
    flow: &FlowKey,
) -> Result<(u32, &'a RealEntry), DropReason> {
    let service = &owned.service;
    let number = slot_of_flow(owned.config.hash_key, flow.source, flow.source_port, service.hash_input());
    let slot = tables.slot(service.table, number).ok_or(DropReason::BadTable)?;
    // Nothing is tracked yet, so the current owner takes the packet in every state.
    let position = u32::from(slot.current().ok_or(DropReason::NoRealServer)?);
    if position >= service.real_count {
        return Err(DropReason::BadTable);
    }
    let index = service.real_base.wrapping_add(position);
    let real = tables.real(index).ok_or(DropReason::BadTable)?;
    if real.ifindex == 0 { Err(DropReason::NoNextHop) } else { Ok((index, real)) }
}
