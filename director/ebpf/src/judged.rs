//! What was decided about a packet, on the way from where it was decided to where it is done.

use director_common::packet::Ip;
use director_common::tables::{Config, Endpoint, FlowKey, ReplyEntry, ServiceEntry};
use director_common::{Action, Decision, DropReason, Forward, Tables as _, Verdict};

use crate::maps::KernelTables;
use crate::routes;

/// [`Judged::action`]s.
pub const PASS: u32 = Action::Pass as u32;
pub const TRANSMIT: u32 = Action::Transmit as u32;
pub const REDIRECT: u32 = Action::Redirect as u32;

/// A [`Decision`] in memory that the kernel's verifier knows nothing of. References into tables cannot be in such, so
/// there are numbers instead, and what is small is copied.
#[derive(Debug)]
#[repr(C)]
pub struct Judged {
    /// The packet's flow.
    pub flow: FlowKey,
    /// Number of the outcome's counter.
    pub outcome: u32,
    /// [`Action`] by its number.
    pub action: u32,
    /// As in [`Decision`].
    pub service: u32,
    /// As in [`Decision`].
    pub bytes: u32,
    mtu: u32,
    /// 1 if it comes from a real server, else 0.
    pub from_real: u32,
    /// As in [`Decision`].
    pub forward: Forward,
    /// The service's entry, if one has the packet.
    pub entry: ServiceEntry,
    reply: ReplyEntry,
    /// The client, of an answer by full NAT: its port is 0 and its address is none in any other.
    client: Endpoint,
    ip: Ip,
}

impl Judged {
    /// Notes a decision, whose flow is there already.
    #[inline(always)]
    pub fn set(&mut self, decision: &Decision<'_>) {
        let (action, outcome) = decision.verdict.disposition();
        (self.action, self.outcome) = (action as u32, outcome);
        (self.service, self.bytes, self.mtu) = (decision.service, decision.bytes, decision.mtu);
        if decision.verdict.rewrites() {
            // Of the payload of an enum there may be nothing: see `Forward`.
            self.ip = Ip { broken: None, ..decision.ip };
        }
        self.forward = decision.forward;
        self.from_real = u32::from(decision.reply.is_some());
        if let Some(reply) = decision.reply {
            self.reply = *reply;
            self.client = decision.client_end.copied().unwrap_or_default();
        }
    }

    /// Notes what [`examine`](director_common::decide::examine) has found out.
    #[inline(always)]
    pub fn set_examined(&mut self, decision: &Decision<'_>, service: &ServiceEntry) {
        (self.service, self.bytes) = (decision.service, decision.bytes);
        self.ip = Ip { broken: None, ..decision.ip };
        (self.forward, self.entry) = (decision.forward, *service);
    }

    /// What was noted then.
    #[inline(always)]
    pub fn examined(&self) -> Decision<'static> {
        Decision {
            service: self.service,
            bytes: self.bytes,
            forward: self.forward,
            ip: self.ip,
            ..Decision::new()
        }
    }

    /// The packet is a real server's, and goes to a client.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        Verdict::that_rewrites(self.outcome).is_some_and(Verdict::is_reply)
    }

    /// Notes that it is not forwarded after all.
    #[inline(always)]
    pub fn discard(&mut self, reason: DropReason) {
        let (action, outcome) = Verdict::Drop(reason).disposition();
        (self.action, self.outcome) = (action as u32, outcome);
    }

    /// Whether full NAT changes it.
    #[inline(always)]
    pub fn has_client_end(&self) -> bool {
        self.is_forward() && self.entry.is_full_nat() || self.is_reply() && !self.client.address.is_zero()
    }

    /// The packet goes to a real server.
    #[inline(always)]
    pub fn is_forward(&self) -> bool {
        Verdict::that_rewrites(self.outcome).is_some_and(Verdict::is_forward)
    }

    /// The decision as it was, if the frame is to be rewritten.
    #[inline(always)]
    pub fn decision<'a>(&'a self, config: &'a Config) -> Option<Decision<'a>> {
        let verdict = Verdict::that_rewrites(self.outcome)?;
        let (mut way, mut entry) = (None, None);
        let mut over_v4 = !self.ip.is_v6();
        if verdict.is_forward() {
            let real = KernelTables.real(self.forward.real)?;
            over_v4 = real.address.is_v4();
            (way, entry) = (Some(real), Some(&self.entry));
        }
        let (mut reply, mut route, mut client_end) = (None, None, None);
        if verdict.is_reply() {
            (reply, route) = (Some(&self.reply), routes::found());
            client_end = Some(&self.client).filter(|client| !client.address.is_zero());
        }
        Some(Decision {
            verdict,
            service: self.service,
            bytes: self.bytes,
            mtu: self.mtu,
            forward: self.forward,
            ip: self.ip,
            way,
            entry,
            tunnel_source: config.tunnel_source(over_v4),
            reply,
            route,
            client_end,
        })
    }
}
