//! Interrupted conversions are continued. (Kills of a real process: tests/convert.rs of the root package.)

use std::fs;

use fathom_converters::synthetic::Spec;
use fathom_converters::{Dense, Error, Options, Phase, Progress, Silent, VerifyOptions, convert, verify};
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

/// A conversion cut into shards of some 100 KB, stopped half way.
fn stopped_split(place: &Place, split: u64) {
    let split = Options { split_max_bytes: Some(split), ..options(place) };
    convert(&split, &mut StopAfter::bytes(900_000)).unwrap_err();
    assert!(
        place.listing().iter().any(|name| name.contains("-of-") && name.ends_with(".part")),
        "{:?}",
        place.listing()
    );
}

#[test]
fn giving_up_a_split_leaves_nothing_of_it_and_everything_else() {
    let spec = Spec::tiny();
    let expected = expected(&spec);
    for again in [None, Some(300_000)] {
        let place = Place::new(&spec);
        // Files of the user, named as ours could be: nothing of an abandoned attempt.
        let mine = ["model-00001-of-00099.gguf.part", "model.gguf.part", "model-00002-of-00099.gguf", "notes.part"];
        if again.is_some() {
            mine.iter().for_each(|name| fs::write(place.dir.path().join(name), b"mine").unwrap());
        }
        stopped_split(&place, 100_000);
        convert(&Options { split_max_bytes: again, force: true, ..options(&place) }, &mut Silent).unwrap();
        let left = place.listing();
        match again {
            None => {
                assert_eq!(left, ["model.draft.gguf", "model.gguf"]);
                assert_eq!((sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf"))), expected);
            }
            Some(_) => {
                let ours = |name: &&String| !mine.contains(&name.as_str());
                let count = left.iter().filter(ours).find_map(|name| name.strip_prefix("model-00001-of-")).unwrap();
                let of_this_cut = |name: &String| name.ends_with(count) || name.starts_with("model.draft");
                assert!(left.iter().filter(ours).all(of_this_cut), "{left:?}");
                for name in mine {
                    assert_eq!(fs::read(place.dir.path().join(name)).unwrap(), b"mine", "{name}");
                }
            }
        }
    }
}

#[test]
fn the_padding_of_an_abandoned_conversion_does_not_get_into_the_next() {
    let spec = Spec::tiny();
    let place = Place::new(&spec);
    convert(&Options { name: Some("other name".into()), ..options(&place) }, &mut StopAfter::bytes(900_000))
        .unwrap_err();
    // What lies between tensors is never written, so it has to be what a new file has there.
    let part = place.dir.path().join("model.gguf.part");
    let bytes = fs::metadata(&part).unwrap().len();
    fs::write(&part, vec![0xA5; bytes as usize]).unwrap();
    let forced = Options { name: Some("checkpoint".into()), force: true, ..options(&place) };
    convert(&forced, &mut Silent).unwrap();
    assert_eq!((sum(&place.output()), sum(&place.dir.path().join("model.draft.gguf"))), expected(&spec));
}

#[test]
fn files_called_like_unfinished_ones_are_not_overwritten() {
    let place = Place::new(&Spec::tiny());
    let download = place.dir.path().join("model.gguf.part");
    fs::write(&download, b"half of a download").unwrap();
    let error = convert(&options(&place), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(place.listing(), ["model.gguf.part"]);
    fs::remove_file(&download).unwrap();
    let journal = place.dir.path().join("model.gguf.journal");
    fs::write(&journal, b"my diary").unwrap();
    for force in [false, true] {
        let error = convert(&Options { force, ..options(&place) }, &mut Silent).unwrap_err();
        assert!(matches!(error, Error::NoJournal { .. }), "{error}");
    }
    assert_eq!(fs::read(&journal).unwrap(), b"my diary");
}

/// In the middle of one conversion, begins others.
struct Meanwhile<F: FnMut()> {
    begin: Option<F>,
}

impl<F: FnMut()> Progress for Meanwhile<F> {
    fn begin(&mut self, phase: Phase, _: u64) {
        if phase == Phase::Converting
            && let Some(mut begin) = self.begin.take()
        {
            begin();
        }
    }
    fn advance(&mut self, _: u64) {}
    fn warn(&mut self, _: &str) {}
}

#[test]
fn two_conversions_at_once_exclude_each_other_or_never_meet() {
    let spec = Spec::tiny();
    let place = Place::new(&spec);
    let named = |name: &str| Options {
        output: place.dir.path().join(name),
        name: Some("checkpoint".into()),
        ..options(&place)
    };
    let mut met = false;
    let begin = || {
        for force in [false, true] {
            let same = convert(&Options { force, ..named("m.gguf") }, &mut Silent);
            assert!(matches!(same, Err(Error::Locked { .. })), "{same:?}");
        }
        // Names whose files would be called alike have no conversion at all.
        for name in ["m", "m.draft.gguf", "m-00001-of-00002.gguf"] {
            let other = convert(&Options { force: true, ..named(name) }, &mut Silent);
            assert!(matches!(other, Err(Error::OutputName { .. })), "{name}: {other:?}");
        }
        convert(&named("n.gguf"), &mut Silent).unwrap();
        met = true;
    };
    convert(&named("m.gguf"), &mut Meanwhile { begin: Some(begin) }).unwrap();
    assert!(met);
    for name in ["m.gguf", "n.gguf"] {
        let model = place.dir.path().join(name).into();
        let report =
            verify(&VerifyOptions { model, against: Some(place.checkpoint()), threads: 1 }, &mut Silent).unwrap();
        assert_eq!((Some(report.verified), report.missing_draft), (report.compared, None), "{name}");
    }
    assert_eq!(place.listing(), ["m.draft.gguf", "m.gguf", "n.draft.gguf", "n.gguf"]);
}
