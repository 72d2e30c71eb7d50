//! Memory in proportion to the file, whatever the file claims.

#![expect(unsafe_code, reason = "a global allocator that counts can only be written with unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fathom_gguf::File;

use crate::raw::Raw;

struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn grow(bytes: usize) {
    let live = LIVE.get().saturating_add(bytes);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: every request goes to the system allocator unchanged; only plain counters of this thread are touched besides,
// which allocate nothing (they are constants without destructors).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that were allocated at one time while reading `bytes`, the file itself not counted.
fn peak_while_reading(bytes: Vec<u8>) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    drop(File::from_bytes(bytes));
    PEAK.get() - before
}

/// An error message and the fixed parts of a `File`.
const FIXED: usize = 4096;

#[test]
fn claims_allocate_nothing() {
    const ARR: u32 = 9;
    let one_key = |raw: fn(Raw) -> Raw| raw(Raw::file(3, 0, 1)).bytes(&[0; 16]);
    let liars = [
        Raw::file(3, 1 << 20, 0),
        Raw::file(3, 0, 1 << 16),
        Raw::file(3, u64::MAX, u64::MAX),
        one_key(|raw| raw.u64(1 << 15)),
        one_key(|raw| raw.key("k", 8).u64(1 << 29)),
        one_key(|raw| raw.key("k", ARR).u32(8).u64(1 << 29)),
        one_key(|raw| raw.key("k", ARR).u32(10).u64(1 << 29)),
        one_key(|raw| raw.key("k", ARR).u32(ARR).u64(1 << 29)),
    ];
    for (number, liar) in liars.into_iter().enumerate() {
        let peak = peak_while_reading(liar.0);
        assert!(peak <= FIXED, "file {number} made the reader allocate {peak} bytes");
    }
}

#[test]
fn the_most_expensive_honest_files_stay_within_a_small_multiple() {
    const N: u64 = if cfg!(miri) { 200 } else { 2000 };
    let keys = (0..N).fold(Raw::file(3, 0, N), |raw, number| raw.key(&format!("{number:x}"), 0).u8(0));
    let tensors =
        (0..N).fold(Raw::file(3, N, 0), |raw, number| raw.tensor(&format!("{number:x}"), &[], 24, 32 * number));
    let tensors = tensors.pad(32).bytes(&[0; 32 * N as usize]);
    let array = |type_id| Raw::file(3, 0, 1).key("k", 9).u32(type_id).u64(N);
    let strings = (0..N).fold(array(8), |raw, _| raw.str(""));
    let arrays = (0..N).fold(array(9), |raw, _| raw.u32(8).u64(0));
    for (what, raw, most) in
        [("keys", keys, 24), ("tensors", tensors, 8), ("strings", strings, 2), ("arrays", arrays, 12)]
    {
        let (bytes, peak) = (raw.0.len(), peak_while_reading(raw.0.clone()));
        assert!(File::from_bytes(raw.0).is_ok(), "{what}");
        assert!(peak <= most * bytes + FIXED, "{what}: {peak} bytes for a file of {bytes}: {}x", peak / bytes);
        println!("{what}: {:.1}x", peak as f64 / bytes as f64);
    }
}
