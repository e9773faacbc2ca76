//! Full NAT: which of several views of connections counts.
//!
//! A lease is taken by the director whose address it is, and that one knows of no other connection with it then. So of two
//! connections that have one lease in different views, one has ended: the one that has taken it earlier. And a client
//! begins a connection when it is done with the one that it had from the same port: so of two leases of one connection the
//! earlier one is void. When a lease was taken therefore says all; that travels as its age, which is the same everywhere but
//! for [`PRECISION`]. When packets of a connection were seen last says nothing of it: directors see different packets, and
//! those of one that is dead get more time than they would have.
//!
//! What was taken at the same time, as far as can be told, is in an order that every director knows. That decides where a
//! SYN was sent again, and came to another director: the connection has two leases, and either will do.
//!
//! A director that tells of something else than before is always right: it has seen the one end and the other begin.

/// Seconds by which what two directors say of one lease's age may differ: each of up to three clocks of whole seconds on its
/// way adds one in either direction, and a new lease is told without its age.
pub(super) const PRECISION: u32 = 8;

/// Seconds at second `now` since a lease was taken, at second `taken` of the same clock: that may have been before its 0, and
/// a packet may have come in the second that has begun since `now` was read.
pub(super) const fn age(now: u32, taken: u32) -> u32 {
    let age = now.wrapping_sub(taken);
    if age > i32::MAX as u32 { 0 } else { age }
}

/// A view of a lease: for how long a connection has had it, and its place in the order of those of one age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View<K> {
    /// Seconds.
    pub(super) age: u32,
    /// What the views differ by: local address and port of one connection, or the connections that have one lease.
    pub(super) key: K,
}

impl<K: Ord> View<K> {
    /// Whether this view takes the place of `other`.
    pub(super) fn overrules(&self, other: &Self) -> bool {
        if self.age.abs_diff(other.age) > PRECISION { self.age < other.age } else { self.key < other.key }
    }
}

#[cfg(test)]
mod tests;
