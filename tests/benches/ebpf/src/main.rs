//! The benchmark's XDP programs: a generator and a sink, and what the director's program is compared with.
#![no_std]
#![no_main]

mod reference;
mod shared;
mod traffic;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; were there a call left, the verifier would refuse the endless loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
