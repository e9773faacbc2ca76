//! `exec`: a program of the operator's decides by its exit status.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use super::CheckError;
use super::probe::ProbeError;

/// Settings of the kind `exec`.
///
/// The program runs in `/`, without input or output, in a process group of its own, and finds the real server in
/// `DIRECTOR_REAL_ADDRESS` and `DIRECTOR_REAL_PORT`. Exit status 0 is up, all else down. When the timeout is over, its
/// whole process group is killed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Exec {
    /// `program`: absolute path.
    pub program: PathBuf,
    /// `arguments`, passed on as they are: no shell reads them.
    pub arguments: Vec<String>,
}

impl Exec {
    pub(super) fn validate(&self) -> Result<(), CheckError> {
        if self.program.is_absolute() {
            return Ok(());
        }
        let value = self.program.display().to_string();
        Err(CheckError::Value { key: "program", value, problem: "is no absolute path" })
    }

    pub(super) async fn probe(&self, to: SocketAddr) -> Result<Cow<'static, str>, ProbeError> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("DIRECTOR_REAL_ADDRESS", to.ip().to_string())
            .env("DIRECTOR_REAL_PORT", to.port().to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| self.cannot_run(error))?;
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let status = child.wait().await?;
        group.disarm();
        if status.success() {
            return Ok("exit status 0".into());
        }
        Err(ProbeError::answer(status.to_string().replace("exit status: ", "exit status ")))
    }

    fn cannot_run(&self, error: io::Error) -> ProbeError {
        let error = ProbeError::from(error);
        if error.is_local() {
            return error;
        }
        ProbeError::answer(format!("cannot run {}: {error}", self.program.display()))
    }
}

/// Kills a process group unless disarmed. It must be dropped before the child is: while the child has not been waited
/// for, its number, and so its group's, cannot be anybody else's.
struct Group(Option<Pid>);

impl Group {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It can only fail where the group is gone, which is what is wanted.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}
