//! What it takes to tell another director of a million tracked connections: bytes and processor time, for a snapshot,
//! for the same again as changes, and for their ends.
//!
//! Both ends are in this process, without the network between them: the machines of `syncd`, the frames as gRPC carries
//! them, and a data plane of its own with the kernel's maps. One thread; times are the processor's, so that other work
//! on the machine counts for little.
//!
//! `cargo bench -p cluster-tests --bench replication`, as root.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use cluster_tests::requirement::{Requirement, met};
use director::dataplane::{
    Datagrams, Dataplane, Forwarding, HashInput, Method, Options, Ports, Protocol, RealSpec, ServiceAddress,
    ServiceSpec, Timeouts, Tracking, WhenFull,
};
use director_common::SLOTS;
use director_common::pin::PinState;
use director_common::tables::{Address, FlowKey};
use director_proto::pins::{PinMessage, Server};
use director_proto::sync::BootId;
use director_proto::sync::wire::{Frame, frame::Body};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use prost::Message as _;
use syncd::pins::{Applied, LocalPin, PinInput, Pins};

const VIP: [u8; 4] = [203, 0, 113, 10];
const PORT: u16 = 80;
const SERVICE: &str = "web";
const REAL_SERVERS: u8 = 10;
/// Connections in a piece of a walk, as a node reports them.
const CHUNK: usize = 16_384;
/// Parts in which connections end.
const PARTS: usize = 20;
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);

/// Measures replication between two directors.
#[derive(Debug, Parser)]
struct Arguments {
    /// Connections.
    #[arg(long, default_value_t = 1_000_000)]
    connections: u32,
    /// Show that everything runs: a hundredth of them.
    #[arg(long)]
    quick: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Processor time of this thread.
fn processor() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("processor time")?.into())
}

/// What a step took.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Bytes of batches, as gRPC frames carry them.
    bytes: usize,
    /// The sender's time, from what its node meets to bytes.
    sending: Duration,
    /// The receiver's time, from bytes to the kernel's maps.
    receiving: Duration,
    /// What became of it there: connections added and removed.
    added: usize,
    removed: usize,
}

struct Pair {
    now: Instant,
    second: u32,
    sender: Pins,
    receiver: Pins,
    dataplane: Dataplane,
}

impl Pair {
    fn new(connections: u32) -> Result<Self> {
        let now = Instant::now();
        let (mut sender, mut receiver) =
            (Pins::new(now, SENDER, BootId(1)), Pins::new(now, RECEIVER, BootId(2)));
        sender.handle_members(now, [(RECEIVER, BootId(2))], Some([7; 16]));
        receiver.handle_members(now, [(SENDER, BootId(1))], Some([7; 16]));
        receiver.handle_link(SENDER, BootId(1));
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).context("clock")?;
        let second = u32::try_from(monotonic.tv_sec()).context("seconds since the start")?;
        Ok(Self { now, second, sender, receiver, dataplane: dataplane(connections)? })
    }

    /// Tells the sender what its node met in one walk.
    fn walk(&mut self, met: &[LocalPin]) -> Result<Duration> {
        // The node makes these; what that takes is not the machine's.
        let chunks: Vec<_> = met.chunks(CHUNK).map(<[_]>::to_vec).collect();
        let begin = processor()?;
        for chunk in chunks {
            self.sender.handle_node(self.now, PinInput::Met(chunk), |_| true);
        }
        self.sender.handle_node(self.now, PinInput::WalkEnded, |_| true);
        Ok(processor()? - begin)
    }

    /// Carries messages until both are silent.
    fn carry(&mut self, mut cost: Cost) -> Result<Cost> {
        loop {
            let begin = processor()?;
            let Some((_, message)) = self.sender.poll_message(self.now) else {
                // Whatever the receiver has to say.
                let Some((_, message)) = self.receiver.poll_message(self.now) else {
                    return Ok(cost);
                };
                self.sender.handle_message(self.now, RECEIVER, BootId(2), message);
                continue;
            };
            let bytes = Frame { body: Some(Body::from(&message)) }.encode_to_vec();
            cost.sending += processor()? - begin;
            cost.bytes += bytes.len();
            let begin = processor()?;
            self.receive(&bytes, &mut cost)?;
            cost.receiving += processor()? - begin;
        }
    }

    fn receive(&mut self, bytes: &[u8], cost: &mut Cost) -> Result<()> {
        let message = match Frame::decode(bytes)?.body {
            Some(Body::PinBatch(batch)) => PinMessage::Batch(Box::new(batch.try_into()?)),
            Some(Body::PinSubscription(subscription)) => subscription.into(),
            Some(Body::PinAcknowledgement(acknowledgement)) => acknowledgement.into(),
            other => bail!("not about pins: {other:?}"),
        };
        self.receiver.handle_message(self.now, SENDER, BootId(1), message);
        while let Some(delivery) = self.receiver.poll_delivery() {
            let report = self.dataplane.apply_pins(&delivery, self.second)?;
            cost.added += report.added;
            cost.removed += report.removed;
            ensure!(report.refused == 0 && report.strangers == 0, "{report:?}");
            let applied =
                Applied { receipt: delivery.receipt, ends_snapshot: delivery.ends_snapshot, strangers: 0 };
            self.receiver.handle_node(self.now, PinInput::Applied(applied), |_| true);
        }
        Ok(())
    }
}

/// A data plane with one tracked service and room for that many connections of another director.
fn dataplane(connections: u32) -> Result<Dataplane> {
    let options = Options {
        pin_dir: PathBuf::from("/run/director/bpf"),
        // Replicas have three quarters.
        pins: connections.div_ceil(3) * 4 + 4_096,
        ..Options::default()
    };
    let (mut dataplane, _) = Dataplane::open(&options)?;
    dataplane.set_hash_key([7; 16])?;
    dataplane.apply(&[ServiceSpec {
        name: SERVICE,
        addresses: vec![ServiceAddress {
            prefix: IpAddr::from(VIP).into(),
            protocol: Protocol::Tcp,
            ports: Ports::one(PORT),
        }],
        hash: HashInput::SourcePort,
        forwarding: Forwarding::DirectReturn,
        reals: (0..REAL_SERVERS).map(|number| RealSpec::new(real(number), PORT)).collect(),
        slots: &vec![0; SLOTS],
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: Some(Tracking {
            method: Method::RoundRobin,
            when_full: WhenFull::Forward,
            persistence: None,
        }),
    }])?;
    Ok(dataplane)
}

fn real(number: u8) -> IpAddr {
    [10, 0, 2, 10 + number].into()
}

/// Connections of as many clients.
fn connections(count: u32) -> Vec<LocalPin> {
    let server = |number| Arc::new(Server { service: SERVICE.to_owned(), address: real(number), port: PORT });
    let servers: Vec<_> = (0..REAL_SERVERS).map(server).collect();
    let pin = |number: u32| LocalPin {
        flow: FlowKey {
            source: Address::from_ipv4((0x0a00_0000 + number).to_be_bytes()),
            destination: Address::from_ipv4(VIP),
            source_port: 1_024 + (number % 60_000) as u16,
            destination_port: PORT,
            protocol: 6,
            ..FlowKey::default()
        },
        server: Arc::clone(&servers[number as usize % servers.len()]),
        state: PinState::Open,
        remaining: 900,
        local: None,
        age: 0,
    };
    (0..count).map(pin).collect()
}

/// Bytes of memory that this process has in use.
fn memory() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
    Ok(kilobytes * 1024.0)
}

fn print(name: &str, records: u32, cost: &Cost) {
    let (count, rate) = (f64::from(records), |time: Duration| f64::from(records) / time.as_secs_f64() / 1e6);
    println!(
        "| {name} | {:.1} | {:.2} s | {:.2} M | {:.2} s | {:.2} M |",
        cost.bytes as f64 / count,
        cost.sending.as_secs_f64(),
        rate(cost.sending),
        cost.receiving.as_secs_f64(),
        rate(cost.receiving),
    );
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !met(&[Requirement::Root]) {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("new namespaces")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("private mounts")?;
    mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("a /run of its own")?;
    let count = if arguments.quick { arguments.connections / 100 } else { arguments.connections };
    let all = connections(count);
    let mut pair = Pair::new(count)?;
    // The receiver subscribes before there is anything.
    pair.walk(&[])?;
    pair.carry(Cost::default())?;
    let before = memory()?;

    println!(
        "{count} IPv4 connections of a tracked service, from one director to another; one processor each.\n"
    );
    println!("| told | bytes each | sender | records/s | receiver, into the kernel's map | records/s |");
    println!("|---|---:|---:|---:|---:|---:|");
    let sending = pair.walk(&all)?;
    let cost = pair.carry(Cost { sending, ..Cost::default() })?;
    ensure!(cost.added == count as usize, "{cost:?}");
    print("connections that have begun", count, &cost);
    let grown = memory()? - before;

    // The receiver's machine begins anew, as for a director whose data plane was adopted: it asks for all.
    pair.receiver = Pins::new(pair.now, RECEIVER, BootId(2));
    pair.receiver.handle_members(pair.now, [(SENDER, BootId(1))], Some([7; 16]));
    pair.receiver.handle_link(SENDER, BootId(1));
    let wall = Instant::now();
    let cost = pair.carry(Cost::default())?;
    let wall = wall.elapsed();
    print("a snapshot of all, known in its map already", count, &cost);

    // What two walks do not meet has ended: in parts, since beyond some number all is told anew.
    let mut cost = Cost::default();
    for part in (0..PARTS).rev() {
        let left = &all[..all.len() / PARTS * part];
        // Going through those that are left is no part of it: that a node does anyway.
        pair.walk(left)?;
        pair.walk(left)?;
        cost = pair.carry(cost)?;
    }
    ensure!(cost.removed == count as usize, "{cost:?}");
    print("connections that have ended", count, &cost);
    println!(
        "\nThe snapshot took {:.2} s by the clock, both ends on one processor. Both directors together keep {:.0} bytes \
         of memory for a connection, beside the kernel's map.",
        wall.as_secs_f64(),
        grown / f64::from(count)
    );
    Ok(())
}
