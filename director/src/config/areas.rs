//! `area`, `area_type`, `external` and `aggregate` of `[ospf]`: which areas there are, and what is announced in them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use routing::{AnnounceAs, AreaKind, ExternalConfig, MetricType};
use toml::Spanned;

use super::{ConfigError, Service, Source, file};

fn kind(word: file::AreaType) -> AreaKind {
    match word {
        file::AreaType::Normal => AreaKind::Normal,
        file::AreaType::Stub => AreaKind::Stub,
        file::AreaType::TotallyStubby => AreaKind::TotallyStubby,
        file::AreaType::Nssa => AreaKind::Nssa,
    }
}

/// The areas of the interfaces, each with one type.
#[derive(Default)]
pub(super) struct Areas(BTreeMap<Ipv4Addr, AreaKind>);

impl Areas {
    /// Area and type of an interface: its own, or else those of `[ospf]`. An area of its own is normal unless it says
    /// otherwise.
    pub(super) fn of(
        &mut self,
        source: &Source<'_>,
        ospf: (&Spanned<Ipv4Addr>, Option<&Spanned<file::AreaType>>),
        own: (Option<&Spanned<Ipv4Addr>>, Option<&Spanned<file::AreaType>>),
    ) -> Result<(Ipv4Addr, AreaKind), ConfigError> {
        let area = own.0.unwrap_or(ospf.0);
        let inherited = ospf.1.filter(|_| area.get_ref() == ospf.0.get_ref());
        let word = own.1.or(inherited);
        let kind = word.map_or(AreaKind::Normal, |word| kind(*word.get_ref()));
        if let Some(word) = word.filter(|_| kind != AreaKind::Normal && area.get_ref().is_unspecified()) {
            let message = "area 0.0.0.0 is the backbone, which is always normal; set `area` to the area's id";
            return Err(source.at(word, message));
        }
        let known = *self.0.entry(*area.get_ref()).or_insert(kind);
        if known != kind {
            let message =
                format!("area {} has two types; give its interfaces the same area_type", area.get_ref());
            return Err(match word {
                Some(word) => source.at(word, message),
                None => source.at(area, message),
            });
        }
        Ok((*area.get_ref(), kind))
    }
}

/// A service that is announced as external needs an area that takes it.
pub(super) fn check_services(
    mut areas: impl Iterator<Item = AreaKind>,
    services: &BTreeMap<String, Service>,
) -> Result<(), String> {
    let external = services.iter().find(|(_, service)| service.announce == AnnounceAs::External);
    match external {
        Some((name, _)) if !areas.any(AreaKind::takes_externals) => Err(format!(
            "service {name:?} is announced as \"external\", but all areas are stub areas, which take no external routes; use announce = \"stub\", or area_type = \"nssa\""
        )),
        _ => Ok(()),
    }
}

/// `external`
pub(super) fn external(
    source: &Source<'_>,
    entry: Option<&file::External>,
) -> Result<ExternalConfig, ConfigError> {
    let Some(entry) = entry else { return Ok(ExternalConfig::default()) };
    let metric_type = match entry.metric_type.get_ref() {
        1 => MetricType::One,
        2 => MetricType::Two,
        other => {
            let message = format!(
                "external type {other} does not exist; use 1 (the way to us counts) or 2 (the metric alone counts)"
            );
            return Err(source.at(&entry.metric_type, message));
        }
    };
    Ok(ExternalConfig { metric_type, tag: entry.tag })
}

/// `aggregate`
pub(super) fn aggregates(source: &Source<'_>, entries: &[Spanned<IpNet>]) -> Result<Vec<IpNet>, ConfigError> {
    let mut all: Vec<IpNet> = Vec::new();
    for entry in entries {
        let pool = entry.get_ref();
        if *pool != pool.trunc() {
            return Err(source.at(entry, format!("{pool} has host bits set; write {}", pool.trunc())));
        }
        if let Some(other) = all.iter().find(|other| other.contains(pool) || pool.contains(*other)) {
            return Err(source.at(entry, format!("{pool} overlaps with {other}; keep one of the two")));
        }
        all.push(*pool);
    }
    Ok(all)
}
