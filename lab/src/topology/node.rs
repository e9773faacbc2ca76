//! Node definitions: which fields of containerlab are honoured, and how a node inherits them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::document::Value;
use super::error::TopologyError;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A host with its own network, mounts and host name.
    Linux,
    /// A Linux bridge of all its links, in a namespace of its own.
    Bridge,
}

/// A file or folder of the host that a node sees.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the node.
    pub target: PathBuf,
    /// Whether the node may not write it.
    pub read_only: bool,
}

/// One node, everything inherited and resolved.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// Name in the topology.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The container image that containerlab would use; not used on namespaces.
    pub image: Option<String>,
    /// Group it inherits from.
    pub group: Option<String>,
    /// Host name; the node's name by default.
    pub hostname: String,
    /// Commands to run when all links are up, split into words.
    pub exec: Vec<Vec<String>>,
    /// Mounts from the host.
    pub binds: Vec<Bind>,
    /// Environment of every command of the node.
    pub env: BTreeMap<String, String>,
    /// Kernel parameters, by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// Free labels, shown by `inspect`.
    pub labels: BTreeMap<String, String>,
}

/// One definition as written: a node, or what nodes inherit from.
#[derive(Debug, Clone, Default)]
pub(super) struct Definition {
    pub(super) kind: Option<String>,
    pub(super) group: Option<String>,
    image: Option<String>,
    hostname: Option<String>,
    exec: Vec<Vec<String>>,
    binds: Vec<(Value, String)>,
    env: BTreeMap<String, String>,
    sysctls: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

const HONOURED: &str = "kind, image, group, hostname, exec, binds, env, sysctls, labels, network-mode (none), \
                        privileged (true)";

/// Fields of containerlab that need a container engine, a vendor's image or a management network.
const ENGINE_ONLY: &[&str] = &[
    "image-pull-policy",
    "restart-policy",
    "license",
    "type",
    "startup-config",
    "startup-delay",
    "enforce-startup-config",
    "suppress-startup-config",
    "auto-remove",
    "volumes",
    "ports",
    "credentials",
    "env-files",
    "user",
    "entrypoint",
    "cmd",
    "runtime",
    "mgmt-ipv4",
    "mgmt-ipv6",
    "link-apply-mode",
    "cpu",
    "memory",
    "cpu-set",
    "extras",
    "config",
    "stages",
    "dns",
    "certificate",
    "healthcheck",
    "components",
    "aliases",
    "shm-size",
    "cap-add",
    "cgroupns-mode",
    "cgroup-parent",
    "pid-mode",
    "tmpfs",
    "security-opts",
    "devices",
];

impl Definition {
    pub(super) fn parse(value: &Value) -> Result<Self, TopologyError> {
        let mut definition = Self::default();
        for (key, item) in value.map()? {
            definition.field(key, item)?;
        }
        Ok(definition)
    }

    fn field(&mut self, key: &str, item: &Value) -> Result<(), TopologyError> {
        match key {
            "kind" => self.kind = Some(item.text()?.to_owned()),
            "group" => self.group = Some(item.text()?.to_owned()),
            "image" => self.image = Some(item.text()?.to_owned()),
            "hostname" => self.hostname = Some(without_magic(item)?.to_owned()),
            "exec" => self.exec = item.list()?.iter().map(words).collect::<Result<_, _>>()?,
            "binds" => {
                for bind in item.list()? {
                    self.binds.push((bind.clone(), bind.text()?.to_owned()));
                }
            }
            "env" => self.env = strings(item)?,
            "sysctls" => {
                self.sysctls = strings(item)?;
                if let Some(key) =
                    self.sysctls.keys().find(|key| !key.starts_with("net.") || key.contains(".."))
                {
                    return Err(
                        item.invalid(format!("{key}: only net.* belongs to a node; the rest is the host's"))
                    );
                }
            }
            "labels" => self.labels = strings(item)?,
            "network-mode" if item.text()? == "none" => {}
            "network-mode" => {
                let reason = "only `none` is, since there is no management network to attach to";
                return Err(TopologyError::NotHonoured(item.place.clone(), reason));
            }
            "privileged" if item.text()? == "true" => {}
            "privileged" => {
                let reason = "every node has all privileges; write `true` or leave it out";
                return Err(TopologyError::NotHonoured(item.place.clone(), reason));
            }
            engine if ENGINE_ONLY.contains(&engine) => {
                let reason = "it needs a container engine; remove it or deploy this file with containerlab";
                return Err(TopologyError::NotHonoured(item.place.clone(), reason));
            }
            _ => return Err(TopologyError::Unknown(item.place.clone(), HONOURED.to_owned())),
        }
        Ok(())
    }
}

/// Makes the node `name` from what it inherits, weakest first: defaults, its kind, its group, itself.
pub(super) fn resolve(
    name: &str,
    place: &Value,
    chain: &[&Definition],
    folder: &Path,
) -> Result<Node, TopologyError> {
    let mut node = Node {
        name: name.to_owned(),
        kind: Kind::Linux,
        image: None,
        group: None,
        hostname: name.to_owned(),
        exec: Vec::new(),
        binds: Vec::new(),
        env: BTreeMap::new(),
        sysctls: BTreeMap::new(),
        labels: BTreeMap::new(),
    };
    let mut kind = None;
    for definition in chain {
        kind = definition.kind.clone().or(kind);
        node.image = definition.image.clone().or(node.image);
        node.group = definition.group.clone().or(node.group);
        node.hostname = definition.hostname.clone().unwrap_or(node.hostname);
        node.exec.extend(definition.exec.iter().cloned());
        node.env.extend(definition.env.clone());
        node.sysctls.extend(definition.sysctls.clone());
        node.labels.extend(definition.labels.clone());
        for (value, text) in &definition.binds {
            let bind = parse_bind(value, text, name, folder)?;
            node.binds.retain(|known| known.target != bind.target);
            node.binds.push(bind);
        }
    }
    node.kind = match kind.as_deref() {
        Some("linux") => Kind::Linux,
        Some("bridge") => Kind::Bridge,
        Some(other) => {
            return Err(place.invalid(format!("kind {other} needs its vendor's image; here: linux, bridge")));
        }
        None => return Err(place.invalid("has no kind; here: linux, bridge")),
    };
    if node.kind == Kind::Bridge && !(node.exec.is_empty() && node.binds.is_empty()) {
        return Err(place.invalid("a bridge runs nothing: move exec and binds to a linux node"));
    }
    Ok(node)
}

/// `source:target[:ro|rw]`; the source relative to the topology file, `__clabNodeName__` allowed.
fn parse_bind(value: &Value, text: &str, name: &str, folder: &Path) -> Result<Bind, TopologyError> {
    let text = text.replace("__clabNodeName__", name);
    if text.contains("__clab") {
        return Err(
            value.invalid(format!("{text}: of the magic variables only __clabNodeName__ is known here"))
        );
    }
    if let Some(at) = text.find('$') {
        return Err(
            value.invalid(format!("{}: variable is not set; set it or give it a default", &text[at..]))
        );
    }
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [source, target] => (*source, *target, "rw"),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(value.invalid(format!("{text}: must be source:target[:ro|rw]"))),
    };
    let read_only = match mode {
        "ro" => true,
        "rw" => false,
        other => {
            return Err(value.invalid(format!("{text}: bind option {other} is not honoured; here: ro, rw")));
        }
    };
    let target = PathBuf::from(target);
    if !target.is_absolute()
        || target.components().any(|part| matches!(part, std::path::Component::ParentDir))
    {
        return Err(value.invalid(format!("{text}: the path in the node must be absolute, without `..`")));
    }
    Ok(Bind { source: folder.join(source), target, read_only })
}

/// A command line split as containerlab splits it: words and quotes, no shell.
fn words(item: &Value) -> Result<Vec<String>, TopologyError> {
    let line = without_magic(item)?;
    let words = shlex::split(line).ok_or_else(|| item.invalid("unbalanced quotes"))?;
    if words.is_empty() {
        return Err(item.invalid("an empty command"));
    }
    Ok(words)
}

fn without_magic(item: &Value) -> Result<&str, TopologyError> {
    let text = item.text()?;
    if text.contains("__clab") {
        return Err(item.invalid("magic variables are honoured in binds only"));
    }
    Ok(text)
}

fn strings(value: &Value) -> Result<BTreeMap<String, String>, TopologyError> {
    value.map()?.iter().map(|(key, item)| Ok((key.clone(), without_magic(item)?.to_owned()))).collect()
}
