//! Commands in nodes: the topology's `exec` lines, and those of people and tests.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::namespace::Namespaces;
use crate::topology::Node;

/// What every command of a node starts with, as in a container.
const BASE_ENV: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
];

/// A command that will run in the node. `new_session` cuts it off from the caller's terminal.
pub(super) fn command(node: &Node, inside: &Namespaces, argv: &[&str], new_session: bool) -> Result<Command> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(BASE_ENV).env("HOSTNAME", &node.hostname).envs(&node.env);
    if let Some(term) = std::env::var_os("TERM") {
        command.env("TERM", term);
    }
    inside.enter(&mut command, new_session)?;
    Ok(command)
}

/// Runs the node's `exec` lines in order.
pub(super) fn run_lines(node: &Node, inside: &Namespaces, limit: Duration) -> Result<()> {
    for argv in &node.exec {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let output = run(command(node, inside, &words, true)?, limit)
            .with_context(|| format!("node {}: exec `{}`", node.name, argv.join(" ")))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            bail!(
                "node {}: exec `{}` failed ({}): {}",
                node.name,
                argv.join(" "),
                output.status,
                said.trim()
            );
        }
    }
    Ok(())
}

/// Runs a command to its end, not to the end of what it leaves in the background: its output goes to files in memory,
/// which a daemon may keep open for ever.
pub(super) fn run(mut command: Command, limit: Duration) -> Result<Output> {
    let [mut stdout, mut stderr] = [memory_file("stdout")?, memory_file("stderr")?];
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn().context("starting it")?;
    let status = wait(&mut child, limit)?;
    Ok(Output { status, stdout: contents(&mut stdout)?, stderr: contents(&mut stderr)? })
}

fn wait(child: &mut std::process::Child, limit: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().context("waiting for it")? {
            return Ok(status);
        }
        if start.elapsed() > limit {
            child.kill().context("killing it")?;
            child.wait().context("waiting for it")?;
            bail!("still running after {} s, killed; start daemons in the background", limit.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn memory_file(name: &str) -> Result<File> {
    let name = std::ffi::CString::new(name)?;
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    Ok(File::from(nix::sys::memfd::memfd_create(name.as_c_str(), flags).context("creating a memory file")?))
}

fn contents(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
