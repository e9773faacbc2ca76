//! Election of the designated router and its backup (RFC 2328 section 9.4).

use std::net::Ipv4Addr;

/// A router that may be elected: in state 2-Way or above, or ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its name in elections: interface address in version 2, router id in version 3.
    pub(super) address: Ipv4Addr,
    pub(super) router: Ipv4Addr,
    /// 0 is never elected.
    pub(super) priority: u8,
    /// Whom it declares designated router in its Hello, or zero.
    pub(super) dr: Ipv4Addr,
    /// Whom it declares backup, or zero.
    pub(super) bdr: Ipv4Addr,
}

/// The designated router and the backup by their names, zero for none.
pub(super) fn elect(me: Candidate, others: &[Candidate]) -> (Ipv4Addr, Ipv4Addr) {
    let first = round(me, others);
    let role = |(dr, bdr): (Ipv4Addr, Ipv4Addr)| (dr == me.address, bdr == me.address);
    if role(first) == role((me.dr, me.bdr)) {
        return first;
    }
    // Step 4: our own role changed, so vote again with what we now declare.
    round(Candidate { dr: first.0, bdr: first.1, ..me }, others)
}

/// Steps 2 and 3.
fn round(me: Candidate, others: &[Candidate]) -> (Ipv4Addr, Ipv4Addr) {
    let eligible = || others.iter().copied().chain([me]).filter(|router| router.priority > 0);
    let best = |routers: &mut dyn Iterator<Item = Candidate>| {
        let best = routers.max_by_key(|router| (router.priority, router.router));
        best.map_or(Ipv4Addr::UNSPECIFIED, |router| router.address)
    };
    let backups = || eligible().filter(|router| router.dr != router.address);
    let mut bdr = best(&mut backups().filter(|router| router.bdr == router.address));
    if bdr.is_unspecified() {
        bdr = best(&mut backups());
    }
    let dr = best(&mut eligible().filter(|router| router.dr == router.address));
    if dr.is_unspecified() { (bdr, bdr) } else { (dr, bdr) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(number: u8, priority: u8, dr: u8, bdr: u8) -> Candidate {
        let address = |n: u8| if n == 0 { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::new(10, 0, 0, n) };
        let router = Ipv4Addr::new(10, 255, 0, number);
        Candidate { address: address(number), router, priority, dr: address(dr), bdr: address(bdr) }
    }

    fn last(result: (Ipv4Addr, Ipv4Addr)) -> (u8, u8) {
        (result.0.octets()[3], result.1.octets()[3])
    }

    #[test]
    fn priority_zero_is_never_elected() {
        assert_eq!(last(elect(router(9, 0, 0, 0), &[router(1, 1, 0, 0)])), (1, 1));
        assert_eq!(last(elect(router(9, 0, 0, 0), &[router(8, 0, 0, 0)])), (0, 0));
    }

    #[test]
    fn two_newcomers_become_designated_and_backup() {
        assert_eq!(last(elect(router(2, 1, 0, 0), &[router(1, 1, 0, 0)])), (2, 1));
        assert_eq!(last(elect(router(1, 1, 0, 0), &[router(2, 1, 2, 1)])), (2, 1));
    }

    #[test]
    fn a_better_newcomer_does_not_take_over() {
        assert_eq!(last(elect(router(9, 200, 0, 0), &[router(1, 1, 1, 2), router(2, 1, 1, 2)])), (1, 2));
    }

    #[test]
    fn backup_takes_over_when_the_designated_router_is_gone() {
        assert_eq!(last(elect(router(2, 1, 1, 2), &[router(3, 1, 1, 2)])), (2, 3));
    }
}
