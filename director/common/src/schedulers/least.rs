//! The schedulers that look at every server and take the one of the lowest cost.
//!
//! The cost of a connection more at a server is a fraction, overhead by share, and fractions are compared by
//! cross-multiplication, as IPVS does. Every method is the same formula with other numbers in it:
//!
//! | | overhead | share |
//! |---|---|---|
//! | lc | active x 256 + inactive | 1 |
//! | wlc | active x 256 + inactive | weight |
//! | sed | active + 1 | weight |
//! | nq | as sed, but 0 where none is active | weight |
//! | fo | 1 | weight |
//! | ovf | 1, while active is no more than weight | weight |

use core::cell::Cell;

use super::{Method, Pool};
use crate::pin::{read, write};

/// Most servers that one choice looks at. The program in the kernel cannot look at more for one packet; where a service
/// has more, user space picks so many candidates again and again.
pub const MAX_SCAN: u32 = 64;

/// What a scan goes by, and how far it is, in memory that every step reads anew. In the kernel that is memory of which
/// the verifier knows nothing: what it knew, it would follow through every step for each value by itself, and give up.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Scan {
    active: Cell<u64>,
    inactive: Cell<u64>,
    base: Cell<u64>,
    /// Times the weight, plus `plain`, is the share.
    weighted: Cell<u64>,
    plain: Cell<u64>,
    /// Times the weight is the most active connections.
    most: Cell<u64>,
    /// 0 if idle servers cost nothing, else 1.
    idle: Cell<u64>,
    best: Cell<u64>,
    overhead: Cell<u64>,
    share: Cell<u64>,
}

/// Words of a [`Scan`].
pub const SCAN_WORDS: usize = 10;
const _: () = assert!(size_of::<Scan>() == 8 * SCAN_WORDS);

impl Scan {
    /// Nobody is found yet.
    const NOBODY: u64 = u32::MAX as u64;

    #[inline(always)]
    fn begin(&self, method: Method) {
        /// Above every number of connections.
        const ANY: u64 = 1 << 32;
        let (active, inactive, base, weighted, most, idle) = match method {
            Method::LeastConnection => (256, 1, 0, 0, ANY, 1),
            Method::ShortestExpectedDelay => (1, 0, 1, 1, ANY, 1),
            Method::NeverQueue => (1, 0, 1, 1, ANY, 0),
            Method::Failover => (0, 0, 1, 1, ANY, 1),
            Method::Overflow => (0, 0, 1, 1, 1, 1),
            Method::WeightedLeastConnection
            | Method::RoundRobin
            | Method::WeightedRoundRobin
            | Method::TwoChoices
            | Method::Slots => (256, 1, 0, 1, ANY, 1),
        };
        write(&self.active, active);
        write(&self.inactive, inactive);
        write(&self.base, base);
        write(&self.weighted, weighted);
        write(&self.plain, 1_u64.wrapping_sub(weighted));
        write(&self.most, most);
        write(&self.idle, idle);
        write(&self.best, Self::NOBODY);
        // Above every cost: the first server is cheaper.
        write(&self.overhead, 1);
        write(&self.share, 0);
    }

    #[inline(always)]
    fn step(&self, position: u32, weight: u64, active: u64, inactive: u64) {
        if active > read(&self.most).wrapping_mul(weight) {
            return;
        }
        let counts = u64::from(active != 0) | read(&self.idle);
        let overhead = active
            .wrapping_mul(read(&self.active))
            .wrapping_add(inactive.wrapping_mul(read(&self.inactive)))
            .wrapping_add(read(&self.base))
            .wrapping_mul(counts);
        let share = weight.wrapping_mul(read(&self.weighted)).wrapping_add(read(&self.plain));
        if read(&self.overhead).wrapping_mul(share) > overhead.wrapping_mul(read(&self.share)) {
            write(&self.best, u64::from(position));
            write(&self.overhead, overhead);
            write(&self.share, share);
        }
    }
}

/// Position in `pool` of the available server of the lowest cost, the first of several; `u32::MAX` if none is
/// available. Looks at [`MAX_SCAN`] servers at most. For methods that take turns this is `wlc`. `scan` is room.
#[inline(always)]
pub fn least(method: Method, pool: &(impl Pool + ?Sized), scan: &Scan) -> u32 {
    scan.begin(method);
    let len = pool.len();
    let mut at = 0;
    while at < MAX_SCAN && at < len {
        let position = at;
        at = at.wrapping_add(1);
        let Some(server) = pool.server(position) else { continue };
        if server.is_available() {
            let (active, inactive) = (u64::from(server.active), u64::from(server.inactive));
            scan.step(position, u64::from(server.weight), active, inactive);
        }
    }
    read(&scan.best) as u32
}
