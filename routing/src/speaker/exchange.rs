//! Bringing two databases together: negotiation, description, requests (RFC 2328 sections 10.6 to 10.9).

use std::{cmp::Ordering, net::Ipv4Addr};

use super::{
    InterfaceId, Machine, Neighbor, NeighborEvent, NeighborState, Protocol, Refusal, Scope,
    neighbor::Exchange,
};
use crate::packet::{
    DD_INIT, DD_MASTER, DD_MORE, LSA_HEADER_LEN, MAX_AGE, OPTION_NP,
    wire::{Body, Description, LsaHeader, LsaKey},
};

/// Bytes of a request for one LSA.
const REQUEST_LEN: usize = 12;

impl<V: Protocol> Machine<V> {
    /// Entering ExStart: claim to be master (section 10.3).
    pub(super) fn start_negotiation(&mut self, id: InterfaceId, key: Ipv4Addr) {
        self.seed = self.seed.wrapping_add(1);
        let seed = self.seed;
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let sequence = neighbor.exchange.sequence.wrapping_add(1).max(seed);
        neighbor.exchange = Exchange { master: true, sequence, ..Exchange::default() };
        self.send_description(id, key, DD_INIT | DD_MORE | DD_MASTER, Vec::new());
    }

    /// The MTU changed: those who have not finished the exchange hear the new one.
    pub(super) fn restart_negotiations(&mut self, id: InterfaceId) {
        for (on, key) in self.neighbor_ids().into_iter().filter(|(on, _)| *on == id) {
            match self.neighbor(on, key).map(|neighbor| neighbor.state) {
                Some(NeighborState::ExStart) => self.start_negotiation(id, key),
                Some(NeighborState::Exchange | NeighborState::Loading) => {
                    self.neighbor_event(id, key, NeighborEvent::SeqNumberMismatch);
                }
                Some(
                    NeighborState::Down | NeighborState::Init | NeighborState::TwoWay | NeighborState::Full,
                )
                | None => {}
            }
        }
    }

    /// Sends a new description and remembers it for retransmission.
    fn send_description(&mut self, id: InterfaceId, key: Ipv4Addr, flags: u8, headers: Vec<LsaHeader<V>>) {
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let options = V::options(V::description_capabilities(&interface.config));
        let (mtu, resend) = (interface.link.mtu, self.now + interface.config.retransmit());
        let Some(neighbor) = interface.neighbors.get_mut(&key) else { return };
        let exchange = &mut neighbor.exchange;
        let description = Description { mtu, options, flags, sequence: exchange.sequence, headers };
        exchange.last_sent = Some(description.clone());
        // The slave only answers (section 10.8).
        exchange.resend = exchange.master.then_some(resend);
        let destination = self.unicast(id, key);
        self.send(id, destination, Body::Description(description));
    }

    pub(super) fn resend_description(&mut self, id: InterfaceId, key: Ipv4Addr) {
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let again = self.now + interface.config.retransmit();
        let Some(neighbor) = interface.neighbors.get_mut(&key) else { return };
        let exchange = &mut neighbor.exchange;
        exchange.resend = exchange.master.then_some(again);
        let Some(description) = exchange.last_sent.clone() else { return };
        let destination = self.unicast(id, key);
        self.send(id, destination, Body::Description(description));
    }

    /// Entering Exchange: what we hold becomes the summary list (section 10.3). LSAs that are being flushed
    /// are flooded to the neighbour instead.
    pub(super) fn list_database(&mut self, id: InterfaceId, key: Ipv4Addr) {
        let Some(interface) = self.interfaces.get(&id) else { return };
        let Some(neighbor) = interface.neighbors.get(&key) else { return };
        let options = neighbor.options;
        let (mut summary, mut flushing) = (Vec::new(), Vec::new());
        for scope in [Scope::Link(id), Scope::Area(interface.config.area), Scope::Domain] {
            let Some(database) = self.database(scope).filter(|_| self.floods_over(id, scope)) else {
                continue;
            };
            for (lsa, entry) in database.iter().filter(|(lsa, _)| V::is_for(lsa.kind, options)) {
                match entry.age(self.now) {
                    MAX_AGE => flushing.push(*lsa),
                    age => summary.push(LsaHeader { age, ..entry.lsa.header }),
                }
            }
        }
        if let Some(neighbor) = self.neighbor_mut(id, key) {
            neighbor.exchange.summary = summary.into();
        }
        for lsa in flushing {
            self.await_ack(id, key, lsa);
            if let Some(interface) = self.interfaces.get_mut(&id) {
                interface.flood.insert(lsa);
            }
        }
    }

    /// Section 10.6.
    pub(super) fn handle_description(&mut self, id: InterfaceId, key: Ipv4Addr, dd: Description<V>) {
        let Some(interface) = self.interfaces.get(&id) else { return };
        let (ours, ignore) = (interface.link.mtu, interface.config.mtu_ignore);
        // RFC 3101 gives the N bit a meaning in Hellos alone: who leaves it out of descriptions is right, too.
        let lenient = V::capabilities(&interface.config) & u32::from(OPTION_NP) | dd.options.into();
        let mismatch = Self::area_type_mismatch(&interface.config, lenient);
        let mtu = dd.mtu;
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let source = neighbor.address;
        neighbor.mtu = Some(mtu);
        if let Some((reason, detail)) = mismatch {
            return self.refuse(id, source, reason, || detail);
        }
        if mtu > ours && !ignore {
            let detail = || format!("MTU: they say {mtu}, we say {ours}; make them equal or set mtu_ignore");
            return self.refuse(id, source, Refusal::Mtu, detail);
        }
        if neighbor.state == NeighborState::Init {
            // It lists us, or it would not send this: the Hello that said so was lost.
            self.neighbor_event(id, key, NeighborEvent::TwoWayReceived);
        }
        match self.neighbor(id, key).map(|neighbor| neighbor.state) {
            Some(NeighborState::ExStart) => self.negotiate(id, key, dd),
            Some(NeighborState::Exchange) => self.continue_exchange(id, key, dd),
            Some(NeighborState::Loading | NeighborState::Full) => self.repeat_description(id, key, &dd),
            Some(NeighborState::Down | NeighborState::Init | NeighborState::TwoWay) | None => {
                let detail = || "database description before an adjacency is wanted".into();
                self.refuse(id, source, Refusal::NeighborState, detail);
            }
        }
    }

    fn negotiate(&mut self, id: InterfaceId, key: Ipv4Addr, dd: Description<V>) {
        let us = self.config.router_id;
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let first = DD_INIT | DD_MORE | DD_MASTER;
        let exchange = &mut neighbor.exchange;
        if dd.flags & first == first && dd.headers.is_empty() && neighbor.router > us {
            exchange.master = false;
            exchange.sequence = dd.sequence;
        } else if dd.flags & (DD_INIT | DD_MASTER) != 0
            || dd.sequence != exchange.sequence
            || neighbor.router > us
        {
            return; // not an answer to what we said
        }
        exchange.resend = None;
        neighbor.options = dd.options.into();
        self.neighbor_event(id, key, NeighborEvent::NegotiationDone);
        self.accept_description(id, key, dd);
    }

    fn is_repeated(neighbor: &Neighbor<V>, dd: &Description<V>) -> bool {
        neighbor.exchange.last_received.as_ref().is_some_and(|last| {
            (last.flags, last.options, last.sequence) == (dd.flags, dd.options, dd.sequence)
        })
    }

    fn continue_exchange(&mut self, id: InterfaceId, key: Ipv4Addr, dd: Description<V>) {
        let Some(neighbor) = self.neighbor(id, key) else { return };
        let exchange = &neighbor.exchange;
        if Self::is_repeated(neighbor, &dd) {
            if !exchange.master {
                self.resend_description(id, key);
            }
            return;
        }
        let they_lead = dd.flags & DD_MASTER != 0;
        let expected = if exchange.master { exchange.sequence } else { exchange.sequence.wrapping_add(1) };
        let fits = they_lead != exchange.master
            && dd.flags & DD_INIT == 0
            && dd.options.into() == neighbor.options
            && dd.sequence == expected;
        if fits { self.accept_description(id, key, dd) } else { self.mismatch(id, key, &dd, expected) }
    }

    /// Loading and Full: only repetitions of the last packet are expected.
    fn repeat_description(&mut self, id: InterfaceId, key: Ipv4Addr, dd: &Description<V>) {
        let Some(neighbor) = self.neighbor(id, key) else { return };
        let (master, sequence) = (neighbor.exchange.master, neighbor.exchange.sequence);
        match (Self::is_repeated(neighbor, dd), master) {
            (true, true) => {}
            (true, false) => self.resend_description(id, key),
            (false, _) => self.mismatch(id, key, dd, sequence),
        }
    }

    fn mismatch(&mut self, id: InterfaceId, key: Ipv4Addr, dd: &Description<V>, expected: u32) {
        let Some(source) = self.neighbor(id, key).map(|neighbor| neighbor.address) else { return };
        let (flags, sequence) = (dd.flags, dd.sequence);
        let detail = || format!("flags {flags:#x} sequence {sequence}, expected sequence {expected}");
        self.refuse(id, source, Refusal::DescriptionSequence, detail);
        self.neighbor_event(id, key, NeighborEvent::SeqNumberMismatch);
    }

    /// A description that is next in sequence: note what we lack, go on or finish (section 10.6, end).
    fn accept_description(&mut self, id: InterfaceId, key: Ipv4Addr, dd: Description<V>) {
        for header in &dd.headers {
            if !self.note_header(id, key, header) {
                return;
            }
        }
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let they_are_done = dd.flags & DD_MORE == 0;
        let exchange = &mut neighbor.exchange;
        let sequence = dd.sequence;
        let said_all = exchange.last_sent.as_ref().is_some_and(|sent| sent.flags & (DD_MORE | DD_INIT) == 0);
        exchange.last_received = Some(Description { headers: Vec::new(), ..dd });
        if exchange.master {
            if said_all && they_are_done {
                exchange.resend = None;
                return self.neighbor_event(id, key, NeighborEvent::ExchangeDone);
            }
            exchange.sequence = exchange.sequence.wrapping_add(1);
            self.describe_next(id, key);
        } else {
            exchange.sequence = sequence;
            let all_said = self.describe_next(id, key);
            if all_said && they_are_done {
                self.neighbor_event(id, key, NeighborEvent::ExchangeDone);
            }
        }
    }

    /// Sends the next headers of the summary list; true if these were the last.
    fn describe_next(&mut self, id: InterfaceId, key: Ipv4Addr) -> bool {
        let count = (self.room(id) - V::DESCRIPTION_LEN) / LSA_HEADER_LEN;
        let Some(neighbor) = self.neighbor_mut(id, key) else { return false };
        let exchange = &mut neighbor.exchange;
        let count = count.min(exchange.summary.len());
        let headers: Vec<_> = exchange.summary.drain(..count).collect();
        let last = exchange.summary.is_empty();
        let more = if last { 0 } else { DD_MORE };
        let lead = if exchange.master { DD_MASTER } else { 0 };
        self.send_description(id, key, more | lead, headers);
        last
    }

    /// Puts an LSA of a description on the request list if we lack it; false if it may not be there.
    fn note_header(&mut self, id: InterfaceId, key: Ipv4Addr, header: &LsaHeader<V>) -> bool {
        let Some(source) = self.neighbor(id, key).map(|neighbor| neighbor.address) else { return false };
        let scope = self.scope_of(id, header.key.kind).filter(|_| self.belongs_on(id, header.key.kind));
        let Some(scope) = scope else {
            let lsa = header.key;
            if V::is_passed_over(lsa.kind) {
                self.refuse(id, source, Refusal::LsaScope, || format!("{lsa} is described, not asked for"));
                return true;
            }
            let detail = || format!("it describes an LSA that cannot be in this area: {lsa}");
            self.refuse(id, source, Refusal::DescriptionContent, detail);
            self.neighbor_event(id, key, NeighborEvent::SeqNumberMismatch);
            return false;
        };
        let ours = self.database(scope).and_then(|db| db.get(&header.key)).map(|e| e.aged(self.now));
        let lacking = ours.is_none_or(|ours| header.compare(&ours.header) == Ordering::Greater);
        let Some(neighbor) = self.neighbor_mut(id, key) else { return false };
        if header.key.router == neighbor.router {
            neighbor.said.note(header);
        }
        if lacking {
            neighbor.requests.insert(header.key, *header);
        }
        true
    }

    /// Asks for what is on the request lists, one packet per neighbour at a time (section 10.9).
    pub(super) fn send_requests(&mut self) {
        for (id, key) in self.neighbor_ids() {
            let room = self.room(id) / REQUEST_LEN;
            let Some(interface) = self.interfaces.get_mut(&id) else { continue };
            let again = self.now + interface.config.retransmit();
            let Some(neighbor) = interface.neighbors.get_mut(&key) else { continue };
            // Even in Full: an LSA that was damaged in memory is asked for again.
            if neighbor.state < NeighborState::Exchange
                || neighbor.requests.is_empty()
                || !neighbor.asked.is_empty()
            {
                continue;
            }
            let keys: Vec<_> = neighbor.requests.keys().copied().take(room).collect();
            neighbor.asked = keys.iter().copied().collect();
            neighbor.ask_again = Some(again);
            let destination = self.unicast(id, key);
            self.send(id, destination, Body::Request(keys));
        }
    }

    /// Nothing came: the next [`Self::send_requests`] asks again.
    pub(super) fn ask_again(&mut self, id: InterfaceId, key: Ipv4Addr) {
        if let Some(neighbor) = self.neighbor_mut(id, key) {
            neighbor.asked.clear();
            neighbor.ask_again = None;
        }
    }

    /// An LSA that was asked for has come.
    pub(super) fn request_satisfied(&mut self, id: InterfaceId, key: Ipv4Addr, lsa: &LsaKey<V>) {
        if let Some(neighbor) = self.neighbor_mut(id, key) {
            neighbor.requests.remove(lsa);
            neighbor.asked.remove(lsa);
            if neighbor.asked.is_empty() {
                neighbor.ask_again = None;
            }
        }
        self.finish_loading(id, key);
    }

    /// LoadingDone, if there is nothing left to ask for.
    pub(super) fn finish_loading(&mut self, id: InterfaceId, key: Ipv4Addr) {
        let done = |n: &Neighbor<V>| n.state == NeighborState::Loading && n.requests.is_empty();
        if self.neighbor(id, key).is_some_and(done) {
            self.neighbor_event(id, key, NeighborEvent::LoadingDone);
        }
    }

    /// A neighbour asks for LSAs (section 10.7).
    pub(super) fn handle_request(&mut self, id: InterfaceId, key: Ipv4Addr, keys: &[LsaKey<V>]) {
        let Some(source) = self.neighbor(id, key).map(|neighbor| neighbor.address) else { return };
        let mut found = Vec::new();
        for lsa in keys {
            let scope = self.scope_of(id, lsa.kind).filter(|scope| self.floods_over(id, *scope));
            let entry = scope.and_then(|scope| self.database(scope)).and_then(|db| db.get(lsa));
            let Some(entry) = entry else {
                self.refuse(id, source, Refusal::BadRequest, || format!("it asks for {lsa}, unknown here"));
                return self.neighbor_event(id, key, NeighborEvent::BadLsReq);
            };
            found.push(entry.aged(self.now));
        }
        let destination = self.unicast(id, key);
        self.send_update(id, destination, found);
    }
}
