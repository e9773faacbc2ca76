//! The seam between the two versions as far as behaviour goes: addressing, what an LSA type means, what we
//! have to say in LSAs, and what the databases say about the network. Everything else is one machine.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Extent, Machine, Refusal,
    calculation::External,
    interface::Interface,
    lsdb::Scope,
    origination::Wanted,
    spf::{Graph, NetworkId, Summary},
};
use crate::{
    auth::Authenticated,
    config::{AreaKind, Config, InterfaceConfig, Network},
    packet::{
        ParseError,
        grace::GraceBody,
        wire::{Lsa, LsaKey},
    },
    speaker::InterfaceId,
};

/// One version of the protocol.
pub trait Protocol: Authenticated {
    /// Addresses of a link on which the version can be spoken.
    type Attached: Clone + std::fmt::Debug + Eq + Serialize + DeserializeOwned + Send + Sync;
    /// Multicast address of all OSPF routers.
    const ALL_SPF_ROUTERS: Self::Address;
    /// Multicast address of the designated router and its backup.
    const ALL_D_ROUTERS: Self::Address;
    /// Bytes of the IP header in front of every packet.
    const IP_HEADER: usize;
    /// The smallest MTU that the IP version allows.
    const LEAST_MTU: u16;

    /// The address that packets are sent from.
    fn address(attached: &Self::Attached) -> Self::Address;

    /// Prefixes of the link.
    fn nets(attached: &Self::Attached) -> Vec<IpNet>;

    /// The address as it is shown.
    fn shown(attached: &Self::Attached) -> IpNet;

    /// Whether neighbours survive a change from one to the other.
    fn is_same_link(before: &Self::Attached, after: &Self::Attached) -> bool;

    /// What a Hello says of the link it is sent over.
    fn mark(interface: &Interface<Self>) -> u32;

    /// How designated routers are named: by interface address, or by router id.
    fn identity(router: Ipv4Addr, address: Self::Address) -> Ipv4Addr;

    /// Under which key a neighbour is kept.
    fn neighbor_key(network: Network, router: Ipv4Addr, address: Self::Address) -> Ipv4Addr;

    /// Prefixes whose routes may go to the kernel.
    fn import(config: &Config) -> Vec<IpNet>;

    /// Option bits of Hellos and LSAs.
    fn capabilities(config: &InterfaceConfig) -> u32;

    /// Option bits of database descriptions.
    fn description_capabilities(config: &InterfaceConfig) -> u32;

    /// Why a packet from `source` cannot come from this link, if so.
    fn foreign_source(attached: &Self::Attached, source: Self::Address) -> Option<String>;

    /// Why the mark of a Hello does not go with this interface, if so.
    fn foreign_mark(interface: &Interface<Self>, mark: u32) -> Option<String>;

    /// The database of an LSA type seen on an interface; none where it cannot be anywhere.
    fn scope(kind: Self::Kind, interface: InterfaceId, area: Ipv4Addr) -> Option<Scope>;

    /// Whether LSAs of the type can be in an area of this kind (RFC 2328 section 3.6, RFC 3101 section 2.2, RFC 5340
    /// section 2.10).
    fn belongs(kind: Self::Kind, area: AreaKind) -> bool;

    /// What is to be calculated anew when an LSA of the type changes; none if routes do not depend on it.
    /// `own` is whether it is one of ours, which describe us to others: our trees are rooted in our interfaces.
    fn extent(kind: Self::Kind, own: bool) -> Option<Extent>;

    /// Whether there are routers that keep routes of an LSA of this type when it is replaced or flushed, until they
    /// calculate the tree: ospf6d of FRR (seen with 8.4.4) does not take the next hops of whoever was the first to
    /// announce a prefix out of a route with several.
    fn is_kept(kind: Self::Kind) -> bool;

    /// Whether a description may list an LSA that does not belong into the area: it is passed over rather than
    /// taken for a disagreement about the area.
    fn is_passed_over(kind: Self::Kind) -> bool;

    /// Whether LSAs of the type are for a neighbour that said these options in its descriptions.
    fn is_for(kind: Self::Kind, options: u32) -> bool;

    /// What is wrong with an LSA beyond what its header says.
    ///
    /// # Errors
    /// The reason, and its detail.
    fn judge(lsa: &Lsa<Self>) -> Result<(), (Refusal, String)>;

    /// What a Grace-LSA says; none if it is another LSA.
    fn grace(lsa: &Lsa<Self>) -> Option<Result<GraceBody, ParseError>>;

    /// A Grace-LSA for each interface that is spoken on, of `period` seconds (RFC 3623 appendix A, RFC 5187 section
    /// 2.2). Equal from one life to the next.
    fn grace_lsas(machine: &Machine<Self>, period: u32) -> Wanted<Self>;

    /// The name of an LS type, as routers show it.
    fn kind_name(kind: Self::Kind) -> &'static str;

    /// What an LSA says, a line for each thing.
    fn describe(lsa: &Lsa<Self>) -> Vec<String>;

    /// Whether `key` names an LSA of ours (RFC 2328 section 13.4).
    fn is_own(machine: &Machine<Self>, key: &LsaKey<Self>) -> bool;

    /// The announced prefixes changed.
    fn note_announced(machine: &mut Machine<Self>);

    /// What each of our LSAs should say.
    fn wanted(machine: &Machine<Self>, with_announced: bool) -> Wanted<Self>;

    /// Whether it is a Router-LSA with a point-to-point link to the router.
    fn is_linked(lsa: &Lsa<Self>, router: Ipv4Addr) -> bool;

    /// The transit network behind an interface, as a vertex of the graph.
    fn network_id(interface: &Interface<Self>) -> NetworkId;

    /// An area's LSAs as a graph.
    fn graph(machine: &Machine<Self>, area: Ipv4Addr) -> Graph;

    /// What border routers say in an area: by whom, what, and at which cost from there.
    fn summaries(machine: &Machine<Self>, area: Ipv4Addr) -> Vec<(Ipv4Addr, Summary, u32)>;

    /// Destinations outside the domain, by others.
    fn externals(machine: &Machine<Self>) -> Vec<External>;
}
