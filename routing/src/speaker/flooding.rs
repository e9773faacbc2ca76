//! The flooding procedure (RFC 2328 section 13, RFC 5340 section 4.5): what comes in, where it goes, who acknowledges.

use std::{cmp::Ordering, collections::BTreeSet, net::Ipv4Addr, time::Duration};

use super::{
    ACK_DELAY, InterfaceId, InterfaceState, LsaAction, Machine, NeighborEvent, NeighborState, Protocol,
    Refusal, Scope, Trigger, earlier, is_due,
};
use crate::packet::{
    LSA_HEADER_LEN, MAX_AGE,
    wire::{Body, Lsa, LsaHeader, LsaKey},
};

/// Instances of one LSA that come closer together are dropped (appendix B, MinLSArrival).
pub(super) const MIN_LS_ARRIVAL: Duration = Duration::from_secs(1);
/// Seconds added to the age of what is sent (InfTransDelay).
const TRANSIT_DELAY: u16 = 1;

/// What became of a received LSA, as far as its acknowledgement goes (section 13.5, table 19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receipt {
    /// None: flooded back, implied, or silently dropped.
    None,
    /// With others, after a moment.
    Delayed,
    /// At once, to the sender.
    Direct,
}

impl<V: Protocol> Machine<V> {
    pub(super) fn handle_update(&mut self, id: InterfaceId, key: Ipv4Addr, lsas: Vec<Lsa<V>>) {
        let mut direct = Vec::new();
        for lsa in lsas {
            let header = lsa.header;
            match self.receive_lsa(id, key, lsa) {
                Receipt::None => {}
                Receipt::Delayed => self.acknowledge_later(id, header),
                Receipt::Direct => direct.push(header),
            }
            if self.neighbor(id, key).is_none_or(|n| n.state < NeighborState::Exchange) {
                break; // BadLsReq ended the exchange
            }
        }
        let destination = self.unicast(id, key);
        self.send_acks(id, destination, &direct);
    }

    /// Steps 1 to 8 for one LSA.
    fn receive_lsa(&mut self, id: InterfaceId, key: Ipv4Addr, lsa: Lsa<V>) -> Receipt {
        let Some(source) = self.neighbor(id, key).map(|neighbor| neighbor.address) else {
            return Receipt::None;
        };
        let scope = match self.judge_lsa(id, &lsa) {
            Ok(scope) => scope,
            Err((reason, detail)) => {
                self.refuse(id, source, reason, || format!("{}: {detail}", lsa.header.key));
                return Receipt::None;
            }
        };
        let ours = self.database(scope).and_then(|db| db.get(&lsa.header.key)).map(|e| e.aged(self.now));
        if ours.is_none() && lsa.header.age_seconds() == MAX_AGE && !self.someone_is_exchanging() {
            self.request_satisfied(id, key, &lsa.header.key);
            return Receipt::Direct; // step 4
        }
        let recency = ours.as_ref().map_or(Ordering::Greater, |ours| lsa.header.compare(&ours.header));
        match recency {
            Ordering::Greater => self.take_newer(id, key, scope, lsa, source),
            Ordering::Equal => self.take_duplicate(id, key, &lsa.header),
            Ordering::Less => self.take_older(id, key, scope, &lsa.header),
        }
    }

    /// Steps 1 to 3: whether this LSA may be here at all.
    fn judge_lsa(&self, id: InterfaceId, lsa: &Lsa<V>) -> Result<Scope, (Refusal, String)> {
        let header = &lsa.header;
        if !lsa.verify() {
            return Err((Refusal::LsaChecksum, format!("checksum {:#06x} is wrong", header.checksum)));
        }
        let Some(scope) = self.scope_of(id, header.key.kind) else {
            return Err((Refusal::LsaType, format!("type {} is unknown", header.key.kind)));
        };
        if !self.belongs_on(id, header.key.kind) {
            let kind = self.interfaces.get(&id).map_or("unknown", |i| i.config.area_kind.name());
            return Err((Refusal::LsaScope, format!("does not belong into a {kind} area")));
        }
        if header.sequence == i32::MIN {
            return Err((Refusal::LsaHeader, "reserved sequence number 0x80000000".into()));
        }
        V::judge(lsa)?;
        Ok(scope)
    }

    pub(super) fn someone_is_exchanging(&self) -> bool {
        let exchanging =
            |state: NeighborState| matches!(state, NeighborState::Exchange | NeighborState::Loading);
        self.interfaces.values().flat_map(|i| i.neighbors.values()).any(|n| exchanging(n.state))
    }

    /// Step 5.
    fn take_newer(
        &mut self,
        id: InterfaceId,
        key: Ipv4Addr,
        scope: Scope,
        lsa: Lsa<V>,
        source: V::Address,
    ) -> Receipt {
        let header = lsa.header;
        let own = V::is_own(self, &header.key);
        let entry = self.database(scope).and_then(|db| db.get(&header.key));
        // Copies of our own LSAs are exempt: they must be superseded at once (section 13.4). So is the end of what is held:
        // refused, it is sent again at the very pace at which the living copy goes round among those who have forgotten.
        let ends = header.age_seconds() == MAX_AGE;
        if !own && !ends && entry.is_some_and(|e| e.flooded && self.now.since(e.installed) < MIN_LS_ARRIVAL) {
            let detail = || format!("{}: second instance within a second", header.key);
            self.refuse(id, source, Refusal::LsaTooSoon, detail);
            return Receipt::None;
        }
        let changed = entry.is_none_or(|e| {
            e.lsa.body() != lsa.body()
                || e.lsa.header.options != header.options
                || (e.age(self.now) == MAX_AGE) != (header.age_seconds() == MAX_AGE)
        });
        // What was asked for is no flooding: the neighbour may well flood a newer instance right behind it.
        let asked_for = self.neighbor(id, key).is_some_and(|n| n.requests.contains_key(&header.key));
        let grace = matches!(scope, Scope::Link(_)).then(|| lsa.clone());
        let flooded_back = self.install_and_flood(scope, lsa, Some((id, key)));
        if let Some(entry) = self.database_mut(scope).get_mut(&header.key) {
            entry.flooded = !asked_for;
        }
        self.request_satisfied(id, key, &header.key);
        let sent_by = self.neighbor(id, key).map(|neighbor| neighbor.router);
        let gone = header.age_seconds() == MAX_AGE;
        let action = if gone { LsaAction::Withdrawn } else { LsaAction::Received };
        self.record_lsa(action, scope, &header, sent_by, changed);
        if let Some(extent) = V::extent(header.key.kind, own).filter(|_| changed) {
            self.request_spf(extent, Trigger::lsa(&header.key));
        }
        if changed && V::extent(header.key.kind, false).is_some() {
            self.end_help_by_change(scope, Some((id, key)));
        }
        if let Some(lsa) = grace {
            self.consider_grace(id, source, &lsa);
        }
        if own {
            self.note_own_lsa_received(scope, &header);
            if !self.is_resuming() {
                self.refuse(id, source, Refusal::LsaOwnNewer, || format!("{} superseded", header.key));
            }
        }
        let interface = self.interfaces.get(&id);
        let backup = interface.is_some_and(|i| i.state == InterfaceState::Backup);
        let sender = self.neighbor(id, key).map(|neighbor| neighbor.identity());
        let from_dr = interface.zip(sender).is_some_and(|(i, sender)| i.dr == sender);
        if flooded_back || (backup && !from_dr) { Receipt::None } else { Receipt::Delayed }
    }

    /// Steps 6 and 7.
    fn take_duplicate(&mut self, id: InterfaceId, key: Ipv4Addr, header: &LsaHeader<V>) -> Receipt {
        let Some(interface) = self.interfaces.get_mut(&id) else { return Receipt::None };
        let (backup, dr) = (interface.state == InterfaceState::Backup, interface.dr);
        let Some(neighbor) = interface.neighbors.get_mut(&key) else { return Receipt::None };
        if neighbor.requests.contains_key(&header.key) {
            self.neighbor_event(id, key, NeighborEvent::BadLsReq);
            return Receipt::None;
        }
        let implied = neighbor.unacknowledged.remove(&header.key).is_some();
        match implied {
            true if backup && neighbor.identity() == dr => Receipt::Delayed,
            true => Receipt::None,
            false => Receipt::Direct,
        }
    }

    /// Steps 6 and 8: the neighbour gets what we have.
    fn take_older(&mut self, id: InterfaceId, key: Ipv4Addr, scope: Scope, header: &LsaHeader<V>) -> Receipt {
        if self.neighbor(id, key).is_some_and(|n| n.requests.contains_key(&header.key)) {
            self.neighbor_event(id, key, NeighborEvent::BadLsReq);
            return Receipt::None;
        }
        let now = self.now;
        let entry = self.databases.get_mut(&scope).and_then(|db| db.get_mut(&header.key));
        let Some(entry) = entry else { return Receipt::None };
        let wrapping = entry.age(now) == MAX_AGE && entry.lsa.header.sequence == i32::MAX;
        let just_sent = entry.sent_back.is_some_and(|at| now.since(at) < MIN_LS_ARRIVAL);
        if !wrapping && !just_sent {
            entry.sent_back = Some(now);
            let copy = entry.aged(now);
            let destination = self.unicast(id, key);
            self.send_update(id, destination, vec![copy]);
        }
        Receipt::None
    }

    /// Puts an instance in the database and on its way (sections 13.2 and 13.3). `from` is the neighbour
    /// it came from. True if it goes back out of the interface it came in by.
    pub(super) fn install_and_flood(
        &mut self,
        scope: Scope,
        lsa: Lsa<V>,
        from: Option<(InterfaceId, Ipv4Addr)>,
    ) -> bool {
        let (header, now) = (lsa.header, self.now);
        for (id, key) in self.neighbor_ids() {
            let here = self.floods_over(id, scope);
            if let Some(neighbor) = self.neighbor_mut(id, key).filter(|_| here) {
                neighbor.unacknowledged.remove(&header.key);
            }
        }
        self.database_mut(scope).install(lsa, now, from.is_some());
        let mut flooded_back = false;
        for id in self.interface_ids() {
            if self.floods_over(id, scope) && self.queue_flood(id, &header, from) {
                flooded_back |= from.is_some_and(|(came_by, _)| came_by == id);
            }
        }
        flooded_back
    }

    /// Section 13.3 for one interface; true if the LSA is sent out of it.
    pub(super) fn queue_flood(
        &mut self,
        id: InterfaceId,
        header: &LsaHeader<V>,
        from: Option<(InterfaceId, Ipv4Addr)>,
    ) -> bool {
        let keys: Vec<_> = self.interfaces[&id].neighbors.keys().copied().collect();
        let mut anyone = false;
        for key in keys {
            if self.needs_copy(id, key, header) && from != Some((id, key)) {
                self.await_ack(id, key, header.key);
                anyone = true;
            }
        }
        let Some(interface) = self.interfaces.get_mut(&id).filter(|_| anyone) else { return false };
        if let Some((_, sender)) = from.filter(|(came_by, _)| *came_by == id) {
            let sender = interface.neighbors.get(&sender).map(|neighbor| neighbor.identity());
            let by_designated = sender.is_some_and(|name| name == interface.dr || name == interface.bdr);
            if by_designated || interface.state == InterfaceState::Backup {
                return false; // the designated router floods it
            }
        }
        interface.flood.insert(header.key);
        true
    }

    /// Step 1 of section 13.3 for one neighbour, before asking whether it is the sender.
    fn needs_copy(&mut self, id: InterfaceId, key: Ipv4Addr, header: &LsaHeader<V>) -> bool {
        let Some(neighbor) = self.neighbor(id, key) else { return false };
        if neighbor.state < NeighborState::Exchange {
            return false;
        }
        if !V::is_for(header.key.kind, neighbor.options) {
            return false;
        }
        let Some(wanted) = neighbor.requests.get(&header.key) else { return true };
        match header.compare(wanted) {
            Ordering::Less => false,
            order => {
                self.request_satisfied(id, key, &header.key);
                order == Ordering::Greater
            }
        }
    }

    /// Puts an LSA on a neighbour's retransmission list.
    pub(super) fn await_ack(&mut self, id: InterfaceId, key: Ipv4Addr, lsa: LsaKey<V>) {
        let (now, pause) = (self.now, self.resend_pause(id));
        if let Some(neighbor) = self.neighbor_mut(id, key) {
            neighbor.unacknowledged.insert(lsa, now);
            neighbor.resend_lsas = earlier(neighbor.resend_lsas, Some(now + pause));
        }
    }

    fn resend_pause(&self, id: InterfaceId) -> Duration {
        let usual = self.interfaces.get(&id).map_or(MIN_LS_ARRIVAL, |i| i.config.retransmit());
        if self.stopping.is_some() || self.is_leaving() { usual.min(super::stop::RESEND) } else { usual }
    }

    /// Sends again what a neighbour did not acknowledge in time (section 13.6).
    pub(super) fn resend_lsas(&mut self, id: InterfaceId, key: Ipv4Addr) {
        let (now, pause) = (self.now, self.resend_pause(id));
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let mut late = Vec::new();
        for (lsa, sent) in &mut neighbor.unacknowledged {
            if now.since(*sent) >= pause {
                *sent = now;
                late.push(*lsa);
            }
        }
        let oldest = neighbor.unacknowledged.values().min();
        neighbor.resend_lsas = oldest.map(|oldest| *oldest + pause);
        let lsas = self.copies(id, late.iter().copied());
        let destination = self.unicast(id, key);
        self.send_update(id, destination, lsas);
    }

    fn copies(&self, id: InterfaceId, keys: impl Iterator<Item = LsaKey<V>>) -> Vec<Lsa<V>> {
        let find = |key: LsaKey<V>| {
            let entry = self.database(self.scope_of(id, key.kind)?)?.get(&key)?;
            Some(entry.aged(self.now))
        };
        keys.filter_map(find).collect()
    }

    /// Sends what this turn queued, newest instances only.
    pub(super) fn send_floods(&mut self) {
        for id in self.interface_ids() {
            let Some(interface) = self.interfaces.get_mut(&id) else { continue };
            let keys: BTreeSet<_> = std::mem::take(&mut interface.flood);
            let lsas = self.copies(id, keys.into_iter());
            let destination = self.flood_address(id);
            self.send_update(id, destination, lsas);
        }
    }

    /// Sends LSAs in as many packets as the MTU asks for; one that alone is larger goes in fragments.
    pub(super) fn send_update(&mut self, id: InterfaceId, destination: V::Address, lsas: Vec<Lsa<V>>) {
        let room = self.room(id) - 4;
        let mut batch: Vec<Lsa<V>> = Vec::new();
        let mut length = 0;
        for lsa in lsas {
            let lsa = lsa.with_age((lsa.header.age_seconds() + TRANSIT_DELAY).min(MAX_AGE));
            if !batch.is_empty() && length + lsa.bytes().len() > room {
                self.send(id, destination, Body::Update(std::mem::take(&mut batch)));
                length = 0;
            }
            length += lsa.bytes().len();
            batch.push(lsa);
        }
        if !batch.is_empty() {
            self.send(id, destination, Body::Update(batch));
        }
    }

    fn acknowledge_later(&mut self, id: InterfaceId, header: LsaHeader<V>) {
        let due = self.now + ACK_DELAY;
        if let Some(interface) = self.interfaces.get_mut(&id) {
            interface.acks.push(header);
            interface.acks_at = earlier(interface.acks_at, Some(due));
        }
    }

    pub(super) fn send_delayed_acks(&mut self) {
        for id in self.interface_ids() {
            let destination = self.flood_address(id);
            let Some(interface) = self.interfaces.get_mut(&id) else { continue };
            if is_due(interface.acks_at, self.now) {
                interface.acks_at = None;
                let acks = std::mem::take(&mut interface.acks);
                self.send_acks(id, destination, &acks);
            }
        }
    }

    fn send_acks(&mut self, id: InterfaceId, destination: V::Address, headers: &[LsaHeader<V>]) {
        let count = self.room(id) / LSA_HEADER_LEN;
        for headers in headers.chunks(count) {
            self.send(id, destination, Body::Ack(headers.to_vec()));
        }
    }

    /// Section 13.7.
    pub(super) fn handle_ack(&mut self, id: InterfaceId, key: Ipv4Addr, headers: &[LsaHeader<V>]) {
        for header in headers {
            let held = self.copies(id, std::iter::once(header.key)).pop();
            let Some(neighbor) = self.neighbor_mut(id, key) else { return };
            if !neighbor.unacknowledged.contains_key(&header.key) {
                continue;
            }
            let source = neighbor.address;
            if held.is_some_and(|held| held.header.compare(header) == Ordering::Equal) {
                neighbor.unacknowledged.remove(&header.key);
            } else {
                let detail = || format!("{}: another instance was sent", header.key);
                self.refuse(id, source, Refusal::StrayAck, detail);
            }
        }
    }
}
