//! The same products by ggml's own ops, as a graph of its CPU backend.
#![expect(unsafe_code, reason = "ggml's C interface")]

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

use llama_cpp_sys_2 as c;

/// The experts of one layer: gate, up, clamped SwiGLU, down, and the factors of the chosen; not yet the sum over the chosen, which our
/// op does, too.
pub struct GgmlExperts {
    backend: c::ggml_backend_t,
    weights: *mut c::ggml_context,
    values: *mut c::ggml_context,
    buffers: Vec<*mut c::ggml_backend_buffer>,
    graph: *mut c::ggml_cgraph,
    ids: *mut c::ggml_tensor,
}

/// Sizes of [`GgmlExperts`].
pub struct Shape {
    pub n_embd: usize,
    pub n_ff: usize,
    pub n_expert: usize,
    pub n_used: usize,
    pub n_tokens: usize,
}

/// ggml's kind of memory in which weights lie as its kernels like them best.
fn repacked() -> Option<c::ggml_backend_buffer_type_t> {
    type ExtraBufts = unsafe extern "C" fn(c::ggml_backend_dev_t) -> *mut c::ggml_backend_buffer_type_t;
    // SAFETY: the function found by this name has this type (ggml-backend.h); its list ends with NULL.
    unsafe {
        let device = c::ggml_backend_dev_by_type(c::GGML_BACKEND_DEVICE_TYPE_CPU);
        let reg = c::ggml_backend_dev_backend_reg(device);
        let found = c::ggml_backend_reg_get_proc_address(reg, c"ggml_backend_dev_get_extra_bufts".as_ptr());
        if found.is_null() {
            return None;
        }
        let mut list = std::mem::transmute::<*mut c_void, ExtraBufts>(found)(device);
        while !list.is_null() && !(*list).is_null() {
            if CStr::from_ptr(c::ggml_backend_buft_name(*list)) == c"CPU_REPACK" {
                return Some(*list);
            }
            list = list.add(1);
        }
    }
    None
}

impl GgmlExperts {
    /// `matrices`: all gates one after the other, all ups, all downs, of element type `dtype` (ggml's number). `None`: ggml cannot repack.
    pub fn new(
        shape: &Shape,
        dtype: u32,
        matrices: [&[u8]; 3],
        x: &[f32],
        shares: &[f32],
        repack: bool,
        n_threads: usize,
    ) -> Option<GgmlExperts> {
        let [n_embd, n_ff, n_expert, n_used, n_tokens] =
            [shape.n_embd, shape.n_ff, shape.n_expert, shape.n_used, shape.n_tokens].map(|n| n as i64);
        let params = || c::ggml_init_params { mem_size: 1 << 20, mem_buffer: null_mut(), no_alloc: true };
        // SAFETY: tensors live in contexts that are freed in `drop`; sizes of data are compared; the graph is whole.
        unsafe {
            let buft = if repack { repacked()? } else { c::ggml_backend_cpu_buffer_type() };
            let (weights, values) = (c::ggml_init(params()), c::ggml_init(params()));
            let stack = |n_in, n_out| c::ggml_new_tensor_3d(weights, dtype, n_in, n_out, n_expert);
            let [gate, up, down] = [stack(n_embd, n_ff), stack(n_embd, n_ff), stack(n_ff, n_embd)];
            let weight_buffer = c::ggml_backend_alloc_ctx_tensors_from_buft(weights, buft);
            for (tensor, data) in [gate, up, down].into_iter().zip(matrices) {
                assert_eq!(c::ggml_nbytes(tensor), data.len());
                if repack && (*tensor).extra.is_null() {
                    return None; // this type it leaves as it is
                }
                c::ggml_backend_tensor_set(tensor, data.as_ptr().cast(), 0, data.len());
            }
            let input = c::ggml_new_tensor_3d(values, c::GGML_TYPE_F32, n_embd, 1, n_tokens);
            let ids = c::ggml_new_tensor_2d(values, c::GGML_TYPE_I32, n_used, n_tokens);
            let factors = c::ggml_new_tensor_3d(values, c::GGML_TYPE_F32, 1, n_used, n_tokens);
            let product = |w, x| c::ggml_mul_mat_id(values, w, x, ids);
            let inner = c::ggml_swiglu_clamp(values, product(gate, input), product(up, input), 10.0);
            let out = c::ggml_mul(values, product(down, inner), factors);
            let graph = c::ggml_new_graph(values);
            c::ggml_build_forward_expand(graph, out);
            let value_buffer = c::ggml_backend_alloc_ctx_tensors_from_buft(values, c::ggml_backend_cpu_buffer_type());
            assert_eq!((x.len(), shares.len()), ((n_embd * n_tokens) as usize, (n_used * n_tokens) as usize));
            c::ggml_backend_tensor_set(input, x.as_ptr().cast(), 0, size_of_val(x));
            c::ggml_backend_tensor_set(factors, shares.as_ptr().cast(), 0, size_of_val(shares));
            let backend = c::ggml_backend_cpu_init();
            c::ggml_backend_cpu_set_n_threads(backend, n_threads as i32);
            Some(GgmlExperts { backend, weights, values, buffers: vec![weight_buffer, value_buffer], graph, ids })
        }
    }

    /// Computes with these experts: i32 `[n_used, n_tokens]`, all of them below `n_expert`.
    pub fn run(&mut self, ids: &[i32]) {
        // SAFETY: the size is compared; everything that the graph uses has memory.
        unsafe {
            assert_eq!(c::ggml_nbytes(self.ids), size_of_val(ids));
            c::ggml_backend_tensor_set(self.ids, ids.as_ptr().cast(), 0, size_of_val(ids));
            assert_eq!(c::ggml_backend_graph_compute(self.backend, self.graph), c::GGML_STATUS_SUCCESS);
        }
    }
}

impl Drop for GgmlExperts {
    fn drop(&mut self) {
        // SAFETY: all were made in `new` and are freed once.
        unsafe {
            c::ggml_backend_free(self.backend);
            self.buffers.iter().for_each(|&buffer| c::ggml_backend_buffer_free(buffer));
            c::ggml_free(self.values);
            c::ggml_free(self.weights);
        }
    }
}
