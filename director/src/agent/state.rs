//! The record of what was changed, so that a run that was killed can be taken over or undone by the next.
//!
//! One for each network namespace, since that is what the changes are in. A change is recorded before it is made;
//! undoing one that was not made does nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{AgentError, Change};

/// What is in the file.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    changes: Vec<Change>,
}

/// The record, locked against other agents while this lives.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    changes: Vec<Change>,
    /// Held for its lock.
    _lock: Flock<File>,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> AgentError + 'a {
    move |source| AgentError::State { what, path: path.to_owned(), source }
}

/// `agent-` and the number of this network namespace, in the folder.
pub(super) fn stem(folder: &Path) -> Result<PathBuf, AgentError> {
    let own = Path::new("/proc/thread-self/ns/net");
    let number = fs::metadata(own).map_err(failed("read", own))?.ino();
    Ok(folder.join(format!("agent-{number}")))
}

impl State {
    /// Locks and reads the record, which is empty if there is none.
    pub(super) fn open(folder: &Path) -> Result<Self, AgentError> {
        fs::create_dir_all(folder).map_err(failed("make the folder", folder))?;
        let stem = stem(folder)?;
        let (lock, path) = (stem.with_extension("lock"), stem.with_extension("json"));
        let lock = lock_file(&lock)?;
        let changes = match fs::read(&path) {
            Ok(bytes) => {
                let record: Record =
                    serde_json::from_slice(&bytes).map_err(io::Error::other).map_err(failed(
                        "understand (remove it, and what it names by hand) the record of an earlier run in",
                        &path,
                    ))?;
                record.changes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        Ok(Self { path, changes, _lock: lock })
    }

    /// What is changed, in the order it was.
    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Records a change that is about to be made.
    pub(super) fn record(&mut self, change: Change) -> Result<(), AgentError> {
        self.changes.push(change);
        self.write()
    }

    /// Forgets a change that was undone.
    pub(super) fn forget(&mut self, change: &Change) -> Result<(), AgentError> {
        self.changes.retain(|recorded| recorded != change);
        self.write()
    }

    fn write(&self) -> Result<(), AgentError> {
        if self.changes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed("remove", &self.path)(error))
                }
                _ => Ok(()),
            };
        }
        let record = Record { changes: self.changes.clone() };
        let text = serde_json::to_vec_pretty(&record).expect("invariant: plain data can be written as JSON");
        // Whole or not at all, whenever we are killed.
        let new = self.path.with_extension("new");
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &self.path).map_err(failed("write", &self.path))
    }
}

/// Opens and locks; the process that holds the lock has its number in the file.
fn lock_file(path: &Path) -> Result<Flock<File>, AgentError> {
    let mut open = OpenOptions::new();
    let file =
        open.read(true).write(true).create(true).truncate(false).open(path).map_err(failed("open", path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let number = std::process::id().to_string();
            lock.set_len(0)
                .and_then(|()| lock.write_all(number.as_bytes()))
                .map_err(failed("write", path))?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(failed("read", path))?;
            Err(AgentError::Running(text.trim().parse().unwrap_or_default()))
        }
        Err((_, error)) => Err(failed("lock", path)(error.into())),
    }
}
