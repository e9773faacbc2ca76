//! A restart that nobody notices: the data plane is pinned and forwards without a process, the neighbours keep their
//! adjacencies until the successor is there (RFC 3623), and the successor is the program as it is on disk by then.
//!
//! What it has to know of OSPF goes through a file of the state folder, which counts until the grace period is over.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use director_proto::control as wire;
use routing::Grace;

use super::{Ending, Node, PATIENCE, file};
use crate::config::Config;

/// How long the successor may take to check its configuration.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("ospf-restart")
}

/// What a predecessor that restarted left of OSPF; nothing where there was none, or its time is over.
pub(super) fn left_by_predecessor(state_dir: &Path) -> Vec<Grace> {
    let path = path(state_dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "not a graceful restart for OSPF");
            return Vec::new();
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match parse(&text, now) {
        Ok(graces) if !graces.is_empty() => return graces,
        Ok(_) => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "not a graceful restart for OSPF"),
    }
    forget(state_dir);
    Vec::new()
}

/// Those whose time is not over.
fn parse(text: &str, now: Duration) -> Result<Vec<Grace>, serde_json::Error> {
    let graces: Vec<Grace> = serde_json::from_str(text)?;
    Ok(graces.into_iter().filter(|grace| grace.until > now).collect())
}

/// Makes sure that nobody resumes from what is there.
pub(super) fn forget(state_dir: &Path) {
    let path = path(state_dir);
    if let Err(error) = file::replace(&path, None) {
        tracing::warn!(path = %path.display(), %error, "cannot remove what is out of date");
    }
}

/// The command that started this process, which finds the program anew.
///
/// # Errors
/// The program is not there any more.
fn successor() -> Result<Command, String> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| OsString::from("director"));
    if program.to_string_lossy().contains('/') && !Path::new(&program).is_file() {
        let program = program.display();
        return Err(format!("{program} is not there any more: install the program, or restart with --exit"));
    }
    let mut command = Command::new(program);
    command.args(inherited(arguments));
    Ok(command)
}

/// What the successor is started with: it takes over what is in the kernel, however this process began.
fn inherited(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.filter(|argument| argument != "--fresh")
}

/// Lets a program check the configuration that it is about to run with: an upgrade that does not start would be noticed
/// only when nobody is left to go on.
///
/// # Errors
/// What it says against the file, or why it does not run.
async fn check(program: &OsStr, config: &Path) -> Result<(), String> {
    let name = program.display();
    let mut command = tokio::process::Command::new(program);
    command.arg("check").arg("--config").arg(config).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(CHECK_LIMIT, command.output())
        .await
        .map_err(|_| {
            format!("{name} does not check its configuration within {CHECK_LIMIT:?}: look at the program")
        })?
        .map_err(|error| format!("{name} cannot be executed: {error}; install the program anew"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} would not start ({}): {}", output.status, said.trim()))
}

/// Becomes the successor, in the same process.
///
/// # Errors
/// It cannot be executed; a supervisor will start it.
pub(super) fn become_successor(mut command: Command) -> anyhow::Result<()> {
    let error = command.exec();
    Err(anyhow::Error::new(error).context(format!("cannot execute {}", command.get_program().display())))
}

impl Node {
    /// Prepares a restart; the loop then ends by it.
    pub(super) async fn restart(
        &mut self,
        request: &wire::RestartRequest,
    ) -> Result<wire::RestartReply, String> {
        if !self.attached {
            return Err(
                "the data plane does not forward yet: there is nothing to keep; restart without grace \
                        (`systemctl restart director`)"
                    .to_owned(),
            );
        }
        if let Some(pin) = self.dataplane.missing_pin() {
            return Err(format!(
                "{} is missing: without its pins the data plane would end with this process; restart without grace \
                 (`systemctl restart director`)",
                pin.display()
            ));
        }
        let successor = if request.exit {
            // Who starts the successor, and which program that is, is not known here.
            Config::load(&self.config_path).map_err(|error| error.to_string())?;
            None
        } else {
            let successor = successor()?;
            check(successor.get_program(), &self.config_path).await?;
            Some(successor)
        };
        // OSPF that is silent yet refuses: what an earlier life left is not to be lost.
        let graces = match &self.routing {
            Some(routing) => {
                routing.prepare_restart(request.grace_seconds).await.map_err(|error| error.to_string())?
            }
            None => Vec::new(),
        };
        let path = path(&self.config.node.state_dir);
        let text = serde_json::to_string(&graces).map_err(|error| error.to_string())?;
        if let Err(error) = file::replace(&path, Some(text.as_bytes())) {
            if let Some(routing) = &self.routing {
                routing.cancel_restart();
            }
            return Err(format!("cannot write {}: {error}", path.display()));
        }
        self.ending = Some(Ending::Restart(successor));
        let links = graces.iter().flat_map(|grace| &grace.links).filter(|link| link.adjacent).count();
        Ok(wire::RestartReply { adjacencies: u32::try_from(links).unwrap_or(u32::MAX) })
    }

    /// Forgets what the predecessor left once OSPF has resumed from it, in all its versions.
    pub(super) async fn forget_when_resumed(&mut self) {
        let Some(routing) = self.routing.as_ref().filter(|_| self.resuming) else { return };
        if let Ok(None) = tokio::time::timeout(PATIENCE, routing.grace_left()).await {
            self.resuming = false;
            forget(&self.config.node.state_dir);
        }
    }

    /// Leaves everything to the successor: programs, maps, LSAs and routes stay.
    pub(super) async fn leave(&mut self) {
        tracing::info!("restarting: the data plane forwards, and the neighbours wait");
        if let Some(routing) = &self.routing {
            routing.shutdown(routing::Stop::Keep).await;
        }
        self.sync.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_successor_takes_over_what_its_predecessor_discarded() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let inherited: Vec<_> = inherited(words("run --fresh --config a.toml").into_iter()).collect();
        assert_eq!(inherited, words("run --config a.toml"));
    }

    #[tokio::test]
    async fn a_successor_that_would_not_start_is_refused_with_what_it_says() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let program = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
            path.into_os_string()
        };
        let config = Path::new("/etc/director.toml");
        let good = program("good", "[ \"$*\" = 'check --config /etc/director.toml' ]");
        assert_eq!(check(&good, config).await, Ok(()));
        let bad = program("bad", "echo 'line 3: unknown key' >&2; exit 1");
        let said = check(&bad, config).await.expect_err("it fails");
        assert!(said.contains("would not start (exit status: 1): line 3: unknown key"), "{said}");
        let absent = check(OsStr::new("/nowhere/director"), config).await.expect_err("not there");
        assert!(absent.contains("cannot be executed"), "{absent}");
    }

    #[test]
    fn what_is_left_counts_until_the_grace_period_is_over() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(left_by_predecessor(folder.path()), [], "nothing there");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let grace = |version, until| Grace { version, period: 60, until, links: Vec::new() };
        let fresh = grace(2, now + Duration::from_secs(50));
        let save = |graces: &[Grace]| {
            let text = serde_json::to_string(graces).expect("serialises");
            file::replace(&path(folder.path()), Some(text.as_bytes())).expect("writable");
        };
        save(&[fresh.clone(), grace(3, now)]);
        assert_eq!(left_by_predecessor(folder.path()), [fresh]);
        save(&[grace(2, now), grace(3, now)]);
        assert_eq!(left_by_predecessor(folder.path()), []);
        assert!(!path(folder.path()).exists(), "out of date, and gone");
        fs::write(path(folder.path()), "nonsense").expect("writable");
        assert_eq!(left_by_predecessor(folder.path()), []);
    }
}
