//! The kernel settings of a real server (`Documentation/networking/ip-sysctl.rst`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::AgentError;

const CONF: &str = "/proc/sys/net/ipv4/conf";

/// A setting that has one value and should have another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Its name, as `sysctl` writes it.
    pub(super) name: String,
    /// The value it has.
    pub(super) before: i32,
    /// The value it should have.
    pub(super) after: i32,
}

impl Setting {
    fn path(&self) -> PathBuf {
        Path::new("/proc/sys").join(self.name.replace('.', "/"))
    }

    pub(super) fn read(&self) -> Result<i32, AgentError> {
        read(&self.path())
    }

    pub(super) fn write(&self, value: i32) -> Result<(), AgentError> {
        let path = self.path();
        fs::write(&path, value.to_string()).map_err(|source| AgentError::Sysctl { path, source })
    }
}

fn read(path: &Path) -> Result<i32, AgentError> {
    let failed = |source| AgentError::Sysctl { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    text.trim().parse().map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// The settings to change. Each of them counts as the larger of that of `all` and that of an interface, so it
/// suffices to raise `all`.
pub(super) fn needed() -> Result<Vec<Setting>, AgentError> {
    let interfaces = rp_filters()?;
    let all = |name: &str| read(&Path::new(CONF).join("all").join(name));
    let wanted = [
        ("arp_ignore", all("arp_ignore")?, arp_ignore(all("arp_ignore")?)),
        ("arp_announce", all("arp_announce")?, 2),
        ("rp_filter", all("rp_filter")?, rp_filter(all("rp_filter")?, &interfaces)),
    ];
    let differs = wanted.into_iter().filter(|(_, before, after)| before != after);
    Ok(differs
        .map(|(name, before, after)| Setting { name: format!("net.ipv4.conf.all.{name}"), before, after })
        .collect())
}

/// Answer only for addresses of the interface asked on (1); what is stricter stays.
fn arp_ignore(all: i32) -> i32 {
    all.max(1)
}

/// Loose (2) if some interface would be strict (1).
fn rp_filter(all: i32, interfaces: &[i32]) -> i32 {
    if interfaces.iter().any(|interface| all.max(*interface) == 1) { 2 } else { all }
}

/// `rp_filter` of every interface that exists.
fn rp_filters() -> Result<Vec<i32>, AgentError> {
    let failed = |source| AgentError::Sysctl { path: PathBuf::from(CONF), source };
    let mut values = Vec::new();
    for entry in fs::read_dir(CONF).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == "all" || entry.file_name() == "default" {
            continue;
        }
        match read(&entry.path().join("rp_filter")) {
            Ok(value) => values.push(value),
            // The interface went while we looked.
            Err(AgentError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_path_filter_is_loosened_only_where_it_is_strict() {
        assert_eq!(rp_filter(0, &[0, 0]), 0);
        assert_eq!(rp_filter(0, &[0, 1]), 2);
        assert_eq!(rp_filter(1, &[0, 0]), 2);
        assert_eq!(rp_filter(1, &[2]), 1);
        assert_eq!(rp_filter(2, &[1]), 2);
    }

    #[test]
    fn stricter_arp_settings_stay() {
        assert_eq!([arp_ignore(0), arp_ignore(1), arp_ignore(2), arp_ignore(8)], [1, 1, 2, 8]);
    }
}
