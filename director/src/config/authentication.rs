//! `authentication` and `keys` of an OSPF interface: secrets are read here, and never shown.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use routing::{Algorithm, Authentication, Key, Secret, Window};
use toml::Spanned;
use toml::value::{Datetime, Offset};

use super::{ConfigError, Source, file};

/// Bytes of a secret file at most: whatever is longer is another file.
const SECRET_FILE_LEN: u64 = 4096;

/// What an interface says about its authentication. `ipv6` is whether OSPFv3 is spoken.
pub(super) fn authentication(
    source: &Source<'_>,
    simple: Option<Spanned<file::OspfAuthentication>>,
    keys: Option<Spanned<Vec<file::OspfKey>>>,
    ipv6: bool,
) -> Result<Authentication, ConfigError> {
    let (span, authentication) = match (simple, keys) {
        (None, None) => return Ok(Authentication::None),
        (Some(simple), Some(_)) => {
            let message = "an interface has one password or keys, not both; leave one out";
            return Err(source.at(&simple, message));
        }
        (Some(simple), None) => {
            let span = simple.span();
            let file::OspfAuthentication { kind, secret, secret_file } = simple.into_inner();
            if kind.get_ref() != "simple" {
                let message =
                    format!("{:?} is no type of authentication; use \"simple\", or `keys`", kind.get_ref());
                return Err(source.at(&kind, message));
            }
            let secret = self::secret(source, span.clone(), secret, secret_file)?;
            (span, Authentication::Simple(secret))
        }
        (None, Some(keys)) => {
            let span = keys.span();
            let keys = keys.into_inner().into_iter().map(|key| self::key(source, span.clone(), key));
            let keys = keys.collect::<Result<_, _>>()?;
            (span, Authentication::Keys(keys))
        }
    };
    let valid = authentication.validate(ipv6);
    valid.map_err(|error| source.error(Some(span), error.to_string()))?;
    Ok(authentication)
}

fn key(source: &Source<'_>, span: std::ops::Range<usize>, key: file::OspfKey) -> Result<Key, ConfigError> {
    let algorithm: Result<Algorithm, _> = key.algorithm.get_ref().parse();
    let algorithm = algorithm.map_err(|error| source.at(&key.algorithm, error.to_string()))?;
    let time = |at: Option<Spanned<Datetime>>| at.map(|at| seconds(source, &at)).transpose();
    Ok(Key {
        id: key.id,
        algorithm,
        secret: secret(source, span, key.secret, key.secret_file)?,
        send: Window { from: time(key.send_from)?, until: time(key.send_until)? },
        accept: Window { from: time(key.accept_from)?, until: time(key.accept_until)? },
        swapped_protocol_id: key.swapped_protocol_id,
    })
}

fn secret(
    source: &Source<'_>,
    span: std::ops::Range<usize>,
    inline: Option<String>,
    file: Option<Spanned<PathBuf>>,
) -> Result<Secret, ConfigError> {
    match (inline, file) {
        (Some(secret), None) => Ok(Secret::new(secret)),
        (None, Some(file)) => {
            let path = source.relative(file.get_ref());
            read_secret(&path).map_err(|why| source.at(&file, format!("{}: {why}", path.display())))
        }
        (None, None) => {
            Err(source.error(Some(span), "name the file with the secret: secret_file".to_owned()))
        }
        (Some(_), Some(_)) => {
            Err(source.error(Some(span), "give secret or secret_file, not both".to_owned()))
        }
    }
}

/// The first line of a file that others cannot read.
fn read_secret(path: &Path) -> Result<Secret, String> {
    let cannot = |error: std::io::Error| format!("cannot read the secret: {error}");
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(format!(
            "the secret is open to every user of this machine (mode {:03o}); chmod 600 it",
            mode & 0o777
        ));
    }
    let mut text = String::new();
    file.take(SECRET_FILE_LEN).read_to_string(&mut text).map_err(cannot)?;
    let mut lines = text.lines();
    match (lines.next(), lines.next()) {
        (Some(secret), None) if !secret.is_empty() => Ok(Secret::new(secret)),
        (None, _) | (Some(_), None) => {
            Err("the file is empty; write the secret into its first line".to_owned())
        }
        (Some(_), Some(_)) => Err("the file has more than one line; a secret is one line".to_owned()),
    }
}

/// Seconds since 1970 (UTC) of an RFC 3339 time.
fn seconds(source: &Source<'_>, at: &Spanned<Datetime>) -> Result<u64, ConfigError> {
    let Datetime { date: Some(date), time: Some(time), offset: Some(offset) } = at.get_ref() else {
        let message = "write the moment with date, time and offset: 2027-01-31T12:00:00Z";
        return Err(source.at(at, message));
    };
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(*minutes),
    };
    let days = routing::auth::days_since_epoch(date.year.into(), date.month, date.day);
    let (hour, minute) = (i64::from(time.hour), i64::from(time.minute));
    let second = i64::from(time.second.unwrap_or(0));
    let seconds = ((days * 24 + hour) * 60 + minute - minutes) * 60 + second;
    u64::try_from(seconds).map_err(|_| source.at(at, "the moment is before 1970"))
}

#[cfg(test)]
mod tests;
