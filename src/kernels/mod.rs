//! The Rust face of `csrc`: one safe function for each op, slices in and slices out.
//!
//! Kernel tests, benches and small uses call these. The engine calls the same kernels through graph nodes that hold the argument
//! structs of [`sys`] themselves. What an op computes is said in its contract, `csrc/ops/<op>/args.h`; how to add one in
//! `csrc/README.md`.
//!
//! The functions check every length and every index that a kernel would follow. A wrong one is a mistake of the caller, not of
//! its input: they panic.

mod dense;
mod expert_ffn;
mod gather_attention;
mod hyper_step;
mod index_topk;
mod kv_compress;
mod moe_route;
mod norm_rope;
mod roof;
mod step;
#[expect(
    unsafe_code,
    non_camel_case_types,
    missing_docs,
    reason = "generated from csrc/fathom.h, whose names these are"
)]
pub mod sys;

pub use dense::{Dense, dense};
pub use expert_ffn::{ElementType, ExpertFfn, Experts, expert_ffn};
pub use gather_attention::{GatherAttention, gather_attention, gather_attention_commit};
pub use hyper_step::{HyperStep, Stepped, hyper_step};
pub use index_topk::{IndexTopk, Selected, index_topk};
pub use kv_compress::{KvCompress, Pending, kv_compress};
pub use moe_route::{MoeRoute, Policy, Routed, Routing, moe_route};
pub use norm_rope::{NormRope, norm_rope};
pub use roof::Roof;
pub use step::{Rope, RowBuffer, RowFormat, RowType, Segments, Step};

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain C.
    Portable = sys::FATHOM_ISA_PORTABLE as isize,
    /// AArch64.
    Neon = sys::FATHOM_ISA_NEON as isize,
    /// x86-64 with AVX2, FMA, F16C and BMI2.
    Avx2 = sys::FATHOM_ISA_AVX2 as isize,
    /// x86-64 with AVX-512 F, BW, VL, DQ, VNNI and VBMI.
    Avx512 = sys::FATHOM_ISA_AVX512 as isize,
}

impl Isa {
    /// Every set that exists, slowest first.
    pub const ALL: [Isa; sys::FATHOM_N_ISA as usize] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// The sets that this program contains and this processor has, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.table().is_some())
    }

    /// The set whose kernels run when nobody asks for another: the fastest available one, or what [`Isa::use_everywhere`] set.
    pub fn in_use() -> Isa {
        // SAFETY: no arguments; reads the processor's features and an atomic.
        #[expect(unsafe_code, reason = "a call into csrc")]
        let number = unsafe { sys::fathom_isa() };
        Self::ALL[number as usize]
    }

    /// Runs the kernels of this set from now on, in all threads. False if it is not available. For finding faults.
    pub fn use_everywhere(self) -> bool {
        // SAFETY: any number may be passed; sets an atomic.
        #[expect(unsafe_code, reason = "a call into csrc")]
        let status = unsafe { sys::fathom_isa_use(self as i32) };
        status == 0
    }

    fn table(self) -> Option<&'static sys::fathom_kernels> {
        // SAFETY: any number may be passed; what comes back is null or a constant of the program.
        #[expect(unsafe_code, reason = "a call into csrc")]
        unsafe {
            sys::fathom_kernels_for(self as i32).as_ref()
        }
    }
}

/// One implementation of all ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The specification: `csrc/ops/<op>/reference.c`.
    Reference,
    /// `csrc/ops/<op>/cpu.c`, compiled for one instruction set.
    Kernel(Isa),
}

impl Version {
    /// Every kernel version that this processor can run.
    pub fn kernels() -> impl Iterator<Item = Version> {
        Isa::available().map(Version::Kernel)
    }

    /// The kernels of the set in use.
    pub fn in_use() -> Version {
        Version::Kernel(Isa::in_use())
    }
}

/// Layout of a struct of the C side: name, size, alignment.
pub fn layouts() -> Vec<(String, usize, usize)> {
    let mut first = std::ptr::null();
    // SAFETY: `first` is written with the start of a constant array whose length is returned; names are C strings that live as long.
    #[expect(unsafe_code, reason = "a call into csrc")]
    unsafe {
        let n = sys::fathom_layouts(&raw mut first);
        let layouts = std::slice::from_raw_parts(first, n);
        let name = |layout: &sys::fathom_layout| std::ffi::CStr::from_ptr(layout.name).to_string_lossy().into_owned();
        layouts.iter().map(|layout| (name(layout), layout.size, layout.alignment)).collect()
    }
}

/// A kernel of a table.
type Phase<A> = Option<unsafe extern "C" fn(*const A, i32, i32)>;

/// Runs one phase on `nth` threads and waits for them.
///
/// # Safety
/// `args` is valid for the kernel: pointers, lengths and indices as its contract says.
#[expect(unsafe_code, reason = "a call into csrc")]
unsafe fn run<A>(phase: Phase<A>, args: &A, nth: usize) {
    // SAFETY: the caller's promise.
    unsafe { run_phases(&[phase], args, nth) }
}

/// Runs phase after phase on `nth` threads; no phase begins before all threads have finished the one before.
///
/// # Safety
/// As for [`run`].
#[expect(unsafe_code, reason = "calls into csrc")]
unsafe fn run_phases<A>(phases: &[Phase<A>], args: &A, nth: usize) {
    struct Shared<'a, A>(&'a A);
    // SAFETY: kernels are made to be run by several threads on the same arguments; each writes only its own part.
    unsafe impl<A> Sync for Shared<'_, A> {}

    let n = i32::try_from(nth).expect("threads are few");
    let shared = &Shared(args);
    let finished = &std::sync::Barrier::new(nth);
    let part = move |ith: i32| {
        for phase in phases {
            let phase = phase.expect("every table is complete: set.c fills it from ops.def");
            // SAFETY: the caller's promise.
            unsafe { phase(shared.0, ith, n) };
            finished.wait();
        }
    };
    std::thread::scope(|scope| {
        for ith in 1..n {
            scope.spawn(move || part(ith));
        }
        part(0);
    });
}

/// Scratch memory as the contracts want it: aligned to a cache line.
struct Scratch(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "written by kernels")] [u8; 64]);

impl Scratch {
    /// At least `bytes`, filled with NaN of every float type: what a kernel reads must have been written.
    fn new(bytes: usize) -> Self {
        Scratch(vec![Line([0xFF; 64]); bytes.div_ceil(64)])
    }

    fn as_mut_ptr(&mut self) -> *mut std::ffi::c_void {
        self.0.as_mut_ptr().cast()
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }
}

/// Memory that one call after another can use.
#[derive(Default)]
pub struct Workspace(Option<Scratch>);

impl Workspace {
    /// At least `bytes`: what there is if it suffices. New memory is NaN in every float type.
    fn at_least(&mut self, bytes: usize) -> *mut std::ffi::c_void {
        if self.0.as_ref().is_none_or(|scratch| scratch.bytes() < bytes) {
            self.0 = Some(Scratch::new(bytes));
        }
        self.0.as_mut().expect("just made").as_mut_ptr()
    }
}

/// A size as the contracts count.
fn count(n: usize) -> i32 {
    i32::try_from(n).expect("sizes fit the contract's i32")
}

fn or_null<T>(slice: Option<&[T]>) -> *const T {
    slice.map_or(std::ptr::null(), <[T]>::as_ptr)
}

#[cfg(test)]
mod tests {
    use super::sys::*;
    use super::*;

    /// Sizes say that a field is missing; the feature `bindgen` writes the file anew and shows every other difference.
    #[test]
    fn both_sides_agree_about_every_struct() {
        macro_rules! ours {
            ($($name:ident)*) => { vec![$((stringify!($name).to_owned(), size_of::<$name>(), align_of::<$name>())),*] };
        }
        let ours = ours![
            fathom_run
            fathom_step
            fathom_rows
            fathom_window
            fathom_rope
            fathom_pending
            fathom_routing
            fathom_expert_weights
            fathom_moe_route_args
            fathom_expert_ffn_args
            fathom_kv_compress_args
            fathom_index_topk_args
            fathom_gather_attention_args
            fathom_norm_rope_args
            fathom_dense_args
            fathom_hyper_step_args
            fathom_kernels
        ];
        assert_eq!(ours, layouts());
    }

    #[test]
    fn the_fastest_available_set_is_in_use() {
        assert_eq!(Isa::available().next(), Some(Isa::Portable));
        assert_eq!(Isa::available().last(), Some(Isa::in_use()));
    }
}
