//! What is compared with: the least a program can do, the least a balancer can do, and that with a table of
//! connections. None of them checks more than memory safety asks for.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::shared::{REALS, Real, SLOTS, Vip, VipKey};
use crate::traffic::{head, load, store};

/// Connections that the second reference remembers.
const CONNECTIONS: usize = 2 << 20;

/// A connection of the second reference, as it stands in the packet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Connection {
    /// Client.
    source: u32,
    /// VIP.
    destination: u32,
    /// Both ports.
    ports: u32,
    /// IP protocol number.
    protocol: u32,
}

#[btf_map]
static VIPS: HashMap<VipKey, Vip, 1024> = HashMap::new();
#[btf_map]
static SLOT_TABLE: Array<u32, SLOTS> = Array::new();
#[btf_map]
static REAL_SERVERS: Array<Real, REALS> = Array::new();
/// Packets and bytes.
#[btf_map]
static COUNTERS: PerCpuArray<[u64; 2], REALS> = PerCpuArray::new();
#[btf_map]
static CONNECTION_TABLE: LruHashMap<Connection, u32, CONNECTIONS> = LruHashMap::new();

/// Ethernet, IPv4 without options, and the ports.
const HEADERS: usize = 14 + 20 + 4;

/// Swaps the link addresses.
#[xdp]
pub fn floor(context: XdpContext) -> u32 {
    let Some(frame) = head::<14>(&context) else { return XDP_ABORTED };
    // SAFETY: all offsets are below 14.
    unsafe {
        let mut at = 0;
        while at < 6 {
            let (destination, source): (u16, u16) = (load(frame, at), load(frame, at + 6));
            store(frame, at, source);
            store(frame, at + 6, destination);
            at += 2;
        }
    }
    XDP_TX
}

/// One VIP, one slot, one real server, one counter.
#[xdp]
pub fn reference(context: XdpContext) -> u32 {
    forward(&context, |vip, connection| {
        let slot = slot(vip.seed, connection);
        SLOT_TABLE.get(slot).copied()
    })
}

/// The same with a look-up in a table of connections, which tells the real server of those it knows.
#[xdp]
pub fn lru_reference(context: XdpContext) -> u32 {
    forward(&context, |vip, connection| {
        // SAFETY: elements of an LRU map stay mapped.
        if let Some(known) = unsafe { CONNECTION_TABLE.get(connection) } {
            return Some(*known);
        }
        let position = SLOT_TABLE.get(slot(vip.seed, connection)).copied()?;
        // A full map evicts.
        let _ = CONNECTION_TABLE.insert(connection, &position, 0);
        Some(position)
    })
}

#[inline(always)]
fn forward(context: &XdpContext, position: impl FnOnce(&Vip, &Connection) -> Option<u32>) -> u32 {
    let Some(frame) = head::<HEADERS>(context) else { return XDP_PASS };
    // SAFETY: all offsets are below HEADERS.
    let (ethertype, version, protocol, length) = unsafe {
        (load::<u16>(frame, 12), load::<u8>(frame, 14), load::<u8>(frame, 23), load::<u16>(frame, 16))
    };
    if ethertype != 0x0800_u16.to_be() || version != 0x45 || protocol != 6 {
        return XDP_PASS;
    }
    // SAFETY: as above.
    let connection = unsafe {
        Connection {
            source: load(frame, 26),
            destination: load(frame, 30),
            ports: load(frame, 34),
            protocol: u32::from(protocol),
        }
    };
    // SAFETY: as above.
    let port = unsafe { load(frame, 36) };
    let key = VipKey { address: connection.destination, port, protocol: u16::from(protocol) };
    // SAFETY: nobody removes elements while packets come.
    let Some(vip) = (unsafe { VIPS.get(&key) }) else { return XDP_PASS };
    let Some(position) = position(vip, &connection) else { return XDP_PASS };
    let index = vip.base.wrapping_add(position);
    let Some(real) = REAL_SERVERS.get(index) else { return XDP_PASS };
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: an element of this processor.
        unsafe {
            (*counter)[0] += 1;
            (*counter)[1] += u64::from(u16::from_be(length));
        }
    }
    let mut at = 0;
    for word in real.addresses {
        // SAFETY: below 12.
        unsafe { store(frame, at, word) };
        at += 2;
    }
    XDP_TX
}

/// A slot by Jenkins' hash of source address and ports, as the kernel's `jhash_2words` and Katran compute it.
#[inline(always)]
fn slot(seed: u32, connection: &Connection) -> u32 {
    let initial = 0xdead_beef_u32.wrapping_add(2 << 2).wrapping_add(seed);
    let (mut a, mut b, mut c) =
        (connection.source.wrapping_add(initial), connection.ports.wrapping_add(initial), initial);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    ((u64::from(c) * SLOTS as u64) >> 32) as u32
}
