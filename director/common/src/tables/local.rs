//! Full NAT: the addresses that stand for clients, and how a connection and what comes back of it find each other.
//!
//! A connection has a *lease*: one of this director's local addresses and a port there, which nobody else has towards
//! the same real server, port and protocol. Real servers answer to it.

use super::{Address, FlowKey, Plain, ReplyEntry};
use crate::pin::ServerId;
use crate::pin::table::{Trace, WAYS};

/// Most local addresses that leases are taken from, of each family.
pub const MAX_LOCALS: usize = 16;
/// Local addresses that have a number: those, and others that connections still have leases of. Number 0 is none.
pub const MAX_LOCAL_NUMBERS: usize = 256;

/// A local address, by its number, and a port there. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    /// Number of the address, from 1 on; 0 if this is none.
    pub number: u8,
    /// The port.
    pub port: u16,
}

impl Lease {
    /// That a connection has none.
    pub const NONE: Self = Self { number: 0, port: 0 };

    /// Whether this is one.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.number != 0
    }

    /// The same in the form that an entry of the table of leases has it in: that has the layout of a pin.
    #[inline(always)]
    pub const fn packed(self) -> ServerId {
        ServerId::new(self.port, self.number as u32)
    }

    /// The lease that was packed so.
    #[inline(always)]
    pub const fn unpacked(packed: ServerId) -> Self {
        Self { number: packed.generation() as u8, port: packed.position() }
    }
}

/// What leases are taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Locals {
    /// Numbers of the IPv4 addresses.
    pub v4: [u8; MAX_LOCALS],
    /// Numbers of the IPv6 addresses.
    pub v6: [u8; MAX_LOCALS],
    /// How many of `v4` there are.
    pub v4_count: u8,
    /// How many of `v6` there are.
    pub v6_count: u8,
    /// Lowest port of a lease.
    pub first_port: u16,
    /// Highest port of a lease.
    pub last_port: u16,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Locals>() == 40);
// SAFETY: `repr(C)` of integers without padding (2 x 16 + 2 + 3 x 2 = 40).
unsafe impl Plain for Locals {}

impl Locals {
    /// One of all leases of a family, as the bits of `draw` say; [`Lease::NONE`] if there are none.
    #[inline(always)]
    pub fn pick(&self, is_v4: bool, draw: u64) -> Lease {
        let (numbers, count) = if is_v4 { (&self.v4, self.v4_count) } else { (&self.v6, self.v6_count) };
        let span = u64::from(self.last_port).wrapping_sub(u64::from(self.first_port)).wrapping_add(1);
        // Each half scaled to what it chooses from.
        let place = (draw >> 32).wrapping_mul(u64::from(count)) >> 32;
        let port = (draw & 0xffff_ffff).wrapping_mul(span) >> 32;
        if count == 0 {
            return Lease::NONE;
        }
        // Masked, which for the kernel's verifier is the proof that it is within.
        let number = numbers.get(place as usize & (MAX_LOCALS - 1)).map_or(0, |number| *number);
        Lease { number, port: self.first_port.wrapping_add(port as u16) }
    }
}

const _: () = assert!(MAX_LOCALS.is_power_of_two() && MAX_LOCAL_NUMBERS == u8::MAX as usize + 1);

/// One end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// Address.
    pub address: Address,
    /// Port in host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Endpoint>() == 20);
// SAFETY: `repr(C)` of bytes and aligned u16 without padding (16 + 2 + 2 = 20).
unsafe impl Plain for Endpoint {}

/// What a packet to a lease becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Return {
    /// As whose it leaves.
    pub reply: ReplyEntry,
    /// To whom.
    pub client: Endpoint,
}

const _: () = assert!(size_of::<Return>() == 48);
// SAFETY: `repr(C)` of a `ReplyEntry` (28) and an `Endpoint` (20), both aligned to 4.
unsafe impl Plain for Return {}

/// Whose an entry of the table of connections is, and its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowRecord {
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    number: u8,
    port: u16,
}

const _: () = assert!(size_of::<FlowRecord>() == size_of::<FlowKey>());
// SAFETY: `repr(C)` of bytes and aligned u16 without padding (16 + 16 + 2 + 2 + 1 + 1 + 2 = 40).
unsafe impl Plain for FlowRecord {}

impl FlowRecord {
    /// The record of a connection.
    #[inline(always)]
    pub const fn new(flow: &FlowKey, lease: Lease) -> Self {
        Self {
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            protocol: flow.protocol,
            number: lease.number,
            port: lease.port,
        }
    }

    /// Its flow.
    #[inline(always)]
    pub const fn flow(&self) -> FlowKey {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }

    /// Gives the connection a lease.
    #[inline(always)]
    pub const fn set_lease(&mut self, lease: Lease) {
        (self.number, self.port) = (lease.number, lease.port);
    }

    /// Its lease, [`Lease::NONE`] if it has none.
    #[inline(always)]
    pub const fn lease(&self) -> Lease {
        Lease { number: self.number, port: self.port }
    }
}

/// Whose a lease is: what is left of the client's flow in the table of connections, as
/// [`Trace`](crate::pin::table::Trace) says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LeaseRecord {
    /// As in the trace.
    pub first: u64,
    /// As in the trace.
    pub second: u64,
}

impl From<Trace> for LeaseRecord {
    #[inline(always)]
    fn from(trace: Trace) -> Self {
        Self { first: trace.first, second: trace.second }
    }
}

const _: () = assert!(size_of::<LeaseRecord>() == 16);
// SAFETY: `repr(C)` of two u64.
unsafe impl Plain for LeaseRecord {}

/// Whose the leases of a bucket are.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LeaseBucket {
    /// Each by its number.
    pub records: [LeaseRecord; WAYS],
}

const _: () = assert!(size_of::<LeaseBucket>() == 128);
// SAFETY: `repr(C)` of plain elements.
unsafe impl Plain for LeaseBucket {}
