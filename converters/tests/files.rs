//! Which files `verify` and `export` take, what they find from there, and what an export that ends early leaves.

use std::fs;
use std::path::{Path, PathBuf};

use fathom_converters::synthetic::{Draft, Spec};
use fathom_converters::{
    Error, ExportOptions, Location, Options, Phase, Progress, Silent, VerifyOptions, convert, export, verify,
};

use crate::resume::StopAfter;
use crate::support::{Place, mtp, tensors};

fn verified(model: impl Into<Location>) -> Result<usize, Error> {
    let options = VerifyOptions { model: model.into(), against: None, threads: 1 };
    let report = verify(&options, &mut Silent)?;
    assert_eq!(report.missing_draft, None);
    Ok(report.verified)
}

#[test]
fn a_draft_in_place_of_its_model_is_told_apart() {
    for draft in [Draft::Mtp, Draft::Dspark] {
        let place = Place::new(&Spec { draft, ..Spec::tiny() });
        place.convert().unwrap();
        let draft = place.dir.path().join("model.draft.gguf");
        let error = verified(&draft).unwrap_err();
        assert!(matches!(&error, Error::DraftGiven { model: Some(model), .. } if *model == place.output()), "{error}");
        assert!(error.hint().unwrap().contains("model.gguf`"), "{:?}", error.hint());
        let back = place.dir.path().join("back");
        let error = export(&ExportOptions::new(&draft, &back), &mut Silent).unwrap_err();
        assert!(matches!(error, Error::DraftGiven { .. }) && !back.exists(), "{error}");
        fs::remove_file(place.output()).unwrap();
        assert!(matches!(verified(&draft), Err(Error::DraftGiven { model: None, .. })));
    }
}

#[test]
fn any_shard_stands_for_the_model() {
    let place = Place::new(&mtp());
    convert(&Options { split_max_bytes: Some(100_000), ..place.options() }, &mut Silent).unwrap();
    let shards: Vec<String> = place.listing().into_iter().filter(|name| name.starts_with("model-")).collect();
    assert!(shards.len() > 2, "{shards:?}");
    let all = verified(place.dir.path().join(&shards[0])).unwrap();
    for name in [&shards[1], shards.last().unwrap()] {
        assert_eq!(verified(place.dir.path().join(name)).unwrap(), all, "{name}");
        let back = place.dir.path().join(format!("back from {name}"));
        export(&ExportOptions::new(place.dir.path().join(name), &back), &mut Silent).unwrap();
        assert_eq!(tensors(&place.checkpoint()), tensors(&back));
    }
    // Of the draft too; and a shard that has lost the others says which.
    let draft = place.listing().into_iter().rfind(|name| name.starts_with("model.draft-")).unwrap();
    let error = verified(place.dir.path().join(draft)).unwrap_err();
    assert!(matches!(&error, Error::DraftGiven { model: Some(model), .. } if model.ends_with(&shards[0])), "{error}");
    fs::remove_file(place.dir.path().join(&shards[0])).unwrap();
    let error = verified(place.dir.path().join(&shards[1])).unwrap_err();
    assert!(error.to_string().contains(&format!("{}`", shards[0])), "{error}");
    assert!(error.hint().unwrap().contains("in one folder"));
}

/// Names that say nothing, as in a store: shards in any order, the draft named by the caller.
#[test]
fn files_without_names_of_their_own() {
    let place = Place::new(&mtp());
    convert(&Options { split_max_bytes: Some(150_000), ..place.options() }, &mut Silent).unwrap();
    let moved = |prefix: &str| -> Vec<PathBuf> {
        let names = place.listing().into_iter().filter(|name| name.starts_with(prefix)).rev();
        let blob = |(number, name): (usize, String)| {
            let to = place.dir.path().join(format!("blob{prefix}{number}"));
            fs::rename(place.dir.path().join(name), &to).unwrap();
            to
        };
        names.enumerate().map(blob).collect()
    };
    let weights = moved("model-");
    let location = |draft: Option<&PathBuf>| Location::Files { weights: weights.clone(), draft: draft.cloned() };
    let report = |location| verify(&VerifyOptions { model: location, against: None, threads: 1 }, &mut Silent).unwrap();
    assert!(report(location(None)).missing_draft.is_some());
    let back = place.dir.path().join("back");
    let error = export(&ExportOptions::new(location(None), &back), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::MissingDraft { in_store: true, .. }), "{error}");

    let whole = Place::new(&mtp());
    whole.convert().unwrap();
    let (model, draft) = (whole.dir.path().join("a"), whole.dir.path().join("b"));
    fs::rename(whole.output(), &model).unwrap();
    fs::rename(whole.dir.path().join("model.draft.gguf"), &draft).unwrap();
    let location = Location::Files { weights: vec![model], draft: Some(draft) };
    assert_eq!(report(location.clone()).missing_draft, None);
    export(&ExportOptions::new(location, &back), &mut Silent).unwrap();
    assert_eq!(tensors(&whole.checkpoint()), tensors(&back));
}

/// Gives up as soon as data is written.
struct StopExport(bool);

impl Progress for StopExport {
    fn begin(&mut self, phase: Phase, _: u64) {
        assert_eq!(phase, Phase::Exporting);
    }
    fn advance(&mut self, _: u64) {
        self.0 = true;
    }
    fn warn(&mut self, _: &str) {}
    fn cancelled(&self) -> bool {
        self.0
    }
}

fn listing(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_export_that_is_stopped_leaves_nothing_and_can_be_repeated() {
    let place = Place::new(&mtp());
    place.convert().unwrap();
    let (new, old) = (place.dir.path().join("new"), place.dir.path().join("old"));
    let options = ExportOptions { shard_bytes: 100_000, threads: 1, ..ExportOptions::new(place.output(), &new) };
    assert!(matches!(export(&options, &mut StopExport(false)), Err(Error::Cancelled)));
    assert!(!new.exists());
    fs::create_dir(&old).unwrap();
    fs::write(old.join("README.md"), b"mine").unwrap();
    let into_old = ExportOptions { directory: old.clone(), ..options.clone() };
    assert!(matches!(export(&into_old, &mut StopExport(false)), Err(Error::Cancelled)));
    assert_eq!(listing(&old), ["README.md"]);
    export(&options, &mut Silent).unwrap();
    assert!(listing(&new).iter().all(|name| name.ends_with(".safetensors") || name.ends_with(".json")));
    assert_eq!(tensors(&place.checkpoint()), tensors(&new));
}

#[test]
fn a_conversion_that_did_not_finish_is_no_model() {
    let place = Place::new(&mtp());
    convert(&Options { sync_bytes: 60_000, ..place.options() }, &mut StopAfter::bytes(700_000)).unwrap_err();
    let error = verified(place.dir.path().join("model.gguf.part")).unwrap_err();
    assert!(error.to_string().contains("the conversion did not finish"), "{error}");
}
