//! Claims about health checks, against real servers on loopback.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod kinds;
mod running;
mod servers;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Check;

/// More than any step of a test takes on a busy machine, so that a test fails rather than hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// A port of loopback that the kernel is to choose.
fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// One probe, as the operator reads it: `Ok` with what passed, `Err` with the reason.
async fn probe(check: &Check, to: SocketAddr) -> Result<String, String> {
    check.validate().expect("the check is valid");
    match check.probe(to, DEADLINE).await {
        Ok(detail) => Ok(detail.into_owned()),
        Err(error) => Err(error.to_string()),
    }
}
