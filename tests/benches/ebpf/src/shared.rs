//! What both sides of the kernel boundary share: compiled into the programs and into the benchmark.

/// Words of a frame that the generator writes: the headers of Ethernet, IPv6 and TCP, rounded up.
pub(crate) const HEADER_WORDS: usize = 19;
/// Slots of the reference's table.
pub(crate) const SLOTS: usize = 65_537;
/// Most real servers of the references.
pub(crate) const REALS: usize = 256;
/// Kinds of packets that the sink tells apart: see [`kind`].
pub(crate) const KINDS: usize = 4 * 256;

/// What the generator sends: the only element of its map. The headers are rewritten whole for each packet, since
/// the kernel hands out a page again as the last program left it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Stream {
    /// Number of the next packet.
    pub(crate) next: u32,
    /// Number of flows, a power of two, less one.
    pub(crate) flow_mask: u32,
    /// Exponent of that power.
    pub(crate) flow_bits: u32,
    /// Number of VIPs: consecutive addresses from the one in the header. Each has an equal share of the flows.
    pub(crate) vips: u32,
    /// IPv4: sum of the header's 16-bit words in network order, without both addresses and checksum.
    pub(crate) sum: u32,
    /// The headers of flow 0 to the first VIP.
    pub(crate) header: [u32; HEADER_WORDS],
}

/// A VIP of the references: IPv4 and TCP only.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct VipKey {
    /// Address as it stands in the packet.
    pub(crate) address: u32,
    /// Port as it stands in the packet.
    pub(crate) port: u16,
    /// IP protocol number.
    pub(crate) protocol: u16,
}

/// What a VIP leads to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Vip {
    /// Key of the hash.
    pub(crate) seed: u32,
    /// First of its real servers.
    pub(crate) base: u32,
}

/// A real server of the references.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Real {
    /// Destination and source link address, as they stand in the frame.
    pub(crate) addresses: [u16; 6],
}

/// The sink's counter of packets to a real server of this group (the fifth byte of its link address) with this
/// protocol behind the outer IP header.
#[inline(always)]
pub(crate) const fn kind(group: u8, protocol: u8) -> u32 {
    ((group as u32 & 3) << 8) | protocol as u32
}
