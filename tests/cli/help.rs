//! The help texts: what a stranger reads first.

use super::Home;

#[test]
fn every_verb_explains_itself() {
    let home = Home::new();
    insta::assert_snapshot!("fathom", home.run(&["--help"]).ok());
    for verb in [
        "serve",
        "run",
        "create",
        "list",
        "show",
        "ps",
        "stop",
        "cp",
        "rm",
        "convert",
        "export",
        "verify",
        "render",
        "logits",
        "bench",
        "eval",
        "calibrate",
    ] {
        insta::assert_snapshot!(verb, home.run(&[verb, "--help"]).ok());
    }
}

#[test]
fn the_short_version_is_one_line() {
    let home = Home::new();
    let expected = format!("fathom {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(home.run(&["--version"]).ok(), expected);
    assert_eq!(home.run(&["-v"]).ok(), expected);
}

#[test]
fn the_long_version_names_engines_and_processor() {
    let text = Home::new().run(&["--version", "--verbose"]).ok();
    let names: Vec<&str> = text.lines().skip(1).map(|line| line.get(..14).unwrap_or(line).trim_end()).collect();
    assert_eq!(names, ["engines", "ggml", "cpu needed", "cpu present", "profile", "interface", "system"]);
    let engines = text.lines().find(|line| line.starts_with("engines")).unwrap();
    assert_eq!(engines.contains("llama"), cfg!(feature = "llama"), "{engines}");
    assert!(engines.contains("scripted"), "{engines}");
}
