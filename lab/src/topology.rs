//! Topology files of containerlab.
//!
//! The same file deploys with containerlab and with this crate's runner. What the runner cannot honour is an error
//! that names the field, its line and the remedy: a lab that silently differs from its file would make every test on
//! it a lie. `image` is the one exception, and `lab up` says so: nodes use the host's own file system.

mod document;
mod error;
mod link;
mod node;
mod substitute;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use document::Value;
pub use error::{Place, TopologyError};
pub use link::{DEFAULT_MTU, Endpoint, Link};
use node::Definition;
pub use node::{Bind, Kind, Node};

/// A topology file, checked and resolved.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Topology {
    /// Name of the lab.
    pub name: String,
    /// Prefix of node names outside the lab; `clab` by default.
    pub prefix: String,
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// Nodes in file order.
    pub nodes: Vec<Node>,
    /// Links in file order.
    pub links: Vec<Link>,
}

impl Topology {
    /// Reads and checks a topology file; variables come from this process's environment.
    ///
    /// # Errors
    /// [`TopologyError`], with the file, line, column and path of what is wrong.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, TopologyError> {
        Self::load_with(path, &|name| std::env::var(name).ok())
    }

    /// Like [`Topology::load`], with the variables that `lookup` knows.
    ///
    /// # Errors
    /// As [`Topology::load`].
    pub fn load_with(
        path: impl AsRef<Path>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, TopologyError> {
        let read = |source| TopologyError::Read { file: path.as_ref().to_owned(), source };
        let file = path.as_ref().canonicalize().map_err(read)?;
        let text = std::fs::read_to_string(&file).map_err(read)?;
        Self::parse(&text, &file, lookup).map_err(|source| TopologyError::InFile {
            file: path.as_ref().to_owned(),
            source: Box::new(source),
        })
    }

    /// Parses the text of a topology file that stands (or could stand) at the absolute path `file`.
    ///
    /// # Errors
    /// As [`Topology::load`], without the file's name.
    pub fn parse(
        text: &str,
        file: &Path,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, TopologyError> {
        if let Some(line) =
            text.lines().position(|line| !line.trim_start().starts_with('#') && line.contains("{{"))
        {
            let place = Place { path: "document".to_owned(), line: line.saturating_add(1), column: 1 };
            return Err(TopologyError::NotHonoured(place, "Go templates; render the file first"));
        }
        let document = document::parse(&substitute::expand(text, lookup))?;
        build(&document, file)
    }

    /// The same topology as a lab of another name, so that two can run side by side.
    ///
    /// # Errors
    /// When it is no name for a lab.
    pub fn renamed(mut self, name: &str) -> Result<Self, TopologyError> {
        let place = Place { path: "name".to_owned(), line: 1, column: 1 };
        self.name = checked_name(&Value { place, data: document::Data::Null }, name)?;
        Ok(self)
    }

    /// The node called `name`.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The name of `node` outside the lab, as `ip netns` and containerlab show it.
    #[must_use]
    pub fn long_name(&self, node: &str) -> String {
        match self.prefix.as_str() {
            "" => node.to_owned(),
            "__lab-name" => format!("{}-{node}", self.name),
            prefix => format!("{prefix}-{}-{node}", self.name),
        }
    }
}

fn build(document: &Value, file: &Path) -> Result<Topology, TopologyError> {
    let mut name = None;
    let mut prefix = "clab".to_owned();
    let mut topology = None;
    for (key, item) in document.map()? {
        match key.as_str() {
            "name" => name = Some(checked_name(item, item.text()?)?),
            "prefix" => prefix = item.text().map_or_else(|_| String::new(), str::to_owned),
            "topology" => topology = Some(item),
            "mgmt" => {
                return Err(TopologyError::NotHonoured(
                    item.place.clone(),
                    "there is no management network; remove it",
                ));
            }
            "settings" | "debug" => {
                return Err(TopologyError::NotHonoured(
                    item.place.clone(),
                    "it is for containerlab itself; remove it",
                ));
            }
            _ => return Err(TopologyError::Unknown(item.place.clone(), "name, prefix, topology".to_owned())),
        }
    }
    let name = name.ok_or_else(|| document.invalid("the lab needs a `name`"))?;
    let topology = topology.ok_or_else(|| document.invalid("the lab needs a `topology`"))?;
    if !prefix.is_empty() && prefix != "__lab-name" {
        checked_name(document, &prefix)?;
    }
    let nodes = build_nodes(topology, file.parent().unwrap_or(Path::new("/")))?;
    let links = build_links(&name, topology, &nodes)?;
    Ok(Topology { name, prefix, file: file.to_owned(), nodes, links })
}

/// A name that may become part of a path.
fn checked_name(value: &Value, name: &str) -> Result<String, TopologyError> {
    let rest_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let sound = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(rest_fine);
    if !sound || name.len() > 64 {
        return Err(value.invalid(format!(
            "{name}: a name is 1 to 64 letters, digits, - _ . and begins with a letter or digit"
        )));
    }
    Ok(name.to_owned())
}

fn build_nodes(topology: &Value, folder: &Path) -> Result<Vec<Node>, TopologyError> {
    let mut defaults = Definition::default();
    let mut kinds = BTreeMap::new();
    let mut groups = BTreeMap::new();
    let mut written = Vec::new();
    for (key, item) in topology.map()? {
        match key.as_str() {
            "defaults" => defaults = Definition::parse(item)?,
            "kinds" => kinds = named(item)?,
            "groups" => groups = named(item)?,
            "nodes" => written = item.map()?.iter().collect(),
            "links" => {}
            _ => {
                return Err(TopologyError::Unknown(
                    item.place.clone(),
                    "defaults, kinds, groups, nodes, links".to_owned(),
                ));
            }
        }
    }
    let empty = Definition::default();
    let mut nodes = Vec::new();
    for (name, value) in written {
        checked_name(value, name)?;
        let own = Definition::parse(value)?;
        let group = match own.group.as_ref().or(defaults.group.as_ref()) {
            None => &empty,
            // containerlab's groups are free labels unless the file defines them.
            Some(group) => groups.get(group).unwrap_or(&empty),
        };
        let kind = own.kind.as_ref().or(group.kind.as_ref()).or(defaults.kind.as_ref());
        let kind = kind.and_then(|kind| kinds.get(kind)).unwrap_or(&empty);
        nodes.push(node::resolve(name, value, &[&defaults, kind, group, &own], folder)?);
    }
    if nodes.is_empty() {
        return Err(topology.invalid("a lab needs at least one node"));
    }
    Ok(nodes)
}

fn named(value: &Value) -> Result<BTreeMap<String, Definition>, TopologyError> {
    value.map()?.iter().map(|(name, item)| Ok((name.clone(), Definition::parse(item)?))).collect()
}

fn build_links(lab: &str, topology: &Value, nodes: &[Node]) -> Result<Vec<Link>, TopologyError> {
    let Some(value) = topology.get("links") else { return Ok(Vec::new()) };
    let mut seen = BTreeSet::new();
    let mut links = Vec::new();
    for item in value.list()? {
        let link = link::parse(lab, item)?;
        for end in &link.ends {
            if !nodes.iter().any(|node| node.name == end.node) {
                return Err(
                    item.invalid(format!("{}:{}: no such node in this file", end.node, end.interface))
                );
            }
            if !seen.insert((end.node.clone(), end.interface.clone())) {
                return Err(item
                    .invalid(format!("{}:{}: this interface already has a link", end.node, end.interface)));
            }
        }
        links.push(link);
    }
    Ok(links)
}
