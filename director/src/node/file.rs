//! Small files of the state folder, written so that a crash leaves the old one or the new one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Puts `content` in the place of the file, or removes it: either is on disk when this returns.
pub(super) fn replace(file: &Path, content: Option<&[u8]>) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    match content {
        Some(content) => {
            fs::create_dir_all(folder)?;
            let temporary = file.with_extension("new");
            let mut new = File::create(&temporary)?;
            new.write_all(content)?;
            new.sync_all()?;
            fs::rename(&temporary, file)?;
        }
        None => match fs::remove_file(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        },
    }
    File::open(folder)?.sync_all()
}
