//! What OSPF shows of itself, as messages of the control protocol.

use std::future::Future;
use std::net::Ipv4Addr;

use director_proto::control as wire;
use routing::speaker::{
    Extent, InterfaceStatus, LsaAction, LsaDetail, LsaEvent, PathKind, RouteStatus, SpfEvent, StateEvent,
};
use routing::{AreaKind, Network};

use super::{Node, PATIENCE};

impl Node {
    /// OSPF's answer, unless there is no OSPF or it does not answer.
    pub(super) async fn ask_routing<'a, T, F: Future<Output = T>>(
        &'a self,
        ask: impl FnOnce(&'a routing::Handle) -> F,
    ) -> Result<T, String> {
        let routing = self.routing.as_ref().ok_or(
            "OSPF is not configured: give the configuration an [ospf] section and restart the director",
        )?;
        tokio::time::timeout(PATIENCE, ask(routing))
            .await
            .map_err(|_| format!("OSPF does not answer within {PATIENCE:?}: see the director's log"))
    }

    pub(super) async fn ospf_status(&self) -> Result<routing::Status, String> {
        let status = self.ask_routing(routing::Handle::status).await?;
        status.ok_or_else(|| "OSPF has stopped: see the director's log".to_owned())
    }

    pub(super) async fn lsdb(&self, request: wire::LsdbRequest) -> Result<wire::Lsdb, String> {
        let lsas = self.ask_routing(|routing| routing.lsdb(request.detail)).await?;
        Ok(lsdb_message(self.config.node.router_id, lsas))
    }

    pub(super) async fn routes(&self) -> Result<wire::Routes, String> {
        let routes = self.ask_routing(routing::Handle::routes).await?;
        Ok(wire::Routes { routes: routes.into_iter().map(route).collect() })
    }

    pub(super) async fn ospf_interfaces(&self) -> Result<wire::OspfInterfaces, String> {
        let status = self.ospf_status().await?;
        Ok(wire::OspfInterfaces { interfaces: status.interfaces.into_iter().map(interface).collect() })
    }

    pub(super) async fn events(&self) -> Result<wire::Events, String> {
        let status = self.ospf_status().await?;
        let mut events: Vec<wire::Event> = status.state_events.iter().map(state_event).collect();
        events.extend(status.lsa_events.into_iter().map(lsa_event));
        events.extend(status.spf_events.into_iter().map(spf_event));
        events.sort_by_key(|event| std::cmp::Reverse(event.ago_ms));
        Ok(wire::Events { events })
    }
}

/// Link state databases of a router.
pub(crate) fn lsdb_message(router_id: Ipv4Addr, lsas: Vec<LsaDetail>) -> wire::Lsdb {
    wire::Lsdb { router_id: router_id.to_string(), lsas: lsas.into_iter().map(lsa).collect() }
}

fn lsa(LsaDetail { lsa, name, body }: LsaDetail) -> wire::Lsa {
    wire::Lsa {
        version: lsa.version.into(),
        scope: lsa.scope,
        r#type: lsa.kind.into(),
        name,
        id: lsa.id.to_string(),
        router_id: lsa.router.to_string(),
        sequence: lsa.sequence,
        checksum: lsa.checksum.into(),
        age: lsa.age.into(),
        length: lsa.length.into(),
        own: lsa.own,
        body,
    }
}

fn route(route: RouteStatus) -> wire::Route {
    let kind = match route.kind {
        PathKind::IntraArea => "intra-area",
        PathKind::InterArea => "inter-area",
        PathKind::External1 => "external-1",
        PathKind::External2 => "external-2",
    };
    let hop = |hop: routing::speaker::RouteHop| wire::RouteHop {
        interface: hop.interface,
        gateway: hop.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
    };
    wire::Route {
        version: route.version.into(),
        prefix: route.prefix.to_string(),
        kind: kind.to_owned(),
        metric: route.cost,
        next_hops: route.next_hops.into_iter().map(hop).collect(),
        installed: route.installed,
        reason: route.reason.unwrap_or_default(),
    }
}

fn interface(interface: InterfaceStatus) -> wire::OspfInterface {
    let network = match interface.network {
        Network::PointToPoint => "point-to-point",
        Network::Broadcast => "broadcast",
    };
    let area_type = match interface.area_kind {
        AreaKind::Normal => "normal",
        AreaKind::Stub => "stub",
        AreaKind::TotallyStubby => "totally-stubby",
        AreaKind::Nssa => "nssa",
    };
    let designated = |id: Ipv4Addr| if id.is_unspecified() { String::new() } else { id.to_string() };
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    wire::OspfInterface {
        version: interface.version.into(),
        name: interface.name,
        ifindex: interface.index,
        up: interface.up,
        state: format!("{:?}", interface.state),
        network: network.to_owned(),
        area: interface.area.to_string(),
        area_type: area_type.to_owned(),
        address: interface.address.map(|address| address.to_string()).unwrap_or_default(),
        mtu: interface.mtu.into(),
        cost: interface.cost.into(),
        priority: interface.priority.into(),
        dr: designated(interface.dr),
        bdr: designated(interface.bdr),
        hello_interval: interface.hello_interval.into(),
        dead_interval: interface.dead_interval,
        retransmit_interval: interface.retransmit_interval.into(),
        hello_in_ms: interface.hello_in_ms,
        wait_in_ms: interface.wait_in_ms,
        authentication: interface.authentication,
        ttl_security: interface.ttl_security,
        mtu_ignore: interface.mtu_ignore,
        bfd: interface.bfd.map(|bfd| wire::OspfBfd {
            interval_ms: u32::try_from(bfd.interval.as_millis()).unwrap_or(u32::MAX),
            multiplier: u8::from(bfd.multiplier).into(),
        }),
        neighbors: number(interface.neighbors),
        adjacencies: number(interface.adjacencies),
        refused: interface
            .refused
            .into_iter()
            .map(|(reason, packets)| wire::Count { name: format!("{reason:?}"), packets })
            .collect(),
    }
}

fn state_event(record: &StateEvent) -> wire::Event {
    let (kind, subject, action, detail) = match &record.event {
        routing::Event::Neighbor { interface, router, address, from, to, event } => {
            let subject = format!("{router} ({address} on {interface})");
            ("neighbor", subject, format!("{from:?} -> {to:?}"), format!("{event:?}"))
        }
        routing::Event::Interface { interface, from, to } => {
            ("interface", interface.clone(), format!("{from:?} -> {to:?}"), String::new())
        }
        routing::Event::Helping { interface, router, seconds } => {
            let subject = format!("{router} (on {interface})");
            ("neighbor", subject, "helped".to_owned(), format!("restarts gracefully within {seconds} s"))
        }
        routing::Event::HelpEnded { interface, router, reason } => (
            "neighbor",
            format!("{router} (on {interface})"),
            "helped no more".to_owned(),
            reason.to_string(),
        ),
        routing::Event::Resuming { seconds } => (
            "restart",
            "this director".to_owned(),
            "resumed".to_owned(),
            format!("the neighbours wait for {seconds} s"),
        ),
        routing::Event::Resumed { reason } => {
            ("restart", "this director".to_owned(), "over".to_owned(), reason.to_string())
        }
        // No others are recorded.
        other => ("other", format!("{other:?}"), String::new(), String::new()),
    };
    wire::Event {
        ago_ms: record.ago_ms,
        version: record.version.into(),
        kind: kind.to_owned(),
        action,
        subject,
        detail,
        changed: true,
        ..wire::Event::default()
    }
}

fn lsa_event(event: LsaEvent) -> wire::Event {
    let action = match event.action {
        LsaAction::Originated => "originated",
        LsaAction::Flushed => "flushed",
        LsaAction::Received => "received",
        LsaAction::Withdrawn => "withdrawn",
        LsaAction::Expired => "expired",
        LsaAction::Damaged => "damaged",
    };
    let kind = match event.version {
        2 => event.kind.to_string(),
        _ => format!("{:#06x}", event.kind),
    };
    let from = event.from.map(|from| format!(", heard from {from}")).unwrap_or_default();
    wire::Event {
        ago_ms: event.ago_ms,
        version: event.version.into(),
        kind: "lsa".to_owned(),
        action: action.to_owned(),
        subject: format!("type {kind} id {} from {}", event.id, event.router),
        detail: format!("{}, sequence {:#010x}{from}", event.scope, event.sequence),
        changed: event.changed,
        ..wire::Event::default()
    }
}

fn spf_event(event: SpfEvent) -> wire::Event {
    let extent = match event.extent {
        Extent::Selection => "selection",
        Extent::Externals => "externals",
        Extent::InterArea => "inter-area",
        Extent::Full => "full",
    };
    wire::Event {
        ago_ms: event.ago_ms,
        version: event.version.into(),
        kind: "spf".to_owned(),
        action: extent.to_owned(),
        subject: format!("{} routes", event.routes),
        detail: format!("{} ms after the first trigger, back-off {:?} after it", event.delay_ms, event.state),
        changed: event.changed,
        triggers: event.triggers,
        trigger_count: event.trigger_count,
    }
}
