//! What the LSAs of version 2 say, for people.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{
    packet::{
        EXTERNAL, FLAG_BORDER, FLAG_EXTERNAL, LinkKind, Lsa, LsaBody, MAX_LINK_METRIC, NETWORK, NSSA,
        OPAQUE_AREA, OPAQUE_AS, OPAQUE_LINK, ROUTER, RouterBody, RouterLink, SUMMARY_ASBR, SUMMARY_NETWORK,
        V2,
    },
    speaker::{Protocol, graceful::describe_grace},
};

pub(super) fn kind_name(kind: u8) -> &'static str {
    match kind {
        ROUTER => "router",
        NETWORK => "network",
        SUMMARY_NETWORK => "summary-network",
        SUMMARY_ASBR => "summary-asbr",
        EXTERNAL => "external",
        NSSA => "nssa-external",
        OPAQUE_LINK => "opaque-link",
        OPAQUE_AREA => "opaque-area",
        OPAQUE_AS => "opaque-as",
        _ => "unknown",
    }
}

pub(super) fn describe(lsa: &Lsa) -> Vec<String> {
    if let Some(grace) = V2::grace(lsa) {
        return vec![describe_grace(grace)];
    }
    let id = lsa.header.key.id;
    match LsaBody::parse(lsa) {
        Ok(LsaBody::Router(body)) => router(&body),
        Ok(LsaBody::Network(body)) => {
            let routers = body.routers.iter().map(|router| format!("attached router {router}"));
            std::iter::once(format!("network {}", net(id, body.mask))).chain(routers).collect()
        }
        Ok(LsaBody::Summary(body)) if lsa.header.key.kind == SUMMARY_ASBR => {
            vec![format!("AS boundary router {id}, metric {}", body.metric)]
        }
        Ok(LsaBody::Summary(body)) => vec![format!("prefix {}, metric {}", net(id, body.mask), body.metric)],
        Ok(LsaBody::External(body)) => {
            let kind = if body.type_2 { "E2" } else { "E1" };
            let mut lines = vec![format!("prefix {}, metric {} ({kind})", net(id, body.mask), body.metric)];
            if !body.forwarding.is_unspecified() {
                lines.push(format!("forwarding address {}", body.forwarding));
            }
            if body.tag != 0 {
                lines.push(format!("tag {}", body.tag));
            }
            lines
        }
        Ok(LsaBody::Opaque) => {
            let [kind, id @ ..] = id.octets();
            let id = id.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte));
            vec![format!("opaque type {kind}, id {id}, {} bytes", lsa.body().len())]
        }
        Err(error) => vec![error.to_string()],
    }
}

fn router(body: &RouterBody) -> Vec<String> {
    let roles = [(FLAG_BORDER, "area border router"), (FLAG_EXTERNAL, "AS boundary router")];
    let roles = roles.iter().filter(|(flag, _)| body.flags & flag != 0).map(|(_, role)| (*role).to_owned());
    roles.chain(body.links.iter().map(link)).collect()
}

fn link(link: &RouterLink) -> String {
    let RouterLink { kind, id, data, metric } = link;
    let cost = if *metric == MAX_LINK_METRIC { "max".to_owned() } else { metric.to_string() };
    match kind {
        LinkKind::PointToPoint => format!("point-to-point link to {id}, address {data}, metric {cost}"),
        LinkKind::Transit => format!("transit network of {id}, address {data}, metric {cost}"),
        LinkKind::Stub => format!("stub network {}, metric {cost}", net(*id, *data)),
        LinkKind::Virtual => format!("virtual link to {id}, address {data}, metric {cost}"),
    }
}

fn net(address: Ipv4Addr, mask: Ipv4Addr) -> String {
    Ipv4Net::with_netmask(address, mask)
        .map_or_else(|_| format!("{address} mask {mask}"), |net| net.to_string())
}
