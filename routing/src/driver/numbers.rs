//! Where cryptographic sequence numbers outlive the process: a small file for each version, written in the background
//! and ahead of need. A file that cannot be read or written costs the guarantee, not the speaker: numbers then go by the
//! clock.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

/// Time between two attempts to write, while they fail.
const RETRY: Duration = Duration::from_secs(30);

/// The file of one version in a folder.
pub(super) fn file_of(folder: &Path, version: u8) -> PathBuf {
    folder.join(format!("ospf-sequence-{version}"))
}

/// What an earlier life wrote; none if there was none, or it cannot be read.
pub(super) fn read(file: &Path) -> Option<u64> {
    let problem = match fs::read_to_string(file) {
        Ok(text) => match text.trim().parse() {
            Ok(number) => return Some(number),
            Err(error) => format!("{error}"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    let remedy = "none is needed unless the clock was set back: the file is written anew";
    tracing::warn!(file = %file.display(), problem, remedy, "OSPF sequence numbers begin by the clock");
    None
}

/// Puts a number into the file, which is on disk when this returns; a crash leaves the old one or the new one.
fn write(file: &Path, highest: u64) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = file.with_extension("new");
    let mut new = File::create(&temporary)?;
    writeln!(new, "{highest}")?;
    new.sync_all()?;
    fs::rename(&temporary, file)?;
    File::open(folder)?.sync_all()
}

/// Writes what comes, until nobody sends any more. What is there already is written when this returns, or the failure
/// logged; the rest is done by a task.
pub(super) async fn keep(file: PathBuf, mut highest: watch::Receiver<Option<u64>>) {
    let mut failing = attempt(&file, &mut highest, false).await;
    tokio::spawn(async move {
        loop {
            let pause = if failing { RETRY } else { Duration::MAX };
            if let Ok(Err(_)) = timeout(pause, highest.changed()).await {
                return; // so has the speaker
            }
            failing = attempt(&file, &mut highest, failing).await;
        }
    });
}

/// Writes the latest number; true if that fails, which is said once.
async fn attempt(file: &Path, highest: &mut watch::Receiver<Option<u64>>, failed_before: bool) -> bool {
    let Some(latest) = *highest.borrow_and_update() else { return false };
    let path = file.to_owned();
    let written = tokio::task::spawn_blocking(move || write(&path, latest)).await;
    match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(()) => {
            if failed_before {
                tracing::info!(file = %file.display(), "OSPF sequence numbers are kept again");
            }
            false
        }
        Err(error) => {
            if !failed_before {
                let remedy = "make the folder writable; until then a restart begins by the clock";
                tracing::warn!(file = %file.display(), %error, remedy, "OSPF sequence numbers are not kept");
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test's own.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("routing-numbers-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder); // of an earlier run
        folder
    }

    async fn kept(file: &Path, wanted: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while read(file) != Some(wanted) {
            assert!(tokio::time::Instant::now() < deadline, "{:?} instead of {wanted}", read(file));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_first_number_is_on_disk_before_anybody_speaks_and_later_ones_follow() {
        let folder = folder("kept");
        let file = file_of(&folder.join("new"), 2);
        let (sender, receiver) = watch::channel(Some(7));
        assert_eq!(read(&file), None, "nothing is there");
        keep(file.clone(), receiver).await;
        assert_eq!(read(&file), Some(7));
        sender.send_replace(Some(u64::MAX));
        kept(&file, u64::MAX).await;
        assert_ne!(file_of(&folder, 2), file_of(&folder, 3));
        fs::remove_dir_all(folder).expect("removed");
    }

    #[tokio::test]
    async fn what_cannot_be_read_or_written_is_no_failure() {
        let folder = folder("broken");
        fs::create_dir_all(&folder).expect("created");
        let file = file_of(&folder, 3);
        for broken in ["", "-1", "18446744073709551616", "seven"] {
            fs::write(&file, broken).expect("written");
            assert_eq!(read(&file), None, "{broken:?}");
        }
        // A file in the place of the folder, then a folder again: it is written when that is possible.
        let (sender, receiver) = watch::channel(Some(7));
        fs::remove_dir_all(&folder).expect("removed");
        fs::write(&folder, "in the way").expect("written");
        keep(file.clone(), receiver).await;
        fs::remove_file(&folder).expect("removed");
        sender.send_replace(Some(8));
        kept(&file, 8).await;
        fs::remove_dir_all(folder).expect("removed");
    }
}
