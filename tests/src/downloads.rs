//! Downloads that last as long as a test does.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::ecmp::{Ecmp, VIP, wait};

/// Longest time for downloads to begin or to go on, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);

/// Downloads under way from the topology's client to [`VIP`].
pub struct Downloads<'a> {
    ecmp: &'a Ecmp,
    count: usize,
}

impl<'a> Downloads<'a> {
    /// Starts so many, and waits until all have begun.
    ///
    /// They are slow enough to last for minutes, and quick enough for the server not to give up; with a small receive
    /// buffer: out of a large one curl reads for longer than the lab's services let a connection be idle.
    ///
    /// # Errors
    /// If they do not begin.
    pub fn start(ecmp: &'a Ecmp, count: usize) -> Result<Self> {
        let script = format!(
            "sysctl -qw net.ipv4.tcp_rmem='4096 16384 65536'; mkdir -p /tmp/out; for n in $(seq {count}); do \
             (curl -s -o /tmp/out/$n.data --limit-rate 200K -m 600 http://{VIP}/content; echo $? > /tmp/out/$n.code) \
             >/dev/null 2>&1 & done"
        );
        ecmp.lab.sh("client", &script)?;
        wait("all downloads under way", PATIENCE, || {
            let some = ecmp.lab.sh("client", "find /tmp/out -name '*.data' -size +0 | wc -l")?;
            Ok(some.trim() == count.to_string())
        })?;
        Ok(Self { ecmp, count })
    }

    /// Every download gets on from now on, and none has ended: by a reset or otherwise.
    ///
    /// # Errors
    /// If one does not, or has.
    pub fn go_on(&self) -> Result<()> {
        let mark = self.bytes()?;
        wait("every download goes on", PATIENCE, || {
            Ok(self.bytes()?.iter().zip(&mark).all(|(now, then)| now > then))
        })?;
        let codes = self.ecmp.lab.sh("client", "cat /tmp/out/*.code 2>/dev/null || true")?;
        ensure!(codes.trim().is_empty(), "downloads have ended: curl says {codes}");
        Ok(())
    }

    /// Bytes that each has so far.
    fn bytes(&self) -> Result<Vec<u64>> {
        let script = format!("for n in $(seq {}); do stat -c %s /tmp/out/$n.data; done", self.count);
        let sizes = self.ecmp.lab.sh("client", &script)?;
        Ok(sizes.split_whitespace().map(|size| size.parse().unwrap_or(0)).collect())
    }
}
