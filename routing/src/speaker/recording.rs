//! Recordings: everything that a speaker is told from one moment on, with what it was at that moment, so that an incident
//! in production is a test on a desk.
//!
//! A recording is text, one JSON object a line, of version 2, version 3 or both: a head for each with the whole speaker in
//! it, then a step for each input with its time and a digest of everything that came out, then an end with a digest of
//! what can be seen of the speaker. A replay hands the same inputs at the same times to the same speaker and compares the
//! digests, so it either does the same byte for byte, or says at which step it does not.
//!
//! No secret gets into it. Keys and passwords are replaced by substitutes (see [`crate::Secret`]); packets that prove
//! knowledge of a secret, on their way in or out, prove that of its substitute instead, and all others lose their
//! password or digest. What the packets say is in there: keep a recording like a capture.

use std::{
    io::{self, BufRead},
    marker::PhantomData,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Extent, Input, Interface, InterfaceId, LsaDetail, Machine, Output, Protocol, RouteStatus, Status, Time,
};
use crate::{
    packet::{V2, v3::V3},
    serial::hex,
};

/// The format of recordings that is written and read here. It changes with anything that a speaker remembers.
pub const FORMAT: u32 = 2;

/// Why a recording ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingEnd {
    /// The time is over.
    Time,
    /// There is no room for more.
    Limit,
    /// The speaker has stopped.
    Stopped,
}

#[derive(Serialize)]
#[serde(bound = "")]
struct Head<'a, V: Protocol> {
    /// [`FORMAT`].
    recording: u32,
    /// Version of this program, for people.
    program: &'a str,
    /// Version of OSPF.
    version: u8,
    machine: &'a Machine<V>,
}

#[derive(Serialize)]
#[serde(bound = "")]
struct Step<'a, V: Protocol> {
    version: u8,
    at: Time,
    input: &'a Input<V>,
    outputs: &'a str,
}

#[derive(Serialize)]
struct End<'a> {
    version: u8,
    at: Time,
    end: RecordingEnd,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
}

/// Any line, as it is read: which of the three it is follows from what it has.
#[derive(Deserialize)]
#[serde(bound = "")]
struct Line<V: Protocol> {
    recording: Option<u32>,
    machine: Option<Machine<V>>,
    #[serde(default)]
    at: Time,
    input: Option<Input<V>>,
    outputs: Option<String>,
    end: Option<RecordingEnd>,
    state: Option<String>,
}

/// Room for the last line, which is shorter.
const END_ROOM: usize = 256;

/// What tells lines of the versions apart.
#[derive(Deserialize)]
struct Tag {
    recording: Option<u32>,
    version: u8,
}

fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("invariant: a recording has string keys alone");
    text.push('\n');
    text
}

/// Writes down what one speaker is told.
#[derive(Debug)]
pub(crate) struct Recorder<V: Protocol> {
    /// Bytes that may still be written.
    left: usize,
    version: PhantomData<V>,
}

/// An input that is about to be handled, as it will be written.
pub(crate) struct Pending<V: Protocol> {
    at: Time,
    input: Input<V>,
}

impl<V: Protocol> Recorder<V> {
    /// Begins a recording of `limit` bytes at most, with its first line. None if not even that has room.
    pub(crate) fn begin(machine: &Machine<V>, limit: usize) -> Option<(Self, String)> {
        let program = env!("CARGO_PKG_VERSION");
        let head = line(&Head { recording: FORMAT, program, version: V::NUMBER, machine });
        let left = limit.checked_sub(head.len())?.checked_sub(END_ROOM)?;
        Some((Self { left, version: PhantomData }, head))
    }

    /// What will be written of an input, taken before the machine handles it.
    pub(crate) fn note(&self, machine: &Machine<V>, at: Time, input: &Input<V>) -> Pending<V> {
        let mut input = input.clone();
        if let Input::Packet { interface, source, payload, .. } = &mut input {
            let whole = Bytes::from(std::mem::take(payload));
            *payload = machine.disguised(*interface, &whole, *source).to_vec();
        }
        Pending { at, input }
    }

    /// The line of an input, once it is known what came of it. None if there is no room for it, nor for the end.
    pub(crate) fn step(
        &mut self,
        machine: &Machine<V>,
        pending: &Pending<V>,
        outputs: &[Output<V>],
    ) -> Option<String> {
        let digest = machine.digest_of(outputs);
        let step = Step { version: V::NUMBER, at: pending.at, input: &pending.input, outputs: &digest };
        let text = line(&step);
        self.left = self.left.checked_sub(text.len())?;
        Some(text)
    }
}

impl<V: Protocol> Machine<V> {
    /// The last line of a recording. At its limit the speaker has already handled the input that had no room any more, so
    /// there is no state to compare.
    pub(crate) fn end_of_recording(&self, at: Time, end: RecordingEnd) -> String {
        let state = (end != RecordingEnd::Limit).then(|| self.digest_of_state());
        line(&End { version: V::NUMBER, at, end, state: state.as_deref() })
    }

    fn disguised(&self, id: InterfaceId, payload: &Bytes, source: V::Address) -> Bytes {
        match self.interfaces.get(&id) {
            Some(interface) => interface.guard.disguise::<V>(payload, source),
            None => Bytes::new(), // nobody reads it
        }
    }

    /// Everything in `outputs`, down to the bytes of packets as a recording has them.
    fn digest_of(&self, outputs: &[Output<V>]) -> String {
        self.digest_with(outputs, |interface, payload, source| interface.guard.disguise::<V>(payload, source))
    }

    /// The same with packets as `packet` makes them. Those on an interface that has gone with this very input count
    /// without what they say, since the key that would tell is gone as well.
    fn digest_with(
        &self,
        outputs: &[Output<V>],
        packet: impl Fn(&Interface<V>, &Bytes, V::Address) -> Bytes,
    ) -> String {
        let mut digest = Sha256::new();
        for output in outputs {
            let text = match output {
                Output::Send { interface, destination, payload } => {
                    let known = self.interfaces.get(interface);
                    let known = known.and_then(|known| Some((known, known.address()?)));
                    let payload =
                        known.map(|(known, source)| packet(known, payload, source)).unwrap_or_default();
                    format!("{interface:?} {destination} {}", hex::text(&payload))
                }
                other => format!("{other:?}"),
            };
            digest.update(text);
            digest.update("\n");
        }
        hex::text(&digest.finalize()[..16])
    }

    fn digest_of_state(&self) -> String {
        let status = serde_json::to_vec(&self.status()).expect("invariant: a status has string keys alone");
        hex::text(&Sha256::digest(status)[..16])
    }
}

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("line {line}: {source}")]
    Read {
        /// The line, from 1.
        line: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A line that is none of a recording.
    #[error("line {line} is not that of a recording: {source}")]
    Syntax {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A format that is not known here.
    #[error(
        "line {line}: a recording of format {found}, and this program reads {FORMAT}: replay it with the one that made it"
    )]
    Format {
        /// The line, from 1.
        line: u64,
        /// The format.
        found: u32,
    },
    /// A line out of its place.
    #[error("line {line}: {what}")]
    Order {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The replay does something else than the speaker did.
    #[error("line {line}: the replay differs from what was recorded: {what}")]
    Differs {
        /// The line, from 1.
        line: u64,
        /// What the replay did.
        what: String,
    },
}

/// A speaker as it was at the end of a recording.
#[derive(Debug)]
pub struct Replay {
    /// Version of OSPF.
    pub version: u8,
    /// Inputs that were replayed.
    pub steps: u64,
    /// Why the recording ends; none if it was cut off.
    pub end: Option<RecordingEnd>,
    /// What the speaker knew.
    pub status: Status,
    /// Its databases, with what the LSAs say.
    pub lsdb: Vec<LsaDetail>,
    /// Its routes; what the kernel made of them is not part of a recording.
    pub routes: Vec<RouteStatus>,
}

/// One speaker on its way through a recording.
struct Player<V: Protocol> {
    machine: Option<Machine<V>>,
    steps: u64,
    end: Option<RecordingEnd>,
}

impl<V: Protocol> Player<V> {
    fn new() -> Self {
        Self { machine: None, steps: 0, end: None }
    }

    fn play(&mut self, number: u64, text: &str) -> Result<(), ReplayError> {
        let line: Line<V> =
            serde_json::from_str(text).map_err(|source| ReplayError::Syntax { line: number, source })?;
        let out_of_order = |what| Err(ReplayError::Order { line: number, what });
        if self.end.is_some() {
            return out_of_order("behind the end of the recording");
        }
        if let (Some(_), Some(mut machine)) = (line.recording, line.machine) {
            if self.machine.is_some() {
                return out_of_order("a second beginning");
            }
            let _ = machine.calculate_routes(Extent::Full); // what follows from the rest
            self.machine = Some(machine);
            return Ok(());
        }
        let Some(machine) = &mut self.machine else { return out_of_order("before its beginning") };
        if let Some((input, recorded)) = line.input.zip(line.outputs) {
            machine.handle(line.at, input);
            let outputs: Vec<_> = std::iter::from_fn(|| machine.poll_output()).collect();
            // Its packets are made with the substitutes already.
            let digest = machine.digest_with(&outputs, |_, payload, _| payload.clone());
            self.steps += 1;
            if digest != recorded {
                return Err(ReplayError::Differs { line: number, what: format!("it put out {outputs:?}") });
            }
        } else if let Some(end) = line.end {
            // Only at a limit there is none.
            let is_right =
                line.state.map_or(end == RecordingEnd::Limit, |state| state == machine.digest_of_state());
            if !is_right {
                let what = format!("in the end it is {:?}", machine.status());
                return Err(ReplayError::Differs { line: number, what });
            }
            self.end = Some(end);
        } else {
            return out_of_order("neither a beginning, a step nor an end");
        }
        Ok(())
    }

    fn result(self) -> Option<Replay> {
        let Self { machine, steps, end } = self;
        let machine = machine?;
        Some(Replay {
            version: V::NUMBER,
            steps,
            end,
            status: machine.status(),
            lsdb: machine.lsdb(true),
            routes: machine.route_status(),
        })
    }
}

/// Replays a recording: for each version in it the speaker as it was in the end. A last line that was cut off, as by a
/// full disk, is passed over.
///
/// # Errors
/// It is none, or of another format, or the replay does not do what the speaker did: see [`ReplayError`].
pub fn replay(recording: impl BufRead) -> Result<Vec<Replay>, ReplayError> {
    let (mut v2, mut v3) = (Player::<V2>::new(), Player::<V3>::new());
    let mut lines = recording.lines().zip(1..).peekable();
    while let Some((text, number)) = lines.next() {
        let text = text.map_err(|source| ReplayError::Read { line: number, source })?;
        let tag: Tag = match serde_json::from_str(&text) {
            Ok(tag) => tag,
            Err(source) if source.is_eof() && lines.peek().is_none() && number > 1 => break,
            Err(source) => return Err(ReplayError::Syntax { line: number, source }),
        };
        if let Some(found) = tag.recording.filter(|format| *format != FORMAT) {
            return Err(ReplayError::Format { line: number, found });
        }
        match tag.version {
            2 => v2.play(number, &text)?,
            3 => v3.play(number, &text)?,
            _ => return Err(ReplayError::Order { line: number, what: "neither of OSPFv2 nor of OSPFv3" }),
        }
    }
    Ok(v2.result().into_iter().chain(v3.result()).collect())
}
