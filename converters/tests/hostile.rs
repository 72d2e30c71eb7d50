//! Checkpoints and files made to break the program: each is an error, none is a panic, and nothing looks finished.

use std::fs;
use std::path::Path;

use fathom_converters::synthetic::Spec;
use fathom_converters::{Completeness, Error, ExportOptions, Options, Silent, VerifyOptions, export, prepare, verify};
use fathom_gguf::{File, Metadata, Strings, Value as Gguf};
use serde_json::{Value, json};

use crate::support::{Place, mtp};

fn single() -> Place {
    Place::new(&Spec { shards: 1, ..mtp() })
}

const SHARD: &str = "model-00001-of-00001.safetensors";

/// Rewrites the header of the one shard.
fn edit_header(place: &Place, change: impl FnOnce(&mut Value)) {
    let path = place.checkpoint().join(SHARD);
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    write_shard(&path, &header.to_string(), &bytes[8 + length..]);
}

fn write_shard(path: &Path, header: &str, data: &[u8]) {
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn refused(place: &Place) -> Error {
    let error = place.convert().expect_err("the checkpoint has a defect");
    let finished: Vec<String> = place.listing().into_iter().filter(|name| name.ends_with(".gguf")).collect();
    assert!(finished.is_empty(), "{finished:?} look finished after: {error}");
    error
}

const TENSOR: &str = "layers.0.attn_norm.weight";

#[test]
fn headers_that_lie() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 12] = [
        ("overlap", |header| header[TENSOR]["data_offsets"] = header["norm.weight"]["data_offsets"].clone()),
        ("backwards", |header| header[TENSOR]["data_offsets"] = json!([400, 80])),
        ("beyond the end", |header| header[TENSOR]["data_offsets"] = json!([u64::MAX - 320, u64::MAX])),
        ("negative", |header| header[TENSOR]["data_offsets"] = json!([-1, 319])),
        ("a huge shape", |header| header[TENSOR]["shape"] = json!([u64::MAX, u64::MAX])),
        ("a shape of nothing", |header| header[TENSOR]["shape"] = json!([0])),
        ("no shape", |header| header[TENSOR]["shape"] = json!([])),
        ("an unknown dtype", |header| header[TENSOR]["dtype"] = json!("F128")),
        ("half bytes", |header| header[TENSOR] = json!({"dtype": "F4", "shape": [3], "data_offsets": [0, 1]})),
        ("no object", |header| *header = json!([1, 2])),
        ("metadata of numbers", |header| header["__metadata__"] = json!({"format": 1})),
        ("nothing", |header| *header = json!({})),
    ];
    for (what, change) in changes {
        let place = single();
        edit_header(&place, change);
        let error = refused(&place);
        let message = error.to_string();
        assert!(message.contains(SHARD) || message.contains(TENSOR) || message.contains('`'), "{what}: {message}");
    }
}

#[test]
fn a_tensor_that_is_named_twice() {
    // Twice in one header.
    let place = single();
    let path = place.checkpoint().join(SHARD);
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap().trim_end();
    let again = format!(
        "{},\"{TENSOR}\":{{\"dtype\":\"BF16\",\"shape\":[160],\"data_offsets\":[0,320]}}}}",
        &header[..header.len() - 1]
    );
    write_shard(&path, &again, &bytes[8 + length..]);
    refused(&place);
    // In two shards, of which the index names one.
    let place = Place::new(&mtp());
    let dir = place.checkpoint();
    let index: Value = serde_json::from_slice(&fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
    let home = index["weight_map"][TENSOR].as_str().unwrap();
    let other =
        if home.contains("00001-of") { "model-00002-of-00004.safetensors" } else { "model-00001-of-00004.safetensors" };
    let bytes = fs::read(dir.join(other)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = bytes.len() - 8 - length;
    header[TENSOR] = json!({"dtype": "BF16", "shape": [160], "data_offsets": [end, end + 320]});
    write_shard(&dir.join(other), &header.to_string(), &[&bytes[8 + length..], &[0; 320]].concat());
    let error = refused(&place);
    assert!(matches!(&error, Error::NotInIndex { tensor, shard } if tensor == TENSOR && shard == other), "{error}");
}

#[test]
fn giant_headers_are_refused_before_they_are_read() {
    for length in [100_000_001u64, 1 << 40, u64::MAX - 7, u64::MAX] {
        let place = single();
        let path = place.checkpoint().join(SHARD);
        fs::write(&path, length.to_le_bytes()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
        let error = refused(&place);
        assert!(error.to_string().contains("its header would be"), "{error}");
    }
}

#[test]
fn indexes_that_point_elsewhere() {
    for bad in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b.safetensors"] {
        let place = single();
        place.edit("model.safetensors.index.json", |index| index["weight_map"][TENSOR] = json!(bad));
        let error = refused(&place);
        assert!(matches!(&error, Error::ShardPath { shard } if shard == bad), "{bad}: {error}");
    }
    for bad in [json!(null), json!([]), json!({}), json!({"a": 1}), json!("x")] {
        let place = single();
        place.edit("model.safetensors.index.json", |index| index["weight_map"] = bad);
        assert!(matches!(refused(&place), Error::BadJson { .. }));
    }
}

/// Download caches keep a checkpoint as links into a folder of blobs: links are followed.
#[cfg(unix)]
#[test]
fn links_to_files_work_and_what_is_no_file_is_refused() {
    use std::os::unix::fs::symlink;
    let place = single();
    let (path, blob) = (place.checkpoint().join(SHARD), place.dir.path().join("blob"));
    fs::rename(&path, &blob).unwrap();
    symlink(&blob, &path).unwrap();
    place.convert().unwrap();
    for name in [SHARD, "config.json", "tokenizer_config.json", "model.safetensors.index.json"] {
        let place = single();
        let path = place.checkpoint().join(name);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = refused(&place);
        assert!(error.to_string().contains(name), "{error}");
        // Reading from it would wait for ever.
        fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = refused(&place);
        assert!(error.to_string().contains(name), "{error}");
        fs::remove_file(&path).unwrap();
        symlink(&path, &path).unwrap();
        let error = refused(&place);
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// Every field of a JSON object, nested ones included, as a path of keys.
fn fields(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let path = format!("{path}/{key}");
            fields(value, &path, out);
            out.push(path);
        }),
        Value::Array(items) => {
            items.iter().take(2).enumerate().for_each(|(at, value)| {
                let path = format!("{path}/{at}");
                fields(value, &path, out);
                out.push(path);
            });
        }
        _ => {}
    }
}

/// Runs `call`; what it answers does not matter, a panic names `what`.
#[track_caller]
fn survives<T>(what: &str, call: impl FnOnce() -> Result<T, Error>) -> bool {
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    ended.unwrap_or_else(|_| panic!("it panicked: {what}")).is_ok()
}

fn extremes() -> Vec<Value> {
    vec![
        json!(null),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(0.5),
        json!(1e300),
        json!(u32::MAX),
        json!(1u64 << 53),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!([]),
        json!([1]),
        json!({}),
        json!(true),
    ]
}

#[test]
fn no_number_in_config_json_makes_it_panic() {
    let place = single();
    let path = place.checkpoint().join("config.json");
    let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut paths = Vec::new();
    fields(&config, "", &mut paths);
    assert!(paths.len() > 20, "{paths:?}");
    for field in paths {
        for value in extremes() {
            let mut changed = config.clone();
            *changed.pointer_mut(&field).unwrap() = value.clone();
            fs::write(&path, changed.to_string()).unwrap();
            let options = place.options();
            survives(&format!("`{field}` = {value}"), || prepare(&options, Completeness::Whole));
        }
    }
}

#[test]
fn no_tokenizer_makes_it_panic() {
    let place = single();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let path = place.checkpoint().join(file);
        let text = fs::read_to_string(&path).unwrap();
        let whole: Value = serde_json::from_str(&text).unwrap();
        let mut paths = Vec::new();
        fields(&whole, "", &mut paths);
        for field in paths.iter().filter(|path| !path.starts_with("/model/vocab/")).chain(paths.iter().take(3)) {
            for value in [json!(null), json!(-1), json!(u64::MAX), json!("x"), json!([]), json!([[]]), json!({"x": -1})]
            {
                let mut changed = whole.clone();
                *changed.pointer_mut(field).unwrap() = value.clone();
                fs::write(&path, changed.to_string()).unwrap();
                let options = place.options();
                survives(&format!("{file}: `{field}` = {value}"), || prepare(&options, Completeness::Headers));
            }
        }
        fs::write(&path, text).unwrap();
    }
}

/// Writes `file` again with other keys.
fn rewrite(file: &File, path: &Path, metadata: Metadata) {
    let tensors: Vec<_> = file.tensors().iter().map(|info| (info.clone(), file.data(info))).collect();
    fathom_gguf::write_file(path, metadata, &tensors).unwrap();
}

#[test]
fn no_key_of_a_converted_file_makes_verify_or_export_panic() {
    let place = Place::new(&Spec { draft: fathom_converters::synthetic::Draft::None, ..Spec::tiny() });
    fathom_converters::convert(&Options { threads: 1, ..place.options() }, &mut Silent).unwrap();
    let file = File::open(place.output()).unwrap();
    let (path, back) = (place.dir.path().join("changed.gguf"), place.dir.path().join("back"));
    let check = |what: &str, metadata: Metadata| {
        rewrite(&file, &path, metadata);
        let options = VerifyOptions { model: path.as_path().into(), against: None, threads: 1 };
        survives(what, || verify(&options, &mut Silent));
        let options = ExportOptions { threads: 1, ..ExportOptions::new(&path, &back) };
        if !survives(what, || export(&options, &mut Silent)) {
            assert!(!back.exists(), "{what}");
        } else {
            fs::remove_dir_all(&back).unwrap();
        }
    };
    let keys = file.metadata();
    let ours: Vec<String> =
        keys.iter().map(|(key, _)| key.to_owned()).filter(|key| key.starts_with("fathom.")).collect();
    assert!(ours.len() > 8, "{ours:?}");
    let strings = |texts: &[&str]| Gguf::from(texts.iter().copied().collect::<Strings>());
    for key in &ours {
        for value in [0u32.into(), "".into(), strings(&[]), strings(&["x"]), Gguf::from(vec![255u8; 3]), "{}".into()] {
            let mut changed = keys.clone();
            changed.insert(key.as_str(), value);
            check(key, changed);
        }
    }
    // One entry of each list that says something else.
    for (key, others) in [
        ("fathom.tensor.names", vec!["", "../../x", "norm.weight", "layers.0.ffn.experts.0.w1.scale"]),
        ("fathom.tensor.dtypes", vec!["", "F4", "F6_E2M3", "BOOL", "C64", "I8", "F8_E8M0", "F64"]),
        ("fathom.tensor.sha256", vec!["", "zz", "00"]),
    ] {
        let list: Vec<String> = keys.strings(key).unwrap().iter().map(str::to_owned).collect();
        for other in others {
            for at in [0, 1, list.len() / 2, list.len() - 1] {
                let mut list = list.clone();
                list[at] = other.into();
                let mut changed = keys.clone();
                changed.insert(key, Strings::from(list));
                check(&format!("{key}[{at}] = {other}"), changed);
            }
        }
    }
    // The kept config.json, which the recipe is run over again.
    let config: Value = serde_json::from_str(keys.str("fathom.source.config_json").unwrap()).unwrap();
    let mut paths = Vec::new();
    fields(&config, "", &mut paths);
    for field in paths {
        for value in [json!(0), json!(-1), json!(u64::MAX), json!(i64::MAX), json!("x"), json!([])] {
            let mut config = config.clone();
            *config.pointer_mut(&field).unwrap() = value.clone();
            let mut changed = keys.clone();
            changed.insert("fathom.source.config_json", config.to_string());
            rewrite(&file, &path, changed);
            let options = VerifyOptions { model: path.as_path().into(), against: None, threads: 1 };
            survives(&format!("`{field}` = {value}"), || verify(&options, &mut Silent));
        }
    }
}
