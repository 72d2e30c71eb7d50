//! The `unsafe` part: one owner for a model with its context, and ggml's row quantisers.
//!
//! llama-cpp-2 wraps these, too, but keeps its pointers private, and three things that we need cannot be reached through
//! it: the abort callback, a thread pool that outlives a step (without one ggml starts its threads for every graph, 60 µs
//! each time), and loading without repacked weights. So model and context are owned here, on the raw bindings; the backend's
//! life cycle stays with llama-cpp-2.
//!
//! ggml ends the process when one of its assertions fails, and C++ exceptions must not reach us. Callers in this folder check
//! everything before they call; what a function here relies on is written at its `SAFETY` comments.

#![expect(unsafe_code, reason = "the bindings of llama.cpp are C functions on raw pointers")]

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fathom_gguf::DType;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as c;

use crate::engine::Memory;

/// Most sequences of a context (`LLAMA_MAX_SEQ`).
pub(super) const MAX_SEQUENCES: usize = 256;
/// Most threads of a pool (`GGML_MAX_N_THREADS`).
pub(super) const MAX_THREADS: usize = 512;

/// Starts llama.cpp once per process and sends its log to `tracing`.
fn init_backend() {
    static BACKEND: OnceLock<Option<LlamaBackend>> = OnceLock::new();
    BACKEND.get_or_init(|| {
        // SAFETY: `on_log` has the type that llama.cpp asks for, never unwinds and needs no data.
        unsafe { c::llama_log_set(Some(on_log), null_mut()) };
        // An error means that somebody else in this process has started it, which serves as well.
        LlamaBackend::init().ok()
    });
}

/// Version of the ggml that is linked, with its commit where the build knew it.
pub(super) fn ggml_version() -> String {
    // SAFETY: both give pointers to string constants.
    let (version, commit) = unsafe { (CStr::from_ptr(c::ggml_version()), CStr::from_ptr(c::ggml_commit())) };
    match commit.to_bytes() {
        b"unknown" => version.to_string_lossy().into_owned(),
        _ => format!("{} ({})", version.to_string_lossy(), commit.to_string_lossy()),
    }
}

// Log -----------------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Log {
    /// A line that llama.cpp has not ended yet.
    line: String,
    /// Error lines since [`errors_of`] began: the only place where llama.cpp says *why* something failed.
    errors: Vec<String>,
}

thread_local! {
    static LOG: RefCell<Log> = RefCell::default();
}

unsafe extern "C" fn on_log(level: c::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A panic in a subscriber must not unwind into C; losing a log line is all that can happen.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        LOG.try_with(|log| {
            let Ok(mut log) = log.try_borrow_mut() else { return };
            log.line.push_str(&text);
            if log.line.ends_with('\n') {
                let line = std::mem::take(&mut log.line);
                if level == c::GGML_LOG_LEVEL_ERROR && log.errors.len() < 16 {
                    log.errors.push(line.trim().to_owned());
                }
                drop(log);
                emit(level, line.trim_end());
            }
        })
    }));
}

/// llama.cpp's `info` is a page for every load: ours is `debug`. Its errors come back to the caller as values.
fn emit(level: c::ggml_log_level, line: &str) {
    match level {
        c::GGML_LOG_LEVEL_ERROR | c::GGML_LOG_LEVEL_WARN | c::GGML_LOG_LEVEL_INFO => {
            tracing::debug!(target: "llama.cpp", "{line}");
        }
        _ => tracing::trace!(target: "llama.cpp", "{line}"),
    }
}

/// Runs `call` and gives what it logged as errors, joined: the reason of a failure.
fn errors_of<T>(call: impl FnOnce() -> T) -> (T, String) {
    LOG.with_borrow_mut(|log| log.errors.clear());
    let value = call();
    let reason = LOG.with_borrow_mut(|log| std::mem::take(&mut log.errors)).join("; ");
    (value, if reason.is_empty() { "llama.cpp gives no reason".to_owned() } else { reason })
}

// Model ---------------------------------------------------------------------------------------------------------------

/// How to load.
pub(super) struct ModelParams {
    /// `None` = all that fit.
    pub(super) n_gpu_layers: Option<u32>,
    pub(super) main_gpu: Option<u32>,
    pub(super) use_mmap: bool,
    pub(super) repack: bool,
    /// The file's architecture; prefix of its keys.
    pub(super) architecture: String,
    /// Rows of the token embedding.
    pub(super) n_vocab: u32,
    /// Read the header only and pretend to allocate: what [`Context::memory`] then says is what a real load would take.
    pub(super) measure_only: bool,
}

/// Weights. Freed by `Drop`.
pub(super) struct Model {
    ptr: NonNull<c::llama_model>,
}

struct Progress<'a> {
    call: &'a mut dyn FnMut(f32) -> bool,
    panic: Option<Box<dyn Any + Send>>,
}

unsafe extern "C" fn on_load_progress(fraction: f32, data: *mut c_void) -> bool {
    // SAFETY: `data` is the `Progress` on `Model::load`'s stack, used by nobody else during the call.
    let progress = unsafe { &mut *data.cast::<Progress<'_>>() };
    match catch_unwind(AssertUnwindSafe(|| (progress.call)(fraction))) {
        Ok(go_on) => go_on,
        Err(panic) => {
            progress.panic = Some(panic);
            false
        }
    }
}

impl Model {
    /// Loads a file that has been validated, or all shards of one in order, whatever their names.
    ///
    /// llama.cpp's tokenizer is not built: this engine knows ids only, building it costs time and memory for a large
    /// vocabulary, and a malformed vocabulary would end the process. Its place is taken by `n_vocab` nameless tokens.
    ///
    /// # Errors
    /// llama.cpp's own words.
    pub(super) fn load<'p>(
        shards: impl Iterator<Item = &'p Path>,
        params: &ModelParams,
        on_progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Model, String> {
        init_backend();
        let c_path =
            |path: &Path| path.to_str().and_then(|path| CString::new(path).ok()).ok_or("its path is not UTF-8");
        let paths = shards.map(c_path).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<*const c_char> = paths.iter().map(|path| path.as_ptr()).collect();
        let first = *pointers.first().ok_or("it has no files")?;
        let overrides = [
            override_str("tokenizer.ggml.model", "no_vocab"),
            override_int(&format!("{}.vocab_size", params.architecture), params.n_vocab.into())?,
            override_int("", 0)?, // an empty key ends the list
        ];
        let mut progress = Progress { call: on_progress, panic: None };
        // SAFETY: takes nothing, gives a struct by value.
        let mut raw = unsafe { c::llama_model_default_params() };
        raw.n_gpu_layers = params.n_gpu_layers.map_or(-1, |n| i32::try_from(n).unwrap_or(i32::MAX));
        if let Some(gpu) = params.main_gpu {
            raw.split_mode = c::LLAMA_SPLIT_MODE_NONE;
            raw.main_gpu = i32::try_from(gpu).map_err(|_| format!("there is no GPU {gpu}"))?;
        }
        let mapped = params.use_mmap && !params.measure_only;
        raw.load_mode = if mapped { c::LLAMA_LOAD_MODE_MMAP } else { c::LLAMA_LOAD_MODE_NONE };
        raw.no_alloc = params.measure_only;
        raw.use_extra_bufts = params.repack;
        raw.kv_overrides = overrides.as_ptr();
        raw.progress_callback = Some(on_load_progress);
        raw.progress_callback_user_data = (&raw mut progress).cast();
        // SAFETY: `paths` are NUL-terminated and outlive the call as `pointers`, `overrides` and `progress` do; llama.cpp copies
        // paths and overrides. Exceptions are caught inside and become a null pointer.
        let (ptr, reason) = errors_of(|| unsafe {
            match pointers.len() {
                1 => c::llama_model_load_from_file(first, raw),
                n => c::llama_model_load_from_splits(pointers.as_mut_ptr(), n, raw),
            }
        });
        if let Some(panic) = progress.panic {
            resume_unwind(panic);
        }
        Ok(Model { ptr: NonNull::new(ptr).ok_or(reason)? })
    }

    fn raw(&self) -> *const c::llama_model {
        self.ptr.as_ptr()
    }

    pub(super) fn n_embd(&self) -> usize {
        // SAFETY: the model lives as long as `self`.
        usize::try_from(unsafe { c::llama_model_n_embd(self.raw()) }).unwrap_or(0)
    }

    pub(super) fn n_embd_out(&self) -> usize {
        // SAFETY: as above.
        usize::try_from(unsafe { c::llama_model_n_embd_out(self.raw()) }).unwrap_or(0)
    }

    /// Width of the attention window; 0 = none.
    pub(super) fn n_swa(&self) -> usize {
        // SAFETY: as above.
        usize::try_from(unsafe { c::llama_model_n_swa(self.raw()) }).unwrap_or(0)
    }

    /// Whether part of the state is recurrent, so that it cannot be cut.
    pub(super) fn is_recurrent(&self) -> bool {
        // SAFETY: as above.
        unsafe { c::llama_model_is_recurrent(self.raw()) || c::llama_model_is_hybrid(self.raw()) }
    }

    pub(super) fn has_decoder(&self) -> bool {
        // SAFETY: as above.
        unsafe { c::llama_model_has_decoder(self.raw()) }
    }

    pub(super) fn has_encoder(&self) -> bool {
        // SAFETY: as above.
        unsafe { c::llama_model_has_encoder(self.raw()) }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from llama.cpp and is freed once; a `Context` holds its model until it has freed itself.
        unsafe { c::llama_model_free(self.ptr.as_ptr()) };
    }
}

fn override_entry(key: &str) -> c::llama_model_kv_override {
    let mut entry = c::llama_model_kv_override {
        tag: c::LLAMA_KV_OVERRIDE_TYPE_INT,
        key: [0; 128],
        __bindgen_anon_1: c::llama_model_kv_override__bindgen_ty_1 { val_str: [0; 128] },
    };
    copy_c_chars(key, &mut entry.key);
    entry
}

fn override_int(key: &str, value: i64) -> Result<c::llama_model_kv_override, String> {
    if key.len() > 127 {
        return Err("its architecture's name is too long".to_owned());
    }
    let mut entry = override_entry(key);
    entry.__bindgen_anon_1.val_i64 = value;
    Ok(entry)
}

fn override_str(key: &'static str, value: &'static str) -> c::llama_model_kv_override {
    let mut entry = override_entry(key);
    entry.tag = c::LLAMA_KV_OVERRIDE_TYPE_STR;
    let mut chars = [0; 128];
    copy_c_chars(value, &mut chars);
    entry.__bindgen_anon_1.val_str = chars;
    entry
}

/// Leaves at least the last element 0.
fn copy_c_chars(text: &str, to: &mut [c_char; 128]) {
    for (to, from) in to[..127].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
}

// Context -------------------------------------------------------------------------------------------------------------

/// How to compute.
pub(super) struct ContextParams {
    /// Tokens of one sequence, a multiple of 256.
    pub(super) n_ctx_seq: u32,
    pub(super) n_seq_max: u32,
    pub(super) n_batch: u32,
    pub(super) n_ubatch: u32,
    pub(super) n_outputs: u32,
    pub(super) n_threads: u32,
    /// `None` = where llama.cpp finds that it works.
    pub(super) flash_attention: Option<bool>,
    pub(super) kv_type: DType,
    pub(super) embedding: bool,
    pub(super) abort: Arc<AtomicBool>,
}

/// A model with everything that computes on it. Not `Send`: used and dropped on the thread that made it.
pub(super) struct Context {
    // Freed by `Drop` in this order: the context uses the pool, the flag and the model.
    ptr: NonNull<c::llama_context>,
    pool: NonNull<c::ggml_threadpool>,
    /// llama.cpp keeps a pointer to the flag inside.
    _abort: Arc<AtomicBool>,
    model: Rc<Model>,
    n_vocab: usize,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Done,
    /// No room in the cache; nothing has changed.
    NoRoom,
    Aborted,
    Failed(String),
}

unsafe extern "C" fn on_abort(data: *mut c_void) -> bool {
    // SAFETY: `data` is the flag that `Context` keeps alive; an atomic may be read from any thread.
    unsafe { &*data.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

impl Context {
    /// # Errors
    /// llama.cpp's own words.
    pub(super) fn new(model: Rc<Model>, params: &ContextParams, n_vocab: usize) -> Result<Context, String> {
        let n_ctx = params.n_ctx_seq.checked_mul(params.n_seq_max).ok_or("context times sequences is above 2^32")?;
        // SAFETY: takes nothing, gives a struct by value.
        let mut raw = unsafe { c::llama_context_default_params() };
        raw.n_ctx = n_ctx;
        raw.n_seq_max = params.n_seq_max;
        raw.n_batch = params.n_batch;
        raw.n_ubatch = params.n_ubatch;
        raw.n_outputs_max = params.n_outputs;
        raw.n_threads = i32::try_from(params.n_threads).map_err(|_| "too many threads")?;
        raw.n_threads_batch = raw.n_threads;
        raw.flash_attn_type = match params.flash_attention {
            None => c::LLAMA_FLASH_ATTN_TYPE_AUTO,
            Some(true) => c::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            Some(false) => c::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        raw.type_k = params.kv_type.id();
        raw.type_v = params.kv_type.id();
        raw.abort_callback = Some(on_abort);
        raw.abort_callback_data = Arc::as_ptr(&params.abort).cast_mut().cast();
        raw.embeddings = params.embedding;
        raw.kv_unified = false;
        // A window layer keeps its window, not the whole context: states are saved before they are needed again.
        raw.swa_full = false;
        raw.no_perf = true;
        // SAFETY: the model lives in `self` as long as the context; the flag, too; exceptions are caught inside.
        let (ptr, reason) = errors_of(|| unsafe { c::llama_init_from_model(model.ptr.as_ptr(), raw) });
        let ptr = NonNull::new(ptr).ok_or(reason)?;
        // SAFETY: the thread count is within `MAX_THREADS`, which the caller has checked.
        let pool = unsafe {
            let mut pool_params = c::ggml_threadpool_params_default(raw.n_threads);
            c::ggml_threadpool_new(&mut pool_params)
        };
        let Some(pool) = NonNull::new(pool) else {
            // SAFETY: made above, used nowhere.
            unsafe { c::llama_free(ptr.as_ptr()) };
            return Err("no threads to compute with".to_owned());
        };
        // SAFETY: both were just made; the pool is freed after the context.
        unsafe { c::llama_attach_threadpool(ptr.as_ptr(), pool.as_ptr(), null_mut()) };
        Ok(Context { ptr, pool, _abort: Arc::clone(&params.abort), model, n_vocab })
    }

    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// What has been allocated, or would have been.
    pub(super) fn memory(&self) -> Memory {
        let mut bytes = LlamaMemory::default();
        // SAFETY: reads the context, writes one struct whose layout is that of `fathom_llama_memory`.
        let failed = unsafe { fathom_llama_memory_of(self.ptr.as_ptr(), &mut bytes) };
        debug_assert_eq!(failed, 0, "adding up a handful of numbers");
        Memory { weights: bytes.weights, kv: bytes.cache, compute: bytes.compute, device: bytes.device }
    }

    fn cache(&self) -> c::llama_memory_t {
        // SAFETY: gives a pointer into the context, or null for a model without cache.
        unsafe { c::llama_get_memory(self.ptr.as_ptr()) }
    }

    pub(super) fn has_cache(&self) -> bool {
        !self.cache().is_null()
    }

    /// Whether [`Context::pooled`] has something to give.
    pub(super) fn is_pooled(&self) -> bool {
        // SAFETY: reads a field.
        let kind = unsafe { c::llama_pooling_type(self.ptr.as_ptr()) };
        matches!(kind, c::LLAMA_POOLING_TYPE_MEAN | c::LLAMA_POOLING_TYPE_CLS | c::LLAMA_POOLING_TYPE_LAST)
    }

    /// Computes a batch whose tokens, sequences and positions are valid: the caller's duty, since a wrong position is an
    /// exception inside that nobody would catch.
    pub(super) fn decode(&mut self, batch: &mut Batch) -> Decoded {
        let raw = batch.raw();
        // SAFETY: `raw` points into `batch`, whose vectors have `n_tokens` elements each and are not touched meanwhile.
        let (code, reason) = errors_of(|| unsafe { c::llama_decode(self.ptr.as_ptr(), raw) });
        match code {
            0 => Decoded::Done,
            1 => Decoded::NoRoom,
            2 => Decoded::Aborted,
            _ => Decoded::Failed(reason),
        }
    }

    /// Logits of token `i` of the last batch, which asked for output. `None` if it did not.
    pub(super) fn logits(&self, i: usize) -> Option<&[f32]> {
        let i = i32::try_from(i).ok()?;
        // SAFETY: waits for the computation, then gives a row of `n_vocab` values that lives until the next decode, which
        // needs `&mut self`; null for a token without output (ggml is built with NDEBUG, so that is not an abort).
        unsafe {
            let row = c::llama_get_logits_ith(self.ptr.as_ptr(), i);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, self.n_vocab))
        }
    }

    /// The pooled embedding of a sequence of the last batch.
    pub(super) fn pooled(&self, seq: i32) -> Option<&[f32]> {
        let n = self.model.n_embd_out();
        // SAFETY: as for `logits`; `is_pooled` excludes the kind of pooling whose rows have another width.
        unsafe {
            let row = c::llama_get_embeddings_seq(self.ptr.as_ptr(), seq);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, n))
        }
    }

    /// Removes the tokens of `seq` from position `from` on. `false`: this cache cannot.
    pub(super) fn remove(&mut self, seq: i32, from: i32) -> bool {
        let memory = self.cache();
        // SAFETY: `memory` belongs to the context; the caller passes a sequence below `n_seq_max`.
        memory.is_null() || unsafe { c::llama_memory_seq_rm(memory, seq, from, -1) }
    }

    /// Position of the last token of `seq`, -1 when empty.
    pub(super) fn last_position(&self, seq: i32) -> i32 {
        let memory = self.cache();
        // SAFETY: as above.
        if memory.is_null() { -1 } else { unsafe { c::llama_memory_seq_pos_max(memory, seq) } }
    }

    /// The state of a sequence, in llama.cpp's own format.
    ///
    /// # Errors
    /// llama.cpp's own words.
    pub(super) fn save_state(&mut self, seq: i32) -> Result<Vec<u8>, String> {
        // SAFETY: counts what the same call below writes.
        let size = unsafe { c::llama_state_seq_get_size_ext(self.ptr.as_ptr(), seq, 0) };
        let mut bytes = vec![0_u8; size];
        // SAFETY: writes at most `size` bytes; exceptions are caught inside and give 0.
        let (written, reason) = errors_of(|| unsafe {
            c::llama_state_seq_get_data_ext(self.ptr.as_ptr(), bytes.as_mut_ptr(), size, seq, 0)
        });
        if written == 0 || written != size { Err(reason) } else { Ok(bytes) }
    }

    /// Replaces the state of a sequence by what [`Context::save_state`] gave.
    ///
    /// # Errors
    /// llama.cpp's own words; the sequence is then empty.
    pub(super) fn load_state(&mut self, seq: i32, bytes: &[u8]) -> Result<(), String> {
        // SAFETY: reads at most `bytes.len()` bytes and checks every field against the cache; exceptions are caught inside.
        let (read, reason) = errors_of(|| unsafe {
            c::llama_state_seq_set_data_ext(self.ptr.as_ptr(), bytes.as_ptr(), bytes.len(), seq, 0)
        });
        if read == bytes.len() {
            return Ok(());
        }
        self.remove(seq, -1);
        Err(reason)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: each was made by its counterpart and is freed once; the model is a field and follows, if nobody else has it.
        unsafe {
            c::llama_free(self.ptr.as_ptr());
            c::ggml_threadpool_free(self.pool.as_ptr());
        }
    }
}

/// `fathom_llama_memory` in `csrc/fathom.h`.
#[repr(C)]
#[derive(Default)]
struct LlamaMemory {
    weights: u64,
    cache: u64,
    compute: u64,
    device: u64,
}

unsafe extern "C" {
    fn fathom_llama_memory_of(context: *const c::llama_context, out: *mut LlamaMemory) -> i32;
}

/// Tokens for one call of [`Context::decode`]; reused.
#[derive(Default)]
pub(super) struct Batch {
    token: Vec<i32>,
    pos: Vec<i32>,
    seq: Vec<i32>,
    output: Vec<i8>,
    n_seq: Vec<i32>,
    seq_ptr: Vec<*mut i32>,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.token.clear();
        self.pos.clear();
        self.seq.clear();
        self.output.clear();
    }

    pub(super) fn push(&mut self, token: i32, pos: i32, seq: i32, output: bool) {
        self.token.push(token);
        self.pos.push(pos);
        self.seq.push(seq);
        self.output.push(output.into());
    }

    /// Valid until the batch changes.
    fn raw(&mut self) -> c::llama_batch {
        let n = self.token.len();
        self.n_seq.resize(n, 1);
        self.seq_ptr.clear();
        self.seq_ptr.extend(self.seq.iter_mut().map(|seq| seq as *mut i32));
        c::llama_batch {
            n_tokens: i32::try_from(n).expect("the engine limits batches far below 2^31"),
            token: self.token.as_mut_ptr(),
            embd: null_mut(),
            pos: self.pos.as_mut_ptr(),
            n_seq_id: self.n_seq.as_mut_ptr(),
            seq_id: self.seq_ptr.as_mut_ptr(),
            logits: self.output.as_mut_ptr(),
        }
    }
}

// Blocks --------------------------------------------------------------------------------------------------------------

/// Why rows cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error("ggml cannot quantise to {} without an importance matrix", .0.name())]
    NoQuantiser(DType),
    #[error("ggml cannot expand {}", .0.name())]
    NoDecoder(DType),
    #[error("{len} values are not whole rows of {row}, or a row is not whole blocks of {block}")]
    Shape { len: usize, row: usize, block: usize },
    #[error("value {index} is not finite")]
    NotFinite { index: usize },
}

/// Quantises rows of `row` values each with ggml's reference quantiser.
///
/// # Errors
/// [`RowsError`]; everything that ggml would assert is checked first, and values that are not finite are refused since the
/// quantisers' searches would index with them.
pub fn quantize_rows(dtype: DType, values: &[f32], row: usize) -> Result<Vec<u8>, RowsError> {
    let quantisable =
        matches!(dtype, DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::MXFP4)
            || matches!(
                dtype,
                DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K | DType::IQ4_NL | DType::IQ4_XS
            );
    if !quantisable {
        return Err(RowsError::NoQuantiser(dtype));
    }
    let bytes = row_bytes(dtype, values.len(), row)?;
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(RowsError::NotFinite { index });
    }
    init_backend();
    let mut out = vec![0_u8; bytes];
    let (rows, row) = ((values.len() / row) as i64, row as i64);
    // SAFETY: the type needs no importance matrix; `values` has `rows * row` elements, whole blocks; `out` has exactly the
    // bytes of that many blocks of that type.
    let written =
        unsafe { c::ggml_quantize_chunk(dtype.id(), values.as_ptr(), out.as_mut_ptr().cast(), 0, rows, row, null()) };
    debug_assert_eq!(written, bytes);
    Ok(out)
}

/// Expands blocks of any type that ggml can read into `values`.
///
/// # Errors
/// [`RowsError`] when ggml has no decoder for the type or `data` is not exactly the blocks of `values`.
pub fn expand_rows(dtype: DType, data: &[u8], values: &mut [f32]) -> Result<(), RowsError> {
    let bytes = row_bytes(dtype, values.len(), values.len())?;
    if bytes != data.len() {
        let block = usize::try_from(dtype.block_elements()).unwrap_or(usize::MAX);
        return Err(RowsError::Shape { len: data.len(), row: bytes, block });
    }
    init_backend();
    // SAFETY: every `DType` id is below GGML_TYPE_COUNT, which a test checks; the entry is a constant.
    let to_float = unsafe { (*c::ggml_get_type_traits(dtype.id())).to_float }.ok_or(RowsError::NoDecoder(dtype))?;
    // SAFETY: `data` holds the blocks of exactly `values.len()` values, in a layout without alignment needs above 4; the
    // mmap gives 32.
    unsafe { to_float(data.as_ptr().cast(), values.as_mut_ptr(), values.len() as i64) };
    Ok(())
}

fn row_bytes(dtype: DType, len: usize, row: usize) -> Result<usize, RowsError> {
    let block = usize::try_from(dtype.block_elements()).unwrap_or(usize::MAX);
    let shape = RowsError::Shape { len, row, block };
    if row == 0 || !len.is_multiple_of(row) || !row.is_multiple_of(block) {
        return Err(shape);
    }
    let block_bytes = usize::try_from(dtype.block_bytes()).unwrap_or(usize::MAX);
    (len / block).checked_mul(block_bytes).ok_or(shape)
}
