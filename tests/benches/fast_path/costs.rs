//! What changes of tables take, and what tables weigh.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use director::dataplane::{Forwarding, ServiceSpec};
use director::slots::{Member, Scheduler, deal};
use director_common::SLOTS;
use director_common::pin::table::connections_in;
use director_common::tables::SlotTable;

use crate::measure::middle;
use crate::paths::{self, Paths, open, real_mac, service};
use crate::rig::{Link, Rig};
use crate::stream::PORT;

/// Real servers of the service whose table changes.
const REALS: u16 = 1_000;

/// Times of changes.
pub(crate) struct Changes {
    /// Giving a service another slot table, nothing else.
    pub(crate) swap: Duration,
    /// Dealing the slots again after one weight of [`REALS`] real servers changed.
    pub(crate) deal: Duration,
    /// Putting that into the kernel.
    pub(crate) apply: Duration,
}

fn real(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 2, high, low).into()
}

fn spec(slots: &[u16]) -> ServiceSpec<'_> {
    let vip = Ipv4Addr::new(203, 0, 113, 9).into();
    service("changes", vip, Forwarding::DirectReturn, (0..REALS).map(real), slots)
}

/// Measures the changes, so many times each.
pub(crate) fn changes(rig: &mut Rig, times: usize) -> Result<Changes> {
    let link: Link = rig.link()?;
    let ways = (0..REALS).map(|number| (real(number), real_mac(0, number as u8)));
    let mut dataplane = open("changes", &link, ways)?;
    let members = |weight| -> Vec<Member> {
        let weight = |number| if number == 0 { weight } else { 100 };
        (0..REALS).map(|n| Member { address: real(n), port: PORT, weight: weight(n), dead: false }).collect()
    };
    let mut table = deal(Scheduler::Maglev, SLOTS, None, &members(100));
    let reversed: Vec<u16> = table.slots.iter().rev().copied().collect();
    let dealt = table.slots.to_vec();
    dataplane.apply(&[spec(&dealt)])?;
    let mut swaps = Vec::new();
    for _ in 0..times {
        for slots in [&reversed, &dealt] {
            let spec = spec(slots);
            let begin = Instant::now();
            dataplane.apply(&[spec])?;
            swaps.push(begin.elapsed().as_secs_f64());
        }
    }
    let (mut deals, mut applies) = (Vec::new(), Vec::new());
    for weight in [50, 100].into_iter().cycle().take(2 * times) {
        let begin = Instant::now();
        table = deal(Scheduler::Maglev, SLOTS, Some(&table), &members(weight));
        deals.push(begin.elapsed().as_secs_f64());
        let spec = spec(&table.slots);
        let begin = Instant::now();
        dataplane.apply(&[spec])?;
        applies.push(begin.elapsed().as_secs_f64());
    }
    dataplane.detach()?;
    let seconds = |values| Duration::from_secs_f64(middle(values));
    Ok(Changes { swap: seconds(swaps), deal: seconds(deals), apply: seconds(applies) })
}

/// Bytes of the kernel's memory.
pub(crate) struct Memory {
    /// Of one service: its slot table and its share of the map of service keys.
    pub(crate) service: f64,
    /// Of one pin.
    pub(crate) pin: f64,
}

/// What the kernel says its maps weigh.
pub(crate) fn memory(paths: &Paths) -> Result<Memory> {
    let table: Array<MapData, SlotTable> = Array::create(1, 0)?;
    // Its handle is to be had by a pin only.
    let pin = paths::pins("few").join("weighed");
    table.pin(&pin)?;
    let table = pinned(&pin)?;
    let services = |name: &str| pinned(&paths::pins(name).join("SERVICES"));
    let (few, many) = (services("few")?, services("many")?);
    let keys = (many - few).max(0.0) / paths.services as f64;
    let buckets = MapData::from_pin(paths::pins("few").join("PINS"))?.info()?.max_entries();
    let pins = pinned(&paths::pins("few").join("PINS"))? + pinned(&paths::pins("few").join("PIN_FLOWS"))?;
    Ok(Memory { service: table + keys, pin: pins / f64::from(connections_in(buckets)) })
}

fn pinned(path: &FilePath) -> Result<f64> {
    let map = MapData::from_pin(path).with_context(|| path.display().to_string())?;
    weight(map.fd())
}

/// The kernel's own account of a map.
fn weight(map: &aya::maps::MapFd) -> Result<f64> {
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes = line.with_context(|| format!("{path} tells no memlock"))?;
    bytes.trim().parse().with_context(|| path)
}
