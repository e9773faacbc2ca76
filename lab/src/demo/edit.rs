//! What an operator does to a director's configuration file: takes a real server into all services, drains it, takes
//! it out. Everything else in the file stays as it is written.

use std::net::IpAddr;

/// A change of the real servers. They are named by the last number of their addresses, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A new real server beside `like`, with its port and weight.
    Add { like: &'static str, host: &'static str },
    /// Weight 0: no new connections.
    Drain { host: &'static str },
    /// Out of the file.
    Remove { host: &'static str },
}

/// Whether `address` ends with the number `host`.
pub(super) fn is_host(address: IpAddr, host: &str) -> bool {
    address.to_string().rsplit(['.', ':']).next() == Some(host)
}

/// The file `text` after the change; none if it does not have the real server that the change is about.
pub(super) fn apply(text: &str, change: Change) -> Option<String> {
    let mut found = false;
    let mut out = String::with_capacity(text.len());
    for block in blocks(text) {
        match (change, address(block)) {
            (Change::Add { like, host }, Some(address)) if is_host(address, like) => {
                found = true;
                let written = address.to_string();
                let new = format!("{}{host}", &written[..written.len() - like.len()]);
                out.push_str(block);
                out.push_str(&block.replace(&written, &new));
            }
            (Change::Drain { host }, Some(address)) if is_host(address, host) => {
                found = true;
                for line in block.split_inclusive('\n') {
                    out.push_str(if line.starts_with("weight = ") { "weight = 0\n" } else { line });
                }
            }
            (Change::Remove { host }, Some(address)) if is_host(address, host) => found = true,
            _ => out.push_str(block),
        }
    }
    found.then_some(out)
}

/// The file cut before each line that begins a table.
fn blocks(text: &str) -> Vec<&str> {
    let mut cuts: Vec<usize> = text.match_indices("\n[").map(|(at, _)| at + 1).collect();
    cuts.insert(0, 0);
    cuts.push(text.len());
    cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// The address of the real server that a block describes, if it does.
fn address(block: &str) -> Option<IpAddr> {
    let mut lines = block.strip_prefix("[[service.real]]\n")?.lines();
    lines.find_map(|line| line.strip_prefix("address = \"")?.strip_suffix('"')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{Change, apply};

    const FILE: &str = "# a comment\n[[service]]\nname = \"a\"\n[[service.real]]\naddress = \"10.0.2.11\"\nweight = 100\n\
        [[service.real]]\naddress = \"10.0.2.111\"\nweight = 7\n\n[[service]]\nname = \"b\"\n\
        [[service.real]]\naddress = \"2001:db8:2::11\"\nport = 80\nweight = 100\n";

    #[test]
    fn a_real_server_comes_drains_and_goes_and_nothing_else_changes() {
        let added = apply(FILE, Change::Add { like: "11", host: "14" }).unwrap();
        for new in [
            "address = \"10.0.2.14\"\nweight = 100\n",
            "address = \"2001:db8:2::14\"\nport = 80\nweight = 100\n",
        ] {
            assert!(added.contains(new), "{added}");
        }
        let drained = apply(&added, Change::Drain { host: "14" }).unwrap();
        assert_eq!(drained.matches("weight = 0\n").count(), 2, "{drained}");
        assert_eq!(apply(&drained, Change::Remove { host: "14" }).as_deref(), Some(FILE));
        assert_eq!(apply(FILE, Change::Drain { host: "14" }), None);
    }
}
