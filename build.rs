//! 1. Compile the kernels of `csrc/ops`, once for each instruction set of the target (`csrc/build.rs`): a C compiler is enough.
//! 2. Put `modelfiles/fathom-tiny` into release builds, when its checkpoint is in the tree.
//! 3. With feature `bindgen`: write `src/kernels/sys.rs` from `csrc/fathom.h`.
//! 4. With feature `llama` or `native`: find the ggml and llama.cpp that llama-cpp-sys-2 built; tell the program which
//!    instruction sets they were compiled for, so that it can refuse an older processor with a sentence instead of an illegal
//!    instruction; and compile `csrc/llama`, the few things that llama.cpp offers to C++ only, and `csrc/ggml`, our kernels as
//!    nodes of its graphs.

#[path = "csrc/build.rs"]
mod csrc;

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Option in ggml's CMake cache, name in `src/engine/machine.rs`.
const CPU_OPTIONS: [(&str, &str); 11] = [
    ("GGML_SSE42", "sse4.2"),
    ("GGML_AVX", "avx"),
    ("GGML_AVX2", "avx2"),
    ("GGML_FMA", "fma"),
    ("GGML_F16C", "f16c"),
    ("GGML_BMI2", "bmi2"),
    ("GGML_AVX_VNNI", "avxvnni"),
    ("GGML_AVX512", "avx512f"),
    ("GGML_AVX512_VBMI", "avx512vbmi"),
    ("GGML_AVX512_VNNI", "avx512vnni"),
    ("GGML_AVX512_BF16", "avx512bf16"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    csrc::kernels(Path::new("csrc"));
    bundle();
    #[cfg(feature = "bindgen")]
    csrc::bindings(Path::new("csrc"), Path::new("src/kernels/sys.rs"));
    if env::var_os("CARGO_FEATURE_LLAMA").is_some() || env::var_os("CARGO_FEATURE_NATIVE").is_some() {
        on_ggml();
    }
}

/// What needs the ggml that llama-cpp-sys-2 built.
fn on_ggml() {
    // The sys crate prints `ggml_cmake_dir=<its OUT_DIR>/lib/cmake`; cargo hands it to direct dependents under this name.
    let cmake_dir = PathBuf::from(
        env::var("DEP_LLAMA_GGML_CMAKE_DIR").expect("llama-cpp-sys-2 is a direct dependency and sets this"),
    );
    let out = cmake_dir.ancestors().nth(2).expect("<OUT_DIR>/lib/cmake has two parents");
    let cache_file = out.join("build/CMakeCache.txt");
    let cache =
        fs::read_to_string(&cache_file).unwrap_or_else(|error| panic!("cannot read {}: {error}", cache_file.display()));

    let features = compiled_for(&cache);
    println!("cargo::rustc-env=FATHOM_GGML_CPU={}", features.join(","));

    // Not all headers are installed; the rest lies beside the sources.
    let home = cache
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .expect("every CMake cache names its source directory");
    println!("cargo::rerun-if-changed=csrc/ggml");
    println!("cargo::rerun-if-changed=csrc/llama");
    let glue = |file: &str, private: &str| {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").file(file);
        // As the compiler's own headers: their warnings are not ours.
        for dir in [out.join("include"), Path::new(home).join(private)] {
            build.flag("-isystem").flag(dir);
        }
        build
    };
    if env::var_os("CARGO_FEATURE_LLAMA").is_some() {
        glue("csrc/llama/memory.cpp", "src").compile("fathom_llama");
    }
    if env::var_os("CARGO_FEATURE_NATIVE").is_some() {
        glue("csrc/ggml/custom_op.cpp", "ggml/src").compile("fathom_ggml");
    }
}

/// Writes `bundled.rs`, which `src/modelfile/bundled.rs` includes: the Modelfile and the files of the checkpoint. Dev builds carry nothing:
/// linking 12 MB into every test binary would cost what they are for.
fn bundle() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let model = root.join("modelfiles/fathom-tiny");
    let checkpoint = model.join("checkpoint");
    let is_there = checkpoint.join("config.json").is_file();
    // The folder is watched as a whole only until there is a checkpoint: training writes beside it.
    let watched: &[&str] = if is_there { &["checkpoint", "Modelfile"] } else { &["."] };
    watched.iter().for_each(|name| println!("cargo::rerun-if-changed={}", model.join(name).display()));
    let mut files = Vec::new();
    if is_there && env::var("PROFILE").as_deref() == Ok("release") {
        let entries = fs::read_dir(&checkpoint).unwrap_or_else(|error| panic!("cannot read {checkpoint:?}: {error}"));
        files = entries.map(|entry| entry.expect("an entry of the checkpoint's folder").path()).collect();
        files.sort();
    }
    let modelfile = match files.is_empty() {
        true => "\"\"".to_owned(),
        false => format!("include_str!({:?})", model.join("Modelfile")),
    };
    let list: String = files
        .iter()
        .map(|path| format!("    ({:?}, include_bytes!({path:?})),\n", path.file_name().expect("a file's name")))
        .collect();
    let text = format!(
        "pub(super) const MODELFILE: &str = {modelfile};\n\
         pub(super) const FILES: &[(&str, &[u8])] = &[\n{list}];\n"
    );
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("bundled.rs");
    fs::write(&out, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", out.display()));
}

/// Instruction sets of ggml's CPU kernels.
fn compiled_for(cache: &str) -> Vec<&'static str> {
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return Vec::new();
    }
    let is_on = |option: &str| cache.lines().any(|line| line.strip_prefix(option) == Some(":BOOL=ON"));
    // With GGML_NATIVE the C++ compiler takes what the building machine has, and so did rustc: the sys crate sets it for
    // `target-cpu=native` only.
    let rustc_features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let native = is_on("GGML_NATIVE");
    let needs = |option: &str, name: &str| {
        if native { rustc_features.split(',').any(|feature| feature == name) } else { is_on(option) }
    };
    CPU_OPTIONS.iter().filter(|(option, name)| needs(option, name)).map(|(_, name)| *name).collect()
}
