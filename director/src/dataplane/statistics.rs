//! Counters and flows, summed over processors and under the names users know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::maps::MapError;
use director_common::counters::{ShortcutCounters, TrafficCounters};
use director_common::tables::Address;
use director_common::verdict::Outcome;
use director_common::{Slot, SlotState};

use super::Dataplane;
use super::error::ReadError;
use super::maps::{Shared, ip_address};
use super::plan::Placement;

/// All counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By service name.
    pub services: BTreeMap<String, ServiceCounters>,
    /// Packets by outcome: every outcome, also those that never came.
    pub outcomes: Vec<(Outcome, u64)>,
}

/// Counters of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Of the service.
    pub total: TrafficCounters,
    /// Of its real servers, in the order of their positions in the kernel, which are not those of any table.
    pub reals: Vec<RealCounters>,
}

/// Counters of one real server of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealCounters {
    /// Position in the kernel.
    pub position: u16,
    /// Address of the real server.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// A way to it is known.
    pub reachable: bool,
    /// The counters.
    pub counters: TrafficCounters,
}

/// How many slots of a service are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotStates {
    /// Nothing is tracked.
    pub settled: usize,
    /// New connections go to the current owner, others to the previous one.
    pub moving: usize,
    /// Some connections still live elsewhere.
    pub pinned: usize,
}

/// A flow that passed this director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client.
    pub source: SocketAddr,
    /// The VIP and port.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The service; `None` if it is gone.
    pub service: Option<String>,
    /// The real server; `None` if it is gone.
    pub real: Option<IpAddr>,
    /// Packets from the client.
    pub packets: u64,
    /// Bytes of those packets, IP header included.
    pub bytes: u64,
    /// Time of the last packet on `CLOCK_MONOTONIC`.
    pub last_seen: Duration,
}

/// Packets from clients and to them.
fn both_ways(traffic: TrafficCounters) -> u64 {
    traffic.packets_in.wrapping_add(traffic.packets_out)
}

impl Dataplane {
    /// Reads every counter.
    ///
    /// # Errors
    /// [`ReadError`] if the kernel refuses.
    pub fn counters(&self) -> Result<Counters, ReadError> {
        let (mut counters, mut all) = (Counters::default(), ShortcutCounters::default());
        for (name, placement) in &self.plan.services {
            let shortcuts = self.shortcuts(placement)?;
            let mut total = self.maps.counts.service(placement.index)?;
            total.add(&shortcuts.traffic());
            all.add(&shortcuts);
            let mut reals = Vec::new();
            for (position, index) in placement.block.indices().enumerate() {
                let entry = self.maps.real(index)?;
                if entry.address != Address::default() {
                    reals.push(RealCounters {
                        position: position as u16,
                        address: ip_address(entry.address),
                        port: entry.port,
                        reachable: entry.ifindex != 0,
                        counters: self.maps.counts.real(index)?,
                    });
                }
            }
            counters.services.insert(name.clone(), ServiceCounters { total, reals });
        }
        counters.outcomes = self.maps.counts.outcomes(all)?;
        Ok(counters)
    }

    /// What took the shortcut to the real servers of a service.
    fn shortcuts(&self, placement: &Placement) -> Result<ShortcutCounters, MapError> {
        let reals = placement.servers.keys().map(|position| placement.block.base + u32::from(*position));
        self.maps.counts.shortcuts(placement.index, reals)
    }

    /// Packets of the services that passed, since the data plane was loaded: from clients, and answers by NAT.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    pub fn packets(&self) -> Result<u64, ReadError> {
        let packets = |placement: &Placement| {
            let (counted, shortcuts) =
                (self.maps.counts.service(placement.index)?, self.shortcuts(placement)?);
            Ok(both_ways(counted).wrapping_add(shortcuts.packets))
        };
        self.plan.services.values().map(packets).sum()
    }

    /// The slots of every service in the kernel by their state.
    pub fn slot_states(&self) -> BTreeMap<String, SlotStates> {
        let states = |slots: &[Slot]| {
            let mut states = SlotStates::default();
            for slot in slots {
                match slot.state() {
                    Some(SlotState::Moving) => states.moving += 1,
                    Some(SlotState::Pinned) => states.pinned += 1,
                    // Bits that mean nothing track nothing.
                    Some(SlotState::Settled) | None => states.settled += 1,
                }
            }
            states
        };
        let services = self.plan.services.iter();
        services.map(|(name, placement)| (name.clone(), states(placement.slots.slots()))).collect()
    }

    /// Reads the accounted flows, in order; none where flow accounting is off.
    ///
    /// # Errors
    /// [`ReadError`] if the kernel refuses.
    pub fn flows(&self) -> Result<Vec<Flow>, ReadError> {
        let mut flows = Vec::new();
        if !self.options.flow_accounting {
            return Ok(flows);
        }
        let names: BTreeMap<u32, &str> =
            self.plan.services.iter().map(|(name, placement)| (placement.index, name.as_str())).collect();
        for item in self.maps.flows.iter() {
            // An entry evicted while we walk is not an error, only not there any more.
            let Ok((Shared(key), Shared(flow))) = item else { continue };
            let real = self.maps.real(flow.real).ok().filter(|real| real.address != Address::default());
            flows.push(Flow {
                source: SocketAddr::new(ip_address(key.source), key.source_port),
                destination: SocketAddr::new(ip_address(key.destination), key.destination_port),
                protocol: key.protocol,
                service: names.get(&flow.service).map(|name| (*name).to_owned()),
                real: real.map(|real| ip_address(real.address)),
                packets: flow.packets,
                bytes: flow.bytes,
                last_seen: Duration::from_nanos(flow.last_seen_ns),
            });
        }
        flows.sort_by_key(|flow| (flow.destination, flow.source, flow.protocol));
        Ok(flows)
    }
}

#[cfg(test)]
mod tests {
    use director_common::counters::TrafficCounters;

    use super::both_ways;

    #[test]
    fn an_answer_by_nat_is_a_packet_that_passed() {
        let answers = TrafficCounters { packets_out: 3, bytes_out: 180, ..TrafficCounters::default() };
        assert_eq!(both_ways(answers), 3);
        assert_eq!(both_ways(TrafficCounters { packets_in: 4, dropped: 1, ..answers }), 7);
    }
}
