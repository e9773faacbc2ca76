//! What keeps the BFD thread punctual on a busy machine: a real-time class and memory that is not swapped out.

use std::io;

use serde::Serialize;

/// Whether the kernel granted something that needs a privilege.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// The configuration does not ask for it.
    NotAsked,
    /// In force.
    Granted,
    /// Refused, with the kernel's reason: the thread works without it, and is late more often.
    Refused(String),
}

impl Grant {
    fn from_return(code: libc::c_int) -> Self {
        if code == 0 { Self::Granted } else { Self::Refused(io::Error::last_os_error().to_string()) }
    }
}

/// Moves the calling thread to `SCHED_FIFO` at `priority` (1 to 99). Needs `CAP_SYS_NICE` or `RLIMIT_RTPRIO`.
pub(super) fn enter_realtime(priority: Option<u8>) -> Grant {
    let Some(priority) = priority else { return Grant::NotAsked };
    let parameter = libc::sched_param { sched_priority: priority.into() };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameter` is a valid sched_param for the time of the call; 0 means the calling thread.
    Grant::from_return(unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) })
}

/// Keeps the pages of the process in memory: those that are there, and those of existing mappings once touched.
/// Mappings made later are not covered, so that a lock limit never fails an allocation. Needs `CAP_IPC_LOCK` or
/// `RLIMIT_MEMLOCK`.
pub(super) fn lock_memory(wanted: bool) -> Grant {
    if !wanted {
        return Grant::NotAsked;
    }
    // SAFETY: takes no pointer and changes no memory contents.
    Grant::from_return(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) })
}
