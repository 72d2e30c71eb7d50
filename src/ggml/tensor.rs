//! A view of one tensor header, as long as a graph is being built.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use fathom_gguf::DType;
use llama_cpp_sys_2 as c;

/// A tensor of the graph that is being built, or a weight it uses. `'b` is the brand of that graph: tensors of two graphs do not mix.
#[derive(Clone, Copy)]
pub struct Tensor<'b> {
    pub(super) ptr: NonNull<c::ggml_tensor>,
    pub(super) _brand: PhantomData<fn(&'b ()) -> &'b ()>,
}

impl<'b> Tensor<'b> {
    /// # Safety
    /// `ptr` is a tensor of the arena, or of the weights, that live as long as `'b`.
    pub(super) unsafe fn new(ptr: NonNull<c::ggml_tensor>) -> Tensor<'b> {
        Tensor { ptr, _brand: PhantomData }
    }

    fn raw(&self) -> &c::ggml_tensor {
        // SAFETY: headers live as long as `'b` and nothing writes them while Rust holds this reference.
        unsafe { self.ptr.as_ref() }
    }

    /// What a weight is called in every layer: its name without the number of its block, for profiles.
    pub(super) fn kind(self) -> String {
        // SAFETY: ggml ends every name with a 0.
        let name = unsafe { std::ffi::CStr::from_ptr(self.raw().name.as_ptr()) }.to_string_lossy();
        let tells = |part: &&str| !matches!(*part, "blk" | "weight") && part.parse::<u32>().is_err();
        name.split('.').filter(tells).collect::<Vec<_>>().join(".")
    }

    /// Element type.
    pub fn dtype(self) -> DType {
        DType::from_id(self.raw().type_).expect("tensors are made with types of ours only")
    }

    /// Elements along each axis, the contiguous one first; missing axes are 1.
    pub fn ne(self) -> [usize; 4] {
        self.raw().ne.map(|n| usize::try_from(n).expect("ggml's sizes are not negative"))
    }

    /// Bytes from one element to the next along each axis.
    pub fn nb(self) -> [usize; 4] {
        self.raw().nb
    }

    /// Number of elements.
    pub fn elements(self) -> usize {
        self.ne().iter().product()
    }

    /// Whether elements lie one after the other without gaps.
    pub fn is_contiguous(self) -> bool {
        let (ne, nb, dtype) = (self.ne(), self.nb(), self.dtype());
        let Some(row) = dtype.row_bytes(ne[0] as u64) else { return false };
        let mut expected = row as usize;
        nb[0] == dtype.block_bytes() as usize
            && (1..4).all(|axis| {
                let fits = ne[axis] == 1 || nb[axis] == expected;
                expected *= ne[axis];
                fits
            })
    }
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype().name(), self.ne())
    }
}
