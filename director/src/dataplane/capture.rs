//! Packets for whoever watches: the filter, the buffers that the program fills, and what is read from them.
//!
//! The buffers are opened through a descriptor of their map that lives as long as the capture. When it is closed,
//! by us or by the death of this process, the kernel takes them out of the map: a forgotten filter then costs a
//! look-up that finds nothing, until the next process clears the flag.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::perf::{PerfBufferError, PerfEvent, PerfEventArray, PerfEventArrayBuffer};
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::online_cpus;
use director_common::Decision;
use director_common::capture::{CaptureEvent, CaptureFilter};
use director_common::tables::{Address, Config};
use director_common::verdict::Outcome;
use nix::time::{ClockId, clock_gettime};

use super::Dataplane;
use super::error::OpenError;
use super::maps::{Shared, ip_address, take};

/// Most bytes of a frame that a capture keeps: with what belongs to it, an event must be shorter than 64 KiB.
pub const MAX_SNAPLEN: u32 = 65_000;

/// Memory for all buffers together in bytes; each processor's has a share of it.
const BUFFERS: usize = 16 << 20;
/// Least and most memory for one buffer in bytes.
const BUFFER: (usize, usize) = (256 << 10, 4 << 20);

/// Which packets to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureRequest {
    /// Only packets of the service with this name.
    pub service: Option<String>,
    /// Only packets with these outcomes, each by the name it has in `director status` (`dropped: no-next-hop`), by
    /// its reason alone (`no-next-hop`), or by what becomes of it (`dropped`). All, if there are none.
    pub reasons: Vec<String>,
    /// Most bytes of a frame that are kept; 0 for as many as possible.
    pub snaplen: u32,
    /// The frame as it leaves, instead of as it came.
    pub after: bool,
}

/// Why a capture cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is no such service.
    #[error("there is no service '{service}' in the data plane; there are: {known}")]
    Service {
        /// What was asked for.
        service: String,
        /// The services there are.
        known: String,
    },
    /// There is no such outcome.
    #[error("there is no verdict '{reason}'; there are: {known}")]
    Reason {
        /// What was asked for.
        reason: String,
        /// The outcomes there are.
        known: String,
    },
    /// Somebody else watches.
    #[error("a capture is running already, and there can be one at a time: end that one first")]
    Running,
    /// The processors could not be listed.
    #[error("cannot list the processors: {what}")]
    Processors {
        /// What was read.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A buffer could not be made.
    #[error("cannot open the buffer of processor {processor}")]
    Buffer {
        /// The processor.
        processor: u32,
        /// What the kernel said.
        #[source]
        source: PerfBufferError,
    },
    /// The kernel refused a change.
    #[error("cannot access a map of the data plane")]
    Map(#[from] MapError),
}

/// A captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedPacket {
    /// When it came: `CLOCK_MONOTONIC`.
    pub time: Duration,
    /// Interface it came in by.
    pub ifindex: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// The service that owns it.
    pub service: Option<String>,
    /// The real server it went to.
    pub real: Option<SocketAddr>,
    /// Length of the frame in bytes.
    pub length: u32,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// The maps of captures.
pub(super) struct CaptureMaps {
    filter: Array<MapData, Shared<CaptureFilter>>,
    lost: PerCpuArray<MapData, u64>,
    /// Identifier of the buffers' map: each capture opens it anew.
    events: u32,
    /// Keeps the map, which the program alone would keep only while it is loaded.
    _map: MapData,
}

impl CaptureMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, OpenError> {
        let Some(Map::PerfEventArray(map)) = ebpf.take_map("CAPTURE_EVENTS") else {
            return Err(OpenError::Object("CAPTURE_EVENTS"));
        };
        let events = map.info()?.id();
        Ok(Self { filter: take(ebpf, "CAPTURE")?, lost: take(ebpf, "CAPTURE_LOST")?, events, _map: map })
    }
}

/// A capture that runs: the buffers that the program fills.
pub(super) struct Buffers {
    open: Vec<PerfEventArrayBuffer<MapData>>,
    /// Events that came after the moment up to which the last batch told everything.
    early: Vec<(CaptureEvent, Vec<u8>)>,
}

fn page_size() -> usize {
    // SAFETY: a function without memory arguments.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(4_096)
}

fn open_buffers(events: u32) -> Result<Buffers, CaptureError> {
    let mut array = PerfEventArray::try_from(Map::PerfEventArray(MapData::from_id(events)?))?;
    let processors =
        online_cpus().map_err(|(what, source)| CaptureError::Processors { what: what.to_owned(), source })?;
    let share = (BUFFERS / processors.len().max(1)).clamp(BUFFER.0, BUFFER.1);
    let pages = (share / page_size()).next_power_of_two();
    let open = |processor| {
        let opened = array.open(processor, Some(pages));
        opened.map_err(|source| CaptureError::Buffer { processor, source })
    };
    let open = processors.into_iter().map(open).collect::<Result<_, _>>()?;
    Ok(Buffers { open, early: Vec::new() })
}

/// The event and the bytes that follow it; `None` if it is not whole.
fn parse(head: &[u8], tail: &[u8]) -> Option<(CaptureEvent, Vec<u8>)> {
    let whole = [head, tail].concat();
    let (event, bytes) = whole.split_first_chunk()?;
    let event = CaptureEvent::from_bytes(event);
    // What follows the frame's bytes is padding.
    let bytes = bytes.get(..event.captured as usize)?.to_vec();
    Some((event, bytes))
}

/// The outcomes that the names stand for; all, if there are none.
fn outcomes(reasons: &[String]) -> Result<Vec<u32>, CaptureError> {
    if reasons.is_empty() {
        return Ok(Outcome::all().map(|(number, _)| number).collect());
    }
    let mut wanted = Vec::new();
    for reason in reasons {
        let of_name = |outcome: &Outcome| {
            let full = outcome.to_string();
            let kind = full.split_once(':').map(|(kind, _)| kind);
            full == *reason || outcome.name() == reason || kind == Some(reason)
        };
        let before = wanted.len();
        wanted.extend(Outcome::all().filter(|(_, outcome)| of_name(outcome)).map(|(number, _)| number));
        if wanted.len() == before {
            let known: Vec<String> = Outcome::all().map(|(_, outcome)| outcome.to_string()).collect();
            return Err(CaptureError::Reason { reason: reason.clone(), known: known.join(", ") });
        }
    }
    Ok(wanted)
}

impl Dataplane {
    /// Begins to capture. Nothing is captured twice: there is one capture at a time.
    ///
    /// # Errors
    /// [`CaptureError`]; nothing has changed then.
    pub fn start_capture(&mut self, request: &CaptureRequest) -> Result<(), CaptureError> {
        if self.capture.is_some() {
            return Err(CaptureError::Running);
        }
        let service = match &request.service {
            None => None,
            Some(name) => {
                Some(self.plan.services.get(name).map(|placement| placement.index).ok_or_else(|| {
                    let known = self.plan.names().collect::<Vec<_>>().join(", ");
                    CaptureError::Service { service: name.clone(), known }
                })?)
            }
        };
        let snaplen = if request.snaplen == 0 { MAX_SNAPLEN } else { request.snaplen.min(MAX_SNAPLEN) };
        let mut filter = CaptureFilter {
            snaplen,
            of_service: u32::from(service.is_some()),
            service: service.unwrap_or_default(),
            ..CaptureFilter::default()
        };
        outcomes(&request.reasons)?.into_iter().for_each(|number| filter.want(number));
        let buffers = open_buffers(self.maps.capture.events)?;
        let zero = PerCpuValues::try_from(vec![0; self.maps.processors]).map_err(MapError::from)?;
        self.maps.capture.lost.set(0, zero, 0)?;
        self.maps.capture.filter.set(0, Shared(filter), 0)?;
        let flag = if request.after { Config::FLAG_CAPTURE_AFTER } else { Config::FLAG_CAPTURE };
        self.set_capture_flags(flag)?;
        self.capture = Some(buffers);
        Ok(())
    }

    /// The packets captured since the last call, in the order they came; about `limit` of them at most, the others
    /// stay where they are. Empty without a capture.
    pub fn read_capture(&mut self, limit: usize) -> Vec<CapturedPacket> {
        let Some(buffers) = &mut self.capture else { return Vec::new() };
        // What came before this moment is in some buffer by now, so it can be put in order.
        let until = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(u64::MAX, |now| Duration::from(now).as_nanos() as u64);
        let mut events = std::mem::take(&mut buffers.early);
        for buffer in &mut buffers.open {
            let enough = events.len() + limit / 2;
            let _ = buffer.try_fold((), |(), event| {
                // What was lost is counted by the program.
                if let PerfEvent::Sample { head, tail } = event {
                    events.extend(parse(head, tail));
                }
                if events.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        events.sort_by_key(|(event, _)| event.time_ns);
        buffers.early = events.split_off(events.partition_point(|(event, _)| event.time_ns <= until));
        let names: BTreeMap<u32, String> =
            self.plan.services.iter().map(|(name, placement)| (placement.index, name.clone())).collect();
        events.into_iter().filter_map(|(event, bytes)| self.captured(&event, bytes, &names)).collect()
    }

    fn captured(
        &self,
        event: &CaptureEvent,
        bytes: Vec<u8>,
        names: &BTreeMap<u32, String>,
    ) -> Option<CapturedPacket> {
        let (_, outcome) = Outcome::all().find(|(number, _)| *number == event.outcome)?;
        let real = (event.real != CaptureEvent::NO_REAL).then(|| self.maps.real(event.real).ok()).flatten();
        let real = real.filter(|real| real.address != Address::default());
        Some(CapturedPacket {
            time: Duration::from_nanos(event.time_ns),
            ifindex: event.ifindex,
            outcome,
            service: match event.service {
                Decision::NO_SERVICE => None,
                index => names.get(&index).cloned(),
            },
            real: real.map(|real| SocketAddr::new(ip_address(real.address), real.port)),
            length: event.length,
            bytes,
        })
    }

    /// How many wanted packets found no room since the capture began.
    pub fn capture_lost(&self) -> u64 {
        self.maps.capture.lost.get(&0, 0).map_or(0, |lost| lost.iter().sum())
    }

    /// Ends the capture, if there is one. Packets not read yet are gone.
    ///
    /// # Errors
    /// [`CaptureError::Map`] if the kernel refuses.
    pub fn stop_capture(&mut self) -> Result<(), CaptureError> {
        self.capture = None;
        self.set_capture_flags(0)
    }

    fn set_capture_flags(&mut self, flags: u32) -> Result<(), CaptureError> {
        let change =
            |config: Config| Config { flags: config.flags & !Config::CAPTURE_FLAGS | flags, ..config };
        Ok(self.maps.write_config(change)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(reasons: &[&str]) -> Result<usize, CaptureError> {
        let reasons: Vec<String> = reasons.iter().map(|reason| (*reason).to_owned()).collect();
        outcomes(&reasons).map(|found| found.len())
    }

    #[test]
    fn a_reason_is_known_by_every_name_that_users_see() {
        let all = Outcome::all().count();
        assert_eq!(named(&[]).expect("all"), all);
        for (_, outcome) in Outcome::all() {
            assert_eq!(named(&[&outcome.to_string()]).expect("full name"), 1, "{outcome}");
            assert_eq!(named(&[outcome.name()]).expect("short name"), 1, "{outcome}");
        }
        let kinds = ["transmitted", "redirected", "answered", "passed", "dropped"];
        let replies = ["reply-transmitted", "reply-redirected", "reply-by-kernel"];
        assert_eq!(named(&[&kinds[..], &replies].concat()).expect("kinds"), all);
    }

    #[test]
    fn an_unknown_reason_is_answered_by_those_there_are() {
        let error = named(&["no-next-hop", "no-next-hope"]).expect_err("unknown").to_string();
        assert!(error.contains("'no-next-hope'") && error.contains("dropped: no-next-hop,"), "{error}");
    }

    #[test]
    fn padding_is_not_taken_for_the_frame_and_half_an_event_for_none() {
        let mut sample = [0_u8; 32 + 16];
        sample[28..32].copy_from_slice(&10_u32.to_ne_bytes());
        sample[32..42].copy_from_slice(b"0123456789");
        let (event, bytes) = parse(&sample[..37], &sample[37..]).expect("event");
        assert_eq!((event.captured, bytes.as_slice()), (10, &b"0123456789"[..]));
        assert_eq!(parse(&sample[..41], &[]), None);
        assert_eq!(parse(&sample[..31], &[]), None);
    }
}
