//! Downloads and uploads in the lab's `ecmp` topology, all at one time, by curl; and what it and the sums of the bytes say
//! of them afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::ecmp::{Ecmp, wait};

/// Transfers of each kind to each VIP, and their size in bytes.
const TRANSFERS: u32 = 8;
const BYTES: u32 = 4_000_000;

/// How fast each goes, in curl's words.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Some ten seconds.
    Quick,
    /// About a minute.
    Slow,
}

impl Pace {
    const fn rate(self) -> &'static str {
        match self {
            Self::Quick => "400k",
            Self::Slow => "70k",
        }
    }
}

/// Transfers under way.
pub struct Transfers<'a> {
    ecmp: &'a Ecmp,
    all: usize,
}

impl<'a> Transfers<'a> {
    /// Begins those to `vips`, and returns when they are well under way.
    ///
    /// # Errors
    /// If they do not get there.
    pub fn begin(ecmp: &'a Ecmp, vips: [&str; 2], pace: Pace) -> Result<Self> {
        let rate = pace.rate();
        let begin = format!(
            "mkdir -p /run/transfers && cd /run/transfers && head -c {BYTES} /dev/urandom >up
             for vip in '{}' '{}'; do for i in $(seq {TRANSFERS}); do
               name=$(echo $vip | tr -dc 0-9a-f)-$i
               (curl -sS -f -m 600 --limit-rate {rate} -r 0-{} http://$vip/content -o down-$name 2>err-down-$name
                echo $? >code-down-$name) &
               (curl -sS -f -m 600 --limit-rate {rate} --data-binary @up -H 'Expect:' http://$vip/upload -o said-up-$name 2>err-up-$name
                echo $? >code-up-$name) &
             done; done >/dev/null 2>&1",
            vips[0],
            vips[1],
            BYTES - 1
        );
        ecmp.lab.sh("client", &begin)?;
        let transfers = Self { ecmp, all: 4 * TRANSFERS as usize };
        let received = || -> Result<u64> {
            let sizes = ecmp.lab.sh("client", "cat /run/transfers/down-* 2>/dev/null | wc -c")?;
            Ok(sizes.trim().parse()?)
        };
        wait("downloads have begun in earnest", Duration::from_secs(60), || {
            Ok(received()? > u64::from(2 * TRANSFERS * BYTES) / 10)
        })?;
        ensure!(transfers.established()? > transfers.all / 2, "most transfers are under way");
        Ok(transfers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all
    }

    /// The client's connections.
    ///
    /// # Errors
    /// If the client cannot be asked.
    pub fn established(&self) -> Result<usize> {
        let seen = self.ecmp.lab.sh("client", "ss -Htn state established '( dport = :80 )'")?;
        Ok(seen.lines().count())
    }

    /// That none has failed so far.
    ///
    /// # Errors
    /// What curl says of those that have.
    pub fn none_has_failed(&self) -> Result<()> {
        let script = "cd /run/transfers && grep -Lx 0 code-* 2>/dev/null || true; cat err-*; \
                      echo; ss -Htnoi '( dport = :80 )' | head -n 80";
        let said = self.ecmp.lab.sh("client", script)?;
        let failed = said.lines().next().unwrap_or_default().trim();
        ensure!(failed.is_empty(), "transfers have failed: {said}");
        Ok(())
    }

    /// Waits for their end: every one is complete, and every byte right.
    ///
    /// # Errors
    /// Which ones are not.
    pub fn end(self) -> Result<()> {
        let (ecmp, all) = (self.ecmp, self.all);
        wait("every transfer has ended", Duration::from_secs(300), || {
            let codes = ecmp.lab.sh("client", "cd /run/transfers && ls code-* 2>/dev/null | wc -l")?;
            Ok(codes.trim() == all.to_string())
        })?;
        let failed = ecmp.lab.sh("client", "cd /run/transfers && grep -Lx 0 code-* || true; cat err-*")?;
        ensure!(failed.trim().is_empty(), "transfers failed: {failed}");
        let sum = "cd /run/transfers && sha256sum down-* | cut -d' ' -f1 | sort | uniq -c";
        let sums = ecmp.lab.sh("client", sum)?;
        let wanted =
            ecmp.lab.sh("real1", &format!("head -c {BYTES} /srv/www/content | sha256sum | cut -d' ' -f1"))?;
        let expected = format!("{} {}", 2 * TRANSFERS, wanted.trim());
        ensure!(sums.trim() == expected, "bytes that arrived: {sums}, wanted {expected}");
        let said = ecmp.lab.sh("client", "cd /run/transfers && cat said-up-* | sort | uniq -c")?;
        let expected = format!("{} {BYTES} bytes", 2 * TRANSFERS);
        ensure!(said.trim() == expected, "bytes that the servers got: {said}");
        Ok(())
    }
}
