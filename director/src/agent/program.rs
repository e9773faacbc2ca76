//! The XDP program of a tunnel's end: loading, feeding, attaching and reading it.
//!
//! Links are pinned, so that a killed agent's tunnels go on working; the next run exchanges the program of a link
//! between two packets. Maps are not: each run makes its own, complete before any packet meets them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use director_common::decapsulate::{Reception, Settings};
use ipnet::IpNet;

use super::AgentError;
use super::error::cause;
use crate::dataplane::pins;

/// The XDP program, as `build.rs` made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent.bpf.o"));
/// Name of the program in it.
const PROGRAM: &str = "agent";

/// The program at the end of tunnels, in the kernel.
pub struct TunnelEnd {
    ebpf: Ebpf,
    /// Interfaces that have it.
    attached: BTreeSet<u32>,
    settings: Array<MapData, u32>,
    vips: HashMap<MapData, [u8; 16], u32>,
    locals: HashMap<MapData, [u8; 16], u32>,
    sources: LpmTrie<MapData, [u8; 16], u32>,
    receptions: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for TunnelEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelEnd").finish_non_exhaustive()
    }
}

/// An address as the maps have it.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

const FEED: &str = "write a map of the tunnels' XDP program";

impl TunnelEnd {
    /// Loads the program. It is on no interface yet, and knows no address.
    ///
    /// # Errors
    /// [`AgentError::Program`] if the kernel refuses it.
    pub fn load(settings: Settings) -> Result<Self, AgentError> {
        let what = "load the tunnels' XDP program (needs root)";
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(AgentError::program(what))?;
        program_of(&mut ebpf).and_then(Xdp::load).map_err(AgentError::program(what))?;
        let mut end = Self {
            settings: take(&mut ebpf, "SETTINGS")?,
            vips: take(&mut ebpf, "VIPS")?,
            locals: take(&mut ebpf, "LOCALS")?,
            sources: take(&mut ebpf, "SOURCES")?,
            receptions: take(&mut ebpf, "RECEPTIONS")?,
            ebpf,
            attached: BTreeSet::new(),
        };
        end.settings.set(0, settings.0, 0).map_err(AgentError::program(FEED))?;
        Ok(end)
    }

    /// The VIPs that may come out of tunnels, instead of those before.
    ///
    /// # Errors
    /// [`AgentError::Program`] if the kernel refuses.
    pub fn set_vips(&mut self, vips: &BTreeSet<IpAddr>) -> Result<(), AgentError> {
        replace(&mut self.vips, vips)
    }

    /// The addresses that tunnels end at, instead of those before. No VIP may be among them.
    ///
    /// # Errors
    /// [`AgentError::Program`] if the kernel refuses.
    pub fn set_locals(&mut self, locals: &BTreeSet<IpAddr>) -> Result<(), AgentError> {
        replace(&mut self.locals, locals)
    }

    /// Adds prefixes that directors may have addresses of. They count where the settings say so.
    ///
    /// # Errors
    /// [`AgentError::Program`] if the kernel refuses.
    pub fn add_sources(&mut self, prefixes: &[IpNet]) -> Result<(), AgentError> {
        for prefix in prefixes {
            let mapped = if prefix.addr().is_ipv4() { 96 } else { 0 };
            let key = Key::new(mapped + u32::from(prefix.prefix_len()), key(prefix.network()));
            self.sources.insert(&key, 1, 0).map_err(AgentError::program(FEED))?;
        }
        Ok(())
    }

    /// How many packets met each outcome since the program was loaded: every outcome, also those that never came.
    ///
    /// # Errors
    /// [`AgentError::Program`] if the kernel refuses.
    pub fn counters(&self) -> Result<Vec<(Reception, u64)>, AgentError> {
        let mut counters = Vec::new();
        for reception in Reception::ALL {
            let values = self.receptions.get(&(*reception as u32), 0);
            let values =
                values.map_err(AgentError::program("read the counters of the tunnels' XDP program"))?;
            counters.push((*reception, values.iter().sum()));
        }
        Ok(counters)
    }

    /// The loaded program, to run it on a single packet (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    /// Never in practice: the program was there when it was loaded.
    pub fn program(&self) -> Result<&Xdp, AgentError> {
        let program = self.ebpf.program(PROGRAM).ok_or(ProgramError::NotLoaded).and_then(TryInto::try_into);
        program.map_err(AgentError::program("find the tunnels' XDP program"))
    }

    /// Puts the program on an interface, and pins the link in the folder: in the driver where that can, else in the
    /// kernel's network stack. If an earlier run has pinned one there, that one gets this program.
    pub(super) fn attach(&mut self, folder: &Path, interface: &str, ifindex: u32) -> Result<(), AgentError> {
        let what = format!("put the tunnels' XDP program on interface {interface}");
        pins::prepare(folder).map_err(AgentError::program(what.clone()))?;
        let path = pins::link_path(folder, interface, ifindex);
        self.attached.insert(ifindex);
        if path.exists() && self.exchange(&path).is_some() {
            return Ok(());
        }
        let program = program_of(&mut self.ebpf).map_err(AgentError::program(what.clone()))?;
        let id = match program.attach_to_if_index(ifindex, XdpMode::Driver) {
            Ok(id) => id,
            Err(error) => {
                tracing::info!(interface, reason = %cause(&error), "no native XDP here, using generic");
                let generic = program.attach_to_if_index(ifindex, XdpMode::Skb);
                generic.map_err(AgentError::program(what.clone()))?
            }
        };
        let link = program.take_link(id).map_err(AgentError::program(what.clone()))?;
        let link = FdLink::try_from(link).map_err(AgentError::program(what.clone()))?;
        // One that could not be exchanged is that of an interface that is gone.
        let _ = std::fs::remove_file(&path);
        link.pin(&path).map(drop).map_err(AgentError::program(what))
    }

    /// Whether this run has put the program on the interface.
    pub(super) fn is_on(&self, ifindex: u32) -> bool {
        self.attached.contains(&ifindex)
    }

    fn exchange(&mut self, path: &Path) -> Option<()> {
        let link: FdLink = PinnedLink::from_pin(path).ok()?.into();
        let link = XdpLink::try_from(link).ok()?;
        let program = program_of(&mut self.ebpf).ok()?;
        let id = program.attach_to_link(link).ok()?;
        // The link's own handle may go: the pin keeps the link.
        program.take_link(id).map(drop).ok()
    }
}

/// Takes the program off an interface; `false` if it is gone already.
pub(super) fn detach(folder: &Path, interface: &str, ifindex: u32) -> Result<bool, AgentError> {
    let path = pins::link_path(folder, interface, ifindex);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(AgentError::State { what: "remove", path, source }),
    }
}

/// The folder of the pins of this network namespace.
pub(super) fn folder(folder: &Path) -> Result<PathBuf, AgentError> {
    super::state::stem(folder).map(|stem| stem.with_extension("bpf"))
}

fn program_of(ebpf: &mut Ebpf) -> Result<&mut Xdp, ProgramError> {
    ebpf.program_mut(PROGRAM).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, AgentError> {
    let map = ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
    map.and_then(M::try_from).map_err(AgentError::program("find a map of the tunnels' XDP program"))
}

/// Makes the set of addresses in a map equal to `wanted`: what is in both is never missing in between.
fn replace(map: &mut HashMap<MapData, [u8; 16], u32>, wanted: &BTreeSet<IpAddr>) -> Result<(), AgentError> {
    let wanted: BTreeSet<[u8; 16]> = wanted.iter().copied().map(key).collect();
    let present: BTreeSet<[u8; 16]> =
        map.keys().collect::<Result<_, _>>().map_err(AgentError::program(FEED))?;
    for added in wanted.difference(&present) {
        map.insert(added, 1, 0).map_err(AgentError::program(FEED))?;
    }
    for gone in present.difference(&wanted) {
        map.remove(gone).map_err(AgentError::program(FEED))?;
    }
    Ok(())
}
