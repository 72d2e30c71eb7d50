//! Weight tensors: headers in one arena, data in the mapped file or, where it had to be changed, in memory of our own.

use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

use fathom_gguf::{DType, File, TensorInfo};
use llama_cpp_sys_2 as c;

use super::{Error, Tensor, types};

/// Alignment that ggml's CPU kernels expect of tensor data (`TENSOR_ALIGNMENT`).
const ALIGNMENT: usize = 32;

/// What tensors without data point to: not null, which would have ggml allocate them, and never read.
const NOWHERE: *mut u8 = std::ptr::without_provenance_mut(ALIGNMENT);

/// A tensor of [`Weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightId(u32);

/// 64 bytes that begin at a multiple of 64.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "reached through pointers to the whole")] [u8; 64]);

/// The weights of a model. Nothing is copied that need not be.
pub struct Weights {
    arena: NonNull<c::ggml_context>,
    capacity: usize,
    tensors: Vec<NonNull<c::ggml_tensor>>,
    /// Mapped data ends with this. `None`: tensors have shapes but no data; this is for planning and can never be run.
    file: Option<Rc<File>>,
    owned: Vec<Box<[Line]>>,
}

impl Weights {
    /// Room for `capacity` tensors of `file`; without a file, for building graphs whose memory is to be known, not for running them.
    ///
    /// # Errors
    /// [`Error::Memory`]
    pub fn new(file: Option<Rc<File>>, capacity: usize) -> Result<Weights, Error> {
        // SAFETY: takes nothing.
        let bytes = capacity.saturating_mul(unsafe { c::ggml_tensor_overhead() }) + 1024;
        // SAFETY: ggml allocates the arena itself.
        let arena =
            unsafe { c::ggml_init(c::ggml_init_params { mem_size: bytes, mem_buffer: null_mut(), no_alloc: true }) };
        let arena = NonNull::new(arena).ok_or(Error::Memory { what: "tensor headers", bytes })?;
        Ok(Weights { arena, capacity, tensors: Vec::with_capacity(capacity), file, owned: Vec::new() })
    }

    /// Whether tensors have no data.
    pub fn is_skeleton(&self) -> bool {
        self.file.is_none()
    }

    /// Bytes that were allocated beside the mapping.
    pub fn owned_bytes(&self) -> usize {
        self.owned.iter().map(|lines| size_of_val(&**lines)).sum()
    }

    /// A tensor of the file, used where it lies (copied if it does not lie at a multiple of 32), with shape `ne` of as many elements.
    ///
    /// # Errors
    /// [`Error::Node`] for a shape of another size, [`Error::ArenaFull`].
    pub fn map(&mut self, tensor: &TensorInfo, ne: &[usize]) -> Result<WeightId, Error> {
        let header = self.header(tensor.dtype, ne, tensor.bytes as usize)?;
        let Some(file) = self.file.clone() else { return Ok(self.add(header, &tensor.name, NOWHERE)) };
        let data = file.data(tensor);
        let pointer = if data.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            data.as_ptr().cast_mut()
        } else {
            let target = self.allocate(data.len())?;
            // SAFETY: `allocate` gave at least `data.len()` bytes that nobody else knows.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
            target
        };
        Ok(self.add(header, &tensor.name, pointer))
    }

    /// A tensor of the file, expanded to f32.
    ///
    /// # Errors
    /// As [`Weights::map`], and [`Error::Node`] when ggml cannot expand the type.
    pub fn expand(&mut self, tensor: &TensorInfo, ne: &[usize]) -> Result<WeightId, Error> {
        if tensor.dtype == DType::F32 {
            return self.map(tensor, ne);
        }
        let elements = ne.iter().product::<usize>();
        let header = self.header(DType::F32, ne, elements.saturating_mul(4))?;
        let Some(file) = self.file.clone() else { return Ok(self.add(header, &tensor.name, NOWHERE)) };
        let data = file.data(tensor);
        let target = self.allocate(elements * 4)?;
        // SAFETY: `allocate` gave at least that many bytes at a multiple of 64 that nobody else knows, all of them zero.
        let values = unsafe { std::slice::from_raw_parts_mut(target.cast::<f32>(), elements) };
        if !types::expand(tensor.dtype, data, values) {
            let what = format!("{} cannot be expanded", tensor.dtype.name());
            return Err(Error::Node { op: "expand", what });
        }
        Ok(self.add(header, &tensor.name, target))
    }

    fn header(&mut self, dtype: DType, ne: &[usize], bytes: usize) -> Result<NonNull<c::ggml_tensor>, Error> {
        if self.tensors.len() >= self.capacity {
            return Err(Error::ArenaFull { capacity: self.capacity });
        }
        let wide: Vec<u64> = ne.iter().map(|&n| n as u64).collect();
        if ne.is_empty() || ne.len() > 4 || dtype.tensor_bytes(&wide) != Some(bytes as u64) {
            let what = format!("{bytes} bytes are not {} {ne:?}", dtype.name());
            return Err(Error::Node { op: "weight", what });
        }
        let mut shape = [1_i64; 4];
        for (to, from) in shape.iter_mut().zip(ne) {
            *to = *from as i64;
        }
        // SAFETY: the arena has room for `capacity` headers; the shape fits 63 bits, as `tensor_bytes` has checked.
        let tensor = unsafe { c::ggml_new_tensor(self.arena.as_ptr(), dtype.id(), 4, shape.as_ptr()) };
        NonNull::new(tensor).ok_or(Error::ArenaFull { capacity: self.capacity })
    }

    fn add(&mut self, header: NonNull<c::ggml_tensor>, name: &str, data: *mut u8) -> WeightId {
        // SAFETY: the header was just made and nobody else knows it. Graphs only read weights.
        let raw = unsafe { &mut *header.as_ptr() };
        raw.data = data.cast();
        // For profiles. The last of the 64 characters stays 0.
        for (to, from) in raw.name[..63].iter_mut().zip(name.bytes()) {
            *to = from as std::ffi::c_char;
        }
        self.tensors.push(header);
        WeightId(self.tensors.len() as u32 - 1)
    }

    fn allocate(&mut self, bytes: usize) -> Result<*mut u8, Error> {
        let lines = bytes.div_ceil(64);
        let mut memory: Vec<Line> = Vec::new();
        memory.try_reserve_exact(lines).map_err(|_| Error::Memory { what: "weights", bytes })?;
        memory.resize(lines, Line([0; 64]));
        let mut memory = memory.into_boxed_slice();
        let pointer = memory.as_mut_ptr().cast();
        self.owned.push(memory);
        Ok(pointer)
    }

    /// # Safety
    /// The weights outlive `'b`.
    pub(super) unsafe fn tensor<'b>(&self, id: WeightId) -> Tensor<'b> {
        // SAFETY: given by the caller; the id indexes since it came from `add` (of these weights, or it panics or gives another weight).
        unsafe { Tensor::new(self.tensors[id.0 as usize]) }
    }

    /// Element type of a tensor.
    pub fn dtype(&self, id: WeightId) -> DType {
        // SAFETY: used within this call only.
        unsafe { self.tensor(id) }.dtype()
    }

    /// Where a tensor's data begins, for tables of experts.
    pub(super) fn data(&self, id: WeightId) -> *const u8 {
        // SAFETY: headers live as long as `self`.
        unsafe { self.tensors[id.0 as usize].as_ref() }.data.cast_const().cast()
    }
}

impl Drop for Weights {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed once; graphs that use its headers hold an `Rc` of this.
        unsafe { c::ggml_free(self.arena.as_ptr()) };
    }
}
