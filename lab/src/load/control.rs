//! A load in a process of its own, steered by lines: the process runs inside a client node, its master outside.
//!
//! Commands, one a line: `sample`, `mark`, `connections`, `retire SERVER MILLISECONDS`, `stop`. Each is answered by one
//! line of JSON: a [`Sample`] (for `mark` the one that ends the interval), a list of [`Connection`]s, how many
//! downloads
//! were retired, a [`Report`].

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

use super::{Connection, Load, Plan, Report, Sample};

/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How a load process is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// File that holds a fresh sample, replaced in one step five times a second.
    pub status: Option<PathBuf>,
    /// End after this long; by default at `stop` or the end of the input.
    pub duration: Option<Duration>,
    /// Take commands from standard input.
    pub commands: bool,
}

/// Runs a load here until it is told to stop; the returned report is its result.
///
/// # Errors
/// When standard input or output or the status file fails, or on an unknown command.
pub async fn serve(plan: Plan, options: Options) -> Result<Report> {
    let load = Load::start(plan);
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let end = options.duration.map(|after| tokio::time::Instant::now() + after);
    loop {
        tokio::select! {
            line = lines.next_line(), if options.commands => match line.context("reading commands")?.as_deref() {
                None | Some("stop") => break,
                Some("sample") => answer(&load.sample()).await?,
                Some("mark") => {
                    let ended = load.sample();
                    load.mark();
                    answer(&ended).await?;
                }
                Some("connections") => answer(&load.connections()).await?,
                Some(other) => match retirement(other) {
                    Some((server, over)) => answer(&load.retire(server, over)).await?,
                    None => bail!("unknown command `{other}`: sample, mark, connections, retire SERVER MILLISECONDS, stop"),
                },
            },
            _ = tick.tick() => if let Some(file) = &options.status {
                let fresh = file.with_extension("new");
                std::fs::write(&fresh, serde_json::to_vec(&load.sample())?).with_context(|| format!("writing {}", fresh.display()))?;
                std::fs::rename(&fresh, file).with_context(|| format!("writing {}", file.display()))?;
            },
            () = async { tokio::time::sleep_until(end.unwrap_or_else(tokio::time::Instant::now)).await }, if end.is_some() => break,
            interrupted = tokio::signal::ctrl_c() => { interrupted?; break }
        }
    }
    let report = load.stop().await;
    Ok(report)
}

/// The server and the time of a `retire` command.
fn retirement(command: &str) -> Option<(&str, Duration)> {
    let (server, over) = command.strip_prefix("retire ")?.split_once(' ')?;
    Some((server, Duration::from_millis(over.parse().ok()?)))
}

async fn answer(value: &impl serde::Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut stdout = tokio::io::stdout();
    stdout.write_all(&line).await.context("answering")?;
    stdout.flush().await.context("answering")
}

/// A load process, as its master sees it; killed when this is dropped.
#[derive(Debug)]
pub struct Remote {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Remote {
    /// Starts `command`, which must end up in [`serve`] with commands.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the load")?;
        let stdin = child.stdin.take().context("the load has no input")?;
        let stdout = BufReader::new(child.stdout.take().context("the load has no output")?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, answers })
    }

    fn ask<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        writeln!(self.stdin, "{command}").context("the load process is gone")?;
        let line = self
            .answers
            .recv_timeout(ANSWER_LIMIT)
            .with_context(|| format!("no answer of the load to `{command}`"))?;
        serde_json::from_str(&line).with_context(|| format!("the load's answer to `{command}`"))
    }

    /// The load now.
    ///
    /// # Errors
    /// When the process does not answer.
    pub fn sample(&mut self) -> Result<Sample> {
        self.ask("sample")
    }

    /// Begins a new interval; returns the sample that ends the last one.
    ///
    /// # Errors
    /// When the process does not answer.
    pub fn mark(&mut self) -> Result<Sample> {
        self.ask("mark")
    }

    /// All downloads.
    ///
    /// # Errors
    /// When the process does not answer.
    pub fn connections(&mut self) -> Result<Vec<Connection>> {
        self.ask("connections")
    }

    /// Lets the downloads that `server` serves now come to a good end, evenly spread over a time, and begin anew.
    /// Returns how many.
    ///
    /// # Errors
    /// When the process does not answer.
    pub fn retire(&mut self, server: &str, over: Duration) -> Result<u64> {
        self.ask(&format!("retire {server} {}", over.as_millis()))
    }

    /// Ends the load.
    ///
    /// # Errors
    /// When the process does not answer.
    pub fn stop(mut self) -> Result<Report> {
        self.ask("stop")
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Gone already is fine; it is our child, so the id is still its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
