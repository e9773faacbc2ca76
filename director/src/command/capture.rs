//! `director capture`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use director_proto::control as wire;
use nix::net::if_::if_indextoname;
use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};

use super::pcapng::{Packet, Writer};
use super::said;
use crate::control::Socket;
use crate::dataplane::MAX_SNAPLEN;

/// What is wanted.
#[derive(Args)]
pub(super) struct Capture {
    /// Only packets of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only packets with this verdict, as `director status` names it ("dropped: no-next-hop"), its reason alone
    /// ("no-next-hop") or its kind ("dropped"); may be given several times.
    #[arg(long = "reason", value_name = "VERDICT")]
    reasons: Vec<String>,
    /// End after so many packets.
    #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: Option<u64>,
    /// Keep at most so many bytes of each frame.
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SNAPLEN,
          value_parser = clap::value_parser!(u32).range(14..=i64::from(MAX_SNAPLEN)))]
    snaplen: u32,
    /// Write packets as they leave, instead of as they came in.
    #[arg(long)]
    after: bool,
    /// File to write; "-" is standard output.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    file: PathBuf,
    /// Control socket of the director: `@NAME` for an abstract one, or a path.
    #[arg(long, value_name = "SOCKET", default_value_t)]
    socket: Socket,
}

impl Capture {
    /// Asks for packets and writes them until there are no more, or no more are wanted.
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut client = self.socket.connect().await?;
        let request = wire::CaptureRequest {
            service: self.service.clone().unwrap_or_default(),
            reasons: self.reasons.clone(),
            count: self.count.unwrap_or_default(),
            duration_ms: self.duration.unwrap_or_default() * 1_000,
            snaplen: self.snaplen,
            after: self.after,
        };
        // The file first: a capture that cannot be written is none.
        let mut file = File::create(self.output()?, self.snaplen)?;
        let mut batches = client.capture(request).await.map_err(said)?.into_inner();
        eprintln!("capturing; Ctrl-C ends it");
        loop {
            let batch = tokio::select! {
                batch = batches.message() => batch.map_err(said)?,
                _ = interrupt.recv() => None,
                _ = terminate.recv() => None,
            };
            let Some(batch) = batch else { break };
            match file.write(&batch) {
                // Whoever read has enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other.with_context(|| self.file.display().to_string())?,
            }
        }
        // The stream ends here, and the director stops capturing, also if this took a signal.
        drop(batches);
        match file.finish() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.with_context(|| self.file.display().to_string())?,
        }
        eprintln!("{} packets captured, {} lost", file.packets, file.lost);
        Ok(())
    }

    /// Where to write. What clients say is nobody's business but root's.
    fn output(&self) -> anyhow::Result<Box<dyn Write>> {
        if self.file.as_os_str() == "-" {
            let stdout = io::stdout();
            if stdout.is_terminal() {
                anyhow::bail!("standard output is a terminal: redirect it, or give -w a file");
            }
            return Ok(Box::new(stdout));
        }
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.file);
        Ok(Box::new(file.with_context(|| format!("cannot write {}", self.file.display()))?))
    }
}

/// The file under construction.
struct File {
    pcapng: Writer<BufWriter<Box<dyn Write>>>,
    /// Numbers of interfaces in the file, by index.
    interfaces: BTreeMap<u32, u32>,
    /// What to add to `CLOCK_MONOTONIC` for nanoseconds since 1970.
    epoch: Duration,
    packets: u64,
    lost: u64,
}

fn clock(id: ClockId) -> anyhow::Result<Duration> {
    Ok(clock_gettime(id).context("clock")?.into())
}

impl File {
    fn create(out: Box<dyn Write>, snaplen: u32) -> anyhow::Result<Self> {
        let application = concat!("director ", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            pcapng: Writer::new(BufWriter::new(out), application, snaplen)?,
            interfaces: BTreeMap::new(),
            epoch: clock(ClockId::CLOCK_REALTIME)?.saturating_sub(clock(ClockId::CLOCK_MONOTONIC)?),
            packets: 0,
            lost: 0,
        })
    }

    fn write(&mut self, batch: &wire::CaptureBatch) -> io::Result<()> {
        for interface in &batch.interfaces {
            self.interfaces.insert(interface.ifindex, self.pcapng.interface(&interface.name)?);
        }
        for packet in &batch.packets {
            let interface = match self.interfaces.get(&packet.ifindex) {
                Some(number) => *number,
                None => self.describe(packet.ifindex)?,
            };
            let comment = comment(packet);
            self.pcapng.packet(&Packet {
                interface,
                time_ns: self.wall_clock(packet.time_ns),
                length: packet.length,
                bytes: &packet.bytes,
                comment: &comment,
            })?;
        }
        self.packets += batch.packets.len() as u64;
        self.lost = batch.lost.max(self.lost);
        // At once: somebody may be reading along.
        self.pcapng.flush()
    }

    /// Describes an interface that got the program while the capture ran.
    fn describe(&mut self, ifindex: u32) -> io::Result<u32> {
        let name = if_indextoname(ifindex)
            .map_or_else(|_| format!("#{ifindex}"), |name| name.to_string_lossy().into_owned());
        let number = self.pcapng.interface(&name)?;
        self.interfaces.insert(ifindex, number);
        Ok(number)
    }

    fn finish(&mut self) -> io::Result<()> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
        self.pcapng.lost(self.lost, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))?;
        self.pcapng.flush()
    }

    fn wall_clock(&self, monotonic_ns: u64) -> u64 {
        u64::try_from((self.epoch + Duration::from_nanos(monotonic_ns)).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What is known of a packet, as `name=value` one after the other. Only a verdict has blanks in it, so it is last.
fn comment(packet: &wire::CapturedPacket) -> String {
    let mut text = String::new();
    for (name, value) in [("service", &packet.service), ("real", &packet.real)] {
        if !value.is_empty() {
            text.push_str(&format!("{name}={value} "));
        }
    }
    text + "verdict=" + &packet.verdict
}
