//! Links: the short form (`endpoints: ["a:eth1", "b:eth1"]`) and `type: veth` with MAC addresses.

use super::document::{Data, Value};
use super::error::TopologyError;

/// containerlab's MTU for links that name none.
pub const DEFAULT_MTU: u32 = 9500;

/// Longest interface name of the kernel (IFNAMSIZ - 1).
const MAX_INTERFACE: usize = 15;

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Endpoint {
    /// Node it is in.
    pub node: String,
    /// Interface name there.
    pub interface: String,
    /// Its MAC address; derived from lab, node and interface when the file names none.
    pub mac: String,
}

/// A cable between two nodes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Link {
    /// Its two ends.
    pub ends: [Endpoint; 2],
    /// MTU of both interfaces, bytes.
    pub mtu: u32,
}

/// Parses one link of the lab `lab`.
pub(super) fn parse(lab: &str, value: &Value) -> Result<Link, TopologyError> {
    let mut mtu = DEFAULT_MTU;
    let mut ends = Vec::new();
    for (key, item) in value.map()? {
        match key.as_str() {
            "type" if item.text()? == "veth" => {}
            "type" => {
                let reason = "only links of type veth between two nodes are";
                return Err(TopologyError::NotHonoured(item.place.clone(), reason));
            }
            "endpoints" => {
                ends = item.list()?.iter().map(|end| endpoint(lab, end)).collect::<Result<_, _>>()?
            }
            "mtu" => mtu = parse_mtu(item)?,
            "ipv4" | "ipv6" => {
                let reason = "give the addresses by exec (ip address add …), which both worlds run";
                return Err(TopologyError::NotHonoured(item.place.clone(), reason));
            }
            "vars" | "labels" => {
                return Err(TopologyError::NotHonoured(
                    item.place.clone(),
                    "nothing reads it here; remove it",
                ));
            }
            _ => return Err(TopologyError::Unknown(item.place.clone(), "type, endpoints, mtu".to_owned())),
        }
    }
    let ends: [Endpoint; 2] =
        ends.try_into().map_err(|_| value.invalid("a link has exactly two endpoints"))?;
    Ok(Link { ends, mtu })
}

fn parse_mtu(item: &Value) -> Result<u32, TopologyError> {
    let mtu: u32 = item.number("68 to 65535")?;
    if (68..=65535).contains(&mtu) { Ok(mtu) } else { Err(item.invalid("must be a number (68 to 65535)")) }
}

fn endpoint(lab: &str, value: &Value) -> Result<Endpoint, TopologyError> {
    let (node, interface, mac) = match &value.data {
        Data::Text(text) => {
            let (node, interface) =
                text.split_once(':').ok_or_else(|| value.invalid("must be node:interface"))?;
            (node.to_owned(), interface.to_owned(), None)
        }
        _ => long_endpoint(value)?,
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if interface.is_empty() || interface.len() > MAX_INTERFACE || !interface.chars().all(allowed) {
        return Err(
            value.invalid(format!("{interface}: not an interface name (1 to 15 letters, digits, - _ .)"))
        );
    }
    let mac = mac.unwrap_or_else(|| derived_mac(lab, &node, &interface));
    Ok(Endpoint { node, interface, mac })
}

fn long_endpoint(value: &Value) -> Result<(String, String, Option<String>), TopologyError> {
    let mut mac = None;
    for (key, item) in value.map()? {
        match key.as_str() {
            "node" | "interface" => {}
            "mac" => mac = Some(parse_mac(item)?),
            "ipv4" | "ipv6" | "vars" => {
                let reason = "give addresses by exec (ip address add …), which both worlds run";
                return Err(TopologyError::NotHonoured(item.place.clone(), reason));
            }
            _ => return Err(TopologyError::Unknown(item.place.clone(), "node, interface, mac".to_owned())),
        }
    }
    let field = |name: &str| match value.get(name) {
        Some(item) => item.text().map(str::to_owned),
        None => Err(value.invalid(format!("an endpoint needs `{name}`"))),
    };
    Ok((field("node")?, field("interface")?, mac))
}

fn parse_mac(item: &Value) -> Result<String, TopologyError> {
    let text = item.text()?.replace('-', ":").to_ascii_lowercase();
    let octets: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    match octets.as_deref() {
        Some([first, _, _, _, _, _]) if first & 1 == 0 && text.len() == 17 => Ok(text),
        _ => Err(item.invalid(format!("{text}: not a unicast MAC address (aa:bb:cc:dd:ee:ff)"))),
    }
}

/// A stable MAC under containerlab's prefix, so that two runs of a lab look the same in a capture.
fn derived_mac(lab: &str, node: &str, interface: &str) -> String {
    // FNV-1a: spread matters here, not strength.
    let hash = format!("{lab}/{node}/{interface}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, ..] = hash.to_be_bytes();
    format!("aa:c1:ab:{a:02x}:{b:02x}:{c:02x}")
}
