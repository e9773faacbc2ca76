//! Explanations: the question as a packet, and the answer as a message of the control protocol.

use std::net::SocketAddr;

use director_common::lease::opening;
use director_common::pin::Pin;
use director_common::slot::SlotState;
use director_common::tables::{
    Address, Encapsulation, Endpoint, FlowKey, HashInput, RangeKey, RealEntry, ReplyEntry, ReplyKey, Roster,
    RouteEntry, ServiceEntry, ServiceKey,
};
use director_proto::control as wire;

use super::Node;
use super::views::{interface, mac, protocol};
use crate::dataplane::{
    AttachedInterface, ExplainedReal, ExplainedSlot, Explanation, Lookup, MatchedKey, Probe, Protocol,
    TcpFlags, ip_address,
};

impl Node {
    /// What would become of a packet.
    pub(super) fn explain(&self, request: &wire::ExplainRequest) -> Result<wire::Explanation, String> {
        let device = self.ingress(&request.interface)?;
        let probe = probe(request)?;
        let mut frame = probe.emit(device.mac).map_err(|error| error.to_string())?;
        let explained = self
            .dataplane
            .explain(&mut frame, device.ifindex)
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        let flags = match (probe.protocol, probe.flags) {
            (Protocol::Udp, _) => "",
            (Protocol::Tcp, TcpFlags::Syn) => " SYN",
            (Protocol::Tcp, TcpFlags::Ack) => " ACK",
        };
        let packet = format!(
            "{}{flags} {} -> {}, {} bytes",
            request.protocol,
            probe.source,
            probe.destination,
            frame.len() - ETHERNET
        );
        Ok(wire::Explanation { interface: device.name, packet, ..message(&explained) })
    }

    /// The interface with this name, or the first, with the program on it.
    fn ingress(&self, name: &str) -> Result<AttachedInterface, String> {
        let attached = self.dataplane.interfaces();
        let names: Vec<String> = attached.iter().map(|device| device.name.clone()).collect();
        let found = attached.into_iter().find(|device| name.is_empty() || device.name == name);
        found.ok_or_else(|| match names.is_empty() {
            true => {
                "XDP is on no interface yet, so no packet is looked at (see `director status`)".to_owned()
            }
            false => format!("XDP is not on interface '{name}'; it is on: {}", names.join(", ")),
        })
    }
}

/// Length of an Ethernet header in bytes.
const ETHERNET: usize = 14;

fn probe(request: &wire::ExplainRequest) -> Result<Probe, String> {
    let address = |what: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| {
            format!("{what} '{text}' is no address with a port: write 192.0.2.1:80 or [2001:db8::1]:80")
        })
    };
    Ok(Probe {
        source: address("source", &request.source)?,
        destination: address("destination", &request.destination)?,
        protocol: match request.protocol.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(format!("protocol '{other}' is not balanced: use tcp or udp")),
        },
        flags: if request.ack { TcpFlags::Ack } else { TcpFlags::Syn },
        length: u16::try_from(request.length).map_err(|_| {
            format!("an IP packet of {} bytes is longer than its length field can say", request.length)
        })?,
    })
}

fn message(explained: &Explanation) -> wire::Explanation {
    let source = SocketAddr::new(ip_address(explained.flow.source), explained.flow.source_port);
    let service = explained.service.as_ref().map(|service| wire::ExplainedService {
        name: service.name.clone(),
        key: matched(&service.key),
        hash_input: match service.hash {
            HashInput::Source if service.entry.is_persistent() => {
                format!("client {}", ip_address(service.entry.client(&explained.flow.source)))
            }
            HashInput::Source => format!("source address {}", source.ip()),
            HashInput::SourcePort => format!("source address and port {source}"),
        },
        hash: explained.hash.map(|hash| format!("{hash:016x}")).unwrap_or_default(),
    });
    let way = explained.next_hop.map(|hop| {
        let encapsulation = explained.service.as_ref().and_then(|service| service.entry.encapsulation());
        let port = explained.service.as_ref().map_or(0, |service| service.entry.tunnel_port);
        wire::ExplainedWay {
            interface: interface(hop.ifindex),
            source_mac: mac(hop.source_mac),
            destination_mac: mac(hop.destination_mac),
            mtu: hop.mtu,
            tunnel: match encapsulation {
                None => String::new(),
                Some(Encapsulation::Ipip) => "ipip".to_owned(),
                Some(Encapsulation::Gre) => "gre".to_owned(),
                Some(Encapsulation::Gue) => format!("gue, port {port}"),
            },
            tunnel_source: explained.tunnel.map(|tunnel| tunnel.source.to_string()).unwrap_or_default(),
            tunnel_destination: explained
                .tunnel
                .map(|tunnel| tunnel.destination.to_string())
                .unwrap_or_default(),
        }
    });
    wire::Explanation {
        interface: String::new(),
        packet: String::new(),
        verdict: explained.outcome.to_string(),
        meaning: explained.outcome.words().to_owned(),
        service,
        slot: explained.slot.map(slot),
        real: explained.real.map(real),
        way,
        mtu: explained.mtu.unwrap_or_default(),
        translated: explained.translated.map(|(from, to)| format!("{from} -> {to}")).unwrap_or_default(),
        lookups: explained.lookups.iter().map(lookup).collect(),
    }
}

fn slot(slot: ExplainedSlot) -> wire::ExplainedSlot {
    wire::ExplainedSlot {
        number: slot.number,
        state: state(slot.state).to_owned(),
        current: slot.current.map(real),
        previous: slot.previous.map(real),
    }
}

const fn state(state: Option<SlotState>) -> &'static str {
    match state {
        Some(SlotState::Settled) => "settled",
        Some(SlotState::Moving) => "moving",
        Some(SlotState::Pinned) => "pinned",
        None => "unknown",
    }
}

fn real(real: ExplainedReal) -> wire::ExplainedReal {
    wire::ExplainedReal { address: real.address.to_string(), position: real.position.into() }
}

/// By what a service was found, for people.
fn matched(by: &MatchedKey) -> String {
    match by {
        MatchedKey::Exact(by) => key(by),
        MatchedKey::Range(by) => range(by),
        MatchedKey::Reply(by) => answer(by),
        MatchedKey::Returned(by) => flow(by),
    }
}

/// A real server's port, for people.
fn answer(key: &ReplyKey) -> String {
    let address = ip_address(key.address);
    match (key.protocol, key.port) {
        (0, _) => format!("real server {address} with NAT"),
        (_, 0) => format!("{} from {address}, all ports", protocol(key.protocol)),
        (_, port) => format!("{} from {}", protocol(key.protocol), SocketAddr::new(address, port)),
    }
}

fn leaves(entry: &ReplyEntry) -> String {
    let vip = ip_address(entry.vip);
    if entry.port == 0 {
        format!("as from {vip}")
    } else {
        format!("as from {}", SocketAddr::new(vip, entry.port))
    }
}

fn route(entry: &RouteEntry) -> String {
    match entry.answer {
        RouteEntry::FORWARD => format!("by {} on {}", mac(entry.destination_mac), interface(entry.ifindex)),
        RouteEntry::STAYS => "for this node, or there is none".to_owned(),
        RouteEntry::DISABLED => "the kernel does not forward".to_owned(),
        RouteEntry::REFUSED => "refused".to_owned(),
        RouteEntry::TOO_BIG => format!("takes {} bytes at most", entry.mtu),
        _ => "only the kernel can send it".to_owned(),
    }
}

fn range(key: &RangeKey) -> String {
    let class = key.class;
    match key.kind {
        ServiceKey::KIND_VIP => format!("VIP of class {class}"),
        ServiceKey::KIND_FRAGMENT => format!("fragments of {} to class {class}", protocol(key.protocol)),
        _ => format!("{} port {} of class {class}", protocol(key.protocol), u16::from_be_bytes(key.port)),
    }
}

/// A service key for people.
fn key(key: &ServiceKey) -> String {
    let address = ip_address(key.address);
    match (key.kind, key.port) {
        (ServiceKey::KIND_VIP, _) => format!("VIP {address}"),
        (ServiceKey::KIND_FRAGMENT, _) => format!("fragments of {} to {address}", protocol(key.protocol)),
        (_, 0) => format!("{} {address}, all ports", protocol(key.protocol)),
        (_, port) => format!("{} {}", protocol(key.protocol), SocketAddr::new(address, port)),
    }
}

fn entry(entry: &ServiceEntry) -> String {
    format!("service {}, slot table {}", entry.service, entry.table)
}

fn server(entry: &RealEntry) -> String {
    match (entry.address == Address::default(), entry.ifindex) {
        (true, _) => "nobody".to_owned(),
        (false, 0) => format!("{}, no way there", SocketAddr::new(ip_address(entry.address), entry.port)),
        (false, ifindex) => {
            let address = SocketAddr::new(ip_address(entry.address), entry.port);
            format!("{address} by {} on {}", mac(entry.destination_mac), interface(ifindex))
        }
    }
}

fn flow(key: &FlowKey) -> String {
    if key.is_template() {
        return format!("client {}", ip_address(key.source));
    }
    let end = |address, port| SocketAddr::new(ip_address(address), port);
    let (from, to) = (end(key.source, key.source_port), end(key.destination, key.destination_port));
    format!("{} {from} -> {to}", protocol(key.protocol))
}

fn endpoint(end: &Endpoint) -> String {
    SocketAddr::new(ip_address(end.address), end.port).to_string()
}

fn pinned(pin: &Pin) -> String {
    let ending = if pin.state().is_closing() { ", ending" } else { "" };
    format!("position {}{ending}", pin.server().position())
}

fn lookup(lookup: &Lookup) -> wire::ExplainedLookup {
    let (table, key, found) = match lookup {
        Lookup::Config { found } => ("settings", String::new(), found.then(|| "there".to_owned())),
        Lookup::Interface { ifindex, found } => (
            "interface",
            interface(*ifindex),
            found.map(|found| {
                let mode = if found.is_native() { "native" } else { "generic" };
                format!("{}, {mode}", mac(found.mac))
            }),
        ),
        Lookup::Service { key: asked, found } => ("service", key(asked), found.as_ref().map(entry)),
        Lookup::Class { address, found } => {
            ("class", format!("of {}", ip_address(*address)), found.map(|class| class.to_string()))
        }
        Lookup::Range { key: asked, found } => ("range", range(asked), found.as_ref().map(entry)),
        Lookup::Pin { key, found } => {
            (if key.is_template() { "template" } else { "pin" }, flow(key), found.as_ref().map(pinned))
        }
        Lookup::AddPin { key, pin, granted } => {
            let table = if key.is_template() { "template to make" } else { "pin to make" };
            (table, flow(key), granted.then(|| pinned(pin)))
        }
        Lookup::Quic { key, found } => {
            ("QUIC server id", key.id.to_string(), found.map(|found| format!("position {}", found.position)))
        }
        Lookup::Slot { table, slot, found } => (
            "slot",
            format!("{slot} of table {table}"),
            found.map(|found| {
                let position = |position: Option<u16>| {
                    position.map_or("none".to_owned(), |position| position.to_string())
                };
                let (current, previous) = (position(found.current()), position(found.previous()));
                format!("{}, current {current}, previous {previous}", state(found.state()))
            }),
        ),
        Lookup::Real { index, found } => ("real server", format!("#{index}"), found.as_ref().map(server)),
        Lookup::Fragment { key, found } => (
            "fragment",
            format!("of {}", ip_address(key.source)),
            found.map(|found| format!("ports {} -> {}", found.source_port, found.destination_port)),
        ),
        Lookup::NoteFragment { key, entry } => (
            "fragment to remember",
            format!("of {}", ip_address(key.source)),
            Some(format!("position {}", entry.position)),
        ),
        Lookup::Reply { key, found } => (
            "answers",
            answer(key),
            found.as_ref().map(|found| if key.protocol == 0 { "there".to_owned() } else { leaves(found) }),
        ),
        Lookup::Route { query, found } => (
            "kernel's route",
            format!("{} -> {}", ip_address(query.source), ip_address(query.destination)),
            found.as_ref().map(route),
        ),
        Lookup::Schedule { method, position } => (
            "scheduler",
            method.name().to_owned(),
            (*position != Roster::NOBODY).then(|| format!("position {position}")),
        ),
        Lookup::Open { key, opening } => {
            ("connection to begin", flow(key), opening::words(*opening).map(str::to_owned))
        }
        Lookup::Local { key, found } => ("local address", flow(key), found.as_ref().map(endpoint)),
        Lookup::Returned { key, found } => (
            "local port's connection",
            flow(key),
            found.as_ref().map(|found| format!("{}, to {}", leaves(&found.reply), endpoint(&found.client))),
        ),
        Lookup::Token { rate, granted } => (
            "right to send an ICMP error",
            format!("{rate} in each second"),
            granted.then(|| "granted".to_owned()),
        ),
    };
    wire::ExplainedLookup { table: table.to_owned(), key, found: found.unwrap_or_default() }
}
