//! Packets in and out: the checks of RFC 2328 section 8.2 that come before a packet's own, and addressing
//! (section 8.1).

use std::net::Ipv4Addr;

use bytes::Bytes;

use super::{
    ALL_D_ROUTERS, ALL_SPF_ROUTERS, InterfaceId, InterfaceState, NeighborState, Output, Refusal, Speaker,
};
use crate::packet::{Body, Packet};

/// Bytes of the IPv4 header in front of every packet.
const IP_HEADER: usize = 20;

impl Speaker {
    pub(super) fn handle_packet(
        &mut self,
        id: InterfaceId,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        payload: Bytes,
    ) {
        let packet = match Packet::parse(&payload) {
            Ok(packet) => packet,
            Err(error) => return self.refuse(id, source, Refusal::from(&error), || error.to_string()),
        };
        if let Some((reason, detail)) = self.misaddressed(id, source, destination, &packet) {
            return self.refuse(id, source, reason, || detail);
        }
        if let Body::Hello(hello) = &packet.body {
            return self.handle_hello(id, source, packet.router, hello);
        }
        let Some(interface) = self.interfaces.get(&id) else { return };
        let key = interface.neighbor_key(packet.router, source);
        let known = interface.neighbors.get(&key).filter(|neighbor| neighbor.router == packet.router);
        let Some(state) = known.map(|neighbor| neighbor.state) else {
            let router = packet.router;
            return self
                .refuse(id, source, Refusal::UnknownNeighbor, || format!("no Hello from {router} yet"));
        };
        if let Body::Description(description) = packet.body {
            return self.handle_description(id, key, description);
        }
        if state < NeighborState::Exchange {
            let detail = || format!("neighbour is in state {state:?}, packet needs Exchange or above");
            return self.refuse(id, source, Refusal::NeighborState, detail);
        }
        match packet.body {
            Body::Request(keys) => self.handle_request(id, key, &keys),
            Body::Update(lsas) => self.handle_update(id, key, lsas),
            Body::Ack(headers) => self.handle_ack(id, key, &headers),
            Body::Hello(_) | Body::Description(_) => {}
        }
    }

    /// The checks that need the interface but not the packet's content.
    fn misaddressed(
        &self,
        id: InterfaceId,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        packet: &Packet,
    ) -> Option<(Refusal, String)> {
        let refused = |reason, detail| Some((reason, detail));
        let Some(interface) = self.interfaces.get(&id).filter(|interface| interface.is_active()) else {
            return refused(Refusal::InterfaceInactive, "interface is passive or down".into());
        };
        let net = interface.link.address?;
        let us = self.config.router_id;
        let own = |address| self.interfaces.values().any(|i| i.address() == Some(address));
        if own(source) {
            return refused(Refusal::OwnPacket, "own packet came back".into());
        }
        if packet.router.is_unspecified() {
            return refused(Refusal::RouterIdZero, "router id 0.0.0.0".into());
        }
        if packet.router == us {
            let detail = format!("{source} uses our router id {us}; give one of the two another");
            return refused(Refusal::DuplicateRouterId, detail);
        }
        if packet.area != interface.config.area {
            let detail = format!("they say area {}, we say {}", packet.area, interface.config.area);
            return refused(Refusal::Area, detail);
        }
        if net.prefix_len() < 32 && !net.contains(&source) {
            return refused(Refusal::Source, format!("source {source} is not in {}", net.trunc()));
        }
        let for_us = destination == net.addr()
            || destination == ALL_SPF_ROUTERS
            || (destination == ALL_D_ROUTERS && interface.is_designated());
        if !for_us {
            return refused(Refusal::Destination, format!("addressed to {destination}"));
        }
        None
    }

    /// Sends a packet, unless the speaker may not speak.
    pub(super) fn send(&mut self, id: InterfaceId, destination: Ipv4Addr, body: Body) {
        let Some(interface) = self.interfaces.get(&id) else { return };
        if !self.enabled || !interface.is_active() {
            return;
        }
        let packet = Packet { router: self.config.router_id, area: interface.config.area, body };
        self.outputs.push_back(Output::Send { interface: id, destination, payload: packet.emit() });
    }

    /// Where packets to one neighbour go: on point-to-point networks to everybody (section 8.1).
    pub(super) fn unicast(&self, id: InterfaceId, key: Ipv4Addr) -> Ipv4Addr {
        match self.interfaces.get(&id) {
            Some(interface) if interface.is_broadcast() => {
                interface.neighbors.get(&key).map_or(ALL_SPF_ROUTERS, |neighbor| neighbor.address)
            }
            _ => ALL_SPF_ROUTERS,
        }
    }

    /// Where floods and delayed acknowledgements go (sections 13.3 and 13.5).
    pub(super) fn flood_address(&self, id: InterfaceId) -> Ipv4Addr {
        match self.interfaces.get(&id).map(|interface| interface.state) {
            Some(InterfaceState::DrOther | InterfaceState::Waiting) => ALL_D_ROUTERS,
            _ => ALL_SPF_ROUTERS,
        }
    }

    /// Bytes for the content of a packet behind IP and OSPF headers.
    pub(super) fn room(&self, id: InterfaceId) -> usize {
        let mtu = self.interfaces.get(&id).map_or(0, |interface| usize::from(interface.link.mtu));
        mtu.max(576) - IP_HEADER - crate::packet::HEADER_LEN
    }
}
