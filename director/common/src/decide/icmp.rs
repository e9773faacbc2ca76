//! ICMP to a VIP: errors follow the flow they are about, an echo request is answered.

use super::Decision;
use super::owner::{find_owner, find_vip};
use crate::packet::icmp::{self, Icmp};
use crate::packet::{Frame, Ip, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::tables::{Config, FlowKey, ServiceEntry, Tables};
use crate::verdict::{AnswerReason, DropReason, PassReason, Verdict};

/// The service whose flow the error in `frame` is about; `flow` becomes that flow. Any other message ends here
/// with its verdict. `is_ours` tells whether the frame was sent to this station.
#[inline(always)]
pub(super) fn find_service<'a>(
    frame: &impl Frame,
    is_ours: impl Fn() -> bool,
    config: &Config,
    tables: &'a impl Tables,
    flow: &mut FlowKey,
    decision: &mut Decision<'a>,
) -> Result<&'a ServiceEntry, Verdict> {
    let ip = decision.ip;
    let ip = &ip;
    let Some(vip) = find_vip(&flow.destination, config, tables) else {
        return Err(Verdict::Pass(PassReason::NoService));
    };
    let to = flow.destination;
    match Icmp::parse(frame, ip) {
        _ if ip.is_fragment() => Err(Verdict::Drop(DropReason::IcmpFragment)),
        None => Err(Verdict::Drop(DropReason::ShortTransport)),
        Some(Icmp::Other) => Err(Verdict::Pass(PassReason::IcmpToVip)),
        Some(Icmp::EchoRequest) => {
            Err(if is_ours() { answer(frame, ip, vip) } else { Verdict::Pass(PassReason::OtherStation) })
        }
        Some(Icmp::Error) => {
            let inner = icmp::parse_inner(frame, ip, flow).ok_or(Verdict::Drop(DropReason::IcmpInner))?;
            if flow.destination != to {
                return Err(Verdict::Drop(DropReason::IcmpMismatch));
            }
            if inner.protocol != PROTOCOL_TCP && inner.protocol != PROTOCOL_UDP {
                return Err(Verdict::Pass(PassReason::IcmpToVip));
            }
            flow.protocol = inner.protocol;
            (decision.forward.related, decision.forward.inner) = (1, inner.payload as u16);
            find_owner(flow, config, tables).ok_or(Verdict::Drop(DropReason::IcmpNoService))
        }
    }
}

/// What becomes of an echo request to a VIP.
#[inline(always)]
fn answer(frame: &impl Frame, ip: &Ip, vip: &ServiceEntry) -> Verdict {
    if vip.flags & ServiceEntry::FLAG_ECHO_KERNEL != 0 {
        return Verdict::Pass(PassReason::IcmpToVip);
    }
    if vip.flags & ServiceEntry::FLAG_ECHO == 0 {
        return Verdict::Drop(DropReason::EchoUnserved);
    }
    if !ip.length_holds(frame) || ip.payload_len().is_none() {
        return Verdict::Drop(DropReason::BadLength);
    }
    if !ip.checksum_holds(frame) {
        return Verdict::Drop(DropReason::BadChecksum);
    }
    Verdict::Answer(AnswerReason::Echo)
}
