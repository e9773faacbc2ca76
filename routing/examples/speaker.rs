//! A speaker to run by hand in a network namespace, and in the integration tests.
//!
//! `speaker ROUTER_ID [-4] [-6] INTERFACE... [PREFIX=METRIC...]`, where an interface is
//! `NAME:p2p|broadcast[:hello=S][:dead=S][:cost=N][:priority=N][:area=A][:instance=N][:stub|:totally-stubby|:nssa]`
//! `[:passive][:bfd=MS*MULTIPLIER][:ttl-security][:password=TEXT][:key=KEY]...`, and `KEY` is
//! `ID,ALGORITHM,SECRET[,SEND_FROM[,SEND_UNTIL[,swapped]]]` with times in seconds since 1970, which may be empty.
//! Options: `--e1` and `--tag=N` for external prefixes, `--aggregate=PREFIX`. A metric that ends in `e` is that of an
//! external prefix. It speaks OSPFv2, with `-6` OSPFv3 in its place, with `-4 -6` both. Commands come on
//! standard input, one a line: `announce PREFIX=METRIC...` (the whole set), `keys NAME KEY...` (the whole
//! set of an interface), `reconfigure INTERFACE...`, `status` (prints JSON), `stop`, `keep`,
//! `restart SECONDS` (ends it gracefully, and prints what to start the successor with: `--resume=JSON`; or prints why
//! not, as a JSON string). The end of the input stops it, too.

use std::{
    collections::BTreeMap,
    error::Error,
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use routing::{
    Announcement, AreaKind, Authentication, BfdConfig, Config, InterfaceConfig, Key, MetricType, Network,
    Secret, Stop, Window,
};
use tokio::io::{AsyncBufReadExt, BufReader};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn interface(spec: &str) -> Result<InterfaceConfig> {
    let mut parts = spec.split(':');
    let name = parts.next().unwrap_or_default();
    let network = match parts.next() {
        Some("p2p") => Network::PointToPoint,
        Some("broadcast") => Network::Broadcast,
        other => return Err(format!("{spec}: {other:?} is neither p2p nor broadcast").into()),
    };
    let mut config = InterfaceConfig::new(name, network);
    let mut keys = Vec::new();
    for part in parts {
        match part.split_once('=').unwrap_or((part, "")) {
            ("hello", value) => config.hello_interval = value.parse()?,
            ("dead", value) => config.dead_interval = value.parse()?,
            ("cost", value) => config.cost = value.parse()?,
            ("priority", value) => config.priority = value.parse()?,
            ("area", value) => config.area = value.parse()?,
            ("instance", value) => config.instance = value.parse()?,
            ("bfd", value) => config.bfd = Some(bfd(value)?),
            ("stub", "") => config.area_kind = AreaKind::Stub,
            ("totally-stubby", "") => config.area_kind = AreaKind::TotallyStubby,
            ("nssa", "") => config.area_kind = AreaKind::Nssa,
            ("passive", "") => config.passive = true,
            ("ttl-security", "") => config.ttl_security = true,
            ("password", text) => config.authentication = Authentication::Simple(Secret::new(text)),
            ("key", spec) => keys.push(key(spec)?),
            _ => return Err(format!("{spec}: unknown part {part:?}").into()),
        }
    }
    if !keys.is_empty() {
        config.authentication = Authentication::Keys(keys);
    }
    Ok(config)
}

/// `50*3`: 50 ms, three times.
fn bfd(value: &str) -> Result<BfdConfig> {
    let (interval, multiplier) =
        value.split_once('*').ok_or_else(|| format!("bfd={value}: expected MS*MULTIPLIER"))?;
    Ok(BfdConfig { interval: Duration::from_millis(interval.parse()?), multiplier: multiplier.parse()? })
}

fn key(spec: &str) -> Result<Key> {
    let mut parts = spec.split(',');
    let mut part = |what| parts.next().ok_or_else(|| format!("{spec}: the {what} is missing"));
    let (id, algorithm) = (part("id")?.parse()?, part("algorithm")?.parse()?);
    let secret = Secret::new(part("secret")?);
    let mut time = || parts.next().filter(|text| !text.is_empty()).map(str::parse).transpose();
    let send = Window { from: time()?, until: time()? };
    let swapped_protocol_id = parts.next() == Some("swapped");
    Ok(Key { send, swapped_protocol_id, ..Key::new(id, algorithm, secret) })
}

fn prefixes<'a>(words: impl Iterator<Item = &'a str>) -> Result<BTreeMap<IpNet, Announcement>> {
    let prefix = |word: &str| -> Result<(IpNet, Announcement)> {
        let (net, metric) = word.split_once('=').ok_or_else(|| format!("{word}: expected PREFIX=METRIC"))?;
        let external = metric.strip_suffix('e');
        let metric = external.unwrap_or(metric).parse()?;
        let as_external = external.is_some();
        let announcement = if as_external { Announcement::external } else { Announcement::stub };
        Ok((net.parse()?, announcement(metric)))
    };
    words.map(prefix).collect()
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (router, rest) =
        arguments.split_first().ok_or("usage: speaker ROUTER_ID INTERFACE... PREFIX=METRIC...")?;
    let router: Ipv4Addr = router.parse()?;
    let is_prefix = |word: &&String| word.contains('/') && !word.starts_with('-');
    let interfaces = rest
        .iter()
        .filter(|word| !is_prefix(word) && !word.starts_with('-'))
        .map(|word| interface(word))
        .collect::<Result<Vec<_>>>()?;
    let announced = prefixes(rest.iter().filter(is_prefix).map(String::as_str))?;
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos();
    let says = |option: &str| rest.iter().any(|word| word == option);
    let (ipv4, ipv6) = (says("-4") || !says("-6"), says("-6"));
    let mut config = Config { ipv4, ipv6, ..Config::new(router, interfaces) };
    let mut graces: Vec<routing::Grace> = Vec::new();
    for option in rest.iter().filter(|word| word.starts_with("--")) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("--e1", "") => config.external.metric_type = MetricType::One,
            ("--tag", value) => config.external.tag = value.parse()?,
            ("--resume", json) => graces = serde_json::from_str(json)?,
            ("--aggregate", value) => config.aggregates.push(value.parse()?),
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    let (handle, task) = routing::spawn(config.clone(), seed)?;
    handle.announce(announced)?;
    handle.resume(&graces);
    handle.enable();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut stop = Stop::Flush;
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("announce") => handle.announce(prefixes(words)?)?,
            Some("keys") => {
                let name = words.next().unwrap_or_default();
                let keys = words.map(key).collect::<Result<_>>()?;
                handle.authenticate(name, Authentication::Keys(keys))?;
            }
            Some("reconfigure") => {
                let interfaces = words.map(interface).collect::<Result<_>>()?;
                match handle.reconfigure(Config { interfaces, ..config.clone() }) {
                    Ok(changes) => eprintln!("{changes:?}"),
                    Err(error) => eprintln!("{error}"),
                }
            }
            Some("status") => println!("{}", serde_json::to_string(&handle.status().await)?),
            Some("restart") => {
                match handle.prepare_restart(words.next().unwrap_or_default().parse()?).await {
                    Ok(graces) => {
                        println!("{}", serde_json::to_string(&graces)?);
                        stop = Stop::Keep;
                        break;
                    }
                    Err(error) => println!("{}", serde_json::to_string(&error.to_string())?),
                }
            }
            Some("stop") => break,
            Some("keep") => {
                stop = Stop::Keep;
                break;
            }
            other => eprintln!("unknown command {other:?}"),
        }
    }
    handle.shutdown(stop).await;
    task.await?;
    Ok(())
}
