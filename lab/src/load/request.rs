//! Short requests at a steady rate: each a connection of its own, as a browser's first one.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

use super::download::{connect, limited};
use super::record::milliseconds;
use super::report::Failure;
use super::tally::Tally;
use super::{Plan, Target, content, http};

/// Most requests under way at once; with 200 a second that is half a minute of silence.
const MAX_UNDER_WAY: usize = 8192;

/// Starts requests at the target's rate until cancelled.
pub(super) async fn run(plan: Arc<Plan>, target: Target, tally: Arc<Tally>) {
    if target.rate == 0 {
        return;
    }
    let under_way = Arc::new(Semaphore::new(MAX_UNDER_WAY));
    let mut tasks = tokio::task::JoinSet::new();
    let mut pace = tokio::time::interval(std::time::Duration::from_secs(1) / target.rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let address = target.address;
    loop {
        pace.tick().await;
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&under_way).try_acquire_owned() else {
            tally.request_skipped();
            continue;
        };
        tally.request_started();
        let (plan, tally) = (Arc::clone(&plan), Arc::clone(&tally));
        tasks.spawn(async move {
            let start = Instant::now();
            let outcome = limited(&plan, one(address, &tally)).await;
            tally.request_ended(outcome, milliseconds(start.elapsed()));
            drop(permit);
        });
    }
}

/// One request; returns how many of its bytes were wrong.
async fn one(target: SocketAddr, tally: &Tally) -> Result<u64, Failure> {
    let mut stream = connect(target, None).await?;
    http::send(&mut stream, "/tiny", None, true).await?;
    let head = http::receive_head(&mut stream).await?;
    tally.answered(head.served_by.as_deref());
    if head.status != 200 || head.length > 65536 || head.body.len() as u64 > head.length {
        return Err(Failure::Wrong);
    }
    let mut body = head.body;
    let already = body.len();
    body.resize(usize::try_from(head.length).unwrap_or(0), 0);
    stream.read_exact(&mut body[already..]).await.map_err(|error| Failure::of(&error))?;
    Ok(content::wrong_bytes(0, &body))
}
