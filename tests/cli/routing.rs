//! `--routing`, `FATHOM_ROUTING` and PARAMETER routing, as far as they go without an engine that follows them.

use super::{Home, finish};
use crate::support::program::Program;

const REFUSED: &str = "scripted cannot follow routing `topk:2`: it computes every chosen expert; engine `native` can";

#[test]
fn every_verb_that_computes_refuses_what_its_engine_cannot_follow() {
    let home = Home::new();
    home.model();
    let logits = ["logits", "--model", "tiny.gguf", "--tokens", "1,2", "--out", "o.safetensors"];
    let eval = ["eval", "tiny.gguf", "--only", "text"];
    for verb in [&logits[..], &eval] {
        let error = home.run(&[verb, &["--engine", "scripted", "--routing", "topk:2"]].concat()).error();
        assert!(error.contains(REFUSED), "{verb:?}: {error}");
    }
    let bench = ["bench", "--model", "tiny.gguf", "--engine", "scripted", "--routing", "off,topk:2"];
    let error = home.run(&bench).error();
    assert!(error.contains("engine `scripted` cannot follow routing `topk:2`"), "{error}");

    let server = home.serve(&home.script(&["hello"], 0));
    let error = finish(home.client(&server, &["run", "tiny.gguf", "--routing", "topk:2", "hi"]), None);
    assert_eq!(error.code, Some(1), "{error:?}");
    assert!(error.stderr.contains(REFUSED), "{error:?}");
    let answer = home.ask(&server, &["run", "tiny.gguf", "--routing", "off", "--hidethinking", "hi"]).ok();
    assert!(!answer.is_empty());
}

#[test]
fn a_server_with_a_policy_still_answers_without() {
    let home = Home::new();
    home.model();
    let script = home.script(&["hello"], 0);
    let settings =
        [("FATHOM_ENGINE", "scripted"), ("FATHOM_SCRIPT", script.to_str().unwrap()), ("FATHOM_ROUTING", "topk:2")];
    let server = Program::serve(home.path(), &settings);
    let refused = home.ask(&server, &["run", "tiny.gguf", "hi"]);
    assert!(refused.code == Some(1) && refused.stderr.contains(REFUSED), "{refused:?}");
    home.ask(&server, &["run", "tiny.gguf", "--routing", "off", "hi"]).ok();
}

#[test]
fn nonsense_is_refused_by_its_name() {
    let home = Home::new();
    home.model();
    for verb in [&["serve"][..], &["run", "tiny.gguf", "hi"], &["eval", "tiny.gguf"]] {
        let error = home.run(&[verb, &["--routing", "topk:x"]].concat()).error();
        assert!(
            error.starts_with("error: `topk:x` is not a routing policy: expected off, topk:K"),
            "{verb:?}: {error}"
        );
    }
    let mut command = home.fathom(&["serve"]);
    command.env("FATHOM_ROUTING", "rel:3");
    let error = finish(command, None).error();
    assert_eq!(error, "error: `rel:3` is not a routing policy: its number must be 0 to 1\n");
    let error = home.run(&["eval", "tiny.gguf", "--engine", "scripted", "--against-routing", "mass:2"]).error();
    assert!(error.contains("`mass:2` is not a routing policy"), "{error}");
}

#[test]
fn a_modelfile_names_files_from_where_it_lies() {
    let home = Home::new();
    home.model();
    let folder = home.path().join("sub");
    std::fs::create_dir(&folder).unwrap();
    let server = home.serve(&home.script(&[], 0));
    let create = |parameter: &str| {
        std::fs::write(folder.join("Modelfile"), format!("FROM ../tiny.gguf\nPARAMETER routing {parameter}\n"))
            .unwrap();
        home.ask(&server, &["create", "made", "-f", "sub/Modelfile"])
    };
    for (typed, kept) in [
        ("topk:4", "topk:4".to_owned()),
        ("./m.routing.json#fast", format!("{}/./m.routing.json#fast", folder.display())),
    ] {
        create(typed).ok();
        let shown = home.ask(&server, &["show", "made", "--parameters"]).ok();
        assert!(shown.contains(&kept), "{shown}");
    }
    let error = create("topk").error();
    assert!(error.contains("`topk` is not a routing policy"), "{error}");
}
