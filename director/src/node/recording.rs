//! A recording of what OSPF is told, for one client.

use std::time::Duration;

use director_proto::control as wire;
use tokio::sync::mpsc;

use super::Node;

impl Node {
    /// Begins to record; the lines come out of the returned end.
    pub(super) async fn record_ospf(
        &mut self,
        request: &wire::RecordOspfRequest,
    ) -> Result<mpsc::Receiver<String>, String> {
        let span = Duration::from_secs(request.seconds.into());
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let begun = self.ask_routing(|routing| std::future::ready(routing.record(span, limit))).await?;
        begun.map_err(|error| error.to_string())
    }
}
