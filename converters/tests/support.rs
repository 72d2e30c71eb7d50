//! Checkpoints on disk and ways to look at them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fathom_converters::synthetic::{Draft, Spec};
use fathom_converters::{Error, Options, Report, Silent, convert};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

/// A directory with a checkpoint in `checkpoint` and room for output.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new(spec: &Spec) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.checkpoint()).unwrap();
        spec.write(&place.checkpoint()).unwrap();
        place
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.dir.path().join("checkpoint")
    }

    pub fn output(&self) -> PathBuf {
        self.dir.path().join("model.gguf")
    }

    pub fn options(&self) -> Options {
        Options::new(self.checkpoint(), self.output())
    }

    pub fn convert(&self) -> Result<Report, Error> {
        convert(&self.options(), &mut Silent)
    }

    /// Names of everything in the output directory but the checkpoint.
    pub fn listing(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "checkpoint").collect();
        names.sort();
        names
    }

    /// Rewrites a JSON file of the checkpoint.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.checkpoint().join(file);
        let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, serde_json::to_string_pretty(&value).unwrap()).unwrap();
    }
}

/// The tiny spec with an MTP block.
pub fn mtp() -> Spec {
    Spec { draft: Draft::Mtp, ..Spec::tiny() }
}

/// A fixture of the repository.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name)
}

/// Dtype, shape and SHA-256 of every tensor of a checkpoint, read with the safetensors crate.
pub fn tensors(dir: &Path) -> BTreeMap<String, (String, Vec<usize>, String)> {
    let index = fs::read_to_string(dir.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let files: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().unwrap().values().map(|file| file.as_str().unwrap()).collect();
    let mut out = BTreeMap::new();
    for file in files {
        let bytes = fs::read(dir.join(file)).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            assert_eq!(index["weight_map"][&name], *file, "the index places {name}");
            let sum = hex(&Sha256::digest(view.data()));
            out.insert(name, (view.dtype().to_string(), view.shape().to_vec(), sum));
        }
    }
    out
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file.
pub fn sum(path: &Path) -> String {
    hex(&Sha256::digest(fs::read(path).unwrap()))
}

pub const JSON_FILES: [&str; 4] = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
