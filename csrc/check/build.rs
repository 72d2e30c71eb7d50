//! Compiles the kernels; with feature `bindgen` also writes their Rust face, to be compared with the one in `src/kernels`.

use std::path::Path;

#[path = "../build.rs"]
mod csrc;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    csrc::kernels(Path::new(".."));
    #[cfg(feature = "bindgen")]
    {
        // Whoever asks for it says where.
        println!("cargo::rerun-if-env-changed=FATHOM_BINDINGS");
        let out = std::env::var("FATHOM_BINDINGS").expect("FATHOM_BINDINGS names a file");
        csrc::bindings(Path::new(".."), Path::new(&out));
    }
}
