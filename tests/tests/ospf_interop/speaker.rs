//! A speaker as a process of its own, told by lines on its standard input; each wait has a deadline.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::netns::{Namespace, Process, until};
use serde_json::Value;

/// The build may take this long: what the tests need themselves is built, so that little is left.
const BUILD: Duration = Duration::from_secs(600);

/// The example program of the routing crate, built once.
fn speaker_program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| build_speaker().map_err(|error| format!("{error:#}")));
    program.as_deref().map_err(|error| anyhow!("{error}"))
}

fn build_speaker() -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Not quietly: cargo then says nothing of the lock it waits for.
    command.args(["build", "--workspace", "--example", "speaker"]);
    let mut build = Process::quiet(command)?;
    let mut status = None;
    until("the example is built, unless another build in this folder holds cargo's lock", BUILD, || {
        status = build.0.try_wait()?;
        Ok(status.is_some())
    })?;
    ensure!(status.is_some_and(|status| status.success()), "the example does not build");
    let own = std::env::current_exe().context("a test has a path")?;
    let target = own.parent().and_then(Path::parent).context("a test is in target")?;
    Ok(target.join("examples/speaker"))
}

/// A speaker answers within milliseconds; one that does not within this never will.
const ANSWER: Duration = Duration::from_secs(20);

/// A running speaker with its controls.
pub(crate) struct Speaker {
    process: Child,
    input: ChildStdin,
    /// The lines it prints.
    output: mpsc::Receiver<String>,
}

impl Speaker {
    pub(crate) fn start(namespace: &Namespace, arguments: &[&str]) -> Result<Self> {
        let mut command = namespace.command(speaker_program()?);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        if std::env::var_os("OSPF_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        let mut process = command.spawn()?;
        let input = process.stdin.take().context("piped")?;
        let lines = BufReader::new(process.stdout.take().context("piped")?).lines();
        let (lines_in, output) = mpsc::channel();
        // Ends with the speaker. A pipe cannot be read with a deadline, a channel can.
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| lines_in.send(line)));
        Ok(Self { process, input, output })
    }

    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("the speaker is gone")
    }

    pub(crate) fn status(&mut self) -> Result<Value> {
        self.tell("status")?;
        let line = self.output.recv_timeout(ANSWER).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                anyhow!("the speaker hangs: no answer to `status` within {ANSWER:?}")
            }
            RecvTimeoutError::Disconnected => anyhow!("the speaker ended before it answered `status`"),
        })?;
        serde_json::from_str(&line).context(line)
    }

    pub(crate) fn full(&mut self) -> Result<usize> {
        let status = self.status()?;
        let neighbors = status["neighbors"].as_array().context("neighbors")?;
        Ok(neighbors.iter().filter(|neighbor| neighbor["state"] == "Full").count())
    }

    /// How often something was refused for a reason.
    pub(crate) fn refused(&mut self, reason: &str) -> Result<u64> {
        Ok(self.status()?["counters"][reason].as_u64().unwrap_or(0))
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.kill(); // it may have ended
    }
}
