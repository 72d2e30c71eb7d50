//! Interrupted conversions are continued. (Kills of a real process: tests/convert.rs of the root package.)

use std::fs;

use fathom_converters::synthetic::Spec;
use fathom_converters::{Dense, Error, Options, Phase, Progress, Silent, convert};
use fathom_gguf::File;

use crate::support::{Place, sum};

/// Cancels after so many converted bytes, and remembers what was said.
pub struct StopAfter {
    left: u64,
    phase: Option<Phase>,
    pub warnings: Vec<String>,
}

impl StopAfter {
    pub fn bytes(left: u64) -> StopAfter {
        StopAfter { left, phase: None, warnings: Vec::new() }
    }
}

impl Progress for StopAfter {
    fn begin(&mut self, phase: Phase, _: u64) {
        self.phase = Some(phase);
    }
    fn advance(&mut self, bytes: u64) {
        if self.phase == Some(Phase::Converting) {
            self.left = self.left.saturating_sub(bytes);
        }
    }
    fn warn(&mut self, message: &str) {
        self.warnings.push(message.into());
    }
    fn cancelled(&self) -> bool {
        self.left == 0
    }
}

fn options(place: &Place) -> Options {
    Options { sync_bytes: 60_000, threads: 2, ..place.options() }
}

fn expected(spec: &Spec) -> (String, String) {
    let place = Place::new(spec);
    convert(&Options { name: Some("checkpoint".into()), ..place.options() }, &mut Silent).unwrap();
    (sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf")))
}

#[test]
fn a_stopped_conversion_continues_to_the_same_file() {
    let spec = Spec::tiny();
    let expected = expected(&spec);
    for (bytes, some) in [(1, false), (700_000, true), (2_000_000, true)] {
        let place = Place::new(&spec);
        assert!(matches!(convert(&options(&place), &mut StopAfter::bytes(bytes)), Err(Error::Cancelled)));
        let left: Vec<String> = place.listing();
        assert!(left.iter().all(|name| name.ends_with(".part") || name.ends_with(".journal")), "{left:?}");
        let report = convert(&options(&place), &mut Silent).unwrap();
        assert!(report.resumed_bytes < report.bytes && (report.resumed_bytes > 0 || !some), "{}", report.resumed_bytes);
        assert_eq!((sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf"))), expected);
        assert_eq!(place.listing(), ["model.draft.gguf", "model.gguf"]);
    }
}

#[test]
fn a_forced_conversion_is_continued_and_keeps_the_old_output_until_it_is_done() {
    let spec = Spec::tiny();
    let place = Place::new(&spec);
    fs::write(place.output(), b"old").unwrap();
    let forced = Options { force: true, ..options(&place) };
    convert(&forced, &mut StopAfter::bytes(700_000)).unwrap_err();
    assert_eq!(fs::read(place.output()).unwrap(), b"old");
    assert!(
        matches!(convert(&options(&place), &mut Silent), Err(Error::Exists { .. })),
        "without force it is not overwritten"
    );
    let report = convert(&forced, &mut Silent).unwrap();
    assert!(report.resumed_bytes > 0);
    assert_eq!((sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf"))), expected(&spec));
}

#[test]
fn data_damaged_after_it_was_journalled_is_converted_again() {
    let spec = Spec::tiny();
    let place = Place::new(&spec);
    convert(&options(&place), &mut StopAfter::bytes(700_000)).unwrap_err();
    // The first tensor that the journal says is done.
    let journal = fs::read_to_string(place.dir.path().join("model.gguf.journal")).unwrap();
    let entry: serde_json::Value = serde_json::from_str(journal.lines().nth(1).unwrap()).unwrap();
    let part = place.dir.path().join(if entry["file"] == 0 { "model.draft.gguf.part" } else { "model.gguf.part" });
    let file = File::open_shards(&[&part]).unwrap();
    let range = file.data_range(&file.tensors()[entry["tensor"].as_u64().unwrap() as usize]);
    let mut bytes = fs::read(&part).unwrap();
    bytes[range.start as usize] ^= 0x40;
    fs::write(&part, bytes).unwrap();
    let mut heard = StopAfter::bytes(u64::MAX);
    convert(&options(&place), &mut heard).unwrap();
    assert!(heard.warnings.iter().any(|warning| warning.contains("were damaged")), "{:?}", heard.warnings);
    assert_eq!((sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf"))), expected(&spec));
}

#[test]
fn an_unfinished_file_that_was_cut_or_removed_is_begun_again() {
    let spec = Spec::tiny();
    let place = Place::new(&spec);
    convert(&options(&place), &mut StopAfter::bytes(500_000)).unwrap_err();
    fs::File::options().write(true).open(place.dir.path().join("model.gguf.part")).unwrap().set_len(100).unwrap();
    fs::remove_file(place.dir.path().join("model.draft.gguf.part")).unwrap();
    convert(&options(&place), &mut Silent).unwrap();
    assert_eq!((sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf"))), expected(&spec));
}

#[test]
fn other_settings_and_a_changed_checkpoint_are_refused_until_forced() {
    let place = Place::new(&Spec::tiny());
    convert(&options(&place), &mut StopAfter::bytes(1)).unwrap_err();
    let other = Options { dense: Some(Dense::F16), ..options(&place) };
    let error = convert(&other, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("dense was `bf16`, now `f16`"), "{error}");

    let shard = place.checkpoint().join("model-00001-of-00004.safetensors");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    fs::File::options().write(true).open(shard).unwrap().set_modified(later).unwrap();
    let error = convert(&options(&place), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("`model-00001-of-00004.safetensors` has changed"), "{error}");
    convert(&Options { force: true, ..options(&place) }, &mut Silent).unwrap();
    assert_eq!(place.listing(), ["model.draft.gguf", "model.gguf"]);
}

#[test]
fn a_kill_between_the_last_sync_and_the_renames_is_finished() {
    let spec = Spec::tiny();
    let place = Place::new(&spec);
    place.convert().unwrap();
    let (draft, trunk) = (place.dir.path().join("model.draft.gguf"), place.output());
    let sums = (sum(&trunk), sum(&draft));
    // Put back what a kill after the draft's rename leaves: the journal's head comes from a stopped run.
    let stopped = Place::new(&spec);
    convert(&options(&stopped), &mut StopAfter::bytes(1)).unwrap_err();
    let journal = fs::read_to_string(stopped.dir.path().join("model.gguf.journal")).unwrap();
    let mut head: serde_json::Value = serde_json::from_str(journal.lines().next().unwrap()).unwrap();
    let mine = {
        let again = Options { output: place.dir.path().join("other.gguf"), ..options(&place) };
        convert(&again, &mut StopAfter::bytes(1)).unwrap_err();
        let journal = fs::read_to_string(place.dir.path().join("other.gguf.journal")).unwrap();
        serde_json::from_str::<serde_json::Value>(journal.lines().next().unwrap()).unwrap()
    };
    head["settings"] = mine["settings"].clone();
    head["sources"] = mine["sources"].clone();
    fs::rename(&trunk, place.dir.path().join("model.gguf.part")).unwrap();
    fs::write(place.dir.path().join("model.gguf.journal"), format!("{head}\n{{\"finished\":true}}\n")).unwrap();
    convert(&options(&place), &mut Silent).unwrap();
    assert_eq!((sum(&trunk), sum(&draft)), sums);
}
