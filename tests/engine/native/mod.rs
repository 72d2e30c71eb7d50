//! The native engine on tiny models, against golden numbers and against itself.

mod calibrate;
mod golden;
mod hostile;
mod invariance;
mod routing;

use std::path::Path;

use fathom::engine::native::Native;
use fathom::engine::{self, Engine, Kind, KvType, Settings};
use fathom_gguf::File;

/// Settings under which nothing is rounded below F32.
fn exact() -> Settings {
    Settings { n_ctx: 1024, n_seq_max: 3, n_threads: 1, n_outputs: 512, ..Settings::default() }
}

fn load_exact(path: &Path, settings: &Settings) -> Box<dyn Engine> {
    engine::load_f32(&File::open(path).unwrap(), Path::new(""), Kind::Native, settings, &mut |_| true).unwrap()
}

/// As [`load_exact`], as the type that can be probed.
fn native_exact(path: &Path, settings: &Settings) -> Native {
    let settings = Settings { exact: true, kv_type: KvType::F32, ..settings.clone() };
    let file = File::open(path).unwrap();
    let plan = engine::plan(&file, Kind::Native, &settings, engine::machine::available_bytes()).unwrap();
    Native::load(file, &plan.apply(&settings), &mut |_| true).unwrap()
}
