//! Without feature `llama` there is nothing to do. With it, the program is told which instruction sets the linked ggml was
//! compiled for, so that it can refuse an older processor with a sentence instead of an illegal instruction.

use std::path::PathBuf;
use std::{env, fs};

/// Option in ggml's CMake cache, name in `src/engine/machine.rs`. All are off unless ggml is built for the target they belong to.
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
    let is_on = |option: &str| cache.lines().any(|line| line == format!("{option}:BOOL=ON"));
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64");
    // With GGML_NATIVE the compiler takes what the building machine has, and so did rustc: the sys crate sets it for `target-cpu=native` only.
    let rustc_features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let native = is_on("GGML_NATIVE");
    let compiled_for = |option: &str, name: &str| {
        if native { rustc_features.split(',').any(|feature| feature == name) } else { is_on(option) }
    };
    let needed: Vec<&str> =
        CPU_OPTIONS.iter().filter(|(option, name)| x86 && compiled_for(option, name)).map(|(_, name)| *name).collect();
    println!("cargo::rustc-env=FATHOM_GGML_CPU={}", needed.join(","));
}
