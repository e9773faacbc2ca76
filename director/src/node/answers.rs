//! The control service: each request is put to the node's loop, which owns all state, and answered from there.

use std::pin::Pin;

use director_proto::control::control_server::Control;
use director_proto::control::{
    CaptureBatch, CaptureRequest, Connections, ConnectionsRequest, ExplainRequest, Explanation, Neighbors,
    NeighborsRequest, Peers, PeersRequest, ReloadReply, ReloadRequest, Services, ServicesRequest, Status,
    StatusRequest,
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
    Peers(oneshot::Sender<Peers>),
    Connections(u32, oneshot::Sender<Result<Connections, String>>),
    Reload(oneshot::Sender<Result<ReloadReply, String>>),
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

    async fn list_peers(&self, _: Request<PeersRequest>) -> Result<Response<Peers>, tonic::Status> {
        self.ask(Question::Peers).await.map(Response::new)
    }

    async fn list_connections(
        &self,
        request: Request<ConnectionsRequest>,
    ) -> Result<Response<Connections>, tonic::Status> {
        let limit = request.into_inner().limit;
        let answer = self.ask(|sender| Question::Connections(limit, sender)).await?;
        answer.map(Response::new).map_err(tonic::Status::failed_precondition)
    }

    async fn reload(&self, _: Request<ReloadRequest>) -> Result<Response<ReloadReply>, tonic::Status> {
        let answer = self.ask(Question::Reload).await?;
        answer.map(Response::new).map_err(tonic::Status::failed_precondition)
    }
    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<Explanation>, tonic::Status> {
        let request = request.into_inner();
        let answer = self.ask(|sender| Question::Explain(request, sender)).await?;
        answer.map(Response::new).map_err(tonic::Status::failed_precondition)
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
