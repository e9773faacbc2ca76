//! What the rest of the program holds of the BFD thread.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::parameters::{Parameters, ParametersError};
use super::socket::OpenError;
use super::status::{SessionKey, Status};

/// How long a request may take. The thread answers within a fraction of a millisecond unless it is starved.
const PATIENCE: Duration = Duration::from_secs(2);

/// The reason why a session could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The intervals are out of range.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// The two addresses are not of one family.
    #[error("{} and {} are not of one address family", .0.local, .0.peer)]
    Families(SessionKey),
    /// There is a session with this peer on this interface.
    #[error("there is a session with {} on {} already", .0.peer, .0.interface)]
    Exists(SessionKey),
    /// The limit of the configuration is reached.
    #[error("no more than {0} sessions: raise max_sessions")]
    TooMany(usize),
    /// A socket could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The thread is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The reason why a session could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The intervals are out of range.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// There is no such session.
    #[error("there is no session with {} on {}", .0.peer, .0.interface)]
    Unknown(SessionKey),
    /// The thread is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The BFD thread has ended, or did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the BFD thread does not answer")]
pub struct Stopped;

/// What to do with an existing session.
#[derive(Debug)]
pub(super) enum Action {
    Remove,
    Set(Parameters),
    Disable,
    Enable,
}

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Add {
        key: SessionKey,
        parameters: Parameters,
        reply: mpsc::Sender<Result<(), AddError>>,
    },
    Act {
        key: SessionKey,
        action: Action,
        reply: mpsc::Sender<Result<(), UpdateError>>,
    },
    Status {
        reply: mpsc::Sender<Status>,
    },
    /// Tell the peers AdminDown, then end.
    Shutdown,
    /// Tell the peers Down, then end.
    Abandon,
}

/// The thread, from outside; clones are equal.
///
/// When the last clone is dropped without [`Handle::shutdown`], as by a panic, the peers are told Down with the
/// diagnostic "path down", so that they stop using this node at once instead of after the detection time. Calls
/// wait for the thread's answer, which takes well below a millisecond.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    commands: mpsc::Sender<Command>,
    wake: UnixStream,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)?;
        match (&self.wake).write(&[0]) {
            Ok(_) => Ok(()),
            // Enough wake-ups are on their way.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(Stopped),
        }
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the BFD thread panicked");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A thread that was shut down is not there to hear it.
        let _gone = self.send(Command::Abandon);
        self.join();
    }
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>, wake: UnixStream, thread: JoinHandle<()>) -> Self {
        Self(Arc::new(Shared { commands, wake, thread: Mutex::new(Some(thread)) }))
    }

    fn ask<T>(&self, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = mpsc::channel();
        self.0.send(command(reply))?;
        answer.recv_timeout(PATIENCE).map_err(|_| Stopped)
    }

    /// Starts a session. Its first event follows when the peer is heard.
    ///
    /// # Errors
    /// See [`AddError`]; no session is left behind.
    pub fn add(&self, key: SessionKey, parameters: Parameters) -> Result<(), AddError> {
        parameters.check()?;
        if key.local.is_ipv4() != key.peer.is_ipv4() {
            return Err(AddError::Families(key));
        }
        self.ask(|reply| Command::Add { key, parameters, reply })?
    }

    fn act(&self, key: &SessionKey, action: Action) -> Result<(), UpdateError> {
        let key = key.clone();
        self.ask(|reply| Command::Act { key, action, reply })?
    }

    /// Ends a session. The peer is told AdminDown for about its detection time; the key may be added again at once,
    /// and no further event comes.
    ///
    /// # Errors
    /// [`UpdateError::Unknown`] or [`UpdateError::Stopped`].
    pub fn remove(&self, key: &SessionKey) -> Result<(), UpdateError> {
        self.act(key, Action::Remove)
    }

    /// Changes the intervals, by a Poll Sequence if the session is Up.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub fn update(&self, key: &SessionKey, parameters: Parameters) -> Result<(), UpdateError> {
        parameters.check()?;
        self.act(key, Action::Set(parameters))
    }

    /// Holds a session in AdminDown.
    ///
    /// # Errors
    /// [`UpdateError::Unknown`] or [`UpdateError::Stopped`].
    pub fn disable(&self, key: &SessionKey) -> Result<(), UpdateError> {
        self.act(key, Action::Disable)
    }

    /// Ends what [`Handle::disable`] began.
    ///
    /// # Errors
    /// [`UpdateError::Unknown`] or [`UpdateError::Stopped`].
    pub fn enable(&self, key: &SessionKey) -> Result<(), UpdateError> {
        self.act(key, Action::Enable)
    }

    /// The state of everything.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn status(&self) -> Result<Status, Stopped> {
        self.ask(|reply| Command::Status { reply })
    }

    /// Tells all peers AdminDown and ends the thread; returns when that is done, after half a second at most.
    ///
    /// A peer that obeys RFC 5882 keeps its OSPF adjacency through this. Leave OSPF first.
    pub fn shutdown(&self) {
        if self.0.send(Command::Shutdown).is_ok() {
            self.0.join();
        }
    }
}
