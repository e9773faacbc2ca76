//! What the LSAs of version 3 say, for people.

use crate::{
    packet::{
        FLAG_BORDER, FLAG_EXTERNAL, MAX_LINK_METRIC,
        v3::{
            EXTERNAL, GRACE, INTER_AREA_PREFIX, INTER_AREA_ROUTER, INTRA_AREA_PREFIX, LINK, LsType, Lsa,
            NETWORK, NSSA, OPTION_R, PREFIX_LA, PREFIX_NU, Prefix, ROUTER, V3,
            body::{ExternalBody, LinkKind, LsaBody, RouterBody, RouterLink},
        },
    },
    speaker::{Protocol, graceful::describe_grace},
};

pub(super) fn kind_name(kind: LsType) -> &'static str {
    match kind {
        ROUTER => "router",
        NETWORK => "network",
        INTER_AREA_PREFIX => "inter-area-prefix",
        INTER_AREA_ROUTER => "inter-area-router",
        EXTERNAL => "external",
        NSSA => "nssa-external",
        LINK => "link",
        INTRA_AREA_PREFIX => "intra-area-prefix",
        GRACE => "grace",
        _ => "unknown",
    }
}

pub(super) fn describe(lsa: &Lsa) -> Vec<String> {
    if let Some(grace) = V3::grace(lsa) {
        return vec![describe_grace(grace)];
    }
    match LsaBody::parse(lsa) {
        Ok(LsaBody::Router(body)) => router(&body),
        Ok(LsaBody::Network(body)) => {
            body.routers.iter().map(|router| format!("attached router {router}")).collect()
        }
        Ok(LsaBody::InterAreaPrefix { prefix, metric }) => {
            vec![format!("prefix {}, metric {metric}", shown(&prefix))]
        }
        Ok(LsaBody::InterAreaRouter { router, metric }) => {
            vec![format!("AS boundary router {router}, metric {metric}")]
        }
        Ok(LsaBody::External(body)) => external(&body),
        Ok(LsaBody::Link(body)) => {
            let prefixes = body.prefixes.iter().map(|prefix| format!("prefix {}", shown(prefix)));
            let address = format!("link-local address {}, priority {}", body.address, body.priority);
            std::iter::once(address).chain(prefixes).collect()
        }
        Ok(LsaBody::IntraAreaPrefix(body)) => {
            let of = match body.kind {
                ROUTER => format!("of router {}", body.router),
                NETWORK => format!("of network {} of {}", u32::from(body.id), body.router),
                other => format!("of an LSA of type {other} of {}", body.router),
            };
            let prefix = |prefix: &Prefix| format!("prefix {}, metric {}", shown(prefix), prefix.field);
            std::iter::once(of).chain(body.prefixes.iter().map(prefix)).collect()
        }
        Ok(LsaBody::Unknown) => vec![format!("{} bytes", lsa.body().len())],
        Err(error) => vec![error.to_string()],
    }
}

fn router(body: &RouterBody) -> Vec<String> {
    let roles = [(FLAG_BORDER, "area border router"), (FLAG_EXTERNAL, "AS boundary router")];
    let roles = roles.iter().filter(|(flag, _)| body.flags & flag != 0).map(|(_, role)| (*role).to_owned());
    let leaf = (body.options & OPTION_R == 0).then(|| "not a way through (R bit clear)".to_owned());
    roles.chain(leaf).chain(body.links.iter().map(link)).collect()
}

fn link(link: &RouterLink) -> String {
    let RouterLink { kind, metric, interface, neighbor_interface, neighbor } = link;
    let cost = if *metric == MAX_LINK_METRIC { "max".to_owned() } else { metric.to_string() };
    let what = match kind {
        LinkKind::PointToPoint => "point-to-point link to",
        LinkKind::Transit => "transit network of",
        LinkKind::Virtual => "virtual link to",
    };
    format!("{what} {neighbor}, interface {interface} to {neighbor_interface}, metric {cost}")
}

fn external(body: &ExternalBody) -> Vec<String> {
    let kind = if body.type_2 { "E2" } else { "E1" };
    let mut lines = vec![format!("prefix {}, metric {} ({kind})", shown(&body.prefix), body.metric)];
    lines.extend(body.forwarding.map(|address| format!("forwarding address {address}")));
    lines.extend(body.tag.map(|tag| format!("tag {tag}")));
    lines
}

fn shown(prefix: &Prefix) -> String {
    let marks = [(PREFIX_NU, " (no unicast)"), (PREFIX_LA, " (own address)")];
    let marks = marks.iter().filter(|(flag, _)| prefix.options & flag != 0).map(|(_, mark)| *mark);
    std::iter::once(prefix.net.to_string()).chain(marks.map(str::to_owned)).collect()
}
