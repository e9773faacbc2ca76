//! The choice of a server for a new connection, in a function of the program's own.
//!
//! Deciding leaves no stack for it. So what decides leaves a question here and gives the packet up; the choice is made
//! when it has returned, and the packet decided on anew, with the answer.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::btf_map;
use director_common::lease::opening;
use director_common::schedulers::{Method, SCAN_WORDS, Scan, Server, choose};
use director_common::tables::{Roster, ServiceEntry};
use director_common::template;

use crate::maps::{self, KernelTables};

/// A question and its answer. Zeroes before the first packet: nobody asks.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Appointment {
    state: u32,
    service: u32,
    method: u32,
    real_base: u32,
    real_count: u32,
    position: u32,
    /// One of [`opening`]: whether the connection is to begin, and how it did.
    opening: u32,
    /// 1 if the client may have a template, else 0.
    is_persistent: u32,
    scan: [u64; SCAN_WORDS],
}

const ASKED: u32 = 1;
const ANSWERED: u32 = 2;
/// No question: the server is known.
const GIVEN: u32 = 3;

/// One for each processor.
#[btf_map]
static APPOINTMENT: PerCpuArray<Appointment, 1> = PerCpuArray::new();

#[inline(always)]
fn appointment() -> Option<&'static mut Appointment> {
    // SAFETY: an element of this processor; nothing interrupts the program on it with another, and each of its functions
    // takes it once.
    APPOINTMENT.get_ptr_mut(0).map(|appointment| unsafe { &mut *appointment })
}

#[inline(always)]
fn put(appointment: &mut Appointment, service: &ServiceEntry) {
    appointment.state = ASKED;
    appointment.opening = opening::NONE;
    appointment.service = service.service;
    appointment.method = service.method() as u32;
    appointment.real_base = service.real_base;
    appointment.real_count = service.real_count;
    appointment.is_persistent = u32::from(service.is_persistent());
}

/// What [`to_open`] says where no connection is to begin.
pub const NOTHING: u32 = u32::MAX - 1;

/// Asks that the connection of the packet in hand begin, with the server at position `wanted`, or the one that the
/// scheduler chooses if that is [`Roster::NOBODY`].
#[inline(always)]
pub fn ask_to_open(service: &ServiceEntry, wanted: u32) -> u32 {
    if let Some(appointment) = appointment() {
        put(appointment, service);
        appointment.opening = opening::ASKED;
        if wanted != Roster::NOBODY {
            (appointment.state, appointment.position) = (GIVEN, wanted);
        }
    }
    opening::ASKED
}

/// The position of the server with which a connection is to begin, [`Roster::NOBODY`] if there is none; or [`NOTHING`].
#[inline(always)]
pub fn to_open() -> u32 {
    match appointment() {
        Some(appointment) if appointment.opening == opening::ASKED => appointment.position,
        _ => NOTHING,
    }
}

/// Says how it began.
#[inline(always)]
pub fn set_opened(opened: u32) {
    if let Some(appointment) = appointment() {
        appointment.opening = opened;
    }
}

/// How the connection of the packet in hand began, if that was asked for.
#[inline(always)]
pub fn opened(service: &ServiceEntry) -> u32 {
    match appointment() {
        Some(appointment) if appointment.state == ANSWERED && appointment.service == service.service => {
            appointment.opening
        }
        _ => opening::NONE,
    }
}

/// Answers the question, if there is one: 1, else 0. Where the client has a template, that is the answer, and nobody's turn
/// is taken.
#[inline(always)]
pub fn answer() -> u32 {
    let Some(appointment) = appointment() else { return 0 };
    let asked = appointment.state;
    if asked != ASKED && asked != GIVEN {
        return 0;
    }
    appointment.state = ANSWERED;
    if appointment.is_persistent != 0 {
        let position = recall_template();
        if position != Roster::NOBODY {
            appointment.position = position;
            return 1;
        }
    }
    if asked == ASKED {
        choose_server(appointment);
    }
    if appointment.is_persistent != 0 {
        appointment.position = make_template(appointment.position);
    }
    1
}

/// The position of the server that the client's template names, [`Roster::NOBODY`] if it has none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn recall_template() -> u32 {
    let Some(judged) = maps::scratch() else { return Roster::NOBODY };
    template::recall(&KernelTables, &judged.entry, &judged.flow)
}

/// Makes the client's template, whose connection begins with the server at `position`; returns where it is to begin.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_template(position: u32) -> u32 {
    let Some(judged) = maps::scratch() else { return position };
    template::make(&KernelTables, &judged.entry, &judged.flow, position)
}

/// Has the scheduler choose.
#[inline(always)]
fn choose_server(appointment: &mut Appointment) {
    let (service, base, count) = (appointment.service, appointment.real_base, appointment.real_count);
    appointment.position = Roster::NOBODY;
    let Some(roster) = maps::roster(service) else { return };
    let load = |position: u32| -> Option<Server> {
        if position >= count {
            return None;
        }
        maps::load(base.wrapping_add(position)).map(|load| load.server())
    };
    // SAFETY: helpers without arguments.
    let draws = unsafe { [bpf_get_prandom_u32(), bpf_get_prandom_u32()] };
    let method = Method::from_bits(appointment.method);
    // SAFETY: words in the layout of a scan, which is cells of words; nobody else has them meanwhile.
    let scan = unsafe { &*(&raw const appointment.scan).cast::<Scan>() };
    let (position, moves) = choose(method, roster, maps::cursor(service), draws, scan, load);
    if moves != 0 {
        maps::turn(service, moves);
    }
    appointment.position = position;
}

/// Forgets question and answer.
#[inline(always)]
pub fn dismiss() {
    if let Some(appointment) = appointment() {
        appointment.state = 0;
    }
}
