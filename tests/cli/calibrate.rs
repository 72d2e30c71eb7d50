//! `fathom calibrate` as far as it goes without an engine that it could look into.

use super::Home;

#[test]
fn nothing_is_computed_for_what_cannot_work() {
    let home = Home::new();
    home.model();
    std::fs::write(home.path().join("text.txt"), "some text").unwrap();
    let calibrate =
        |more: &[&str]| home.run(&[&["calibrate", "tiny.gguf", "--text", "text.txt"], more].concat()).error();
    let error = calibrate(&["--engine", "scripted"]);
    assert!(error.contains("engine `scripted` computes every chosen expert; profiles are for `native`"), "{error}");
    assert!(error.contains("hint: leave `--engine`"), "{error}");
    let error = calibrate(&["--routing", "topk:2"]);
    assert!(error.contains("`--routing topk:2` means nothing here"), "{error}");
    let error = calibrate(&["--batch", "64"]);
    assert!(error.contains("`--batch` means nothing here") && error.contains("--window"), "{error}");
}

#[test]
#[cfg(not(feature = "native"))]
fn a_build_without_the_engine_says_so() {
    let home = Home::new();
    home.model();
    std::fs::write(home.path().join("text.txt"), "some text").unwrap();
    let error = home.run(&["calibrate", "tiny.gguf", "--text", "text.txt"]).error();
    assert!(error.contains("engine `native` is not built into this program"), "{error}");
}

#[test]
#[cfg(feature = "native")]
fn files_are_looked_at_before_anything_is_computed() {
    let home = Home::new();
    home.model();
    let calibrate = |more: &[&str]| home.run(&[&["calibrate", "tiny.gguf"], more].concat()).error();
    let error = calibrate(&["--text", "none.txt"]);
    assert!(error.contains("cannot read `none.txt`"), "{error}");
    std::fs::write(home.path().join("text.txt"), "some text").unwrap();
    std::fs::write(home.path().join("binary"), [0xff, 0xfe]).unwrap();
    let error = calibrate(&["--text", "binary"]);
    assert!(error.contains("`binary` is not UTF-8"), "{error}");
    let error = calibrate(&["--text", "text.txt", "-o", "x.json"]);
    assert!(error.contains("does not end in .routing.json"), "{error}");
    let error = calibrate(&["--text", "text.txt"]);
    assert!(error.contains("calibration needs at least 6 windows"), "{error}");
    std::fs::write(home.path().join("tiny.routing.json"), "{}").unwrap();
    let error = calibrate(&["--text", "text.txt"]);
    assert!(error.contains("`tiny.routing.json` exists") && error.contains("hint: `--force` replaces it"), "{error}");
    // A model of another kind.
    let mut metadata = crate::support::model::metadata("llama");
    metadata.insert("llama.block_count", 1_u32);
    fathom_gguf::write_file::<Vec<u8>>(&home.path().join("llama.gguf"), metadata, &[]).unwrap();
    std::fs::write(home.path().join("long.txt"), "text ".repeat(2000)).unwrap();
    let error = home.run(&["calibrate", "llama.gguf", "--text", "long.txt"]).error();
    assert!(error.contains("the native engine runs `deepseek4`, this is `llama`"), "{error}");
}
