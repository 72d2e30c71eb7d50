//! Without feature `llama` there is nothing to do. With it:
//! 1. find the ggml and llama.cpp that llama-cpp-sys-2 built;
//! 2. tell the program which instruction sets they were compiled for, so that it can refuse an older processor with a
//!    sentence instead of an illegal instruction;
//! 3. compile `csrc/llama`, the few things that llama.cpp offers to C++ only.

use std::path::PathBuf;
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
    if env::var_os("CARGO_FEATURE_LLAMA").is_none() {
        return;
    }
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

    // Not all of llama.cpp's headers are installed; the rest lies beside its sources.
    let home = cache
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .expect("every CMake cache names its source directory");
    println!("cargo::rerun-if-changed=csrc");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(out.join("include"))
        .include(PathBuf::from(home).join("src"))
        .file("csrc/llama/memory.cpp")
        .compile("fathom_llama");
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
