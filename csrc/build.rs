//! How the kernels of this folder are built: a part of the build scripts of the program and of `csrc/check`.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// An instruction set beyond the portable one: its name in `csrc/simd`, the architecture, the compiler's flags.
const SETS: [(&str, &str, &[&str]); 3] = [
    ("AVX2", "x86_64", &["-mavx2", "-mfma", "-mf16c", "-mbmi2"]),
    (
        "AVX512",
        "x86_64",
        &[
            "-mavx2",
            "-mfma",
            "-mf16c",
            "-mbmi2",
            "-mavx512f",
            "-mavx512bw",
            "-mavx512vl",
            "-mavx512dq",
            "-mavx512vnni",
            "-mavx512vbmi",
        ],
    ),
    ("NEON", "aarch64", &[]),
];

/// `-O3` whatever the profile: a test that runs kernels at -O0 crawls.
fn c_build(out: &Path) -> cc::Build {
    fs::create_dir_all(out).unwrap_or_else(|error| panic!("cannot make {}: {error}", out.display()));
    let mut build = cc::Build::new();
    // Sums must not depend on which products a compiler fuses: kernels fuse by intrinsics, references not at all.
    build.std("c11").opt_level(3).flag("-ffp-contract=off").out_dir(out);
    // scripts/sanitize.sh
    println!("cargo::rerun-if-env-changed=FATHOM_CSRC_FLAGS");
    for flag in env::var("FATHOM_CSRC_FLAGS").unwrap_or_default().split_whitespace() {
        build.flag(flag);
    }
    build
}

/// Compiles the kernels of the folder `csrc` into a library that is linked.
pub fn kernels(csrc: &Path) {
    for name in ["build.rs", "fathom.h", "ops", "simd"] {
        println!("cargo::rerun-if-changed={}", csrc.join(name).display());
    }
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the architecture");
    let sources = |name: &str| -> Vec<PathBuf> {
        let ops = fs::read_dir(csrc.join("ops")).expect("csrc/ops is a folder");
        let mut files: Vec<_> =
            ops.filter_map(|op| Some(op.ok()?.path().join(name))).filter(|path| path.exists()).collect();
        files.sort();
        files
    };

    let mut objects = c_build(&out.join("reference"))
        .file(csrc.join("ops/rows.c"))
        .files(sources("reference.c"))
        .compile_intermediates();
    let mut dispatch = c_build(&out.join("dispatch"));
    dispatch.file(csrc.join("simd/dispatch.c"));
    let portable = [("PORTABLE", arch.as_str(), &[] as &[&str])];
    for (set, _, flags) in portable.iter().chain(&SETS).filter(|(_, of, _)| *of == arch) {
        let mut build = c_build(&out.join(set.to_lowercase()));
        build
            .define(&format!("FATHOM_FOR_{set}"), None)
            .files(sources("cpu.c"))
            .file(csrc.join("simd/set.c"))
            .file(csrc.join("simd/roof.c"));
        for flag in *flags {
            build.flag(flag);
        }
        objects.extend(build.compile_intermediates());
        dispatch.define(&format!("FATHOM_WITH_{set}"), None);
    }
    objects.extend(dispatch.compile_intermediates());
    cc::Build::new().objects(objects).compile("fathom_kernels");
}

/// Writes the Rust face of `fathom.h` to `out`. The generated file is committed: other builds need no libclang, and readers see the C
/// surface in Rust.
#[cfg(feature = "bindgen")]
pub fn bindings(csrc: &Path, out: &Path) {
    bindgen::Builder::default()
        .header(csrc.join("fathom.h").to_str().expect("the folder has a name in UTF-8"))
        .allowlist_item("fathom_.*|FATHOM_.*")
        .blocklist_item("fathom_llama_.*")
        .prepend_enum_name(false)
        .layout_tests(false)
        .raw_line("//! The C surface of `csrc/fathom.h`, without what llama.cpp needs. `cargo check --features bindgen` renews it.")
        .generate()
        .expect("csrc/fathom.h is C")
        .write_to_file(out)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", out.display()));
}
