//! Links, the generator at one end of each and the sink behind it, and a run of packets.
//!
//! All of a packet's life is on one processor: the kernel runs the generator over a batch of frames, hands them to
//! the other end of the link, runs what is measured there, and the sink on what comes back.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, Xdp};
use aya::{Ebpf, EbpfLoader, TestRunOptions};
use cluster_tests::netns::ip;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::shared::{KINDS, Stream};
use crate::stream::{Family, Flows};

/// Frames the kernel has in hand at one time: less than a link's queue holds.
const BATCH: u32 = 64;

/// A link: packets are sent and sunk at one end, and what is measured is on the other.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// The measured end.
    pub(crate) name: String,
    /// Index of the measured end.
    pub(crate) ifindex: u32,
    /// Link address of the measured end.
    pub(crate) mac: [u8; 6],
    /// Index of the sending end.
    sender: u32,
    /// Link address of the sending end.
    pub(crate) sender_mac: [u8; 6],
}

/// A new network namespace with the links and programs in it. It vanishes with the process.
pub(crate) struct Rig {
    pub(crate) programs: Ebpf,
    streams: Array<MapData, Plain<Stream>>,
    arrived: PerCpuArray<MapData, u64>,
    links: u8,
}

/// A struct that the programs share.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: integers without padding, any bit pattern of which is valid.
unsafe impl aya::Pod for Plain<Stream> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<crate::shared::VipKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<crate::shared::Vip> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<crate::shared::Real> {}

impl Rig {
    /// Moves the calling thread to namespaces of its own and onto one processor, and loads the programs.
    ///
    /// # Errors
    /// Not root, or the kernel refuses a program.
    pub(crate) fn new(object: &Path, processor: usize) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("new namespaces: run as root")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("private mounts")?;
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("a /run of its own")?;
        let mut processors = CpuSet::new();
        processors.set(processor)?;
        sched_setaffinity(Pid::from_raw(0), &processors)
            .with_context(|| format!("processor {processor}: see --cpu"))?;
        let bytes = std::fs::read(object).with_context(|| object.display().to_string())?;
        let mut programs = EbpfLoader::new().load(&bytes).context("the benchmark's programs")?;
        for (_, program) in programs.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
        }
        let mut take = |name| programs.take_map(name).with_context(|| format!("no map {name}"));
        let streams = Array::try_from(take("STREAMS")?)?;
        let arrived = PerCpuArray::try_from(take("ARRIVED")?)?;
        ip(["link", "set", "lo", "up"])?;
        Ok(Self { programs, streams, arrived, links: 0 })
    }

    /// One of the benchmark's own programs.
    pub(crate) fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        Ok(self.programs.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }

    /// A new link, with the sink at its sending end and nothing at the other.
    pub(crate) fn link(&mut self) -> Result<Link> {
        self.links += 1;
        let (name, sender) = (format!("measured{}", self.links), format!("sender{}", self.links));
        let (mac, sender_mac) = ([2, 0, 0, 0, 0xd, self.links], [2, 0, 0, 0, 0xa, self.links]);
        ip(["link", "add", &name, "type", "veth", "peer", "name", &sender])?;
        for (name, mac) in [(&name, mac), (&sender, sender_mac)] {
            let text = mac.map(|byte| format!("{byte:02x}")).join(":");
            // No packets but ours: the kernel assigns no address of its own.
            ip(["link", "set", name, "address", &text, "addrgenmode", "none", "up"])?;
        }
        let sink = self.program("sink")?;
        sink.attach(&sender, XdpMode::Driver).with_context(|| format!("the sink on {sender}"))?;
        let index = |name: &str| nix::net::if_::if_nametoindex(name).with_context(|| name.to_owned());
        Ok(Link { ifindex: index(&name)?, sender: index(&sender)?, name, mac, sender_mac })
    }

    /// Puts one of the benchmark's own programs on a link.
    pub(crate) fn attach(&mut self, program: &str, link: &Link) -> Result<()> {
        self.program(program)?
            .attach_to_if_index(link.ifindex, XdpMode::Driver)
            .with_context(|| format!("{program} on {}", link.name))?;
        Ok(())
    }

    /// Sends `count` packets of `flows` over a link, the first of which has this number, and returns what one takes
    /// from the generator to the sink.
    pub(crate) fn send(&mut self, link: &Link, flows: &Flows, first: u32, count: u32) -> Result<Duration> {
        let (index, program) = match flows.family {
            Family::V4 => (0, "generate_v4"),
            Family::V6 => (1, "generate_v6"),
        };
        self.streams.set(index, Plain(Stream { next: first, ..flows.stream(link) }), 0)?;
        let frame = vec![0; flows.frame_len()];
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> =
            [0, frame.len() as u32, 0, link.sender, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        let result = self.program(program)?.test_run(options).context("sending live frames")?;
        Ok(result.duration)
    }

    /// Packets of a kind that have come to the sink.
    pub(crate) fn arrived(&self, kind: u32) -> Result<u64> {
        Ok(self.arrived.get(&kind, 0)?.iter().sum())
    }

    /// All packets that have come to the sink.
    pub(crate) fn arrived_in_all(&self) -> Result<u64> {
        (0..KINDS as u32).map(|kind| self.arrived(kind)).sum()
    }

    /// What has come to the sink, for an error's text.
    pub(crate) fn arrivals(&self) -> Result<String> {
        let mut text = String::new();
        for kind in 0..KINDS as u32 {
            let packets = self.arrived(kind)?;
            if packets != 0 {
                text += &format!(" {packets} of protocol {} for group {};", kind & 0xff, kind >> 8);
            }
        }
        if text.is_empty() {
            bail!("nothing has come to the sink at all");
        }
        Ok(text)
    }
}
