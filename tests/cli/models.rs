//! The verbs that manage models, against a real server: formats that scripts read.

use super::Home;
use crate::support::program::Program;

/// A server with the model `tiny`, made by `fathom create`.
fn served(home: &Home) -> Program {
    let server = home.serve(&home.script(&["Hello."], 0));
    home.model();
    std::fs::write(
        home.path().join("Modelfile"),
        "FROM ./tiny.gguf\nPARAMETER temperature 0.5\nPARAMETER stop END\nPARAMETER stop STOP\nSYSTEM Be brief.\nLICENSE \"\"\"MIT\n\nCopyright us\nand more\n\"\"\"\n",
    )
    .unwrap();
    let created = home.ask(&server, &["create", "tiny"]);
    assert_eq!(created.stdout, "");
    assert!(created.stderr.ends_with("success\n"), "{created:#?}");
    server
}

/// Replaces what differs from run to run: digests, times, this home.
fn stable(text: &str, home: &Home) -> String {
    let home = home.path().canonicalize().unwrap();
    text.replace(home.to_str().unwrap(), "HOME")
        .split_inclusive('\n')
        .map(|line| {
            let is_digest = |word: &str| word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
            line.split(' ')
                .map(|word| if is_digest(word) { "DIGESTDIGEST" } else { word })
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

#[test]
fn a_model_is_made_listed_copied_and_removed() {
    let home = Home::new();
    let server = served(&home);
    assert_eq!(home.ask(&server, &["cp", "tiny", "me/other:v1"]).ok(), "copied 'tiny' to 'me/other:v1'\n");
    let list = home.ask(&server, &["list"]).ok();
    let rows: Vec<Vec<&str>> =
        list.lines().map(|line| line.split("    ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
    assert_eq!(rows[0], ["NAME", "ID", "SIZE", "MODIFIED"]);
    let mut names: Vec<&str> = rows[1..].iter().map(|row| row[0]).collect();
    names.sort_unstable();
    assert_eq!(names, ["me/other:v1", "tiny:latest"]);
    assert_eq!(rows[1][1].len(), 12);
    assert!(rows[1][2].ends_with(" KB") && rows[1][3].ends_with(" ago"), "{list}");

    let filtered = home.ask(&server, &["ls", "TINY"]).ok();
    assert_eq!(filtered.lines().count(), 2, "{filtered}");
    assert_eq!(home.ask(&server, &["rm", "tiny", "me/other:v1"]).ok(), "deleted 'tiny'\ndeleted 'me/other:v1'\n");
    assert_eq!(home.ask(&server, &["list"]).ok(), "NAME    ID    SIZE    MODIFIED\n");
}

#[test]
fn show_gives_the_overview_or_one_part() {
    let home = Home::new();
    let server = served(&home);
    insta::assert_snapshot!("show", home.ask(&server, &["show", "tiny"]).ok());
    assert_eq!(home.ask(&server, &["show", "tiny", "--system"]).ok(), "Be brief.\n");
    insta::assert_snapshot!("show_parameters", home.ask(&server, &["show", "tiny", "--parameters"]).ok());
    insta::assert_snapshot!("show_license", home.ask(&server, &["show", "tiny", "--license"]).ok());
    let modelfile = home.ask(&server, &["show", "tiny", "--modelfile"]).ok();
    assert!(modelfile.contains("FROM ") && modelfile.contains("SYSTEM Be brief."), "{modelfile}");
    let verbose = home.ask(&server, &["show", "tiny", "--verbose"]).ok();
    assert!(verbose.contains("tokenizer.ggml.tokens"), "{verbose}");
}

/// The layout of `modelfiles/fathom-tiny`: FROM is relative to the Modelfile, wherever the command is typed.
#[test]
fn a_checkpoint_beside_its_modelfile_becomes_a_model() {
    let home = Home::new();
    let server = home.serve(&home.script(&["Hello."], 0));
    let folder = home.path().join("models of mine/small");
    std::fs::create_dir_all(folder.join("checkpoint")).unwrap();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-v4-a")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join("checkpoint").join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(folder.join("Modelfile"), "FROM ./checkpoint\nPARAMETER temperature 0\n").unwrap();
    let created = home.ask(&server, &["create", "small", "-f", "models of mine/small/Modelfile"]);
    assert_eq!((created.code, created.stdout.as_str()), (Some(0), ""), "{created:#?}");
    assert!(created.stderr.contains("writing manifest") && created.stderr.ends_with("success\n"), "{created:#?}");
    let shown = home.ask(&server, &["show", "small"]).ok();
    assert!(shown.contains("architecture        deepseek4\n") && shown.contains("temperature    0\n"), "{shown}");

    std::fs::remove_dir_all(folder.join("checkpoint")).unwrap();
    let error = home.ask(&server, &["create", "small", "-f", "models of mine/small/Modelfile"]).error();
    assert!(
        error.starts_with("error: FROM names `./checkpoint`, and there is no `models of mine/small/./checkpoint`"),
        "{error}"
    );
}

#[test]
fn a_file_works_where_a_model_does() {
    let home = Home::new();
    let server = home.serve(&home.script(&["Hello."], 0));
    home.model();
    let text = home.ask(&server, &["show", "tiny.gguf"]).ok();
    assert!(text.contains("architecture        deepseek4\n"), "{text}");
    assert_eq!(home.run(&["show", "tiny.gguf"]).ok(), text, "no server is needed");
    let verbose = home.run(&["show", "./tiny.gguf", "--verbose"]).ok();
    assert!(verbose.contains("tokenizer.ggml.tokens"), "{verbose}");
    assert_eq!(home.ask(&server, &["cp", "tiny.gguf", "kept"]).ok(), "copied 'tiny.gguf' to 'kept'\n");
    assert!(home.ask(&server, &["list"]).ok().contains("kept:latest"));
    let text = home.ask(&server, &["rm", "tiny.gguf"]).error();
    assert_eq!(text, "error: `tiny.gguf` is a file of yours and no model in the store; fathom does not remove it\n");
    let text = home.ask(&server, &["show", "missing.gguf"]).error();
    assert_eq!(text, "error: there is no file `missing.gguf`\n");
}

#[test]
fn a_loaded_model_is_seen_and_stopped() {
    let home = Home::new();
    let server = served(&home);
    assert_eq!(home.ask(&server, &["run", "tiny", "hello", "--think=false", "--keepalive", "-1"]).ok(), "Hello.\n\n");
    let ps = home.ask(&server, &["ps"]).ok();
    insta::assert_snapshot!("ps", stable(&ps, &home));
    assert_eq!(home.ask(&server, &["stop", "tiny"]).ok(), "");
    // Unloading happens behind the answer.
    let gone = || home.ask(&server, &["ps"]).ok().lines().count() == 1;
    assert!((0..500).any(|_| gone() || {
        std::thread::sleep(std::time::Duration::from_millis(10));
        false
    }));
}

#[test]
fn models_that_are_not_there_are_named() {
    let home = Home::new();
    let server = home.serve(&home.script(&["Hello."], 0));
    let mut texts = String::new();
    for args in
        [&["show", "none"][..], &["stop", "none"], &["cp", "none", "x"], &["rm", "none"], &["run", "none", "hi"]]
    {
        texts.push_str(&format!("$ fathom {}\n{}", args.join(" "), home.ask(&server, args).error()));
    }
    std::fs::write(home.path().join("Modelfile"), "FROM nosuch\n").unwrap();
    texts.push_str(&format!("$ fathom create x\n{}", home.ask(&server, &["create", "x"]).error()));
    insta::assert_snapshot!("missing_models", texts);
}
