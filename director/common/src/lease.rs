//! Full NAT: which local address and port stand for a client, and back.
//!
//! The destination of a client's packet becomes the real server, and its source a local address of this director and a
//! port there, its *lease*. So real servers in any network answer to this director, and neither have to know clients
//! nor to route by the directors.
//!
//! Nobody ever has the same lease as somebody else towards one real server, port and protocol: a lease is an entry of a
//! table, found by the packets that come back, and there is never a second one for the same of those
//! ([`Leases::take`]). It is taken when a connection begins, and given back by user space some time after the
//! connection's own entry has had its time (`dataplane/leases.rs`): so it is not used again while the real server may
//! remember the connection (TIME_WAIT, RFC 9293, section 3.6.1).
//!
//! | table | by | says |
//! |---|---|---|
//! | connections ([`table`](crate::pin::table)), half-open or not | the client's packet | real server, state, last packet; beside it, flow and lease |
//! | leases, the same kind of table | the real server's packet | lease; beside it, [`LeaseRecord`]: where the connection is |
//!
//! The connection's entry is the truth. A lease leads to it, and is void unless that one names this very lease: a
//! connection that begins anew with the ports of one that has ended has another lease.

use crate::decide::find_owner;
use crate::packet::PROTOCOL_TCP;
use crate::pin::table::Trace;
use crate::pin::{Pin, PinState, ServerId};
use crate::tables::{
    Address, Config, Endpoint, FlowKey, FlowRecord, Lease, LeaseRecord, RealEntry, ReplyEntry, Return,
    Roster, ServiceEntry, Tables,
};
use crate::template;
use crate::verdict::DropReason;

/// Leases that are tried for a connection: with nine tenths of them taken, one connection in 30 finds none; with four
/// fifths, one in 1,200.
pub const TRIES: u32 = 32;

/// How a tracked connection began: plain numbers, for the kernel's program.
pub mod opening {
    /// Nobody has asked.
    pub const NONE: u32 = 0;
    /// Somebody has, and the answer comes with the next question.
    pub const ASKED: u32 = 1;
    /// It has its entry and, with full NAT, its lease.
    pub const OPENED: u32 = 2;
    /// It had them already: another processor has just had a packet of it.
    pub const FOUND: u32 = 3;
    /// There is no real server for it.
    pub const NO_SERVER: u32 = 4;
    /// The way to the real server is not known.
    pub const NO_WAY: u32 = 5;
    /// The tables contradict each other.
    pub const BAD_TABLE: u32 = 6;
    /// No lease was free.
    pub const NO_LEASE: u32 = 7;
    /// The table of half-open connections has no room.
    pub const NO_ROOM: u32 = 8;

    /// One of these in words, if the connection has begun.
    pub const fn words(opening: u32) -> Option<&'static str> {
        match opening {
            OPENED => Some("with a port of its own"),
            FOUND => Some("there already"),
            _ => None,
        }
    }
}

/// Why a connection did not begin.
#[inline(always)]
pub(crate) const fn reason(opening: u32) -> DropReason {
    match opening {
        opening::NO_WAY => DropReason::NoNextHop,
        opening::BAD_TABLE => DropReason::BadTable,
        opening::NO_LEASE => DropReason::NoLocalPort,
        opening::NO_ROOM => DropReason::TableFull,
        _ => DropReason::NoRealServer,
    }
}

/// The tables of leases, wherever they are.
pub trait Leases: Tables {
    /// The local address with a number.
    fn local_address(&self, number: u8) -> Option<&Address>;
    /// Takes the lease that is found by `trace` and is what `pin` says, for the connection in `owner`; false if
    /// somebody has it, or there is no room. Of several who take the same one at once, one at most is told true.
    fn take(&self, trace: &Trace, pin: &Pin, owner: &LeaseRecord) -> bool;
    /// Gives back a lease that was taken just now.
    fn give_back(&self, trace: &Trace, pin: &Pin);
    /// The lease that is found by `trace`, and whose it is.
    fn lease(&self, trace: &Trace, owner: &mut LeaseRecord) -> Option<Pin>;
    /// The connection with this trace, half-open or not: its pin, and its flow and lease in `record`.
    fn connection(&self, trace: &Trace, record: &mut FlowRecord) -> Option<Pin>;
    /// Adds a connection with its lease to those that are half-open; false if there is no room, or it is there by now.
    fn begin(&self, flow: &FlowKey, pin: &Pin, lease: Lease) -> bool;
}

/// Tables that know the schedulers' part as well. (The kernel's program has that in a function of its own.)
pub trait Schedules: Leases {
    /// The position of the server that a tracked service's scheduler chooses for a new connection,
    /// [`Roster::NOBODY`] if there is none.
    fn schedule(&self, service: &ServiceEntry) -> u32;
}

/// The state of a connection that begins: also of a flow of datagrams, most of which are of one, so that those do not
/// fill the table of half-open connections for longer than a flood of SYNs does.
pub(crate) const FIRST: PinState = PinState::Opening;

/// [`Tables::open`] for tables in user space.
pub fn open(tables: &impl Schedules, service: &ServiceEntry, flow: &FlowKey, wanted: u32) -> u32 {
    let choose = || if wanted == Roster::NOBODY { tables.schedule(service) } else { wanted };
    if !service.is_persistent() {
        return open_at(tables, service, flow, choose());
    }
    let known = template::recall(tables, service, flow);
    let position =
        if known == Roster::NOBODY { template::make(tables, service, flow, choose()) } else { known };
    open_at(tables, service, flow, position)
}

/// Gives a connection that begins its entry and, with full NAT, a lease towards the real server at `position`: one of
/// [`opening`].
#[inline(always)]
pub fn open_at(tables: &impl Leases, service: &ServiceEntry, flow: &FlowKey, position: u32) -> u32 {
    if position >= service.real_count {
        return opening::NO_SERVER;
    }
    let index = service.real_base.wrapping_add(position);
    let (Some(real), Some(config)) = (tables.real(index), tables.config()) else { return opening::BAD_TABLE };
    if real.ifindex == 0 {
        return opening::NO_WAY;
    }
    let now = tables.now();
    let pin = Pin::new(ServerId::new(position as u16, real.generation), FIRST, now);
    let (mut lease, mut trace) = (Lease::NONE, config.pins.of(flow));
    if service.is_full_nat() {
        if real.address.is_v4() != flow.source.is_v4() {
            return opening::BAD_TABLE;
        }
        let owner = LeaseRecord { first: trace.first, second: trace.second };
        match find_free(tables, config, &owner, &back_of(real, flow), now) {
            Some((found, back)) => (lease, trace) = (found, back),
            None => return opening::NO_LEASE,
        }
    }
    if tables.begin(flow, &pin, lease) {
        // As IPVS counts: only TCP has active connections.
        let is_tcp = i64::from(flow.protocol == PROTOCOL_TCP);
        tables.count(index, is_tcp, 1_i64.wrapping_sub(is_tcp));
        return opening::OPENED;
    }
    if lease.is_some() {
        tables.give_back(&trace, &taken(lease, now));
    }
    if tables.half_open(flow).is_some() { opening::FOUND } else { opening::NO_ROOM }
}

/// What comes back of a connection, but for its destination.
#[inline(always)]
fn back_of(real: &RealEntry, flow: &FlowKey) -> FlowKey {
    FlowKey {
        source: real.address,
        source_port: if real.port == 0 { flow.destination_port } else { real.port },
        protocol: flow.protocol,
        ..FlowKey::default()
    }
}

/// The entry of a lease that is taken in second `now`.
#[inline(always)]
const fn taken(lease: Lease, now: u32) -> Pin {
    Pin::new(lease.packed(), PinState::Open, now)
}

/// Takes a lease of those that are free, to be found by what is `back` but for the destination. Candidates follow
/// from the client's flow by secrets, so that nobody outside can tell which ports are next (RFC 6056, section 3.3.3).
#[inline(always)]
fn find_free(
    tables: &impl Leases,
    config: &Config,
    owner: &LeaseRecord,
    back: &FlowKey,
    now: u32,
) -> Option<(Lease, Trace)> {
    let (mut draw, step) = (owner.first ^ owner.second.swap_bytes(), owner.second | 1);
    let is_v4 = back.source.is_v4();
    let mut tries = 0;
    while tries < TRIES {
        let lease = config.locals.pick(is_v4, draw);
        if !lease.is_some() {
            return None;
        }
        let (destination, destination_port) = (*tables.local_address(lease.number)?, lease.port);
        let trace = config.pins.of(&FlowKey { destination, destination_port, ..*back });
        if tables.take(&trace, &taken(lease, now), owner) {
            return Some((lease, trace));
        }
        draw = draw.wrapping_add(step);
        tries = tries.wrapping_add(1);
    }
    None
}

/// [`Tables::local`]: as whom a client's packet leaves, by the lease of its connection. Room for the connection's record
/// is lent by the caller.
#[inline(always)]
pub fn local(tables: &impl Leases, flow: &FlowKey, record: &mut FlowRecord) -> Option<Endpoint> {
    tables.connection(&tables.config()?.pins.of(flow), record)?;
    let lease = record.lease();
    if !lease.is_some() {
        return None;
    }
    Some(Endpoint { address: *tables.local_address(lease.number)?, port: lease.port, reserved: 0 })
}

/// [`Tables::returned`]: what a packet of `flow`, from a real server to a lease, becomes; false if it is no such.
#[inline(always)]
pub fn returned(tables: &impl Leases, flow: &FlowKey, record: &mut FlowRecord, found: &mut Return) -> bool {
    let Some(config) = tables.config() else { return false };
    let mut owner = LeaseRecord::default();
    let Some(entry) = tables.lease(&config.pins.of(flow), &mut owner) else { return false };
    let lease = Lease::unpacked(entry.server());
    let client = Trace { first: owner.first, second: owner.second };
    let Some(pin) = tables.connection(&client, record) else { return false };
    let is_ours = tables.local_address(lease.number).is_some_and(|address| address.is(&flow.destination));
    if record.lease() != lease || lease.port != flow.destination_port || !is_ours {
        return false;
    }
    let connection = record.flow();
    let Some(service) = find_owner(&connection, config, tables) else { return false };
    let position = u32::from(pin.server().position());
    if position >= service.real_count {
        return false;
    }
    let index = service.real_base.wrapping_add(position);
    let Some(real) = tables.real(index) else { return false };
    if !pin.server().is(real) || !real.address.is(&flow.source) {
        return false;
    }
    found.reply = ReplyEntry {
        vip: connection.destination,
        port: connection.destination_port,
        reserved: 0,
        service: service.service,
        real: index,
    };
    found.client = Endpoint { address: connection.source, port: connection.source_port, reserved: 0 };
    true
}

impl Return {
    /// The client's flow.
    #[inline(always)]
    pub const fn flow(&self, protocol: u8) -> FlowKey {
        flow_of(&self.reply, &self.client, protocol)
    }
}

/// The flow of a client's packets whose answers these two say.
#[inline(always)]
pub(crate) const fn flow_of(reply: &ReplyEntry, client: &Endpoint, protocol: u8) -> FlowKey {
    FlowKey {
        source: client.address,
        destination: reply.vip,
        source_port: client.port,
        destination_port: reply.port,
        protocol,
        reserved: [0; 3],
    }
}
