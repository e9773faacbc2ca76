//! Every outcome a packet can have, its XDP action and its counter.

/// What the kernel is told to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Discard it.
    Drop,
    /// Hand it to the kernel's network stack, unchanged.
    Pass,
    /// Send it out of the interface it came in by.
    Transmit,
    /// Send it out of the interface that [`Forward::ifindex`] names.
    Redirect,
}

/// What becomes of a packet. Where it goes to is in [`Forward`], beside the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// To a real server, out of the interface it came in by.
    Transmit,
    /// To a real server, out of another interface.
    Redirect,
    /// Back to where it came from, as an answer.
    Answer(AnswerReason),
    /// A real server's answer, to the client, with the VIP as its source.
    Reply(ReplyReason),
    /// It is the kernel's.
    Pass(PassReason),
    /// It ends here.
    Drop(DropReason),
}

/// How a packet goes to a real server. Meaningful only with [`Verdict::Transmit`] and [`Verdict::Redirect`].
///
/// Plain fields that always have a value: as the payload of an enum, the bytes of the other variants would be
/// undefined, and the kernel's verifier refuses a program that as much as copies those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Forward {
    /// Real server's index in the real-server map.
    pub real: u32,
    /// Interface to leave by.
    pub ifindex: u32,
    /// Bits that differ between flows and are the same within one: for the source port of a tunnel.
    pub entropy: u32,
    /// 1 if it begins a connection (TCP SYN alone), else 0.
    pub opens: u16,
    /// 1 if it goes where the first fragment of the same datagram went, else 0.
    pub follows: u16,
    /// What it says about its connection: see [`signal`](crate::pin::signal).
    pub signals: u16,
    /// 1 if it is no packet of the flow but an ICMP error about one, else 0.
    pub related: u16,
    /// What part a pin had in it: one of `PIN_*`.
    pub pin: u16,
    /// In an ICMP error, offset of the transport header of the packet it is about, from the start of the frame; else 0.
    pub inner: u16,
    /// Generation of the server that the first fragment of the same datagram went to.
    pub generation: u32,
}

impl Forward {
    /// Its slot is settled, or it is in one that tracks and found no pin, and got none.
    pub const PIN_NONE: u16 = 0;
    /// It follows a pin.
    pub const PIN_FOLLOWED: u16 = 1;
    /// It got a pin.
    pub const PIN_STORED: u16 = 2;
    /// It should have got a pin, and there was no room.
    pub const PIN_REFUSED: u16 = 3;
    /// It begins a tracked connection, and got an entry among the half-open ones.
    pub const PIN_OPENED: u16 = 4;
    /// It is the second one of a tracked connection, which goes over to the pins now.
    pub const PIN_ADVANCES: u16 = 5;
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $words:literal])+ $reason:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[must_use]
        pub enum $name { $($(#[doc = $words])+ $reason,)+ }

        impl $name {
            /// Every reason, in counter order.
            pub const ALL: &[Self] = &[$(Self::$reason,)+];

            /// The name used in counters, metrics and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$reason => $text,)+ }
            }

            /// The reason in words, for people. (Lines of text, each with a space in front.)
            pub const fn words(self) -> &'static str {
                match self { $(Self::$reason => concat!($($words),+),)+ }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
pub(crate) use reasons;

reasons! {
    /// What a packet is answered by.
    AnswerReason {
        /// An echo reply.
        Echo = "echo",
        /// An ICMP error: larger than fits on the way to the real server.
        TooBig = "too-big-answered",
        /// An ICMP error: the time to live or hop limit ends here, as at any router. It comes from this director's
        /// tunnel source of the packet's family, so that a traced route shows which director it was; from the VIP
        /// where none is configured.
        TimeExceeded = "ttl-expired-answered",
        /// An ICMP error: a real server of a service with NAT is no client of one. Its packet would arrive with its own
        /// address as the source, and be answered past the director.
        Hairpin = "hairpin-answered",
    }
}

reasons! {
    /// How a real server's answer leaves, in a service with NAT.
    ReplyReason {
        /// By the interface it came in by.
        Transmitted = "reply-transmitted",
        /// By another interface.
        Redirected = "reply-redirected",
        /// By the kernel, which has it with the VIP as its source: it has to find the next hop's link address first,
        /// or to cut the packet into fragments, or the way leads through an interface without this program.
        ByKernel = "reply-by-kernel",
    }
}

reasons! {
    /// Why a packet is left to the kernel.
    PassReason {
        /// The frame is shorter than an Ethernet header.
        ShortFrame = "short-frame",
        /// Neither IPv4 nor IPv6, plain or behind one VLAN tag (ARP, several tags, …).
        NotIp = "not-ip",
        /// The frame ends within the IP header.
        ShortHeader = "short-header",
        /// The IP version is another than the frame says.
        BadVersion = "bad-version",
        /// The IPv4 header claims to be shorter than 20 bytes.
        BadHeaderLength = "bad-header-length",
        /// An IPv6 header with an address that maps an IPv4 address.
        MappedAddress = "mapped-address",
        /// No service for this address, protocol and port.
        NoService = "no-service",
        /// ICMP to a VIP that is neither an echo request nor about a flow.
        IcmpToVip = "icmp-to-vip",
        /// To a VIP, but a protocol that is not balanced.
        ProtocolToVip = "protocol-to-vip",
        /// For a service, but sent to another station on the link (flooded, or the interface is promiscuous).
        OtherStation = "other-station",
        /// A real server's answer by NAT, but the kernel does not forward what comes in by that interface, so there is no
        /// telling where it goes: set net.ipv4.ip_forward and net.ipv6.conf.all.forwarding to 1.
        ForwardingOff = "forwarding-off",
        /// The data plane has no settings yet.
        NotConfigured = "not-configured",
    }
}

reasons! {
    /// Why a packet is discarded. All of these are packets to a VIP, or a real server's answers by NAT.
    DropReason {
        /// The frame ends within the transport header.
        ShortTransport = "short-transport",
        /// The packet's length is longer than the frame or shorter than the headers.
        BadLength = "bad-length",
        /// The IPv4 header checksum is wrong.
        BadChecksum = "bad-checksum",
        /// The TCP data offset or the UDP length cannot be.
        BadTransport = "bad-transport",
        /// A later fragment whose first one has not been seen, and several services have this address.
        Fragment = "fragment",
        /// A later fragment whose first one has not been seen, and it needs ports: the service hashes by them, or
        /// connections of its slot have pins.
        FragmentNeedsPort = "fragment-needs-port",
        /// A first fragment that does not hold the whole transport header.
        FragmentTiny = "fragment-tiny",
        /// A later fragment that would overwrite the transport header.
        FragmentOverlap = "fragment-overlap",
        /// More or longer IPv6 extension headers than are walked, or the frame ends within one.
        BadExtension = "bad-extension",
        /// An IPv6 routing header with segments left.
        RoutingHeader = "routing-header",
        /// An ICMP message in fragments.
        IcmpFragment = "icmp-fragment",
        /// An ICMP error that does not show the ports of the packet it is about.
        IcmpInner = "icmp-inner",
        /// An ICMP error about a packet that the VIP it was sent to did not send.
        IcmpMismatch = "icmp-mismatch",
        /// An ICMP error about a flow of no service.
        IcmpNoService = "icmp-no-service",
        /// An echo request to a VIP without any real server.
        EchoUnserved = "echo-unserved",
        /// The time to live or hop limit ends here, and it cannot be answered about, or too many answers were given.
        TtlExpired = "ttl-expired",
        /// The service has no real server.
        NoRealServer = "no-real-server",
        /// The way to the real server is not known.
        NoNextHop = "no-next-hop",
        /// May be fragmented or cannot be answered about, or too many answers were given: larger, with the headers of
        /// a tunnel if there is one, than the interface towards the real server takes.
        TooBig = "too-big",
        /// The tables contradict each other: a slot names a server that is not there, or there is no address of
        /// ours for a tunnel.
        BadTable = "bad-table",
        /// It came with a VLAN tag, which holds on its own link only, and would leave by another interface.
        VlanRedirect = "vlan-redirect",
        /// From a real server of a service with NAT to such a service, and it cannot be answered about, or too many answers
        /// were given.
        Hairpin = "hairpin",
        /// A real server's answer to a client whose route says that it is to be refused; or, with full NAT, to whom there is
        /// no route.
        ReplyRefused = "reply-refused",
        /// It belongs to no connection that is known, and its service refuses such, as each with full NAT does.
        NoConnection = "no-connection",
        /// It begins a connection, there is no room to track it, and its service refuses such, as each with full NAT does.
        TableFull = "table-full",
        /// It begins a connection of a service with full NAT, and no local address had a port left for it towards its
        /// real server: give the node more local_addresses, or a wider range of local_ports.
        NoLocalPort = "no-local-port",
        /// A bounds check failed while the frame was rewritten.
        RewriteFailed = "rewrite-failed",
    }
}

/// A packet left by the interface it came in by.
const TRANSMITTED: u32 = 0;
/// A packet left by another interface.
const REDIRECTED: u32 = 1;
/// First counter of [`AnswerReason`].
const ANSWERED: u32 = 2;
/// First counter of [`PassReason`].
const PASSED: u32 = 8;
/// First counter of [`DropReason`].
const DROPPED: u32 = 32;

/// First counter of [`ReplyReason`].
const REPLIED: u32 = 72;

/// Counters of outcomes: one per way to forward, [`PassReason`], [`DropReason`] and [`ReplyReason`].
pub const OUTCOME_COUNTERS: usize = 76;

const _: () = assert!(AnswerReason::ALL.len() <= (PASSED - ANSWERED) as usize);
const _: () = assert!(PassReason::ALL.len() <= (DROPPED - PASSED) as usize);
const _: () = assert!(DropReason::ALL.len() <= (REPLIED - DROPPED) as usize);
const _: () = assert!(ReplyReason::ALL.len() <= OUTCOME_COUNTERS - REPLIED as usize);

impl Verdict {
    /// What the kernel is told, and which counter counts it.
    #[inline(always)]
    pub fn disposition(self) -> (Action, u32) {
        match self {
            Self::Transmit => (Action::Transmit, TRANSMITTED),
            Self::Redirect => (Action::Redirect, REDIRECTED),
            Self::Answer(reason) => (Action::Transmit, ANSWERED.wrapping_add(reason as u32)),
            Self::Reply(reason) => (reason.action(), REPLIED.wrapping_add(reason as u32)),
            Self::Pass(reason) => (Action::Pass, PASSED.wrapping_add(reason as u32)),
            Self::Drop(reason) => (Action::Drop, DROPPED.wrapping_add(reason as u32)),
        }
    }

    /// The verdict that has this counter, if it is one under which the frame is rewritten.
    #[inline(always)]
    pub const fn that_rewrites(counter: u32) -> Option<Self> {
        const ECHO: u32 = ANSWERED + AnswerReason::Echo as u32;
        const TOO_BIG: u32 = ANSWERED + AnswerReason::TooBig as u32;
        const TIME_EXCEEDED: u32 = ANSWERED + AnswerReason::TimeExceeded as u32;
        const HAIRPIN: u32 = ANSWERED + AnswerReason::Hairpin as u32;
        const BACK: u32 = REPLIED + ReplyReason::Transmitted as u32;
        const ELSEWHERE: u32 = REPLIED + ReplyReason::Redirected as u32;
        const BY_KERNEL: u32 = REPLIED + ReplyReason::ByKernel as u32;
        match counter {
            TRANSMITTED => Some(Self::Transmit),
            REDIRECTED => Some(Self::Redirect),
            ECHO => Some(Self::Answer(AnswerReason::Echo)),
            TOO_BIG => Some(Self::Answer(AnswerReason::TooBig)),
            TIME_EXCEEDED => Some(Self::Answer(AnswerReason::TimeExceeded)),
            HAIRPIN => Some(Self::Answer(AnswerReason::Hairpin)),
            BACK => Some(Self::Reply(ReplyReason::Transmitted)),
            ELSEWHERE => Some(Self::Reply(ReplyReason::Redirected)),
            BY_KERNEL => Some(Self::Reply(ReplyReason::ByKernel)),
            _ => None,
        }
    }

    /// The packet goes to a real server.
    #[inline(always)]
    pub const fn is_forward(self) -> bool {
        matches!(self, Self::Transmit | Self::Redirect)
    }

    /// The packet is a real server's, and goes to a client.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        matches!(self, Self::Reply(_))
    }

    /// The frame is to be rewritten before it leaves.
    #[inline(always)]
    pub const fn rewrites(self) -> bool {
        self.is_forward() || matches!(self, Self::Answer(_) | Self::Reply(_))
    }
}

impl ReplyReason {
    /// What the kernel is told.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self {
            Self::Transmitted => Action::Transmit,
            Self::Redirected => Action::Redirect,
            Self::ByKernel => Action::Pass,
        }
    }
}

/// One kind of outcome: what an outcome counter stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Forwarded out of the interface it came in by.
    Transmitted,
    /// Forwarded out of another interface.
    Redirected,
    /// Sent back as an answer.
    Answered(AnswerReason),
    /// A real server's answer, sent to the client.
    Replied(ReplyReason),
    /// Left to the kernel.
    Passed(PassReason),
    /// Discarded.
    Dropped(DropReason),
}

impl Outcome {
    /// The name used in counters, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transmitted => "transmitted",
            Self::Redirected => "redirected",
            Self::Answered(reason) => reason.name(),
            Self::Replied(reason) => reason.name(),
            Self::Passed(reason) => reason.name(),
            Self::Dropped(reason) => reason.name(),
        }
    }

    /// What it means, in words.
    pub fn words(self) -> &'static str {
        let words = match self {
            Self::Transmitted => "It goes to the real server, out of the interface it came in by.",
            Self::Redirected => "It goes to the real server, out of another interface than it came in by.",
            Self::Answered(reason) => reason.words(),
            Self::Replied(reason) => reason.words(),
            Self::Passed(reason) => reason.words(),
            Self::Dropped(reason) => reason.words(),
        };
        words.trim_ascii()
    }

    /// Every outcome with the number of its counter.
    pub fn all() -> impl Iterator<Item = (u32, Self)> {
        let answered = AnswerReason::ALL
            .iter()
            .map(|reason| (ANSWERED.wrapping_add(*reason as u32), Self::Answered(*reason)));
        let passed =
            PassReason::ALL.iter().map(|reason| (PASSED.wrapping_add(*reason as u32), Self::Passed(*reason)));
        let dropped = DropReason::ALL
            .iter()
            .map(|reason| (DROPPED.wrapping_add(*reason as u32), Self::Dropped(*reason)));
        let replied = ReplyReason::ALL
            .iter()
            .map(|reason| (REPLIED.wrapping_add(*reason as u32), Self::Replied(*reason)));
        [(TRANSMITTED, Self::Transmitted), (REDIRECTED, Self::Redirected)]
            .into_iter()
            .chain(answered)
            .chain(passed)
            .chain(dropped)
            .chain(replied)
    }
}

/// As users see it: what becomes of the packet and, where there are several, why.
impl core::fmt::Display for Outcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Transmitted | Self::Redirected | Self::Replied(_) => f.write_str(self.name()),
            Self::Answered(reason) => write!(f, "answered: {reason}"),
            Self::Passed(reason) => write!(f, "passed: {reason}"),
            Self::Dropped(reason) => write!(f, "dropped: {reason}"),
        }
    }
}
