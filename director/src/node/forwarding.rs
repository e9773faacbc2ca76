//! Whether the kernel forwards packets, which services with NAT need: answers go by its routes.

use std::path::Path;

use crate::config::{Config, Forwarding};

/// The setting for IPv4, and the one for IPv6.
const SETTINGS: [(bool, &str); 2] = [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")];

/// Says for each family that has services with NAT if the kernel does not forward its packets. No error: the setting
/// may come later, and until then answers are counted as `forwarding-off`.
pub(super) fn warn_if_off(config: &Config) {
    for (is_v4, setting) in SETTINGS {
        let concerns = |service: &crate::config::Service| {
            service.forwarding == Forwarding::Nat
                && service.prefixes().iter().any(|prefix| prefix.addr().is_ipv4() == is_v4)
        };
        let services = config.services.iter().filter(|(_, service)| concerns(service));
        let services: Vec<&str> = services.map(|(name, _)| name.as_str()).collect();
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(setting)).unwrap_or_default();
        if !services.is_empty() && value.trim() == "0" {
            tracing::warn!(
                ?services,
                "answers by NAT cannot be sent on, for the kernel does not forward: sysctl -w {}=1",
                setting.replace('/', ".")
            );
        }
    }
}
