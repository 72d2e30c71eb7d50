//! What ggml's CPU code can do with an element type.

use fathom_gguf::DType;
use llama_cpp_sys_2 as c;

/// Functions of ggml for one element type, for kernels of ours that need them.
#[derive(Clone, Copy, Debug)]
pub struct Functions {
    /// Dot product of a row with a row of the partner type.
    pub vec_dot: c::ggml_vec_dot_t,
    /// Expansion to f32; `None` for f32 itself.
    pub to_float: c::ggml_to_float_t,
    /// Rounding of f32 to the partner type.
    pub partner_from_float: c::ggml_from_float_t,
    /// The partner type of `vec_dot`.
    pub partner: DType,
}

/// See [`Functions`].
pub fn functions(dtype: DType) -> Functions {
    // SAFETY: every `DType` id is below GGML_TYPE_COUNT, which a test checks; the tables are constants.
    let (base, cpu) = unsafe { (&*c::ggml_get_type_traits(dtype.id()), &*c::ggml_get_type_traits_cpu(dtype.id())) };
    let partner = DType::from_id(cpu.vec_dot_type).unwrap_or(DType::F32);
    // SAFETY: as above.
    let partner_traits = unsafe { &*c::ggml_get_type_traits_cpu(partner.id()) };
    let partner_from_float = partner_traits.from_float;
    Functions { vec_dot: cpu.vec_dot, to_float: base.to_float, partner_from_float, partner }
}

/// Whether ggml can multiply matrices of this type with f32 activations, and look up their rows.
pub fn can_multiply(dtype: DType) -> bool {
    let integers = matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F64);
    !integers && !matches!(dtype, DType::Q8_1 | DType::Q8_K) && functions(dtype).vec_dot.is_some()
}

/// Expands whole rows of `dtype` to f32. `false` when ggml has no decoder for the type, or `data` and `out` do not match.
pub fn expand(dtype: DType, data: &[u8], out: &mut [f32]) -> bool {
    if dtype.row_bytes(out.len() as u64) != Some(data.len() as u64) {
        return false;
    }
    if dtype == DType::F32 {
        for (out, bytes) in out.iter_mut().zip(data.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
        return true;
    }
    let Some(to_float) = functions(dtype).to_float else { return false };
    // ggml fills its tables for half floats when the CPU backend is first used.
    // SAFETY: takes nothing and may be called any number of times.
    unsafe { c::ggml_cpu_init() };
    // SAFETY: `data` holds exactly the blocks of `out.len()` values.
    unsafe { to_float(data.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
    true
}
