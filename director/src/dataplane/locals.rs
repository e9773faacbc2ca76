//! Full NAT: the local addresses of all directors, and their numbers here.
//!
//! A lease names its address by a number of one byte, which is this director's own affair. Of the own addresses the
//! program takes leases. Those of other directors get a number with the first connection that such a director tells of:
//! what comes for it goes on here as it did there, and no lease is ever taken of one.
//!
//! | an address that | is |
//! |---|---|
//! | is in the options | one's own: never given up |
//! | a live director says is its own | another's |
//! | there is a lease of | another's too, whoever told: until the last one has ended |
//!
//! Nobody takes leases before [`Dataplane::allow_leases`] if the options say so: who lost what it knew learns from the
//! others first which ones of its own connections still have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use aya::maps::{Array, MapData, MapError};
use director_common::tables::{Address, Config, Endpoint, Lease, Locals, MAX_LOCAL_NUMBERS};
use director_proto::sync::BootId;

use super::error::{ApplyError, OpenError};
use super::maps::{self, Maps, Shared, ip_address};
use super::spec::Ports;
use super::{Dataplane, Options};

/// Addresses and ports of this node that stand for clients, by full NAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAddresses {
    /// The addresses, of either family. What is sent to them must come to this node.
    pub addresses: Vec<IpAddr>,
    /// The ports. None of them should be one that the kernel gives to sockets of the node at those addresses.
    pub ports: Ports,
}

impl Default for LocalAddresses {
    /// No address; ports below those that Linux gives to sockets (`net.ipv4.ip_local_port_range`).
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: Ports { first: 1_024, last: 32_767 } }
    }
}

impl LocalAddresses {
    /// Whether there is one of the family of `address`.
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|local| local.is_ipv4() == address.is_ipv4())
    }

    /// The first one that is no address of this node, if any: the kernel answers no ARP for it then.
    pub fn stranger(&self) -> Option<IpAddr> {
        // An address that is no address of the node's cannot be bound to (EADDRNOTAVAIL).
        let is_ours = |address: &&IpAddr| UdpSocket::bind(SocketAddr::new(**address, 0)).is_err();
        self.addresses.iter().find(is_ours).copied()
    }
}

/// The addresses of leases, by their numbers.
pub(super) type LocalMap = Array<MapData, Shared<Address>>;

/// Who has which number.
#[derive(Debug)]
pub(super) struct Numbering {
    /// By number; the unspecified address where one is free.
    known: Vec<Address>,
    own: Vec<Address>,
    ports: Ports,
    /// What each director says is its own, and by which run.
    told: BTreeMap<Ipv4Addr, (BootId, BTreeSet<Address>)>,
    /// Directors that are not live: what they say does not count before they are again.
    dead: BTreeSet<Ipv4Addr>,
    /// Numbers of which the last walk through all leases has met some, or that have got one since.
    leased: Vec<bool>,
    /// The same of the walk under way.
    met: Vec<bool>,
    /// Own addresses that another director says are its: no lease is taken of them any more.
    ceded: BTreeSet<Address>,
    is_allowed: bool,
}

impl Numbering {
    /// Numbers the own addresses: one that has a number keeps it, as do others of which there is a lease.
    ///
    /// # Errors
    /// [`OpenError::Map`] if the kernel refuses; [`OpenError::Locals`] if no number is free.
    pub(super) fn open(maps: &mut Maps, options: &Options) -> Result<Self, OpenError> {
        let mut leased = vec![false; MAX_LOCAL_NUMBERS];
        maps.leases.numbers().for_each(|number| leased[usize::from(number)] = true);
        let mut known = Vec::with_capacity(MAX_LOCAL_NUMBERS);
        for number in 0..MAX_LOCAL_NUMBERS as u32 {
            known.push(maps.locals.get(&number, 0)?.0);
        }
        // An earlier process may have waited in vain for what the others know.
        let before = maps.config()?.locals;
        let had = before.v4_count + before.v6_count > 0;
        let mut numbering = Self {
            known,
            own: options.locals.addresses.iter().map(|address| maps::address(*address)).collect(),
            ports: options.locals.ports,
            told: BTreeMap::new(),
            dead: BTreeSet::new(),
            met: leased.clone(),
            leased,
            ceded: BTreeSet::new(),
            is_allowed: !options.holds_leases || had,
        };
        for address in numbering.own.clone() {
            if numbering.number(&mut maps.locals, address)?.is_none() {
                return Err(OpenError::Locals { address: ip_address(address) });
            }
        }
        Ok(numbering)
    }

    /// The number of an address, a new one if it has none; `None` if none is free.
    pub(super) fn number(&mut self, map: &mut LocalMap, address: Address) -> Result<Option<u8>, MapError> {
        let Some(number) = self.place(&address) else { return Ok(None) };
        if self.known[usize::from(number)] != address {
            map.set(u32::from(number), Shared(address), 0)?;
            self.known[usize::from(number)] = address;
            // Its lease is entered later: until a walk has looked for one, nobody else gets the number.
            self.note_lease(number);
        }
        Ok(Some(number))
    }

    fn place(&self, address: &Address) -> Option<u8> {
        let numbers = || 1..=u8::MAX;
        let of = |number: u8| &self.known[usize::from(number)];
        numbers()
            .find(|number| of(*number) == address)
            .or_else(|| numbers().find(|number| *of(*number) == Address::default()))
            .or_else(|| numbers().find(|number| !self.is_needed(*number)))
    }

    fn is_needed(&self, number: u8) -> bool {
        let (at, address) = (usize::from(number), &self.known[usize::from(number)]);
        self.leased[at]
            || self.met[at]
            || self.own.contains(address)
            || self.told_by_live().any(|(_, told)| told.contains(address))
    }

    /// What a lease stands for.
    pub(super) fn end(&self, lease: Lease) -> Option<Endpoint> {
        let address = *self.known.get(usize::from(lease.number))?;
        lease.is_some().then_some(Endpoint { address, port: lease.port, reserved: 0 })
    }

    /// Whether a lease is of an own address.
    pub(super) fn is_own(&self, lease: Lease) -> bool {
        self.known.get(usize::from(lease.number)).is_some_and(|address| self.own.contains(address))
    }

    /// There is a lease of this number.
    pub(super) fn note_lease(&mut self, number: u8) {
        (self.leased[usize::from(number)], self.met[usize::from(number)]) = (true, true);
    }

    /// A walk through all leases begins.
    pub(super) fn begin_walk(&mut self) {
        self.met.fill(false);
    }

    /// The walk has met a lease of this number.
    pub(super) fn meet(&mut self, number: u8) {
        self.met[usize::from(number)] = true;
    }

    /// The walk has met all that there are.
    pub(super) fn end_walk(&mut self) {
        self.leased.clone_from(&self.met);
    }

    /// A director says, by a run of this id, which addresses are its own.
    pub(super) fn tell(&mut self, from: Ipv4Addr, boot_id: BootId, addresses: &[Address]) {
        self.told.insert(from, (boot_id, addresses.iter().copied().collect()));
    }

    /// A director is dead: its addresses are somebody's only while there are leases of them. What it has said counts again
    /// if it lives: it says so once in a session, which outlasts its silence.
    pub(super) fn bury(&mut self, from: Ipv4Addr) {
        self.dead.insert(from);
    }

    /// A director lives, by a run of this id.
    pub(super) fn revive(&mut self, from: Ipv4Addr, boot_id: BootId) {
        self.dead.remove(&from);
        if self.told.get(&from).is_some_and(|(by, _)| *by != boot_id) {
            self.told.remove(&from);
        }
    }

    /// Whether a director is dead.
    pub(super) fn is_dead(&self, from: Ipv4Addr) -> bool {
        self.dead.contains(&from)
    }

    /// What each live director says is its own.
    fn told_by_live(&self) -> impl Iterator<Item = (&Ipv4Addr, &BTreeSet<Address>)> {
        let live = self.told.iter().filter(|(from, _)| !self.dead.contains(from));
        live.map(|(from, (_, addresses))| (from, addresses))
    }

    /// What the program takes leases of.
    pub(super) fn locals(&self) -> Locals {
        let (first_port, last_port) = (self.ports.first, self.ports.last);
        let mut locals = Locals { first_port, last_port, ..Locals::default() };
        for address in self.own.iter().filter(|address| self.is_allowed && !self.ceded.contains(address)) {
            let (list, count) = match address.is_v4() {
                true => (&mut locals.v4, &mut locals.v4_count),
                false => (&mut locals.v6, &mut locals.v6_count),
            };
            let number = self.place(address).expect("invariant: every own address has got a number");
            if let Some(place) = list.get_mut(usize::from(*count)) {
                (*place, *count) = (number, *count + 1);
            }
        }
        locals
    }
}

impl Dataplane {
    /// Leases are taken from now on, where [`Options::holds_leases`] has kept the program from it, if all that others know
    /// of this director's own is known here; else none is.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn allow_leases(&mut self, allowed: bool) -> Result<(), ApplyError> {
        let before = std::mem::replace(&mut self.numbering.is_allowed, allowed);
        self.write_locals().inspect_err(|_| self.numbering.is_allowed = before)
    }

    /// Takes no leases any more of addresses that another director says are its own: of two that do the same ones could be
    /// given to two connections.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn cede_locals(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), ApplyError> {
        self.numbering.ceded = addresses.iter().map(|address| maps::address(*address)).collect();
        self.write_locals()
    }

    fn write_locals(&mut self) -> Result<(), ApplyError> {
        let locals = self.numbering.locals();
        Ok(self.maps.write_config(|config| Config { locals, ..config })?)
    }

    /// Own addresses that another live director says are its own, by director.
    pub fn contested_locals(&self) -> BTreeMap<Ipv4Addr, BTreeSet<IpAddr>> {
        let own = &self.numbering.own;
        let both = |addresses: &BTreeSet<Address>| -> BTreeSet<IpAddr> {
            addresses
                .iter()
                .filter(|address| own.contains(address))
                .map(|address| ip_address(*address))
                .collect()
        };
        let told = self.numbering.told_by_live();
        let contested = told.map(|(router_id, addresses)| (*router_id, both(addresses)));
        contested.filter(|(_, addresses)| !addresses.is_empty()).collect()
    }

    /// Local addresses of other directors, of whose connections some are known here or may come to be: what is sent to them
    /// goes on here if it comes here.
    pub fn other_locals(&self) -> BTreeSet<IpAddr> {
        let Numbering { known, own, leased, .. } = &self.numbering;
        let told = self.numbering.told_by_live().flat_map(|(_, addresses)| addresses);
        let leased = known.iter().zip(leased).filter(|(_, leased)| **leased).map(|(address, _)| address);
        let others = leased.chain(told).filter(|address| !own.contains(address));
        others.map(|address| ip_address(*address)).collect()
    }

    /// The address and port that stand for a client, if its connection has a lease.
    pub(super) fn local_of(&self, lease: Lease) -> Option<SocketAddr> {
        let end = self.numbering.end(lease)?;
        Some(SocketAddr::new(ip_address(end.address), end.port))
    }
}
