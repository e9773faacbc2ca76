//! Services as the cluster agrees on them: each one's part of the file, as text that every director reads by the same
//! rules as a file.
//!
//! What travels are the operator's own words, keys in order and comments left out, and not what was made of them: so a
//! director of another release refuses a key that it does not know rather than lose it, and relative file names
//! start from the folder of the configuration that each director has.
//!
//! Commands do not travel: a director whose check is `exec` runs what its own file says, or serves nothing of the kind. Else
//! whoever has the certificate of one director could run anything on all of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use director_proto::definitions::Definitions;
use director_proto::tables::{Digest, MAX_DEFINITION};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use crate::health::Check;

use super::{Config, ConfigError, Ospf, Service, Source, announces_ipv6, file, service};

/// Definitions of some services, one after the other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    #[serde(default)]
    service: Vec<file::Service>,
}

/// What is written of each service in a file that has been read already.
pub(super) fn definitions(source: &Source<'_>) -> Result<Definitions, ConfigError> {
    let unreadable = |problem: &dyn std::fmt::Display| source.error(None, problem.to_string());
    let mut table: Table = toml::from_str(source.text).map_err(|error| unreadable(&error))?;
    let Some(Value::Array(services)) = table.remove("service") else { return Ok(Definitions::new()) };
    let mut definitions = Definitions::new();
    for service in services {
        let name = service.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let section = Table::from_iter([("service".to_owned(), Value::Array(vec![service]))]);
        let text = toml::to_string(&section).map_err(|error| unreadable(&error))?;
        if text.len() > MAX_DEFINITION {
            let message = format!(
                "service {name:?} takes {} bytes, at most {MAX_DEFINITION} can be told to the other directors; leave out \
                 real servers",
                text.len()
            );
            return Err(unreadable(&message));
        }
        definitions.insert(name, text.into());
    }
    director_proto::definitions::check_size(&definitions).map_err(|error| unreadable(&error))?;
    Ok(definitions)
}

impl Config {
    /// This configuration with other services than its own: those that the cluster has agreed on, or that somebody
    /// wishes. `path` is that of this configuration's file.
    ///
    /// # Errors
    /// Why this director cannot serve them beside what it has configured itself, with the name of the service.
    pub fn with_definitions(&self, path: &Path, definitions: &Arc<Definitions>) -> Result<Self, String> {
        let services = match *definitions == self.definitions {
            true => self.services.clone(),
            false => self.parse_services(path, definitions)?,
        };
        let ospf = self.ospf.as_ref().map(|ospf| ospf.with_services(&services)).transpose()?;
        Ok(Self { ospf, services, definitions: Arc::clone(definitions), ..self.clone() })
    }

    fn parse_services(
        &self,
        path: &Path,
        definitions: &Definitions,
    ) -> Result<BTreeMap<String, Service>, String> {
        let text: String = definitions.values().map(|text| &**text).collect();
        let source = Source { path, text: &text };
        let read = || -> Result<_, ConfigError> {
            let sections: Sections = toml::from_str(&text)
                .map_err(|error| source.error(error.span(), error.message().trim_end().to_owned()))?;
            service::services(&source, sections.service, &self.node)
        };
        let services = read().map_err(|error| match place(definitions, &error) {
            Some(name) => format!("service {name:?}: {}", error.message),
            None => error.message,
        })?;
        match services.keys().eq(definitions.keys()) {
            true => {
                services.into_iter().map(|(name, service)| self.with_own_command(name, service)).collect()
            }
            false => Err("the definitions are not of the services that they are said to be of".to_owned()),
        }
    }

    /// The service with the command that this file has for its check, if it is checked by one.
    fn with_own_command(&self, name: String, mut service: Service) -> Result<(String, Service), String> {
        if let Some(health) = service.health.as_mut().filter(|health| matches!(health.check, Check::Exec(_)))
        {
            let own = self.services.get(&name).and_then(|own| own.health.as_ref()).map(|own| &own.check);
            match own.filter(|own| matches!(own, Check::Exec(_))) {
                Some(own) => health.check = own.clone(),
                None => {
                    return Err(format!(
                        "service {name:?}: it is checked by a command, and this director runs only those of \
                         its own file; write the service with its check into that file and reload it"
                    ));
                }
            }
        }
        Ok((name, service))
    }

    /// The definitions of these services, in the words of `other` where both say the same.
    pub fn in_words_of(&self, other: &Self) -> Arc<Definitions> {
        let word = |(name, text): (&String, &Arc<str>)| {
            let same = self.services.get(name) == other.services.get(name);
            let text = other.definitions.get(name).filter(|_| same).unwrap_or(text);
            (name.clone(), Arc::clone(text))
        };
        Arc::new(self.definitions.iter().map(word).collect())
    }

    /// Digest of what all directors must say alike: services, their checks and their real servers.
    pub fn services_digest(&self) -> Digest {
        let mut hash = Sha256::new();
        for (name, service) in &self.services {
            let check = self.definitions.get(name).map(|text| written_check(text)).unwrap_or_default();
            hash.update(format!("{name:?} {} {check:?}\n", service.canonical()).as_bytes());
        }
        Digest(hash.finalize().into())
    }
}

/// The checks as they are written, without the commands: what is made of them has the folder of the file in it.
fn written_check(definition: &str) -> String {
    let table = toml::from_str::<Table>(definition).ok();
    let check = table.as_ref().and_then(|table| table.get("service")?.get(0)?.get("health")).cloned();
    let Some(mut check) = check else { return String::new() };
    if let Value::Table(keys) = &mut check {
        keys.remove("program");
        keys.remove("arguments");
    }
    check.to_string()
}

/// The service whose text has the place of an error.
fn place<'a>(definitions: &'a Definitions, error: &ConfigError) -> Option<&'a str> {
    let (line, _) = error.place?;
    let mut last = 0;
    let (name, _) = definitions.iter().find(|(_, text)| {
        last += text.matches('\n').count();
        line <= last
    })?;
    Some(name)
}

impl Ospf {
    /// What it says beside other services.
    fn with_services(&self, services: &BTreeMap<String, Service>) -> Result<Self, String> {
        let kinds = self.interfaces.iter().map(|interface| interface.area_kind);
        super::areas::check_services(kinds, services)?;
        for (name, service) in services {
            if let Some(own) = self.announce.iter().find(|own| service.prefixes().contains(*own)) {
                return Err(format!(
                    "service {name:?}: its VIP {own} is in `announce` of this director's [ospf]; leave it out there"
                ));
            }
        }
        let ipv6 = self.ipv6_wanted.unwrap_or_else(|| announces_ipv6(self.announce.iter(), services));
        Ok(Self { ipv6, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use director_proto::definitions::Definitions;

    use crate::config::Config;

    const TEXT: &str = r#"
[node]
router_id = "10.255.0.1"
interfaces = ["eth1"]
[ospf]
announce = ["10.255.0.1/32"]
[[ospf.interface]]
name = "eth1"
[[service]] # of the shop
vip = "203.0.113.10"
name = "web"
port = 80
health = { check = "tcp", interval_ms = 500 }
[[service.real]]
address = "10.0.2.11"
weight = 2
[[service]]
name = "dns"
vip = "203.0.113.10"
protocol = "udp"
port = 53
"#;

    fn parse(text: &str) -> Config {
        Config::parse(Path::new("/etc/director/director.toml"), text).expect("valid")
    }

    fn with(config: &Config, definitions: &Arc<Definitions>) -> Result<Config, String> {
        config.with_definitions(Path::new("/etc/director/director.toml"), definitions)
    }

    #[test]
    fn definitions_make_the_services_that_they_were_made_of_beside_other_sections() {
        let one = parse(TEXT);
        let other = parse("[node]\nrouter_id = \"10.255.0.2\"\ninterfaces = [\"eth7\"]\n");
        let agreed = with(&other, &one.definitions).expect("no conflict");
        assert_eq!((&agreed.services, &agreed.node), (&one.services, &other.node));
        assert_eq!(agreed.services_digest(), one.services_digest());
        let web = &one.definitions["web"];
        assert!(web.starts_with("[[service]]\n") && !web.contains("of the shop"), "{web}");
        assert_eq!(with(&one, &Arc::default()).map(|config| config.services.len()), Ok(0));
    }

    #[test]
    fn defaults_that_are_written_make_no_difference_and_checks_do() {
        let one = parse(TEXT);
        let same = parse(&TEXT.replace("port = 80", "port = 80\nprotocol = \"tcp\"\nmetric = 10"));
        assert_eq!(one.services_digest(), same.services_digest());
        assert_ne!(one.definitions, same.definitions);
        assert_eq!(same.in_words_of(&one), one.definitions);
        let slower = parse(&TEXT.replace("500", "600"));
        assert_ne!(one.services_digest(), slower.services_digest());
        assert_eq!(slower.in_words_of(&one)["dns"], one.definitions["dns"]);
        assert_eq!(slower.in_words_of(&one)["web"], slower.definitions["web"]);
    }

    #[test]
    fn what_a_director_cannot_serve_is_refused_by_the_name_of_the_service() {
        let config = parse(TEXT);
        let text = |name: &str, from: &str, to: &str| {
            let mut definitions = (*config.definitions).clone();
            let text: Arc<str> = definitions[name].replace(from, to).into();
            definitions.insert(name.to_owned(), text);
            with(&config, &Arc::new(definitions)).map(drop)
        };
        let refused = |name: &str, from: &str, to: &str| text(name, from, to).expect_err("refused");
        assert!(
            refused("web", "port = 80", "prot = 80").starts_with("service \"web\": unknown field `prot`")
        );
        let refused_vip = refused("web", "203.0.113.10", "10.255.0.1");
        assert!(refused_vip.contains("in `announce` of this director's [ospf]"), "{refused_vip}");
        let shadowed = refused("web", "port = 80", "port = 53\nprotocol = \"udp\"");
        assert!(shadowed.contains("have the same address"), "{shadowed}");
        assert!(refused("web", "name = \"web\"", "name = \"other\"").contains("said to be of"));
        let exec = |command: &str| format!("{{ check = \"exec\", program = \"{command}\" }}");
        let tcp = "health = { check = \"tcp\", interval_ms = 500 }";
        let health = "[service.health]\ncheck = \"tcp\"\ninterval_ms = 500\n";
        assert!(config.definitions["web"].contains(health), "{}", config.definitions["web"]);
        let theirs = "[service.health]\ncheck = \"exec\"\nprogram = \"/bin/false\"\n";
        assert!(refused("web", health, theirs).contains("only those of its own file; write the service"));
        let own = parse(&TEXT.replace(tcp, &format!("health = {}", exec("/bin/true"))));
        let other = parse(&TEXT.replace(tcp, &format!("health = {}", exec("/bin/false"))));
        assert_ne!(own.definitions, other.definitions);
        assert_eq!(with(&own, &other.definitions).map(|config| config.services), Ok(own.services.clone()));
        assert_eq!(own.services_digest(), other.services_digest());
        let tunnel = refused("web", "port = 80", "port = 80\nforwarding = \"tunnel\"");
        assert!(tunnel.starts_with("service \"web\": ") && tunnel.contains("tunnel_source"), "{tunnel}");
    }
}
