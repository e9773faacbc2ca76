//! Where packets come from and where they end.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::shared::{HEADER_WORDS, KINDS, Stream, kind};

/// One for each family, so that both can be sent in turn.
#[btf_map]
static STREAMS: Array<Stream, 2> = Array::new();
/// Packets that came, by [`kind`].
#[btf_map]
static ARRIVED: PerCpuArray<u64, KINDS> = PerCpuArray::new();

/// The first `N` bytes of the frame, if it has them.
#[inline(always)]
pub(crate) fn head<const N: usize>(context: &XdpContext) -> Option<*mut u8> {
    let (start, end) = (context.data(), context.data_end());
    if start + N > end { None } else { Some(start as *mut u8) }
}

/// The `T` at `offset`. Headers lie two bytes off a word's boundary, which every machine we run on can load.
///
/// # Safety
/// It is within the bytes that [`head`] gave.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(head: *const u8, offset: usize) -> T {
    // SAFETY: as promised by the caller.
    unsafe { head.add(offset).cast::<T>().read() }
}

/// Replaces the `T` at `offset`.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn store<T>(head: *mut u8, offset: usize, value: T) {
    // SAFETY: as promised by the caller.
    unsafe { head.add(offset).cast::<T>().write(value) }
}

/// A packet's flow, and what it adds to the VIP's address. Each flow comes once before any comes again: an odd
/// multiplier permutes the numbers below a power of two.
#[inline(always)]
fn next(stream: &mut Stream) -> (u32, u32) {
    let number = stream.next;
    stream.next = number.wrapping_add(1);
    let flow = number.wrapping_mul(0x9e37_79b1) & stream.flow_mask;
    let vip = (u64::from(flow) * u64::from(stream.vips)) >> (stream.flow_bits & 31);
    (flow, vip as u32)
}

#[inline(always)]
fn fold(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

/// The two 16-bit words of `value`.
#[inline(always)]
fn words(value: u32) -> u32 {
    (value >> 16) + (value & 0xffff)
}

/// Writes the next packet's headers and sends it: IPv4, TCP.
#[xdp]
pub fn generate_v4(context: XdpContext) -> u32 {
    let Some(frame) = head::<56>(&context) else { return XDP_ABORTED };
    let Some(stream) = STREAMS.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: one processor at a time generates; all offsets are below 56.
    unsafe {
        let (flow, vip) = next(&mut *stream);
        let header = &(*stream).header;
        let mut at = 0;
        while at < 14 {
            store(frame, at * 4, *header.get_unchecked(at));
            at += 1;
        }
        let source = u32::from_be(load(frame, 26)).wrapping_add(flow);
        let destination = u32::from_be(load(frame, 30)).wrapping_add(vip);
        let sum = (*stream).sum + words(source) + words(destination);
        store(frame, 24, (!(fold(fold(sum)) as u16)).to_be());
        store(frame, 26, source.to_be());
        store(frame, 30, destination.to_be());
        store(frame, 34, (1024 + (flow & 0x7fff) as u16).to_be());
    }
    XDP_TX
}

/// Writes the next packet's headers and sends it: IPv6, TCP.
#[xdp]
pub fn generate_v6(context: XdpContext) -> u32 {
    let Some(frame) = head::<{ HEADER_WORDS * 4 }>(&context) else { return XDP_ABORTED };
    let Some(stream) = STREAMS.get_ptr_mut(1) else { return XDP_ABORTED };
    // SAFETY: one processor at a time generates; all offsets are below 76.
    unsafe {
        let (flow, vip) = next(&mut *stream);
        let header = &(*stream).header;
        let mut at = 0;
        while at < HEADER_WORDS {
            store(frame, at * 4, *header.get_unchecked(at));
            at += 1;
        }
        let source = u32::from_be(load(frame, 34)).wrapping_add(flow);
        let destination = u32::from_be(load(frame, 50)).wrapping_add(vip);
        store(frame, 34, source.to_be());
        store(frame, 50, destination.to_be());
        store(frame, 54, (1024 + (flow & 0x7fff) as u16).to_be());
    }
    XDP_TX
}

/// Counts and drops.
#[xdp]
pub fn sink(context: XdpContext) -> u32 {
    let Some(frame) = head::<34>(&context) else { return XDP_DROP };
    // SAFETY: all offsets are below 34.
    let (group, ethertype) = unsafe { (load::<u8>(frame, 4), load::<u16>(frame, 12)) };
    let at = if ethertype == 0x0800_u16.to_be() { 14 + 9 } else { 14 + 6 };
    // SAFETY: as above.
    let protocol: u8 = unsafe { load(frame, at) };
    if let Some(counter) = ARRIVED.get_ptr_mut(kind(group, protocol)) {
        // SAFETY: an element of this processor.
        unsafe { *counter += 1 };
    }
    XDP_DROP
}
