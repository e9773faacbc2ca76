//! Certificates that change while the director runs: read again when it is told to, and when the files change.
//!
//! Files are replaced one after the other, and a certificate without its key is of no use: so what has changed is read
//! once it has stayed as it is from one look to the next. What cannot be used is said once, and what is in use stays.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{error, info};

use crate::config::{StartError, TlsFiles};
use crate::net::tls::Tls;

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// What has come of reading certificates again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// There are none.
    NoTls,
    /// The files are as they were.
    Unchanged,
    /// New connections go by other files from now on.
    Changed,
}

/// Which files were read: device, inode, size and time of change of each, in nanoseconds.
type Stamp = [Option<(u64, u64, u64, i128)>; 3];

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |path: &Path| {
        let file = std::fs::metadata(path).ok()?;
        let changed = i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec());
        Some((file.dev(), file.ino(), file.size(), changed))
    };
    [&files.ca, &files.certificate, &files.key].map(|path| of(path))
}

/// The certificates of one director.
#[derive(Clone)]
pub(crate) struct Certificates {
    tls: Tls,
    files: TlsFiles,
    router_id: Ipv4Addr,
    cluster: String,
    /// The files that were tried last, whether they are in use or not.
    tried: Arc<Mutex<Stamp>>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files for the first time.
    pub(crate) fn load(files: &TlsFiles, router_id: Ipv4Addr, cluster: &str) -> Result<Self, StartError> {
        let tried = Arc::new(Mutex::new(stamp(files)));
        let (tls, cluster) = (Tls::load(files)?, cluster.to_owned());
        Ok(Self { tls, files: files.clone(), router_id, cluster, tried })
    }

    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Reads the files again. Whether they have changed since.
    pub(crate) fn reload(&self) -> Result<bool, StartError> {
        let stamp = stamp(&self.files);
        let before =
            std::mem::replace(&mut *self.tried.lock().unwrap_or_else(PoisonError::into_inner), stamp);
        self.tls.reload(&self.files, self.router_id, &self.cluster)?;
        Ok(before != stamp)
    }

    /// Reads the files whenever they change; never returns.
    pub(crate) async fn watch(self) {
        let mut last = *self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            tokio::time::sleep(LOOK).await;
            let now = stamp(&self.files);
            let settled = std::mem::replace(&mut last, now) == now;
            if !settled || *self.tried.lock().unwrap_or_else(PoisonError::into_inner) == now {
                continue;
            }
            match self.reload() {
                Ok(_) => info!(
                    certificate = %self.files.certificate.display(),
                    "certificates have changed: new connections to the other directors use them"
                ),
                Err(problem) => error!(
                    %problem,
                    "certificates have changed and cannot be used: those from before stay in use until they are put right"
                ),
            }
        }
    }
}
