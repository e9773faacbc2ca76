//! The state machine of RFC 5880 section 6.2, as one table.
//!
//! ```text
//!                              +--+
//!                              |  | UP, ADMIN DOWN, TIMER
//!                              |  V
//!                      DOWN  +------+  INIT
//!               +------------|      |------------+
//!               |            | DOWN |            |
//!               |  +-------->|      |<--------+  |
//!               |  |         +------+         |  |
//!               |  |                          |  |
//!               |  |               ADMIN DOWN,|  |
//!               |  |ADMIN DOWN,          DOWN,|  |
//!               |  |TIMER                TIMER|  |
//!               V  |                          |  V
//!             +------+                      +------+
//!        +----|      |                      |      |----+
//!    DOWN|    | INIT |--------------------->|  UP  |    |INIT, UP
//!        +--->|      | INIT, UP             |      |<---+
//!             +------+                      +------+
//! ```

use super::packet::{Diagnostic, State};

/// What can move a session from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// A packet came, and its sender is in this state.
    Received(State),
    /// The detection time passed without a packet.
    DetectionExpired,
    /// Something other than BFD knows that the path is broken, or that this system is about to stop.
    PathFailed,
    /// The operator takes the session down.
    Disabled,
    /// The operator allows the session again.
    Enabled,
}

/// The state after `cause` in `state`, and why; `None` where nothing changes.
///
/// The diagnostic is what `bfd.LocalDiag` becomes: "the reason for the most recent change in the local session
/// state" (RFC 5880 section 6.8.1).
pub(super) const fn transition(state: State, cause: Cause) -> Option<(State, Diagnostic)> {
    use Cause::{DetectionExpired, Disabled, Enabled, PathFailed, Received};
    use State::{AdminDown, Down, Init, Up};
    match (state, cause) {
        (AdminDown, Enabled) => Some((Down, Diagnostic::NONE)),
        (Down | Init | Up, Disabled) => Some((AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN)),

        (Down, Received(Down)) => Some((Init, Diagnostic::NONE)),
        (Down, Received(Init)) | (Init, Received(Init | Up)) => Some((Up, Diagnostic::NONE)),
        //# If received state is AdminDown: if bfd.SessionState is not Down, set bfd.LocalDiag to 3 (Neighbor
        //# signaled session down), set bfd.SessionState to Down.
        (Init | Up, Received(AdminDown)) | (Up, Received(Down)) => {
            Some((Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN))
        }
        (Init | Up, DetectionExpired) => Some((Down, Diagnostic::DETECTION_TIME_EXPIRED)),
        (Init | Up, PathFailed) => Some((Down, Diagnostic::PATH_DOWN)),

        (AdminDown, Received(AdminDown | Down | Init | Up) | DetectionExpired | PathFailed | Disabled)
        | (Down, Received(AdminDown | Up) | DetectionExpired | PathFailed | Enabled)
        | (Init, Received(Down) | Enabled)
        | (Up, Received(Init | Up) | Enabled) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Cause::{self, DetectionExpired, Disabled, Enabled, PathFailed, Received};
    use super::State::{AdminDown, Down, Init, Up};
    use super::{State, transition};

    /// The state to go to, and the diagnostic.
    type Cell = Option<(State, u8)>;

    /// Rows: the causes; columns: AdminDown, Down, Init, Up. `None`: the state stays.
    const DIAGRAM: [(Cause, [Cell; 4]); 8] = [
        (Received(AdminDown), [None, None, Some((Down, 3)), Some((Down, 3))]),
        (Received(Down), [None, Some((Init, 0)), None, Some((Down, 3))]),
        (Received(Init), [None, Some((Up, 0)), Some((Up, 0)), None]),
        (Received(Up), [None, None, Some((Up, 0)), None]),
        (DetectionExpired, [None, None, Some((Down, 1)), Some((Down, 1))]),
        (PathFailed, [None, None, Some((Down, 5)), Some((Down, 5))]),
        (Disabled, [None, Some((AdminDown, 7)), Some((AdminDown, 7)), Some((AdminDown, 7))]),
        (Enabled, [Some((Down, 0)), None, None, None]),
    ];

    #[test]
    fn transitions_are_those_of_the_diagram() {
        for (cause, row) in DIAGRAM {
            for (state, expected) in [AdminDown, Down, Init, Up].into_iter().zip(row) {
                let got = transition(state, cause).map(|(to, why)| (to, why.code()));
                assert_eq!(got, expected, "{state} on {cause:?}");
            }
        }
    }
}
