//! Which services a load goes to.

use std::net::SocketAddr;
use std::str::FromStr;

/// One service and the load on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of its account.
    pub name: String,
    /// Where the service is.
    pub address: SocketAddr,
    /// Downloads held open.
    pub connections: usize,
    /// Short requests a second; zero for none.
    pub rate: u32,
}

impl Target {
    /// Shares `connections` downloads and `rate` requests a second evenly among the targets; the first ones get what
    /// cannot be shared.
    pub fn share(targets: &mut [Self], connections: usize, rate: u32) {
        let count = targets.len();
        for (index, target) in targets.iter_mut().enumerate() {
            target.connections = (connections + count - 1 - index) / count;
            target.rate = u32::try_from((rate as usize + count - 1 - index) / count).unwrap_or(rate);
        }
    }
}

/// `[NAME=]ADDRESS:PORT`, without any load yet; the name is the address by default.
impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, address) = text.split_once('=').unwrap_or((text, text));
        let address = address.parse().map_err(|_| {
            format!("`{address}` is no address and port: write 203.0.113.10:80 or [2001:db8::10]:80")
        })?;
        Ok(Self { name: name.to_owned(), address, connections: 0, rate: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn targets_have_names_and_share_the_load() {
        let mut targets: Vec<Target> = ["web=203.0.113.10:80", "web6=[2001:db8::10]:80", "192.0.2.1:8080"]
            .map(|t| t.parse().unwrap())
            .into();
        assert_eq!(targets[1].address, "[2001:db8::10]:80".parse().unwrap());
        assert_eq!(targets[2].name, "192.0.2.1:8080");
        Target::share(&mut targets, 2000, 200);
        assert_eq!(targets.iter().map(|t| t.connections).collect::<Vec<_>>(), [667, 667, 666]);
        assert_eq!(targets.iter().map(|t| t.rate).collect::<Vec<_>>(), [67, 67, 66]);
        let refused = "web=2001:db8::10:80:".parse::<Target>().unwrap_err();
        assert!(refused.contains("[2001:db8::10]:80"), "{refused}");
    }
}
