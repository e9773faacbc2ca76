//! The control service: each request is put to the node's loop, which owns all state, and answered from there.

use std::pin::Pin;

use director_proto::control::control_server::Control;
use director_proto::control::{
    CaptureBatch, CaptureRequest, Connections, ConnectionsRequest, DrainProgress, DrainRequest, Events,
    EventsRequest, ExplainRequest, Explanation, Lsdb, LsdbRequest, Neighbors, NeighborsRequest,
    OspfInterfaces, OspfInterfacesRequest, Peers, PeersRequest, RecordOspfChunk, RecordOspfRequest,
    ReloadReply, ReloadRequest, RestartReply, RestartRequest, Routes, RoutesRequest, Services,
    ServicesRequest, Status, StatusRequest, UndrainReply, UndrainRequest,
};
use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response};

/// A question to the node's loop with the place for its answer.
pub(super) enum Question {
    Status(oneshot::Sender<Status>),
    Services(oneshot::Sender<Services>),
    Neighbors(oneshot::Sender<Neighbors>),
    Lsdb(LsdbRequest, oneshot::Sender<Result<Lsdb, String>>),
    Routes(oneshot::Sender<Result<Routes, String>>),
    OspfInterfaces(oneshot::Sender<Result<OspfInterfaces, String>>),
    Events(oneshot::Sender<Result<Events, String>>),
    Peers(oneshot::Sender<Peers>),
    Connections(u32, oneshot::Sender<Result<Connections, String>>),
    Reload(ReloadRequest, oneshot::Sender<Result<ReloadReply, String>>),
    Drain(DrainRequest, oneshot::Sender<Result<mpsc::Receiver<Result<DrainProgress, String>>, String>>),
    Undrain(oneshot::Sender<Result<UndrainReply, String>>),
    Restart(RestartRequest, oneshot::Sender<Result<RestartReply, String>>),
    RecordOspf(RecordOspfRequest, oneshot::Sender<Result<mpsc::Receiver<String>, String>>),
    Explain(ExplainRequest, oneshot::Sender<Result<Explanation, String>>),
    Capture(CaptureRequest, oneshot::Sender<Result<mpsc::Receiver<CaptureBatch>, String>>),
}

/// Sends questions to the node's loop.
#[derive(Clone)]
pub(super) struct Asker(pub(super) mpsc::Sender<Question>);

impl Asker {
    pub(super) async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, tonic::Status> {
        let stopping = || tonic::Status::unavailable("the director is stopping");
        let (sender, receiver) = oneshot::channel();
        self.0.send(question(sender)).await.map_err(|_| stopping())?;
        receiver.await.map_err(|_| stopping())
    }

    /// Asks for what may be refused.
    pub(super) async fn demand<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Question,
    ) -> Result<Response<T>, tonic::Status> {
        self.ask(question).await?.map(Response::new).map_err(tonic::Status::failed_precondition)
    }

    /// The metrics page.
    pub(super) async fn metrics(self) -> String {
        let all = async {
            let status = self.ask(Question::Status).await?;
            let services = self.ask(Question::Services).await?;
            let neighbors = self.ask(Question::Neighbors).await?;
            let peers = self.ask(Question::Peers).await?;
            Ok::<_, tonic::Status>(crate::metrics::render(&status, &services, &neighbors, &peers))
        };
        all.await.unwrap_or_else(|status| format!("# {}\n", status.message()))
    }
}

#[tonic::async_trait]
impl Control for Asker {
    async fn get_status(&self, _: Request<StatusRequest>) -> Result<Response<Status>, tonic::Status> {
        self.ask(Question::Status).await.map(Response::new)
    }

    async fn list_services(&self, _: Request<ServicesRequest>) -> Result<Response<Services>, tonic::Status> {
        self.ask(Question::Services).await.map(Response::new)
    }

    async fn list_neighbors(
        &self,
        _: Request<NeighborsRequest>,
    ) -> Result<Response<Neighbors>, tonic::Status> {
        self.ask(Question::Neighbors).await.map(Response::new)
    }

    async fn list_lsas(&self, request: Request<LsdbRequest>) -> Result<Response<Lsdb>, tonic::Status> {
        self.demand(|sender| Question::Lsdb(request.into_inner(), sender)).await
    }

    async fn list_routes(&self, _: Request<RoutesRequest>) -> Result<Response<Routes>, tonic::Status> {
        self.demand(Question::Routes).await
    }

    async fn list_ospf_interfaces(
        &self,
        _: Request<OspfInterfacesRequest>,
    ) -> Result<Response<OspfInterfaces>, tonic::Status> {
        self.demand(Question::OspfInterfaces).await
    }

    async fn list_events(&self, _: Request<EventsRequest>) -> Result<Response<Events>, tonic::Status> {
        self.demand(Question::Events).await
    }

    async fn list_peers(&self, _: Request<PeersRequest>) -> Result<Response<Peers>, tonic::Status> {
        self.ask(Question::Peers).await.map(Response::new)
    }

    async fn list_connections(
        &self,
        request: Request<ConnectionsRequest>,
    ) -> Result<Response<Connections>, tonic::Status> {
        let limit = request.into_inner().limit;
        self.demand(|sender| Question::Connections(limit, sender)).await
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadReply>, tonic::Status> {
        self.demand(|sender| Question::Reload(request.into_inner(), sender)).await
    }

    type DrainStream = Pin<Box<dyn Stream<Item = Result<DrainProgress, tonic::Status>> + Send>>;

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, tonic::Status> {
        let request = request.into_inner();
        let news = self.demand(|sender| Question::Drain(request, sender)).await?.into_inner();
        let news = ReceiverStream::new(news).map(|news| news.map_err(tonic::Status::failed_precondition));
        Ok(Response::new(Box::pin(news)))
    }

    async fn undrain(&self, _: Request<UndrainRequest>) -> Result<Response<UndrainReply>, tonic::Status> {
        self.demand(Question::Undrain).await
    }

    async fn restart(
        &self,
        request: Request<RestartRequest>,
    ) -> Result<Response<RestartReply>, tonic::Status> {
        self.demand(|sender| Question::Restart(request.into_inner(), sender)).await
    }

    type RecordOspfStream = Pin<Box<dyn Stream<Item = Result<RecordOspfChunk, tonic::Status>> + Send>>;

    async fn record_ospf(
        &self,
        request: Request<RecordOspfRequest>,
    ) -> Result<Response<Self::RecordOspfStream>, tonic::Status> {
        let lines =
            self.demand(|sender| Question::RecordOspf(request.into_inner(), sender)).await?.into_inner();
        let chunk = |lines: String| Ok(RecordOspfChunk { lines });
        Ok(Response::new(Box::pin(ReceiverStream::new(lines).map(chunk))))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<Explanation>, tonic::Status> {
        let request = request.into_inner();
        self.demand(|sender| Question::Explain(request, sender)).await
    }

    type CaptureStream = Pin<Box<dyn Stream<Item = Result<CaptureBatch, tonic::Status>> + Send>>;

    async fn capture(
        &self,
        request: Request<CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, tonic::Status> {
        let request = request.into_inner();
        let answer = self.ask(|sender| Question::Capture(request, sender)).await?;
        let batches = ReceiverStream::new(answer.map_err(tonic::Status::failed_precondition)?);
        Ok(Response::new(Box::pin(batches.map(Ok))))
    }
}
