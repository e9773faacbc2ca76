//! The tables on disk: written whole to a file of their own, which then takes the place of the old one.
//!
//! ```text
//! magic "DIRTABLE" | layout 2 (4) | floor (8) | length (8) | SHA-256 of floor, length and body (32) | body
//! ```
//! Numbers are little endian; the body is the snapshot's encoding. A file that is not exactly this is put aside
//! and the director joins as one that has never been here.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use director_proto::sync::{MAX_SNAPSHOT, decode_tables, encode_tables};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::config::StartError;
use crate::replica::Saved;

const MAGIC: &[u8; 8] = b"DIRTABLE";
/// 2: tables may be small. Layout 1 is the same with tables of one size, and is read too.
const LAYOUT: u32 = 2;
const HEADER: usize = 8 + 4 + 8 + 8 + 32;

/// Reads what was saved in `folder`, creating the folder if need be.
pub(crate) fn load(folder: &Path) -> Result<Option<Saved>, StartError> {
    let state = |path: &Path, source| StartError::State { path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| state(folder, source))?;
    let path = path(folder);
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(state(&path, error)),
    };
    let parsed = if length > (HEADER + MAX_SNAPSHOT) as u64 {
        Err(format!("{length} bytes are too many"))
    } else {
        parse(fs::read(&path).map_err(|source| state(&path, source))?.into())
    };
    match parsed {
        Ok(saved) => Ok(Some(saved)),
        Err(reason) => {
            let aside = path.with_extension("corrupt");
            fs::rename(&path, &aside).map_err(|source| state(&path, source))?;
            warn!(file = %path.display(), aside = %aside.display(), reason, "saved tables not usable, put aside");
            Ok(None)
        }
    }
}

/// Writes atomically: after a crash at any point the file is the old one or the new one.
pub(crate) fn save(folder: &Path, saved: &Saved) -> io::Result<()> {
    let temporary = folder.join("tables.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&emit(saved))?;
    file.sync_all()?;
    fs::rename(&temporary, path(folder))?;
    File::open(folder)?.sync_all()
}

fn path(folder: &Path) -> PathBuf {
    folder.join("tables")
}

fn emit(saved: &Saved) -> Vec<u8> {
    let body = encode_tables(&saved.tables);
    let mut file = Vec::with_capacity(HEADER + body.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&LAYOUT.to_le_bytes());
    file.extend_from_slice(&saved.floor.to_le_bytes());
    file.extend_from_slice(&(body.len() as u64).to_le_bytes());
    file.extend_from_slice(&digest(saved.floor, &body));
    file.extend_from_slice(&body);
    file
}

fn parse(mut file: Bytes) -> Result<Saved, String> {
    if file.len() < HEADER {
        return Err(format!("{} bytes are too few", file.len()));
    }
    if file.split_to(MAGIC.len()) != MAGIC[..] {
        return Err("not a file of tables".to_owned());
    }
    let layout = file.get_u32_le();
    if !(1..=LAYOUT).contains(&layout) {
        return Err(format!("layout {layout}, this version reads 1 to {LAYOUT}"));
    }
    let (floor, length) = (file.get_u64_le(), file.get_u64_le());
    let announced = file.split_to(32);
    if file.len() as u64 != length {
        return Err(format!("a body of {} bytes where {length} were written", file.len()));
    }
    if announced != digest(floor, &file)[..] {
        return Err("the digest does not fit".to_owned());
    }
    let tables = decode_tables(file).map_err(|error| error.to_string())?;
    Ok(Saved { tables: Arc::new(tables), floor })
}

fn digest(floor: u64, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(floor.to_le_bytes());
    hash.update((body.len() as u64).to_le_bytes());
    hash.update(body);
    hash.finalize().into()
}

/// Writes in the background whatever was saved last.
#[derive(Debug)]
pub(crate) struct Writer {
    latest: watch::Sender<Option<Saved>>,
    task: JoinHandle<()>,
}

impl Writer {
    pub(crate) fn spawn(folder: PathBuf) -> Self {
        let (latest, mut updates) = watch::channel(None::<Saved>);
        let task = tokio::spawn(async move {
            // Ends once the sender is gone and the last value is on disk.
            while updates.changed().await.is_ok() {
                let Some(saved) = updates.borrow_and_update().clone() else { continue };
                let target = folder.clone();
                let written = tokio::task::spawn_blocking(move || save(&target, &saved)).await;
                if let Err(problem) = written.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                    error!(folder = %folder.display(), %problem, "tables not saved: a restart of all directors would forget them");
                }
            }
        });
        Self { latest, task }
    }

    pub(crate) fn save(&self, saved: Saved) {
        self.latest.send_replace(Some(saved));
    }

    /// Waits until everything is on disk.
    pub(crate) async fn finish(self) {
        drop(self.latest);
        if let Err(problem) = self.task.await {
            error!(%problem, "the writer of tables ended early");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use director_proto::tables::{Epoch, TableSet};

    use super::*;

    fn saved() -> Saved {
        let epoch = Epoch { number: 7, leader: Ipv4Addr::new(10, 255, 0, 1) };
        let tables = TableSet { epoch, hash_key: [5; 16], services: BTreeMap::new() };
        Saved { tables: Arc::new(tables), floor: 9 }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("folder");
        let state = folder.path().join("not/yet/there");
        assert_eq!(load(&state).expect("readable"), None);
        save(&state, &saved()).expect("written");
        assert_eq!(load(&state).expect("readable"), Some(saved()));
    }

    #[test]
    fn a_file_of_the_layout_before_is_read_and_one_of_the_next_is_not() {
        let mut file = emit(&saved());
        file[MAGIC.len()..MAGIC.len() + 4].copy_from_slice(&1_u32.to_le_bytes());
        assert_eq!(parse(file.clone().into()), Ok(saved()));
        file[MAGIC.len()..MAGIC.len() + 4].copy_from_slice(&3_u32.to_le_bytes());
        assert_eq!(parse(file.into()), Err("layout 3, this version reads 1 to 2".to_owned()));
    }

    #[test]
    fn a_damaged_file_is_put_aside_wherever_the_damage_is() {
        let whole = emit(&saved());
        for at in 0..whole.len() {
            let folder = tempfile::tempdir().expect("folder");
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(path(folder.path()), damaged).expect("written");
            assert_eq!(load(folder.path()).expect("readable"), None, "byte {at}");
            assert!(folder.path().join("tables.corrupt").exists(), "byte {at}");
            assert!(!path(folder.path()).exists(), "byte {at}");
        }
    }

    #[test]
    fn a_shortened_or_extended_file_is_refused() {
        let whole = emit(&saved());
        for length in 0..whole.len() {
            assert!(parse(whole[..length].to_vec().into()).is_err(), "{length} bytes");
        }
        let longer: Vec<u8> = whole.into_iter().chain([0]).collect();
        assert!(parse(longer.into()).is_err());
    }

    #[tokio::test]
    async fn the_writer_ends_with_the_latest_on_disk() {
        let folder = tempfile::tempdir().expect("folder");
        let writer = Writer::spawn(folder.path().to_owned());
        for floor in 10..20 {
            writer.save(Saved { floor, ..saved() });
        }
        writer.finish().await;
        assert_eq!(load(folder.path()).expect("readable").map(|saved| saved.floor), Some(19));
    }
}
