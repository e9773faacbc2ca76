//! What a test needs of the machine it runs on, and the one rule for when that is missing.
//!
//! A test that lacks something prints `skipped: why` and passes, so that `cargo test` is useful on any machine.
//! With [`STRICT`] set to `1` it fails instead: there, what is missing may not go unnoticed.
//!
//! ```no_run
//! use cluster_tests::requirement::{Requirement, met};
//!
//! # fn some_test() {
//! if !met(&[Requirement::Root, Requirement::Program("bird")]) {
//!     return;
//! }
//! # }
//! ```

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The environment variable that, set to `1`, turns every skip into a failure.
pub const STRICT: &str = "DIRECTOR_TESTS_REQUIRE";

/// One thing that a test cannot do without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// The effective user is root.
    Root,
    /// An executable file of this name in `PATH`.
    Program(&'a str),
    /// A file, folder or device that is there, followed if it is a symbolic link.
    File(&'a Path),
    /// What the test found out by itself: `Err` says what is missing, and what to do about it.
    Finding(Result<(), String>),
}

impl Requirement<'_> {
    /// What is missing and the remedy, or nothing if the requirement is met.
    fn missing(&self) -> Option<String> {
        match self {
            Self::Root if is_root() => None,
            Self::Root => Some("needs root".to_owned()),
            Self::Program(name) if program_exists(name) => None,
            Self::Program(name) => Some(format!("no program {name} (lab/setup.sh installs what tests need)")),
            Self::File(path) if path.exists() => None,
            Self::File(path) => Some(format!("no {}", path.display())),
            Self::Finding(result) => result.clone().err(),
        }
    }
}

/// Whether the test can go on. If not, it has printed `skipped:` with all that is missing, and the test returns.
///
/// # Panics
/// If something is missing and [`STRICT`] is `1`: the test fails.
#[must_use = "a test that lacks something returns at once"]
#[track_caller]
pub fn met(requirements: &[Requirement<'_>]) -> bool {
    judge(requirements, env::var_os(STRICT).as_deref() == Some(OsStr::new("1")))
}

#[track_caller]
fn judge(requirements: &[Requirement<'_>], strict: bool) -> bool {
    let missing: Vec<String> = requirements.iter().filter_map(Requirement::missing).collect();
    if missing.is_empty() {
        return true;
    }
    let why = missing.join("; ");
    assert!(!strict, "{why}, and {STRICT}=1 forbids to skip");
    println!("skipped: {why}");
    false
}

/// The owner of a process's own folder in /proc is its effective user.
fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}

fn program_exists(name: &str) -> bool {
    let executable = |file: PathBuf| {
        file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| executable(folder.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_met_even_when_strict() {
        let there =
            [Requirement::Program("sh"), Requirement::File(Path::new("/proc")), Requirement::Finding(Ok(()))];
        assert!(judge(&there, true));
    }

    #[test]
    fn what_is_missing_skips_and_is_named() {
        for (requirement, named) in [
            (Requirement::Program("no-such-program"), "no-such-program"),
            (Requirement::File(Path::new("/no/such/file")), "/no/such/file"),
            (Requirement::Finding(Err("no kernel 6.1".to_owned())), "no kernel 6.1"),
        ] {
            assert!(requirement.missing().is_some_and(|why| why.contains(named)), "{requirement:?}");
            assert!(!judge(&[Requirement::Program("sh"), requirement], false));
        }
    }

    #[test]
    #[should_panic(expected = "no /no/such/file, and DIRECTOR_TESTS_REQUIRE=1 forbids to skip")]
    fn what_is_missing_fails_when_strict() {
        assert!(!judge(&[Requirement::File(Path::new("/no/such/file"))], true));
    }
}
