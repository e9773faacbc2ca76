//! Hellos: sending, every check of what comes (RFC 2328 section 10.5, RFC 5340
//! section 4.2.2.1), and the neighbour's events.

use std::{net::Ipv4Addr, time::Duration};

use super::{
    Event, Extent, HelpEnd, InterfaceId, InterfaceState, Machine, Neighbor, NeighborEvent, NeighborState,
    Protocol, Refusal, Trigger, is_due, neighbor::next_state,
};
use crate::{
    config::InterfaceConfig,
    packet::{
        OPTION_E, OPTION_NP,
        wire::{Body, Greeting},
    },
};

/// A Hello in answer to a neighbour that does not list us is not sent more often than this.
const ANSWER_INTERVAL: Duration = Duration::from_millis(100);

impl<V: Protocol> Machine<V> {
    pub(super) fn send_hello(&mut self, id: InterfaceId) {
        let heard = |interface: &super::Interface<V>| {
            interface.neighbors.values().map(|neighbor| neighbor.router).collect::<Vec<_>>()
        };
        let neighbors = self.interfaces.get(&id).map(heard).unwrap_or_default();
        self.send_hello_listing(id, neighbors);
    }

    /// A Hello that lists `neighbors` as heard; none is the farewell.
    pub(super) fn send_hello_listing(&mut self, id: InterfaceId, neighbors: Vec<Ipv4Addr>) {
        let now = self.now;
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        interface.last_hello = Some(now);
        let config = &interface.config;
        let hello = Greeting {
            mark: V::mark(interface),
            hello_interval: config.hello_interval,
            options: V::capabilities(config),
            priority: config.priority,
            dead_interval: config.dead_interval,
            dr: interface.dr,
            bdr: interface.bdr,
            neighbors,
        };
        self.send(id, V::ALL_SPF_ROUTERS, Body::Hello(hello.into()));
    }

    pub(super) fn handle_hello(
        &mut self,
        id: InterfaceId,
        source: V::Address,
        router: Ipv4Addr,
        hello: &Greeting,
    ) {
        if let Some((reason, detail)) = self.hello_mismatch(id, hello) {
            return self.refuse(id, source, reason, || detail);
        }
        let (now, us) = (self.now, self.config.router_id);
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let key = V::neighbor_key(interface.config.network, router, source);
        if interface.neighbors.get(&key).is_some_and(|neighbor| neighbor.router != router) {
            // Another router took the address over: the old one is gone (section 10.5).
            self.neighbor_event(id, key, NeighborEvent::KillNbr);
        }
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let dead_at = now + interface.config.dead();
        let neighbor = interface.neighbors.entry(key).or_insert_with(|| Neighbor::new(router, source, now));
        let new = neighbor.state == NeighborState::Down;
        neighbor.dead_at = dead_at;
        let place = (source, hello.mark);
        let moved = (neighbor.address, neighbor.mark) != place;
        (neighbor.address, neighbor.mark) = place;
        let name = neighbor.identity();
        let said = (neighbor.priority, neighbor.dr, neighbor.bdr);
        (neighbor.priority, neighbor.dr, neighbor.bdr) = (hello.priority, hello.dr, hello.bdr);
        let changed = !new && Self::declares_anew(name, said, hello);
        if moved {
            self.request_spf(Extent::Full, Trigger::Neighbor(router));
        }
        self.neighbor_event(id, key, NeighborEvent::HelloReceived);
        let listed = hello.neighbors.contains(&us);
        let event = if listed { NeighborEvent::TwoWayReceived } else { NeighborEvent::OneWay };
        if new || !listed {
            self.answer_hello(id);
        }
        self.neighbor_event(id, key, event);
        self.recall_role(id, hello.dr, hello.bdr);
        if listed {
            self.consider_backup_seen(id, name, hello);
        }
        if changed {
            self.neighbor_change(id);
        }
    }

    /// Whether a neighbour's priority or its claim to be designated router or backup changed.
    fn declares_anew(name: Ipv4Addr, said: (u8, Ipv4Addr, Ipv4Addr), hello: &Greeting) -> bool {
        said.0 != hello.priority
            || (said.1 == name) != (hello.dr == name)
            || (said.2 == name) != (hello.bdr == name)
    }

    /// BackupSeen (section 9.2).
    fn consider_backup_seen(&mut self, id: InterfaceId, name: Ipv4Addr, hello: &Greeting) {
        let waiting = self.interfaces.get(&id).is_some_and(|i| i.state == InterfaceState::Waiting);
        let alone = hello.dr == name && hello.bdr.is_unspecified();
        if waiting && (hello.bdr == name || alone) {
            self.end_waiting(id);
        }
    }

    /// The neighbour shall not wait for our timer to see that we hear it.
    fn answer_hello(&mut self, id: InterfaceId) {
        let now = self.now;
        let last = self.interfaces.get(&id).and_then(|interface| interface.last_hello);
        match last {
            Some(last) if now.since(last) < ANSWER_INTERVAL => {
                if let Some(interface) = self.interfaces.get_mut(&id) {
                    let soon = last + ANSWER_INTERVAL;
                    interface.hello_at = interface.hello_at.map(|at| at.min(soon));
                }
            }
            _ => self.send_hello(id),
        }
    }

    fn hello_mismatch(&self, id: InterfaceId, hello: &Greeting) -> Option<(Refusal, String)> {
        let interface = self.interfaces.get(&id)?;
        let config = &interface.config;
        let says = |what, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            format!("{what}: they say {theirs}, we say {ours}")
        };
        if let Some(detail) = V::foreign_mark(interface, hello.mark) {
            return Some((Refusal::HelloMask, detail));
        }
        if hello.hello_interval != config.hello_interval {
            let detail = says("hello interval", &hello.hello_interval, &config.hello_interval);
            return Some((Refusal::HelloInterval, detail));
        }
        if hello.dead_interval != config.dead_interval {
            let detail = says("dead interval", &hello.dead_interval, &config.dead_interval);
            return Some((Refusal::DeadInterval, detail));
        }
        Self::area_type_mismatch(config, hello.options)
    }

    /// "The setting of the E-bit found in the Hello Packet's Options field must match this area's
    /// ExternalRoutingCapability" (RFC 2328 section 10.5), and the N bit likewise (RFC 3101 section 2.4.1).
    pub(super) fn area_type_mismatch(config: &InterfaceConfig, theirs: u32) -> Option<(Refusal, String)> {
        let ours = V::capabilities(config);
        let differ = |bit: u8| (theirs ^ ours) & u32::from(bit) != 0;
        let reason = match (differ(OPTION_E), differ(OPTION_NP)) {
            (false, false) => return None,
            (true, _) => Refusal::ExternalCapability,
            (false, true) => Refusal::NssaCapability,
        };
        let says = |bit: u8| theirs & u32::from(bit) != 0;
        let kind = match (says(OPTION_E), says(OPTION_NP)) {
            (true, false) => "normal",
            (false, false) => "stub",
            (false, true) => "NSSA",
            (true, true) => "normal and NSSA at once",
        };
        let (area, ours) = (config.area, config.area_kind.name());
        Some((reason, format!("type of area {area}: they say {kind}, we say {ours}; make them equal")))
    }

    /// One event of a neighbour, with what entering the new state brings (section 10.3).
    pub(super) fn neighbor_event(&mut self, id: InterfaceId, key: Ipv4Addr, event: NeighborEvent) {
        let wanted = self.adjacency_wanted(id, key);
        let now = self.now;
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let name = interface.config.name.clone();
        let Some(neighbor) = interface.neighbors.get_mut(&key) else { return };
        let from = neighbor.state;
        let to = next_state(from, event, wanted);
        if from == to {
            return;
        }
        let (down, helped) = (to == NeighborState::Down, neighbor.help.is_some());
        neighbor.state = to;
        neighbor.since = now;
        let (router, address) = (neighbor.router, neighbor.address);
        if to <= NeighborState::ExStart {
            neighbor.clear();
        }
        if down {
            interface.neighbors.remove(&key);
        }
        let address = address.into();
        if helped && down {
            let (interface, reason) = (name.clone(), HelpEnd::Gone);
            self.event(Event::HelpEnded { interface, router, reason });
        }
        self.event(Event::Neighbor { interface: name, router, address, from, to, event });
        match to {
            NeighborState::ExStart => self.start_negotiation(id, key),
            NeighborState::Exchange => self.list_database(id, key),
            NeighborState::Loading => self.finish_loading(id, key),
            NeighborState::Full => self.note_said(id, key),
            NeighborState::Down | NeighborState::Init | NeighborState::TwoWay => {}
        }
        // Who restarts gracefully is adjacent in every state but this one.
        let adjacent = |state| state == NeighborState::Full || (helped && state != NeighborState::Down);
        if adjacent(from) != adjacent(to) {
            self.originator.note_adjacency(now);
            self.request_spf(Extent::Full, Trigger::Neighbor(router));
        }
        if (from >= NeighborState::TwoWay) != (to >= NeighborState::TwoWay) {
            self.neighbor_change(id);
        }
    }

    /// Inactivity, and the retransmissions of each neighbour.
    pub(super) fn run_neighbor_timers(&mut self) {
        for (id, key) in self.neighbor_ids() {
            let Some(neighbor) = self.neighbor(id, key) else { continue };
            if neighbor.dead_at <= self.now && neighbor.help.is_none() {
                self.neighbor_event(id, key, NeighborEvent::InactivityTimer);
                continue;
            }
            let (resend, ask) = (neighbor.exchange.resend, neighbor.ask_again);
            let lsas = neighbor.resend_lsas;
            let said = neighbor.said.due();
            if is_due(resend, self.now) {
                self.resend_description(id, key);
            }
            if is_due(ask, self.now) {
                self.ask_again(id, key);
            }
            if is_due(lsas, self.now) {
                self.resend_lsas(id, key);
            }
            if is_due(said, self.now) {
                self.remind(id, key);
            }
        }
    }
}
