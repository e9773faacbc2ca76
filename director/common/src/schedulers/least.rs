//! The schedulers that look at every server and take the one of the lowest cost.

use super::{Method, Pool, Server};

/// Most servers that one choice looks at. The program in the kernel cannot look at more for one packet; where a service
/// has more, user space picks so many candidates again and again.
pub const MAX_SCAN: u32 = 64;

/// What a connection more at one server costs: a fraction, compared by cross-multiplication as IPVS does.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    overhead: u64,
    share: u64,
}

/// The cost of each method. With equal overheads the higher share is cheaper: that is all of `fo` and `ovf`.
#[inline(always)]
const fn cost(method: Method, server: &Server) -> Cost {
    let (weight, active) = (server.weight as u64, server.active as u64);
    match method {
        Method::LeastConnection => Cost { overhead: server.overhead(), share: 1 },
        Method::ShortestExpectedDelay | Method::NeverQueue => {
            Cost { overhead: active.wrapping_add(1), share: weight }
        }
        Method::Failover | Method::Overflow => Cost { overhead: 1, share: weight },
        _ => Cost { overhead: server.overhead(), share: weight },
    }
}

/// Position in `pool` of the available server of the lowest cost, the first of several; `u32::MAX` if none is
/// available. Looks at [`MAX_SCAN`] servers at most. (A number: in the kernel an `Option` that lives through a loop has
/// bytes that nobody wrote.) For methods that take turns this is `wlc`.
#[inline(always)]
pub fn least(method: Method, pool: &(impl Pool + ?Sized)) -> u32 {
    let (mut best, mut lowest) = (u32::MAX, Cost::default());
    let len = pool.len();
    let mut at = 0;
    while at < MAX_SCAN && at < len {
        let position = at;
        at = at.wrapping_add(1);
        let Some(server) = pool.server(position) else { continue };
        if !server.is_available() || (matches!(method, Method::Overflow) && server.active > server.weight) {
            continue;
        }
        if matches!(method, Method::NeverQueue) && server.active == 0 {
            return position;
        }
        let cost = cost(method, &server);
        if best == u32::MAX
            || lowest.overhead.wrapping_mul(cost.share) > cost.overhead.wrapping_mul(lowest.share)
        {
            (best, lowest) = (position, cost);
        }
    }
    best
}
