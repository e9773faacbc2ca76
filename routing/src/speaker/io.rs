//! Packets in and out: the checks of RFC 2328 section 8.2 that come before a packet's own, and addressing
//! (section 8.1).

use std::net::Ipv4Addr;

use bytes::Bytes;

use super::{Event, InterfaceId, InterfaceState, Machine, NeighborState, Output, Protocol, Refusal};
use crate::{
    auth::{Heard, Refused, SendingKey},
    packet::wire::{Body, Envelope},
};

impl<V: Protocol> Machine<V> {
    pub(super) fn handle_packet(
        &mut self,
        id: InterfaceId,
        source: V::Address,
        destination: V::Address,
        payload: Bytes,
    ) {
        let now = self.time_of_day();
        let Some(interface) = self.interfaces.get(&id) else { return };
        let (envelope, body, proof) = match interface.guard.open::<V>(now, &payload, source, destination) {
            Ok(opened) => opened,
            Err(Refused { reason, detail }) => return self.refuse(id, source, reason, || detail),
        };
        if let Some((reason, detail)) = self.misaddressed(id, source, destination, envelope) {
            return self.refuse(id, source, reason, || detail);
        }
        let router = envelope.router;
        if let Some(objection) = proof.and_then(|proof| self.heard(id, source, router)?.objection(proof)) {
            return self.refuse(id, source, Refusal::AuthenticationSequence, || objection);
        }
        self.dispatch(id, source, router, body);
        if let Some((proof, heard)) = proof.zip(self.heard(id, source, router)) {
            heard.note(proof);
        }
    }

    /// What was heard of a neighbour, if it is one.
    fn heard(&mut self, id: InterfaceId, source: V::Address, router: Ipv4Addr) -> Option<&mut Heard> {
        let interface = self.interfaces.get_mut(&id)?;
        let key = V::neighbor_key(interface.config.network, router, source);
        let neighbor = interface.neighbors.get_mut(&key).filter(|neighbor| neighbor.router == router)?;
        Some(&mut neighbor.heard)
    }

    /// Hands a packet that is in order to those who know its type.
    fn dispatch(&mut self, id: InterfaceId, source: V::Address, router: Ipv4Addr, body: Body<V>) {
        let body = match body {
            Body::Hello(hello) => return self.handle_hello(id, source, router, &hello.into()),
            body => body,
        };
        let Some(interface) = self.interfaces.get(&id) else { return };
        let key = V::neighbor_key(interface.config.network, router, source);
        let known = interface.neighbors.get(&key).filter(|neighbor| neighbor.router == router);
        let Some(state) = known.map(|neighbor| neighbor.state) else {
            let detail = || format!("no Hello from {router} yet");
            return self.refuse(id, source, Refusal::UnknownNeighbor, detail);
        };
        if state < NeighborState::Exchange && !matches!(body, Body::Description(_)) {
            let detail = || format!("neighbour is in state {state:?}, packet needs Exchange or above");
            return self.refuse(id, source, Refusal::NeighborState, detail);
        }
        match body {
            Body::Description(description) => self.handle_description(id, key, description),
            Body::Request(keys) => self.handle_request(id, key, &keys),
            Body::Update(lsas) => self.handle_update(id, key, lsas),
            Body::Ack(headers) => self.handle_ack(id, key, &headers),
            Body::Hello(_) => {} // above
        }
    }

    /// The checks that need the interface but not the packet's content.
    fn misaddressed(
        &self,
        id: InterfaceId,
        source: V::Address,
        destination: V::Address,
        from: Envelope,
    ) -> Option<(Refusal, String)> {
        let refused = |reason, detail| Some((reason, detail));
        let Some(interface) = self.interfaces.get(&id).filter(|interface| interface.is_active()) else {
            return refused(Refusal::InterfaceInactive, "interface is passive or down".into());
        };
        let attached = interface.link.address.as_ref()?;
        let us = self.config.router_id;
        let here = V::address(attached);
        let elsewhere = || self.interfaces.values().any(|i| i.address() == Some(source));
        if source == here || (from.router == us && elsewhere()) {
            return refused(Refusal::OwnPacket, "own packet came back".into());
        }
        if from.router.is_unspecified() {
            return refused(Refusal::RouterIdZero, "router id 0.0.0.0".into());
        }
        if from.router == us {
            let detail = format!("{source} uses our router id {us}; give one of the two another");
            return refused(Refusal::DuplicateRouterId, detail);
        }
        if from.instance != interface.config.instance {
            let detail = format!("they say instance {}, we say {}", from.instance, interface.config.instance);
            return refused(Refusal::Instance, detail);
        }
        if from.area != interface.config.area {
            let detail = format!("they say area {}, we say {}", from.area, interface.config.area);
            return refused(Refusal::Area, detail);
        }
        if let Some(detail) = V::foreign_source(attached, source) {
            return refused(Refusal::Source, detail);
        }
        let for_us = destination == here
            || destination == V::ALL_SPF_ROUTERS
            || (destination == V::ALL_D_ROUTERS && interface.is_designated());
        if !for_us {
            return refused(Refusal::Destination, format!("addressed to {destination}"));
        }
        None
    }

    /// Sends a packet, unless the speaker may not speak.
    pub(super) fn send(&mut self, id: InterfaceId, destination: V::Address, body: Body<V>) {
        let Some(interface) = self.interfaces.get(&id) else { return };
        if !self.enabled || !interface.is_active() {
            return;
        }
        let Some(source) = interface.address() else { return };
        let (area, instance) = (interface.config.area, interface.config.instance);
        let envelope = Envelope { router: self.config.router_id, area, instance };
        let packet = V::seal(envelope, body, source, destination);
        let now = self.time_of_day();
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let sealed = interface.guard.seal::<V>(&mut self.numbers, now, packet, source);
        if let Some(SendingKey { id: key, algorithm, expired }) = interface.guard.take_news() {
            let (interface, algorithm) = (interface.config.name.clone(), algorithm.to_string());
            self.event(Event::SendingKey { interface, key, algorithm, expired });
        }
        let Some(payload) = sealed else { return };
        self.outputs.push_back(Output::Send { interface: id, destination, payload });
    }

    /// Asks for the next block of cryptographic sequence numbers to be kept, when it is time and somebody numbers.
    pub(super) fn reserve_numbers(&mut self) {
        if self.interfaces.values().any(|interface| interface.guard.is_numbered()) {
            let reserved = self.numbers.reserve(self.time_of_day());
            self.outputs.extend(reserved.map(|highest| Output::Reserve { highest }));
        }
    }

    /// Where packets to one neighbour go: on point-to-point networks to everybody (section 8.1).
    pub(super) fn unicast(&self, id: InterfaceId, key: Ipv4Addr) -> V::Address {
        match self.interfaces.get(&id) {
            Some(interface) if interface.is_broadcast() => {
                interface.neighbors.get(&key).map_or(V::ALL_SPF_ROUTERS, |neighbor| neighbor.address)
            }
            _ => V::ALL_SPF_ROUTERS,
        }
    }

    /// Where floods and delayed acknowledgements go (sections 13.3 and 13.5).
    pub(super) fn flood_address(&self, id: InterfaceId) -> V::Address {
        match self.interfaces.get(&id).map(|interface| interface.state) {
            Some(InterfaceState::DrOther | InterfaceState::Waiting) => V::ALL_D_ROUTERS,
            _ => V::ALL_SPF_ROUTERS,
        }
    }

    /// Bytes for the content of a packet between IP and OSPF headers and a digest.
    pub(super) fn room(&self, id: InterfaceId) -> usize {
        let interface = self.interfaces.get(&id);
        let mtu = interface.map_or(0, |interface| interface.link.mtu);
        let digest = interface.map_or(0, |interface| interface.guard.overhead::<V>());
        usize::from(mtu.max(V::LEAST_MTU)) - V::IP_HEADER - V::HEADER_LEN - digest
    }
}
