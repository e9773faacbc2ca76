//! What is counted, per service and per real server.

use crate::tables::Plain;

/// Traffic of one service or one real server. In the kernel there is one of these per processor.
///
/// Bytes are those of the IP packets, headers included, link-layer framing excluded (as IPVS counts). Only with NAT the
/// answers pass the director: else `*_out` stays zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TrafficCounters {
    /// Packets from clients. For a service: all that matched it; for a real server: those sent to it.
    pub packets_in: u64,
    /// Bytes of `packets_in`.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes of `packets_out`.
    pub bytes_out: u64,
    /// Connections begun: TCP segments with SYN and without ACK, FIN or RST. Stays zero for other protocols.
    pub connections: u64,
    /// Packets of the service that were dropped, whatever the reason. Stays zero for real servers.
    pub dropped: u64,
    /// Packets forwarded by a changing slot whose connection should have been pinned, and there was no room.
    pub unpinned: u64,
}

const _: () = assert!(size_of::<TrafficCounters>() == 56);
// SAFETY: `repr(C)` of integers without padding (56 = 7 x 8).
unsafe impl Plain for TrafficCounters {}

impl TrafficCounters {
    /// Adds what another processor counted.
    pub fn add(&mut self, other: &Self) {
        self.packets_in = self.packets_in.wrapping_add(other.packets_in);
        self.bytes_in = self.bytes_in.wrapping_add(other.bytes_in);
        self.packets_out = self.packets_out.wrapping_add(other.packets_out);
        self.bytes_out = self.bytes_out.wrapping_add(other.bytes_out);
        self.connections = self.connections.wrapping_add(other.connections);
        self.dropped = self.dropped.wrapping_add(other.dropped);
        self.unpinned = self.unpinned.wrapping_add(other.unpinned);
    }
}

/// Packets that took the shortcut to one real server: counted here and nowhere else. In the kernel there is one of these
/// per processor, two in a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ShortcutCounters {
    /// Packets.
    pub packets: u64,
    /// Bytes of those, as in [`TrafficCounters`].
    pub bytes: u64,
    /// Connections begun, as in [`TrafficCounters`].
    pub connections: u64,
    /// Of the packets those that left by the interface they came in by.
    pub transmitted: u64,
}

const _: () = assert!(size_of::<ShortcutCounters>() == 32);
// SAFETY: `repr(C)` of integers without padding (4 x 8).
unsafe impl Plain for ShortcutCounters {}

impl ShortcutCounters {
    /// Adds what another processor counted.
    pub fn add(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.connections = self.connections.wrapping_add(other.connections);
        self.transmitted = self.transmitted.wrapping_add(other.transmitted);
    }

    /// Of the packets those that left by another interface than they came in by.
    #[must_use]
    pub fn redirected(&self) -> u64 {
        self.packets.wrapping_sub(self.transmitted)
    }

    /// The same as traffic of a service or a real server.
    #[must_use]
    pub fn traffic(&self) -> TrafficCounters {
        TrafficCounters {
            packets_in: self.packets,
            bytes_in: self.bytes,
            connections: self.connections,
            ..TrafficCounters::default()
        }
    }
}

/// One flow that passed this director, kept when flow accounting is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowCounters {
    /// Packets from the client.
    pub packets: u64,
    /// Bytes of those packets, IP header included.
    pub bytes: u64,
    /// When the last of them came: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_seen_ns: u64,
    /// Service's index.
    pub service: u32,
    /// Real server's index in the real-server map.
    pub real: u32,
}

const _: () = assert!(size_of::<FlowCounters>() == 32);
// SAFETY: `repr(C)` of integers without padding (3 x 8 + 2 x 4 = 32).
unsafe impl Plain for FlowCounters {}
