//! `fathom convert`, `export` and `verify` as users run them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fathom_converters::synthetic::{Draft, Spec};
use fathom_gguf::File;
use sha2::{Digest, Sha256};

use crate::support::program::fathom;

/// A checkpoint, and room for what is made of it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(spec: &Spec) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.path("checkpoint")).unwrap();
        spec.write(&place.path("checkpoint")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fathom(&self, args: &[&str]) -> Command {
        let mut command = fathom(self.dir.path());
        command.current_dir(self.dir.path()).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.fathom(args).output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code 1 and this text on stderr.
    #[track_caller]
    fn fail(&self, args: &[&str], text: &str) {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(text), "{args:?}: {stderr}");
    }
}

fn sum(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

const CONVERT: [&str; 6] = ["convert", "checkpoint", "-o", "model.gguf", "--sync-every", "200KB"];

/// The same command after `kill -9` at any moment ends in the same files.
#[test]
fn twenty_kills_change_nothing() {
    // Several hundred journal entries, a draft of three stages, several shards; some milliseconds of work.
    let spec = Spec { n_routed_experts: 24, moe_intermediate_size: 192, hidden_size: 320, ..Spec::tiny() };
    let place = Place::new(&spec);
    place.succeed(&CONVERT);
    let expected = (sum(&place.path("model.gguf")), sum(&place.path("model.draft.gguf")));
    let journal = place.path("model.gguf.journal");
    let lines = || fs::read(&journal).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count());
    let total = {
        // One run that is never killed, to learn how long a finished journal is.
        let released: usize =
            File::open(place.path("model.gguf")).unwrap().metadata().strings("fathom.tensor.names").unwrap().len();
        released / 2
    };

    let mut seed = 0x2545_F491_4F6C_DD1Du64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize % below.max(1)
    };
    let (mut kills, mut resumed) = (0, 0);
    while kills < 20 {
        let _ = fs::remove_file(place.path("model.gguf"));
        let _ = fs::remove_file(place.path("model.draft.gguf"));
        // A few kills in one conversion, each at a random amount of further progress, or after a random moment.
        loop {
            let before = lines();
            let mut child = place.fathom(&CONVERT).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let more = random(total / 2);
            let pause = Duration::from_micros(random(20_000) as u64);
            let finished = loop {
                if child.try_wait().unwrap().is_some() {
                    break true;
                }
                if lines() > before + more {
                    std::thread::sleep(pause / 10);
                    break false;
                }
                std::thread::sleep(Duration::from_micros(300));
            };
            let killed = !finished && child.kill().is_ok() && !child.wait().unwrap().success();
            if !killed {
                child.wait().unwrap();
                break;
            }
            kills += 1;
            resumed += usize::from(lines() > 1);
            assert!(
                !place.path("model.gguf").exists() || sum(&place.path("model.gguf")) == expected.0,
                "kill {kills}: an unfinished file under its final name"
            );
        }
        assert_eq!(
            (sum(&place.path("model.gguf")), sum(&place.path("model.draft.gguf"))),
            expected,
            "after {kills} kills"
        );
    }
    assert!(resumed > 10, "most kills came after the first journal entry: {resumed} of {kills}");
    let left: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains(".part")), "{left:?}");
}

#[test]
fn convert_export_verify() {
    let place = Place::new(&Spec { draft: Draft::Mtp, ..Spec::tiny() });
    assert_eq!(place.succeed(&CONVERT), "model.gguf\nmodel.draft.gguf\n");
    let said = place.succeed(&["verify", "model.gguf", "--against", "checkpoint"]);
    assert!(said.contains("released tensors come back byte for byte"), "{said}");
    assert!(said.contains("tensors of the checkpoint have the recorded checksums"), "{said}");
    assert_eq!(place.succeed(&["export", "model.gguf", "-o", "back"]), "back\n");
    // What was exported converts to the same file: names of shards are no part of it.
    place.succeed(&["convert", "back", "-o", "again.gguf", "--name", "checkpoint"]);
    let data = |name: &str| {
        let file = File::open(place.path(name)).unwrap();
        file.tensors().iter().map(|tensor| (tensor.name.clone(), file.data(tensor).to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(data("model.gguf"), data("again.gguf"));

    place.fail(&CONVERT, "`model.draft.gguf` exists\nhint: give another name, or `--force` to overwrite it");
    place.fail(&["export", "model.gguf", "-o", "back"], "`back` exists");
    fs::remove_file(place.path("model.draft.gguf")).unwrap();
    place.fail(&["export", "model.gguf", "-o", "other"], "the draft file `model.draft.gguf` is missing\nhint: ");
    place.fail(&["convert", "nowhere", "-o", "x.gguf"], "`nowhere` has no `config.json`\nhint: ");
    place.fail(&["verify", "checkpoint/config.json"], "config.json");
}

/// A stored model keeps its draft in a blob of its own; models and drafts of several files are merged.
#[test]
fn verify_and_export_take_models_of_the_store() {
    use fathom::modelfile::{Base, Changes, Spec as Creation, create};
    use fathom::store::{Kind, Manifest, Name, Store};
    use fathom_converters::{Options, Silent, convert};

    for split_max_bytes in [None, Some(100_000)] {
        let place = Place::new(&Spec { draft: Draft::Mtp, ..Spec::tiny() });
        let options = Options { split_max_bytes, ..Options::new(place.path("checkpoint"), place.path("model.gguf")) };
        let files = convert(&options, &mut Silent).unwrap().files;
        assert_eq!(files.len() > 4, split_max_bytes.is_some(), "{files:?}");
        let store = Store::open(place.path("models")).unwrap();
        let name = Name::parse("tiny").unwrap();
        let creation = Creation {
            name: name.clone(),
            base: Base::Path(files[0].clone()),
            adapters: Vec::new(),
            drafts: Vec::new(),
            changes: Changes::default(),
        };
        create(&store, &creation, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        files.iter().for_each(|file| fs::remove_file(file).unwrap());
        let said = place.succeed(&["verify", "tiny", "--against", "checkpoint"]);
        assert!(said.contains("tensors of the checkpoint have the recorded checksums"), "{said}");
        place.succeed(&["export", "tiny", "-o", "back"]);
        place.succeed(&["verify", "TINY:latest", "--against", "back"]);
        for json in ["config.json", "tokenizer.json"] {
            assert_eq!(sum(&place.path("checkpoint").join(json)), sum(&place.path("back").join(json)));
        }
        // Without its draft: what can be checked is checked, what cannot be rebuilt is not.
        let manifest = store.manifest(&name).unwrap().manifest;
        let layers = manifest.layers.into_iter().filter(|layer| layer.kind() != Kind::Draft).collect();
        store.write_manifest(&name, &Manifest::new(manifest.config, layers)).unwrap();
        let output = place.run(&["verify", "tiny"]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("was not checked"));
        place.fail(&["export", "tiny", "-o", "other"], ".gguf` is missing\nhint: make the model again");
    }
    let place = Place { dir: tempfile::tempdir().unwrap() };
    place.fail(&["verify", "nobody"], "model `nobody:latest` is not installed\nhint: `fathom list`");
    place.fail(&["verify", "./nothing"], "`./nothing`");
}

#[test]
fn files_that_cannot_be_taken_back_say_why() {
    let place = Place::new(&Spec { draft: Draft::Mtp, ..Spec::tiny() });
    place.succeed(&CONVERT);
    for verb in [&["verify", "model.draft.gguf"][..], &["export", "model.draft.gguf", "-o", "back"]] {
        place.fail(
            verb,
            "`model.draft.gguf` holds the draft blocks of a model, not a model\nhint: give the model: `model.gguf`",
        );
    }
    let none: [(fathom_gguf::TensorInfo, Vec<u8>); 0] = [];
    fathom_gguf::write_file(place.path("other.gguf"), fathom_gguf::Metadata::new(), &none).unwrap();
    place.fail(&["verify", "other.gguf"], "fathom did not convert it\nhint: only what `fathom convert` has written");
    place
        .fail(&["convert", "checkpoint", "-o", "model"], "`model` does not end in `.gguf`\nhint: call it `model.gguf`");
}

#[test]
fn a_dry_run_needs_headers_only_and_writes_nothing() {
    let place = Place { dir: tempfile::tempdir().unwrap() };
    fs::create_dir(place.path("checkpoint")).unwrap();
    Spec::tiny().write_headers(&place.path("checkpoint")).unwrap();
    let plan = place.succeed(&["convert", "checkpoint", "-o", "model.gguf", "--dry-run"]);
    assert!(plan.contains("blk.1.ffn_gate_exps.weight") && plan.contains("draft model.draft.gguf"), "{plan}");
    let json = place.succeed(&["convert", "checkpoint", "-o", "model.gguf", "--dry-run", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["files"][1]["architecture"], "fathom-dspark");
    let bytes: u64 = json["files"].as_array().unwrap().iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["bytes"], bytes);
    assert!(json["warnings"][0].as_str().unwrap().contains("not complete"));
    assert!(!place.path("model.gguf.part").exists() && !place.path("model.gguf.journal").exists());
    place.fail(&["convert", "checkpoint", "-o", "model.gguf"], "is cut off");
}

#[test]
fn lossy_choices_print_their_error_by_family() {
    let place = Place::new(&Spec { draft: Draft::None, hidden_size: 256, ..Spec::tiny() });
    let said = place.succeed(&["convert", "checkpoint", "-o", "model.gguf", "--dense", "q8_0", "--experts", "q8_0"]);
    for text in ["FAMILY", "RMS ERROR", "MAX ERROR", "routed experts", "attention projections", "shared experts"] {
        assert!(said.contains(text), "{said}");
    }
    place.fail(&["export", "model.gguf", "-o", "back"], "converted with a lossy choice");
    let said = place.succeed(&["verify", "model.gguf"]);
    assert!(said.contains("stored with a lossy choice and cannot be checked"), "{said}");
}

/// ggml's quantisers, through the engine's bindings.
#[cfg(feature = "llama")]
#[test]
fn k_quants_come_from_ggml() {
    let place = Place::new(&Spec { draft: Draft::None, hidden_size: 256, moe_intermediate_size: 256, ..Spec::tiny() });
    let mut errors = Vec::new();
    for dtype in ["q4_k", "q2_k"] {
        let said = place.succeed(&["convert", "checkpoint", "-o", "model.gguf", "--experts", dtype, "--force"]);
        let file = File::open(place.path("model.gguf")).unwrap();
        assert!(file.tensor("blk.1.ffn_down_exps.weight").unwrap().dtype.name().eq_ignore_ascii_case(dtype));
        let row = said.lines().find(|line| line.starts_with("routed experts")).unwrap();
        let percent = row.split_whitespace().find_map(|cell| cell.parse::<f64>().ok().filter(|n| *n > 0.1)).unwrap();
        errors.push(percent);
    }
    assert!(errors[0] < 15.0 && errors[1] > errors[0] && errors[1] < 60.0, "{errors:?} percent");
}

#[cfg(feature = "llama")]
#[test]
fn short_rows_of_experts_get_smaller_blocks() {
    let place = Place::new(&Spec { draft: Draft::None, hidden_size: 256, moe_intermediate_size: 64, ..Spec::tiny() });
    for (choice, down) in [("q4_K", "q5_0"), ("q2_K", "q4_0")] {
        let flag = choice.to_lowercase();
        let convert = ["convert", "checkpoint", "-o", "model.gguf", "--force", "--experts", &flag];
        let plan = place.succeed(&[&convert[..], &["--dry-run", "--json"]].concat());
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let warning =
            format!("routed experts with rows of 64 values are stored as {down}: {choice} needs a multiple of 256");
        assert_eq!(plan["warnings"], serde_json::json!([warning]), "said once");
        place.succeed(&convert);
        let file = File::open(place.path("model.gguf")).unwrap();
        for (name, dtype) in [("gate", choice), ("up", choice), ("down", down)] {
            assert_eq!(file.tensor(&format!("blk.1.ffn_{name}_exps.weight")).unwrap().dtype.name(), dtype);
        }
    }
}

#[cfg(not(feature = "llama"))]
#[test]
fn k_quants_need_the_llama_feature() {
    let place = Place::new(&Spec { draft: Draft::None, hidden_size: 256, moe_intermediate_size: 256, ..Spec::tiny() });
    place.fail(
        &["convert", "checkpoint", "-o", "model.gguf", "--experts", "q4_k"],
        "which this build does not include (feature `llama`)",
    );
}
