//! What one probe came to, in words for the operator.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use thiserror::Error;

/// Why a probe did not pass. The text is the reason users read in logs and status.
#[derive(Debug, Error)]
pub(super) enum ProbeError {
    /// The network or the kernel said no.
    #[error("{}", io_reason(.0))]
    Io(#[from] io::Error),
    /// No result in time.
    #[error("timed out after {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The server answered, but not as expected.
    #[error("{0}")]
    Answer(String),
}

impl ProbeError {
    /// An answer that is not the expected one.
    pub(super) fn answer(reason: impl Into<String>) -> Self {
        Self::Answer(reason.into())
    }

    /// A protocol library's error, with what caused it.
    pub(super) fn from_chain(error: &(dyn StdError + 'static)) -> Self {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            source = cause.source();
        }
        Self::Answer(reason)
    }

    /// Whether this node lacked the means to probe, or a route, so that nothing is known of the real server: blaming it
    /// would take every real server down at once on the first shortage here, and those behind the switches at every
    /// start, until the routes are learned.
    pub(super) fn is_local(&self) -> bool {
        let Self::Io(error) = self else { return false };
        error.raw_os_error().is_some_and(|code| {
            [
                libc::EMFILE,
                libc::ENFILE,
                libc::ENOBUFS,
                libc::ENOMEM,
                libc::EAGAIN,
                libc::EADDRNOTAVAIL,
                libc::ENETUNREACH,
                libc::ENETDOWN,
            ]
            .contains(&code)
        })
    }
}

/// `connection refused` rather than `Connection refused (os error 111)`.
fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    // Only the first letter: names in the rest keep theirs.
    let mut letters = text.chars();
    let abbreviation = text.chars().nth(1).is_some_and(char::is_uppercase);
    match letters.next() {
        Some(first) if !abbreviation => format!("{}{}", first.to_lowercase(), letters.as_str()),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words_without_numbers() {
        let refused = ProbeError::from(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(refused.to_string(), "connection refused");
        assert_eq!(ProbeError::Timeout(Duration::from_millis(800)).to_string(), "timed out after 800 ms");
    }

    #[test]
    fn a_shortage_here_is_not_the_real_servers_fault() {
        assert!(ProbeError::from(io::Error::from_raw_os_error(libc::EMFILE)).is_local());
        assert!(ProbeError::from(io::Error::from_raw_os_error(libc::ENETUNREACH)).is_local());
        assert!(!ProbeError::from(io::Error::from_raw_os_error(libc::EHOSTUNREACH)).is_local());
        assert!(!ProbeError::answer("status 503").is_local());
    }
}
