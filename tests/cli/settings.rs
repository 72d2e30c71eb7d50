//! The settings table against the document, the sources and the running program.

use std::path::{Path, PathBuf};

use super::Home;
use fathom::config;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn configuration_md_is_fresh() {
    let found = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap_or_default();
    assert!(
        found == config::markdown(),
        "docs/configuration.md is stale: cargo test --no-default-features -- --ignored write_configuration_md"
    );
}

#[test]
#[ignore = "writes docs/configuration.md"]
fn write_configuration_md() {
    std::fs::write(root().join("docs/configuration.md"), config::markdown()).unwrap();
}

#[test]
fn only_the_table_reads_the_environment() {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                if text.contains("env::var") || text.contains("env::set_var") {
                    found.push(path.strip_prefix(root()).unwrap().to_owned());
                }
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["src", "converters/src", "crates/gguf/src"] {
        walk(&root().join(folder), &mut found);
    }
    assert_eq!(found, [Path::new("src/config/mod.rs")]);
}

#[test]
fn nonsense_is_an_error_under_our_name_and_a_warning_under_ollamas() {
    let home = Home::new();
    let mut ours = home.fathom(&["list"]);
    ours.env("FATHOM_MAX_QUEUE", "many");
    assert_eq!(
        super::finish(ours, None).error(),
        "error: `FATHOM_MAX_QUEUE` has the value `many`, expected a whole number of 0 or more\n"
    );
    let mut theirs = home.fathom(&["list"]);
    theirs.env("OLLAMA_MAX_QUEUE", "many");
    let text = super::finish(theirs, None).error();
    assert!(text.contains("WARN `OLLAMA_MAX_QUEUE` is ignored: it has the value `many`"), "{text}");
    assert!(text.contains("no server answers"), "{text}");
}

#[test]
fn a_flag_goes_before_the_environment_and_ours_before_ollamas() {
    let home = Home::new();
    // Ports in use: the error says which one was tried.
    let taken = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [flag, ours, theirs] = taken.each_ref().map(|t| t.local_addr().unwrap().to_string());
    for (flag, ours, tried) in [(Some(&flag), Some(&ours), &flag), (None, Some(&ours), &ours), (None, None, &theirs)] {
        let mut command = home.fathom(&["serve"]);
        command.args(flag.map(|address| format!("--host={address}")));
        command.env_remove("FATHOM_HOST").envs(ours.map(|address| ("FATHOM_HOST", address)));
        command.env("OLLAMA_HOST", &theirs);
        let text = super::finish(command, None).error();
        assert!(text.starts_with(&format!("error: cannot listen on {tried}: ")), "{text}");
    }
}
