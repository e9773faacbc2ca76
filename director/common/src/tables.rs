//! The structs that live in BPF maps, the maps' names and sizes, and how `decide` reaches them.
//!
//! Both sides of the kernel boundary compile these very definitions: plain integers, explicit padding, a size
//! assertion beside each. Whatever changes their meaning or layout increments [`LAYOUT_VERSION`].

mod class;
mod local;
mod reply;
mod route;
mod shelf;
mod tracking;

use crate::hash::FlowHash;
use crate::pin::table::PinHash;
use crate::pin::{Pin, PinCell, QuicEntry, QuicKey};
use crate::schedulers::Method;
use crate::siphash::HashKey;
use crate::slot::Slot;

pub use class::RangeKey;
pub use local::{
    Endpoint, FlowRecord, Lease, LeaseBucket, LeaseRecord, Locals, MAX_LOCAL_NUMBERS, MAX_LOCALS, Return,
};
pub use reply::{ReplyEntry, ReplyKey};
pub use route::{RouteEntry, RouteQuery, Routes};
pub use shelf::{SHELF, SMALL_SHELF, SMALL_TABLE, SlotTable, SmallTable, is_small, shelf_of, table_slots};
pub use tracking::{LoadEntry, MAX_CANDIDATES, Roster};

/// Version of everything in this file. A daemon adopts pinned maps only if they carry its own version.
pub const LAYOUT_VERSION: u32 = 7;

/// First word of [`Config`]: says that these maps are a director's.
pub const CONFIG_MAGIC: u32 = 0x4449_5231;

/// Most services at one time.
pub const MAX_SERVICES: usize = 16_384;
/// Most exact service keys (addresses, ports, protocols and markers) at one time.
pub const MAX_SERVICE_KEYS: usize = 65_536;
/// Most address prefixes that lead to a class at one time.
pub const MAX_CLASSES: usize = 16_384;
/// Most keys of classes at one time: a range of ports takes 1 to 30.
pub const MAX_RANGE_KEYS: usize = 262_144;
/// Most real servers of all services together.
pub const MAX_REALS: usize = 65_536;
/// Slot tables of either size: two for each service, since a new one is complete before the old one goes.
pub const MAX_TABLES: usize = MAX_SERVICES * 2;
/// Most datagrams in fragments that are remembered at one time.
pub const MAX_FRAGMENTS: usize = 16_384;
/// Most QUIC server ids of all services together.
pub const MAX_QUIC_IDS: usize = MAX_REALS;
/// Most addresses, ports and protocols of real servers that answer by NAT, markers included.
pub const MAX_REPLY_KEYS: usize = 131_072;
/// Most interfaces with the program on them.
pub const MAX_INTERFACES: usize = 64;
/// Interfaces with an index below this are found in an array too, which costs a packet less than a hash does.
pub const NEAR_INTERFACES: usize = 1_024;
/// Longest name of a service in bytes.
pub const MAX_SERVICE_NAME: usize = 56;

/// A type that both sides of the kernel boundary may read and write as bytes.
///
/// # Safety
/// `repr(C)` or `repr(transparent)`, integers and byte arrays only, no padding, every bit pattern valid.
pub unsafe trait Plain: Copy + 'static {}

/// An IP address as 16 bytes: IPv6, or IPv4 mapped into it (RFC 4291, section 2.5.5.2).
///
/// Aligned, so that in the kernel it moves as words: byte by byte it would fill the program's stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Address(pub [u8; 16]);

// SAFETY: `repr(C)` of bytes, 16 with an alignment of 4.
unsafe impl Plain for Address {}

impl Address {
    /// Bits of an address.
    pub const BITS: u32 = 128;

    /// The mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn from_ipv4([a, b, c, d]: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The IPv4 address this maps, if it does.
    #[inline(always)]
    pub const fn ipv4(self) -> Option<[u8; 4]> {
        if self.is_v4() { Some(self.low()) } else { None }
    }

    /// Whether this maps an IPv4 address. Compared by words: see the type's alignment.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a | b == 0 && c == 0xffff_u32.to_be()
    }

    /// The address as words in the machine's order. In the kernel that is how it moves; taken apart into bytes even
    /// once, it would be copied byte by byte everywhere.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let [a, b, c, d] = self.0.as_chunks::<4>().0 else { return [0; 4] };
        [u32::from_ne_bytes(*a), u32::from_ne_bytes(*b), u32::from_ne_bytes(*c), u32::from_ne_bytes(*d)]
    }

    /// Whether this is the same as another. Compared by words, as in [`Self::is_v4`].
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }

    /// The address of these [`Self::words`].
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: as many bytes, aligned as they are; every bit pattern is an address.
        unsafe { core::mem::transmute(words) }
    }

    /// The address with its last `bits` (0 to 127) cleared. Without a branch: the kernel's verifier follows each.
    #[inline(always)]
    pub const fn cleared(&self, bits: u32) -> Self {
        let [a, b, c, d] = self.words();
        // All ones if fewer than 64 are cleared, else none.
        let few = ((bits as u64 >> 6) & 1).wrapping_sub(1);
        let within = u64::MAX.wrapping_shl(bits);
        let (high, low) = (within | few, within & few);
        let [e, f] = [(high >> 32) as u32, high as u32];
        let [g, h] = [(low >> 32) as u32, low as u32];
        Self::from_words([a & e.to_be(), b & f.to_be(), c & g.to_be(), d & h.to_be()])
    }

    /// Whether this is no address: all zeroes. Compared by words, as in [`Self::is_v4`].
    #[inline(always)]
    pub const fn is_zero(&self) -> bool {
        let [a, b, c, d] = self.words();
        a | b | c | d == 0
    }

    /// The last four bytes: all of an IPv4 address.
    #[inline(always)]
    pub const fn low(&self) -> [u8; 4] {
        let [.., last] = self.words();
        last.to_ne_bytes()
    }
}

/// What a service hashes to find a packet's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashInput {
    /// The source address.
    Source,
    /// The source address and port.
    SourcePort,
}

/// A kind of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP in IP, any family in any.
    Ipip,
    /// Generic routing encapsulation, without key or checksum.
    Gre,
    /// Generic UDP encapsulation.
    Gue,
}

/// Settings of the whole data plane: the only element of its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`CONFIG_MAGIC`].
    pub magic: u32,
    /// [`LAYOUT_VERSION`] of the daemon that made the maps.
    pub layout: u32,
    /// What the secrets of the slot hash follow from.
    pub hash_key: HashKey,
    /// Those secrets.
    pub hash: FlowHash,
    /// How pins are found.
    pub pins: PinHash,
    /// Buckets of the table of pins.
    pub pin_buckets: u32,
    /// Buckets of the table of half-open connections.
    pub half_open_buckets: u32,
    /// Buckets of the table of leases.
    pub lease_buckets: u32,
    /// Sum of `FLAG_*`.
    pub flags: u32,
    /// Most ICMP errors that are sent in a second, by each processor.
    pub icmp_rate: u32,
    /// Zero.
    pub reserved: u32,
    /// Our address in tunnels over IPv4; all zeroes where there is none.
    pub tunnel_v4: Address,
    /// Our address in tunnels over IPv6; all zeroes where there is none.
    pub tunnel_v6: Address,
    /// What full NAT puts in the place of clients.
    pub locals: Locals,
}

const _: () = assert!(size_of::<Config>() == 352);
// SAFETY: `repr(C)` of integers and bytes without padding (2 x 4 + (2 + 7 + 22) x 8 + 6 x 4 + 2 x 16 +
// 40 = 352).
unsafe impl Plain for Config {}

impl Config {
    /// Keep [`FlowCounters`](crate::counters::FlowCounters) of every flow.
    pub const FLAG_FLOW_ACCOUNTING: u32 = 1;
    /// Some service owns all ports of an address: look there too when the exact port is not found.
    pub const FLAG_ANY_PORT: u32 = 2;
    /// Some service owns a prefix or a range of ports: look for the address's class last.
    pub const FLAG_CLASSES: u32 = 4;
    /// Some service forwards by NAT: what is for no service may be a real server's answer.
    pub const FLAG_NAT: u32 = 8;
    /// Some service forwards by full NAT: what is for no service may be a real server's answer to a lease.
    pub const FLAG_FULL_NAT: u32 = 16;
    /// Packets that [`CaptureFilter`](crate::capture::CaptureFilter) wants are captured as they came.
    pub const FLAG_CAPTURE: u32 = 1 << 30;
    /// The same, as they leave.
    pub const FLAG_CAPTURE_AFTER: u32 = 1 << 31;
    /// Both of these.
    pub const CAPTURE_FLAGS: u32 = Self::FLAG_CAPTURE | Self::FLAG_CAPTURE_AFTER;

    /// Whether every bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    /// Our address in tunnels over IPv4 or else IPv6, if there is one.
    #[inline(always)]
    pub const fn tunnel_source(&self, over_v4: bool) -> Option<&Address> {
        let source = if over_v4 { &self.tunnel_v4 } else { &self.tunnel_v6 };
        if source.is_zero() { None } else { Some(source) }
    }
}

/// What a packet is matched by: destination address, destination port (0 for all) and protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// The VIP.
    pub address: Address,
    /// Destination port in host order, 0 for all ports.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// One of `KIND_*`.
    pub kind: u8,
}

const _: () = assert!(size_of::<ServiceKey>() == 20);
// SAFETY: `repr(C)` of bytes and an aligned u16 without padding (16 + 2 + 1 + 1 = 20).
unsafe impl Plain for ServiceKey {}

impl ServiceKey {
    /// An ordinary key.
    pub const KIND_SERVICE: u8 = 0;
    /// Who takes fragments without ports of this address and protocol (port is 0).
    pub const KIND_FRAGMENT: u8 = 1;
    /// Says that the address is a VIP at all (port and protocol are 0).
    pub const KIND_VIP: u8 = 2;

    /// Key of a service.
    #[inline(always)]
    pub const fn service(address: Address, protocol: u8, port: u16) -> Self {
        Self { address, port, protocol, kind: Self::KIND_SERVICE }
    }

    /// Key under which the owner of an address's fragments is found.
    #[inline(always)]
    pub const fn fragment(address: Address, protocol: u8) -> Self {
        Self { address, port: 0, protocol, kind: Self::KIND_FRAGMENT }
    }

    /// Key that exists if the address is a VIP.
    #[inline(always)]
    pub const fn vip(address: Address) -> Self {
        Self { address, port: 0, protocol: 0, kind: Self::KIND_VIP }
    }
}

/// What a packet of IPv4 is matched by first: a [`ServiceKey`] of the ordinary kind in 8 bytes, as it stands in the
/// packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct ServiceKeyV4 {
    /// The VIP.
    pub address: [u8; 4],
    /// Destination port in network order, 0 for all ports.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ServiceKeyV4>() == 8);
// SAFETY: `repr(C)` of bytes.
unsafe impl Plain for ServiceKeyV4 {}

impl ServiceKeyV4 {
    /// The short form of a key that has one.
    pub const fn of(key: &ServiceKey) -> Option<Self> {
        if !key.address.is_v4() || key.kind != ServiceKey::KIND_SERVICE {
            return None;
        }
        let (address, port) = (key.address.low(), key.port.to_be_bytes());
        Some(Self { address, port, protocol: key.protocol, reserved: 0 })
    }

    /// The key that this is the short form of.
    pub const fn whole(&self) -> ServiceKey {
        let (address, port) = (Address::from_ipv4(self.address), u16::from_be_bytes(self.port));
        ServiceKey::service(address, self.protocol, port)
    }
}

/// What a service key leads to. Replacing this value is the moment a service switches to another table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceEntry {
    /// The service's index: counters and name.
    pub service: u32,
    /// Index of the slot table, [`SMALL_TABLE`] included.
    pub table: u32,
    /// First of the service's real servers in the real-server map.
    pub real_base: u32,
    /// Real servers from there on that positions may name.
    pub real_count: u32,
    /// Sum of `FLAG_*`.
    pub flags: u32,
    /// How packets reach the real servers: one of `FORWARD_*`.
    pub forwarding: u16,
    /// UDP port of the real servers' end of a tunnel; only for [`Self::FORWARD_GUE`].
    pub tunnel_port: u16,
}

const _: () = assert!(size_of::<ServiceEntry>() == 24);
// SAFETY: `repr(C)` of integers without padding (5 x 4 + 2 x 2 = 24).
unsafe impl Plain for ServiceEntry {}

impl ServiceEntry {
    /// The slot depends on the source port too.
    pub const FLAG_HASH_PORT: u32 = 1;
    /// Every datagram goes to its slot's current owner, whatever the slot's state.
    pub const FLAG_ONE_PACKET: u32 = 1 << 1;
    /// Datagrams are QUIC, and the connection id names the real server.
    pub const FLAG_QUIC: u32 = 1 << 2;
    /// A client's connections go to one real server for some time: see [`template`](crate::template). Only in tracked
    /// services.
    pub const FLAG_PERSISTENT: u32 = 1 << 3;
    /// First bit of how many of an IPv4 client's last bits do not tell it from others: 5 bits. Only in persistent services.
    const NETWORK_V4_SHIFT: u32 = 11;
    /// The same of an IPv6 client: 7 bits, which in other services are of QUIC's.
    const NETWORK_V6_SHIFT: u32 = 16;
    /// First bit of where in the connection id the server id begins: 5 bits, in bytes.
    const QUIC_OFFSET_SHIFT: u32 = 16;
    /// First bit of the server id's length: 3 bits, in bytes.
    const QUIC_LENGTH_SHIFT: u32 = 21;
    /// Of a VIP's marker: answer echo requests to it.
    pub const FLAG_ECHO: u32 = 1 << 8;
    /// Of a VIP's marker: leave echo requests to the kernel, which answers if it owns the address.
    pub const FLAG_ECHO_KERNEL: u32 = 1 << 9;
    /// New connections that find no room to be tracked are refused, as is whatever belongs to none; else both go by
    /// their slot. Only in tracked services.
    pub const FLAG_REFUSE: u32 = 1 << 10;
    /// First bit of the scheduler's number, [`Method`], of a tracked service: 4 bits, 0 in any other.
    const METHOD_SHIFT: u32 = 24;
    /// The link addresses change and nothing else.
    pub const FORWARD_DIRECT: u16 = 0;
    /// In a tunnel, see [`Encapsulation::Ipip`].
    pub const FORWARD_IPIP: u16 = 1;
    /// In a tunnel, see [`Encapsulation::Gre`].
    pub const FORWARD_GRE: u16 = 2;
    /// In a tunnel, see [`Encapsulation::Gue`].
    pub const FORWARD_GUE: u16 = 3;
    /// The destination becomes the real server, and answers pass here: see [`ReplyEntry`].
    pub const FORWARD_NAT: u16 = 4;
    /// As [`Self::FORWARD_NAT`], and the source becomes an address of this director: see [`lease`](crate::lease).
    pub const FORWARD_FULL_NAT: u16 = 5;

    /// The tunnel to the real servers, if they are reached by one.
    #[inline(always)]
    pub const fn encapsulation(&self) -> Option<Encapsulation> {
        match self.forwarding {
            Self::FORWARD_IPIP => Some(Encapsulation::Ipip),
            Self::FORWARD_GRE => Some(Encapsulation::Gre),
            Self::FORWARD_GUE => Some(Encapsulation::Gue),
            _ => None,
        }
    }

    /// Whether the real servers are reached by NAT.
    #[inline(always)]
    pub const fn is_nat(&self) -> bool {
        self.forwarding == Self::FORWARD_NAT
    }

    /// Whether the real servers are reached by full NAT. Every connection of such a service is tracked.
    #[inline(always)]
    pub const fn is_full_nat(&self) -> bool {
        self.forwarding == Self::FORWARD_FULL_NAT
    }

    /// Whether the destination of a packet becomes the real server.
    #[inline(always)]
    pub const fn translates(&self) -> bool {
        self.is_nat() || self.is_full_nat()
    }

    /// Whether what belongs to no connection, or finds no room, is dropped: by full NAT nothing reaches a real server that
    /// has no lease.
    #[inline(always)]
    pub const fn refuses(&self) -> bool {
        self.has(Self::FLAG_REFUSE) || self.is_full_nat()
    }

    /// Whether every bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    /// Flags of a service whose connections are tracked, each with the server that `method` chooses.
    pub const fn tracking_flags(method: Method) -> u32 {
        (method as u32) << Self::METHOD_SHIFT
    }

    /// Whether every connection of it is tracked.
    #[inline(always)]
    pub const fn is_tracked(&self) -> bool {
        self.flags >> Self::METHOD_SHIFT & 15 != 0
    }

    /// How a tracked service chooses.
    #[inline(always)]
    pub const fn method(&self) -> Method {
        Method::from_bits(self.flags >> Self::METHOD_SHIFT & 15)
    }

    /// Flags of a persistent service, to which all clients with the first `v4` (1 to 32) bits of their IPv4 address in common
    /// are one, or the first `v6` (1 to 128) of their IPv6 address.
    pub const fn persistence_flags(v4: u8, v6: u8) -> u32 {
        let (v4, v6) = (32_u8.saturating_sub(v4), 128_u8.saturating_sub(v6));
        Self::FLAG_PERSISTENT
            | (v4 as u32 & 31) << Self::NETWORK_V4_SHIFT
            | (v6 as u32 & 127) << Self::NETWORK_V6_SHIFT
    }

    /// Whether a client's connections go to one real server for some time.
    #[inline(always)]
    pub const fn is_persistent(&self) -> bool {
        self.flags & Self::FLAG_PERSISTENT != 0
    }

    /// What stands for a client in this service: its address or, in a persistent one, the first address of its network.
    #[inline(always)]
    pub const fn client(&self, source: &Address) -> Address {
        if !self.is_persistent() {
            return *source;
        }
        let v4 = self.flags >> Self::NETWORK_V4_SHIFT & 31;
        let v6 = self.flags >> Self::NETWORK_V6_SHIFT & 127;
        source.cleared(if source.is_v4() { v4 } else { v6 })
    }

    /// Flags of a service whose QUIC server ids have `length` bytes (1 to 4) and begin `offset` bytes (0 to 19) into
    /// the connection id.
    pub const fn quic_flags(offset: u8, length: u8) -> u32 {
        Self::FLAG_QUIC
            | ((offset as u32 & 31) << Self::QUIC_OFFSET_SHIFT)
            | ((length as u32 & 7) << Self::QUIC_LENGTH_SHIFT)
    }

    /// Where in a connection id the server id begins, in bytes, and its length.
    #[inline(always)]
    pub const fn quic_position(&self) -> (usize, usize) {
        let (offset, length) =
            (self.flags >> Self::QUIC_OFFSET_SHIFT & 31, self.flags >> Self::QUIC_LENGTH_SHIFT & 7);
        (offset as usize, length as usize)
    }

    /// What the service hashes.
    #[inline(always)]
    pub const fn hash_input(&self) -> HashInput {
        if self.flags & Self::FLAG_HASH_PORT == 0 { HashInput::Source } else { HashInput::SourcePort }
    }
}

/// A real server and the way to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RealEntry {
    /// Interface towards the real server; 0 while no next hop is known.
    pub ifindex: u32,
    /// Link address of the next hop. With the other one behind it, the words of a frame's beginning.
    pub destination_mac: [u8; 6],
    /// Link address of our interface.
    pub source_mac: [u8; 6],
    /// Largest IP packet that interface takes, in bytes; 0 for no limit.
    pub mtu: u16,
    /// Port on the real server.
    pub port: u16,
    /// Address of the real server.
    pub address: Address,
    /// Tells it from every other server that ever had an entry; 0 where there is none. See
    /// [`ServerId`](crate::pin::ServerId).
    pub generation: u32,
}

const _: () = assert!(size_of::<RealEntry>() == 40);
// SAFETY: `repr(C)` of integers and byte arrays without padding (4 + 6 + 6 + 2 + 2 + 16 + 4 = 40).
unsafe impl Plain for RealEntry {}

/// An interface that has the program on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Interface {
    /// Its link address: frames to any other are not ours to forward.
    pub mac: [u8; 6],
    /// Sum of `FLAG_*`.
    pub flags: u16,
}

const _: () = assert!(size_of::<Interface>() == 8);
// SAFETY: `repr(C)` of bytes and an aligned u16 without padding (6 + 2 = 8).
unsafe impl Plain for Interface {}

impl Interface {
    /// The program runs in the driver: a frame is one packet on the wire. (In generic mode it may be a large
    /// one that the kernel segments again when it leaves.)
    pub const FLAG_NATIVE: u16 = 1;
    /// There is such an interface: no element of an array is ever missing.
    pub const FLAG_KNOWN: u16 = 2;

    /// Whether this is an interface at all.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.flags & Self::FLAG_KNOWN != 0
    }

    /// Whether a frame to this link address is for this interface. (Compared by words of 16 bits: see
    /// [`Address::words`].)
    #[inline(always)]
    pub const fn has(&self, address: &[u8; 6]) -> bool {
        let ([a, b, c], [d, e, f]) = (self.mac.as_chunks::<2>().0, address.as_chunks::<2>().0) else {
            return false;
        };
        let differs = (u16::from_ne_bytes(*a) ^ u16::from_ne_bytes(*d))
            | (u16::from_ne_bytes(*b) ^ u16::from_ne_bytes(*e))
            | (u16::from_ne_bytes(*c) ^ u16::from_ne_bytes(*f));
        differs == 0
    }

    /// Whether the program runs in the driver.
    #[inline(always)]
    pub const fn is_native(&self) -> bool {
        self.flags & Self::FLAG_NATIVE != 0
    }
}

/// A flow as its packets show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    /// The client.
    pub source: Address,
    /// The VIP.
    pub destination: Address,
    /// The client's port in host order.
    pub source_port: u16,
    /// The service's port in host order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey>() == 40);
// SAFETY: `repr(C)` of bytes and aligned u16 without padding (16 + 16 + 2 + 2 + 1 + 3 = 40).
unsafe impl Plain for FlowKey {}

impl FlowKey {
    /// [`Self::protocol`] of a template: no packet's that is balanced.
    pub const PROTOCOL_TEMPLATE: u8 = 0;

    /// The key of the template of a client of service number `service`: see [`template`](crate::template).
    #[inline(always)]
    pub const fn template(client: Address, service: u32) -> Self {
        Self {
            source: client,
            destination: Address::from_words([0, 0, 0, service]),
            source_port: 0,
            destination_port: 0,
            protocol: Self::PROTOCOL_TEMPLATE,
            reserved: [0; 3],
        }
    }

    /// Whether this is the key of a template, and not of a flow.
    #[inline(always)]
    pub const fn is_template(&self) -> bool {
        self.protocol == Self::PROTOCOL_TEMPLATE
    }
}

impl core::hash::Hash for FlowKey {
    /// All bytes at once: field by field, a hasher would be called eight times.
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        // SAFETY: as many bytes, none of them padding.
        state.write(&unsafe { core::mem::transmute::<Self, [u8; size_of::<Self>()]>(*self) });
    }
}

/// Limits how many ICMP errors a processor sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TokenBucket {
    /// The second that `taken` counts for.
    pub second: u32,
    /// Tokens taken in it.
    pub taken: u32,
}

const _: () = assert!(size_of::<TokenBucket>() == 8);
// SAFETY: `repr(C)` of two u32.
unsafe impl Plain for TokenBucket {}

impl TokenBucket {
    /// Takes a token, of which there are `rate` in each second; false if none is left.
    #[inline(always)]
    pub const fn take(&mut self, now: u32, rate: u32) -> bool {
        if self.second != now {
            *self = Self { second: now, taken: 0 };
        }
        if self.taken >= rate {
            return false;
        }
        self.taken = self.taken.wrapping_add(1);
        true
    }
}

/// What the first fragment of a datagram showed. Its key is a [`FlowKey`] whose ports are the two halves of the
/// datagram's identification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentEntry {
    /// The client's port.
    pub source_port: u16,
    /// The service's port.
    pub destination_port: u16,
    /// Position of the real server within its service; 0 if it is who sent the datagram.
    pub position: u32,
    /// [`RealEntry::generation`] of the entry there; 0 likewise.
    pub generation: u32,
    /// When it came: seconds of [`Tables::now`].
    pub seen: u32,
}

const _: () = assert!(size_of::<FragmentEntry>() == 16);
// SAFETY: `repr(C)` of integers without padding (2 x 2 + 3 x 4 = 16).
unsafe impl Plain for FragmentEntry {}

impl FragmentEntry {
    /// Seconds for which a datagram's other fragments are expected (RFC 8200, section 4.5).
    pub const LIFE: u32 = 60;
}

/// The user-space side's memory of a service, by service index: lets a new process match names again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceName {
    /// Length of the name in bytes; 0 where the index is free.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
    /// The name in UTF-8, then zeroes.
    pub bytes: [u8; MAX_SERVICE_NAME],
}

const _: () = assert!(size_of::<ServiceName>() == 64);
// SAFETY: `repr(C)` of integers and bytes without padding (4 + 4 + 56 = 64).
unsafe impl Plain for ServiceName {}

/// The user-space side's memory of a service's windows, by service index: what a new process needs to close them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WindowEntry {
    /// No slot of the service began to move after this second of [`Tables::now`].
    pub opened: u32,
    /// Highest [`RealEntry::generation`] ever given while this index was the service's; never goes back.
    pub generation: u32,
    /// Seconds an idle TCP connection is kept.
    pub established: u32,
    /// Seconds one is kept after a FIN or a RST.
    pub fin: u32,
    /// Seconds an idle flow of datagrams is kept.
    pub udp: u32,
    /// Seconds for which a slot moves.
    pub window: u32,
    /// Sum of [`TrafficCounters::unpinned`](crate::counters::TrafficCounters::unpinned)
    /// when it was last looked at.
    pub unpinned: u64,
    /// Seconds for which a client's template outlives its last new connection; 0 where it has none.
    pub persistent: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<WindowEntry>() == 40);
// SAFETY: `repr(C)` of integers without padding (6 x 4 + 8 + 2 x 4 = 40).
unsafe impl Plain for WindowEntry {}

/// Where `decide` finds what it needs besides the packet.
pub trait Tables {
    /// The settings, `None` before they are written.
    fn config(&self) -> Option<&Config>;
    /// The service that owns `key`.
    fn service(&self, key: &ServiceKey) -> Option<&ServiceEntry>;
    /// The same, by the short form of an IPv4 key.
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<&ServiceEntry> {
        self.service(&key.whole())
    }
    /// The class of the longest prefix that has `address`.
    fn class(&self, address: &Address) -> Option<&u32>;
    /// The service that owns the narrowest range of `key`'s class with its port.
    fn range(&self, key: &RangeKey) -> Option<&ServiceEntry>;
    /// Slot number `slot` (below [`table_slots`]) of slot table `table`.
    fn slot(&self, table: u32, slot: u32) -> Option<Slot>;
    /// Real server number `index`.
    fn real(&self, index: u32) -> Option<&RealEntry>;
    /// Seconds of a clock that only goes forward.
    fn now(&self) -> u32;
    /// Takes a token of this processor's [`TokenBucket`], of which there are `rate` in each second.
    fn take_token(&self, rate: u32) -> bool;
    /// Writes what is known of a datagram's first fragment to `entry`; false if nothing is.
    fn fragment(&self, key: &FlowKey, entry: &mut FragmentEntry) -> bool;
    /// Notes what a first fragment showed. The oldest is forgotten for it where there is no room.
    fn note_fragment(&self, key: &FlowKey, entry: &FragmentEntry);
    /// The pin of a flow.
    fn pin(&self, key: &FlowKey) -> Option<&PinCell>;
    /// Pins a flow that has no pin; false if there is no room, or it has one by now.
    fn add_pin(&self, key: &FlowKey, pin: &Pin) -> bool;
    /// Removes the pin of a flow; false if it has none.
    fn remove_pin(&self, key: &FlowKey) -> bool;
    /// The entry of a flow of a tracked service that has begun and not gone on yet.
    fn half_open(&self, key: &FlowKey) -> Option<&PinCell>;
    /// Adds such an entry, without a lease; false if there is no room, or one by now.
    fn add_half_open(&self, key: &FlowKey, pin: &Pin) -> bool;
    /// Removes such an entry; false if there is none.
    fn remove_half_open(&self, key: &FlowKey) -> bool;
    /// Pins a half-open flow, whose lease goes with it; false if there is no room. The half-open entry stays.
    fn promote(&self, key: &FlowKey, pin: &Pin) -> bool;
    /// Gives a connection of a tracked service its half-open entry and, with full NAT, a lease, with the server at
    /// position `wanted` or, if that is [`Roster::NOBODY`], the one that the scheduler chooses: one of
    /// [`opening`](crate::lease::opening).
    fn open(&self, service: &ServiceEntry, key: &FlowKey, wanted: u32) -> u32;
    /// Position of the server that takes what nobody else takes in a tracked service; [`Roster::NOBODY`] if there is none.
    fn sorry(&self, service: &ServiceEntry) -> u32;
    /// What came of the question that [`Self::open`] put when this packet was decided on before, in the kernel's program.
    fn opened(&self, _service: &ServiceEntry) -> u32 {
        crate::lease::opening::NONE
    }
    /// As whom a client's packet leaves by full NAT; `None` if its connection has no lease.
    fn local(&self, key: &FlowKey) -> Option<&Endpoint>;
    /// What a packet from a real server to a lease becomes; `None` if it is no such.
    fn returned(&self, key: &FlowKey) -> Option<&Return>;
    /// Gives an entry that holds `old` the server and the state of `next`, at once; false if it holds something else by
    /// now, and is left alone. So of several processors that change it each counts what itself has replaced, and nobody
    /// writes to an entry that has become another connection's.
    fn exchange(&self, cell: &PinCell, old: &Pin, next: &Pin) -> bool;
    /// Adds to the counts of real server number `index`, and marks it if it has enough now.
    fn count(&self, index: u32, active: i64, inactive: i64);
    /// The real server that a QUIC server id stands for.
    fn quic(&self, key: &QuicKey) -> Option<&QuicEntry>;
    /// As whose a real server's answer leaves.
    fn reply(&self, key: &ReplyKey) -> Option<&ReplyEntry>;
    /// The interface a packet came in by.
    fn interface(&self, ifindex: u32) -> Option<&Interface>;
}
