//! `director ospf record` and `director ospf replay`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use director_proto::control as wire;
use routing::speaker::recording::{RecordingEnd, Replay, replay};
use tokio::signal::unix::{SignalKind, signal};

use super::{ospf, print, said, show};
use crate::control::Socket;
use crate::node;

#[derive(Subcommand)]
pub(super) enum Ospf {
    /// Write everything that OSPF is told to a file, so that an incident can be replayed.
    ///
    /// The file begins with all that OSPF knows at that moment; then come packets, changes of links, keys and settings,
    /// and the passing of time. Keys and passwords are not in it: substitutes are, and packets are signed anew with those.
    /// It ends by itself after --seconds or --limit, and with Ctrl-C.
    Record(Record),
    /// Replay such a file, and show the neighbours and databases at its end.
    ///
    /// No director is needed. The replay must do the same as the director did, byte for byte; where it does not, the line
    /// is named. Replay a file with the version of this program that wrote it.
    Replay {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub(super) struct Record {
    /// File to write. It must not be there yet.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    file: PathBuf,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// End at so many mebibytes.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    limit: u64,
    /// Control socket of the director: `@NAME` for an abstract one, or a path.
    #[arg(long, value_name = "SOCKET", default_value_t)]
    socket: Socket,
}

impl Ospf {
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Record(record) => record.execute().await,
            Self::Replay { file, json } => show_replay(&file, json),
        }
    }
}

impl Record {
    async fn execute(self) -> anyhow::Result<()> {
        let name = || self.file.display().to_string();
        // What the network says is nobody's business but root's.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.file);
        let mut file = file.with_context(|| format!("cannot write {}", name()))?;
        let outcome = self.receive(&mut file).await;
        if outcome.is_err() && file.metadata().is_ok_and(|file| file.len() == 0) {
            fs::remove_file(&self.file).with_context(|| format!("{} is empty", name()))?;
        }
        outcome
    }

    /// Asks for the lines and writes them until the last one, or until somebody has had enough.
    async fn receive(&self, file: &mut File) -> anyhow::Result<()> {
        let name = || self.file.display().to_string();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut client = self.socket.connect().await?;
        let request = wire::RecordOspfRequest { seconds: self.seconds, limit: self.limit << 20 };
        let mut chunks = client.record_ospf(request).await.map_err(said)?.into_inner();
        eprintln!("recording; Ctrl-C ends it");
        let (mut lines, mut last) = (0_u64, String::new());
        loop {
            let chunk = tokio::select! {
                chunk = chunks.message() => chunk.map_err(said)?,
                _ = interrupt.recv() => None,
                _ = terminate.recv() => None,
            };
            let Some(wire::RecordOspfChunk { lines: text }) = chunk else { break };
            file.write_all(text.as_bytes()).with_context(name)?;
            lines += 1;
            last = text;
        }
        file.sync_all().with_context(name)?;
        anyhow::ensure!(
            lines > 0,
            "nothing was recorded: the databases have no room in --limit {}, or OSPF has stopped; raise it, or see the \
             director's log",
            self.limit
        );
        let cut =
            if last.contains("\"end\":") { "" } else { "; it was broken off, and replays as far as it goes" };
        eprintln!("{lines} lines recorded{cut}");
        Ok(())
    }
}

fn show_replay(path: &std::path::Path, json: bool) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    let replays = replay(BufReader::new(file)).with_context(name)?;
    anyhow::ensure!(!replays.is_empty(), "{}: there is nothing in it", name());
    for replay in replays {
        let Replay { version, steps, end, status, lsdb, .. } = replay;
        let (neighbors, lsdb) = (node::neighbors(&status), node::lsdb(status.router_id, lsdb));
        if json {
            let end = end.map(|end| format!("{end:?}").to_lowercase());
            let all = serde_json::json!({
                "version": version, "steps": steps, "end": end, "neighbors": neighbors.neighbors, "lsas": lsdb.lsas,
            });
            print(&format!("{all}\n"))?;
            continue;
        }
        let end = match end {
            Some(RecordingEnd::Time) => "its time was over",
            Some(RecordingEnd::Limit) => "its limit was reached",
            Some(RecordingEnd::Stopped) => "the director stopped",
            None => "it was broken off",
        };
        print(&format!(
            "OSPFv{version}: {steps} inputs replayed as they were recorded, until {end}\n\n{}\n{}\n",
            show::neighbors(&neighbors),
            ospf::show_lsdb(&lsdb)
        ))?;
    }
    Ok(())
}
