//! Short requests at a steady rate: each a connection of its own, as a browser's first one.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

use super::download::{connect, limited, milliseconds};
use super::report::{Failure, Requests};
use super::{Plan, content, http};

/// Most requests under way at once; with 200 a second that is half a minute of silence.
const MAX_UNDER_WAY: usize = 8192;

/// Counters of the short requests, and the bytes of theirs that were wrong.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<(Requests, u64)>);

impl Counters {
    fn change(&self, change: impl FnOnce(&mut Requests, &mut u64)) {
        let mut inner = self.0.lock().expect("invariant: no holder of this lock panics");
        let (requests, wrong) = &mut *inner;
        change(requests, wrong);
    }

    /// The counters and the number of wrong bytes.
    pub(super) fn now(&self) -> (Requests, u64) {
        *self.0.lock().expect("invariant: no holder of this lock panics")
    }

    pub(super) fn mark(&self) {
        self.change(|requests, _| requests.longest_since_mark_ms = 0);
    }

    fn ended(&self, outcome: Result<u64, Failure>, took_ms: u64) {
        self.change(|requests, wrong| {
            match outcome {
                Ok(0) => requests.succeeded += 1,
                Ok(bytes) => {
                    requests.failures.add(Failure::Wrong);
                    *wrong += bytes;
                }
                Err(failure) => requests.failures.add(failure),
            }
            requests.longest_ms = requests.longest_ms.max(took_ms);
            requests.longest_since_mark_ms = requests.longest_since_mark_ms.max(took_ms);
        });
    }
}

/// Starts requests at the plan's rate until cancelled.
pub(super) async fn run(plan: Arc<Plan>, counters: Arc<Counters>) {
    if plan.rate == 0 {
        return;
    }
    let under_way = Arc::new(Semaphore::new(MAX_UNDER_WAY));
    let mut tasks = tokio::task::JoinSet::new();
    let mut pace = tokio::time::interval(std::time::Duration::from_secs(1) / plan.rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        pace.tick().await;
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&under_way).try_acquire_owned() else {
            counters.change(|requests, _| requests.skipped += 1);
            continue;
        };
        counters.change(|requests, _| requests.started += 1);
        let (plan, counters) = (Arc::clone(&plan), Arc::clone(&counters));
        tasks.spawn(async move {
            let start = Instant::now();
            let outcome = limited(&plan, one(&plan)).await;
            counters.ended(outcome, milliseconds(start.elapsed()));
            drop(permit);
        });
    }
}

/// One request; returns how many of its bytes were wrong.
async fn one(plan: &Plan) -> Result<u64, Failure> {
    let mut stream = connect(plan.target, None).await?;
    http::send(&mut stream, "/tiny", None, true).await?;
    let head = http::receive_head(&mut stream).await?;
    if head.status != 200 || head.length > 65536 || head.body.len() as u64 > head.length {
        return Err(Failure::Wrong);
    }
    let mut body = head.body;
    let already = body.len();
    body.resize(usize::try_from(head.length).unwrap_or(0), 0);
    stream.read_exact(&mut body[already..]).await.map_err(|error| Failure::of(&error))?;
    Ok(content::wrong_bytes(0, &body))
}
