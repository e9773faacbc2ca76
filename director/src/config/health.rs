//! `[service.health]`: the keys of every kind of check in one table, of which each kind has its own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::health::{
    Authorities, Body, Check, CheckError, Dns, Exec, Grpc, Http, Method, Reply, Smtp, Target, Tcp, Tls, Udp,
    Verify,
};

/// How the real servers of a service are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Kind of check and its settings.
    pub check: Check,
    /// Port of the probes, where it is not the real server's.
    pub check_port: Option<u16>,
    /// Time from the start of one probe to the start of the next.
    pub interval: Duration,
    /// The most one probe may take.
    pub timeout: Duration,
    /// Successes in a row that make a real server up.
    pub rise: u32,
    /// Failures in a row that make it down.
    pub fall: u32,
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, check_port, interval, timeout, rise, fall } = self;
        write!(f, "{check:?} every {interval:?}, timeout {timeout:?}, rise {rise}, fall {fall}")?;
        check_port.map_or(Ok(()), |port| write!(f, ", port {port}"))
    }
}

impl HealthCheck {
    /// The check of one real server.
    pub fn target(&self, service: &str, address: IpAddr, port: u16) -> Target {
        Target {
            check_port: self.check_port,
            interval: self.interval,
            timeout: self.timeout,
            rise: self.rise,
            fall: self.fall,
            ..Target::new(service, address, port, self.check.clone())
        }
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Kind {
    None,
    Tcp,
    Http,
    Https,
    Dns,
    Smtp,
    Udp,
    Ping,
    Exec,
    Grpc,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
enum RawMethod {
    Get,
    Head,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Expect {
    /// Silence is as good as an answer; only a refusal fails.
    Silence,
    /// Any answer.
    Answer,
}

/// The table as written. Every key of every kind; which belong to which says [`ALLOWED`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    check: Spanned<Kind>,
    interval_ms: Option<Spanned<u32>>,
    timeout_ms: Option<Spanned<u32>>,
    rise: Option<Spanned<u32>>,
    fall: Option<Spanned<u32>>,
    check_port: Option<Spanned<u16>>,
    reset: Option<Spanned<bool>>,
    method: Option<Spanned<RawMethod>>,
    path: Option<Spanned<String>>,
    host: Option<Spanned<String>>,
    status: Option<Spanned<String>>,
    body_contains: Option<Spanned<String>>,
    body_matches: Option<Spanned<String>>,
    max_body: Option<Spanned<usize>>,
    verify: Option<Spanned<bool>>,
    ca: Option<Spanned<PathBuf>>,
    server_name: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    record: Option<Spanned<String>>,
    answer: Option<Spanned<IpAddr>>,
    helo: Option<Spanned<String>>,
    payload: Option<Spanned<String>>,
    expect: Option<Spanned<Expect>>,
    expect_contains: Option<Spanned<String>>,
    program: Option<Spanned<PathBuf>>,
    arguments: Option<Spanned<Vec<String>>>,
    service: Option<Spanned<String>>,
    tls: Option<Spanned<bool>>,
}

const SCHEDULE: &[&str] = &["check", "interval_ms", "timeout_ms", "rise", "fall", "check_port"];
const HTTP: &[&str] = &["method", "path", "host", "status", "body_contains", "body_matches", "max_body"];
const TLS: &[&str] = &["verify", "ca", "server_name"];

/// The keys of each kind, besides those of the schedule.
const ALLOWED: &[(Kind, &[&[&str]])] = &[
    (Kind::None, &[]),
    (Kind::Tcp, &[&["reset"]]),
    (Kind::Http, &[HTTP]),
    (Kind::Https, &[HTTP, TLS]),
    (Kind::Dns, &[&["name", "record", "answer"]]),
    (Kind::Smtp, &[&["helo"]]),
    (Kind::Udp, &[&["payload", "expect", "expect_contains"]]),
    (Kind::Ping, &[]),
    (Kind::Exec, &[&["program", "arguments"]]),
    (Kind::Grpc, &[&["service", "tls"], TLS]),
];

impl Raw {
    /// Where each key that is given stands.
    fn places(&self) -> BTreeMap<&'static str, Range<usize>> {
        let mut places = BTreeMap::from([("check", self.check.span())]);
        macro_rules! note {
            ($($key:ident)*) => {
                $(if let Some(value) = &self.$key { places.insert(stringify!($key), value.span()); })*
            };
        }
        note!(interval_ms timeout_ms rise fall check_port reset method path host status body_contains body_matches);
        note!(max_body verify ca server_name name record answer helo payload expect expect_contains program);
        note!(arguments service tls);
        places
    }
}

/// The check as the rest of the program takes it. `targets` are the service's real servers, for which it must make
/// sense.
pub(super) fn check(
    source: &Source<'_>,
    raw: Raw,
    targets: &[(IpAddr, u16)],
) -> Result<HealthCheck, ConfigError> {
    let places = raw.places();
    let kind = *raw.check.get_ref();
    let allowed = ALLOWED.iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, keys)| keys);
    let belongs = |key: &&str| SCHEDULE.contains(key) || allowed.iter().any(|keys| keys.contains(key));
    if let Some((key, place)) = places.iter().find(|(key, _)| !belongs(key)) {
        let own: Vec<&str> = allowed.iter().copied().flatten().copied().collect();
        let message = match own.is_empty() {
            true => format!("{key} is no key of this kind of check, which has none of its own; leave it out"),
            false => format!("{key} is no key of this kind of check; it has {}", own.join(", ")),
        };
        return Err(source.error(Some(place.clone()), message));
    }
    // Of a key that is not given, the place is that of the kind which wants it.
    let place = |key: &str| places.get(key).or_else(|| places.get("check")).cloned();
    let blame = |error: CheckError| source.error(place(error.key()), error.to_string());
    let (interval_ms, timeout_ms) = (raw.interval_ms.as_ref(), raw.timeout_ms.as_ref());
    let milliseconds = |value: Option<&Spanned<u32>>, usual: Duration| {
        value.map_or(usual, |value| Duration::from_millis((*value.get_ref()).into()))
    };
    let interval = milliseconds(interval_ms, Duration::from_secs(1));
    let timeout = milliseconds(timeout_ms, Duration::from_millis(800).min(interval));
    let count = |value: &Option<Spanned<u32>>, usual| value.as_ref().map_or(usual, |value| *value.get_ref());
    let (rise, fall) = (count(&raw.rise, 2), count(&raw.fall, 3));
    let check_port = raw.check_port.as_ref().map(|port| *port.get_ref());
    let settings = HealthCheck {
        check: settings(source, kind, raw).map_err(|error| match error {
            Refused::Check(error) => blame(error),
            Refused::Missing(key) => source.error(place("check"), format!("this check needs {key} = …")),
            Refused::File(path, error) => {
                source.error(place("ca"), format!("{} cannot be read: {error}", path.display()))
            }
        })?,
        check_port,
        interval,
        timeout,
        rise,
        fall,
    };
    for (address, port) in targets {
        settings.target("", *address, *port).validate().map_err(blame)?;
    }
    Ok(settings)
}

enum Refused {
    Check(CheckError),
    /// A key that the kind cannot do without.
    Missing(&'static str),
    File(PathBuf, std::io::Error),
}

impl From<CheckError> for Refused {
    fn from(error: CheckError) -> Self {
        Self::Check(error)
    }
}

fn value<T>(value: Option<Spanned<T>>) -> Option<T> {
    value.map(Spanned::into_inner)
}

fn settings(source: &Source<'_>, kind: Kind, raw: Raw) -> Result<Check, Refused> {
    Ok(match kind {
        Kind::None => Check::None,
        Kind::Ping => Check::Ping,
        Kind::Tcp => Check::Tcp(Tcp { reset: value(raw.reset).unwrap_or(false) }),
        Kind::Http => Check::Http(http(raw)?),
        Kind::Https => {
            let tls = tls(source, raw.verify.as_ref(), raw.ca.as_ref(), raw.server_name.as_ref())?;
            Check::Https(http(raw)?, tls)
        }
        Kind::Dns => {
            let usual = Dns::default();
            Check::Dns(Dns {
                name: value(raw.name).unwrap_or(usual.name),
                record: value(raw.record).map(|record| record.parse()).transpose()?.unwrap_or(usual.record),
                answer: value(raw.answer),
            })
        }
        Kind::Smtp => Check::Smtp(Smtp { helo: value(raw.helo).unwrap_or(Smtp::default().helo) }),
        Kind::Udp => Check::Udp(Udp {
            payload: value(raw.payload).unwrap_or_default().into_bytes(),
            reply: match (value(raw.expect), value(raw.expect_contains)) {
                (None | Some(Expect::Answer), Some(text)) => Reply::Contains(text.into_bytes()),
                (Some(Expect::Silence), Some(_)) => {
                    let problem = "cannot be expected together with expect = \"silence\"";
                    return Err(CheckError::Conflict { key: "expect_contains", problem }.into());
                }
                (Some(Expect::Answer), None) => Reply::Any,
                (None | Some(Expect::Silence), None) => Reply::NotRequired,
            },
        }),
        Kind::Exec => Check::Exec(Exec {
            program: value(raw.program).ok_or(Refused::Missing("program"))?,
            arguments: value(raw.arguments).unwrap_or_default(),
        }),
        Kind::Grpc => {
            let wanted = raw.tls.as_ref().is_some_and(|tls| *tls.get_ref());
            let told = [raw.verify.is_some(), raw.ca.is_some(), raw.server_name.is_some()].contains(&true);
            if told && !wanted {
                return Err(Refused::Missing("tls = true, since it has keys of TLS:"));
            }
            let settings =
                wanted.then(|| tls(source, raw.verify.as_ref(), raw.ca.as_ref(), raw.server_name.as_ref()));
            Check::Grpc(Grpc { service: value(raw.service).unwrap_or_default(), tls: settings.transpose()? })
        }
    })
}

fn http(raw: Raw) -> Result<Http, Refused> {
    let usual = Http::default();
    let body = match (value(raw.body_contains), value(raw.body_matches)) {
        (None, None) => None,
        (Some(text), None) => Some(Body::Contains(text)),
        (None, Some(pattern)) => Some(Body::matches(&pattern)?),
        (Some(_), Some(_)) => {
            let problem = "and body_contains exclude each other; write one of them";
            return Err(CheckError::Conflict { key: "body_matches", problem }.into());
        }
    };
    Ok(Http {
        method: match value(raw.method) {
            None | Some(RawMethod::Get) => Method::Get,
            Some(RawMethod::Head) => Method::Head,
        },
        path: value(raw.path).unwrap_or(usual.path),
        host: value(raw.host),
        status: value(raw.status).map(|status| status.parse()).transpose()?.unwrap_or(usual.status),
        body,
        max_body: value(raw.max_body).unwrap_or(usual.max_body),
    })
}

/// Verified only if asked for, by `verify` or by naming authorities: what keepalived and ldirectord do.
fn tls(
    source: &Source<'_>,
    verify: Option<&Spanned<bool>>,
    ca: Option<&Spanned<PathBuf>>,
    server_name: Option<&Spanned<String>>,
) -> Result<Tls, Refused> {
    let verify = match (verify.map(|verify| *verify.get_ref()), ca) {
        (Some(false), Some(_)) => {
            let problem = "is of no use with verify = false; leave one of them out";
            return Err(CheckError::Conflict { key: "ca", problem }.into());
        }
        (None | Some(true), Some(ca)) => Verify::Against(authorities(&source.relative(ca.get_ref()))?),
        (Some(true), None) => Verify::Against(Authorities::system()?),
        (None | Some(false), None) => Verify::No,
    };
    Ok(Tls::new(verify, server_name.map(|name| name.get_ref().clone()))?)
}

fn authorities(path: &Path) -> Result<Authorities, Refused> {
    let pem = std::fs::read(path).map_err(|error| Refused::File(path.to_owned(), error))?;
    Ok(Authorities::from_pem(&pem)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::super::Config;
    use crate::health::Check;

    fn parse(health: &str) -> Result<Option<super::HealthCheck>, String> {
        let text = format!(
            "[node]\nrouter_id = \"10.255.0.1\"\ninterfaces = [\"eth1\"]\n[[service]]\nname = \"a\"\n\
             vip = \"203.0.113.10\"\nport = 80\n[[service.real]]\naddress = \"10.0.2.11\"\n\
             [service.health]\n{health}\n"
        );
        // The interesting lines begin at 11.
        let config = Config::parse(Path::new("d.toml"), &text).map_err(|error| error.to_string())?;
        Ok(config.services["a"].health.clone())
    }

    #[test]
    fn every_kind_is_understood_with_its_own_keys() {
        for (text, name) in [
            ("check = \"tcp\"\nreset = true", "tcp"),
            ("check = \"http\"\npath = \"/up\"\nstatus = \"200-299, 401\"\nbody_matches = \"^ok\"", "http"),
            ("check = \"http\"\nmethod = \"HEAD\"\nhost = \"www.example\"", "http"),
            ("check = \"https\"\nserver_name = \"www.example\"\nverify = false", "https"),
            ("check = \"dns\"\nname = \"example.\"\nrecord = \"A\"\nanswer = \"192.0.2.1\"", "dns"),
            ("check = \"smtp\"\nhelo = \"director\"", "smtp"),
            ("check = \"udp\"\npayload = \"ping\"\nexpect_contains = \"pong\"", "udp"),
            ("check = \"ping\"", "ping"),
            ("check = \"exec\"\nprogram = \"/bin/true\"\narguments = [\"-v\"]", "exec"),
            ("check = \"grpc\"\nservice = \"web\"\ntls = true\nserver_name = \"a.example\"", "grpc"),
        ] {
            let check = parse(text).expect(text).expect(text);
            assert_eq!(check.check.name(), name);
        }
        assert_eq!(parse("check = \"none\""), Ok(None));
    }

    #[test]
    fn the_schedule_has_the_usual_values_where_none_are_given() {
        let usual = parse("check = \"tcp\"").expect("valid").expect("checked");
        assert_eq!((usual.interval, usual.timeout), (Duration::from_secs(1), Duration::from_millis(800)));
        assert_eq!((usual.rise, usual.fall, usual.check_port), (2, 3, None));
        let text = "check = \"tcp\"\ninterval_ms = 500\nrise = 1\nfall = 5\ncheck_port = 8080";
        let given = parse(text).expect("valid").expect("checked");
        assert_eq!((given.interval, given.timeout), (Duration::from_millis(500), Duration::from_millis(500)));
        assert_eq!((given.rise, given.fall, given.check_port), (1, 5, Some(8080)));
        assert!(matches!(given.check, Check::Tcp(_)));
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        for (text, place, part) in [
            ("check = \"telnet\"", "d.toml:11:9: ", "unknown variant `telnet`"),
            (
                "check = \"tcp\"\npath = \"/\"",
                "d.toml:12:8: ",
                "path is no key of this kind of check; it has reset",
            ),
            ("check = \"ping\"\nreset = true", "d.toml:12:9: ", "which has none of its own"),
            ("check = \"tcp\"\ncolour = 1", "d.toml:12:1: ", "unknown field `colour`"),
            ("check = \"tcp\"\nrise = 0", "d.toml:12:8: ", "rise must be greater than 0"),
            ("check = \"http\"\npath = \"up\"", "d.toml:12:8: ", "path \"up\""),
            ("check = \"http\"\nstatus = \"2xx\"", "d.toml:12:10: ", "status \"2xx\""),
            ("check = \"http\"\nbody_matches = \"(\"", "d.toml:12:16: ", "not a regular expression"),
            ("check = \"exec\"", "d.toml:11:9: ", "needs program"),
            ("check = \"exec\"\nprogram = \"true\"", "d.toml:12:11: ", "program \"true\""),
            ("check = \"https\"\nca = \"missing.pem\"", "d.toml:12:6: ", "missing.pem cannot be read"),
            ("check = \"grpc\"\nserver_name = \"a\"", "d.toml:11:9: ", "tls = true"),
            (
                "check = \"udp\"\nexpect = \"silence\"\nexpect_contains = \"a\"",
                "d.toml:13:19: ",
                "expect_contains cannot be expected",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(place) && error.contains(part), "{text}: {error}");
        }
    }
}
