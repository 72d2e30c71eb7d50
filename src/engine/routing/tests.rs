//! The written form, the files and the choice among profiles. What the rules compute is tested with the kernel and with the engine.

use std::path::Path;

use fathom_gguf::{DType, File, Metadata, TensorInfo};
use proptest::prelude::*;

use super::*;

const SHAPE: Shape = Shape { n_layer: 2, n_expert: 8, n_used: 4 };

/// A model file with nothing but routers, whose scores are `first` and on, in `dir`.
fn model(dir: &Path, dtype: DType, first: f32, extra: impl FnOnce(&mut Metadata)) -> File {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "deepseek4");
    metadata.insert("deepseek4.expert_count", 8_u32);
    metadata.insert("deepseek4.expert_used_count", 4_u32);
    metadata.insert("deepseek4.block_count", 2_u32);
    extra(&mut metadata);
    let values: Vec<f32> = (0..32).map(|index| first + index as f32).collect();
    let mut bytes = vec![0; dtype.row_bytes(32).unwrap() as usize];
    fathom_gguf::block::encode(dtype, &values, &mut bytes).unwrap();
    let tensor = |block| TensorInfo::new(format!("blk.{block}.ffn_gate_inp.weight"), dtype, [4, 8]).unwrap();
    let tensors: Vec<(TensorInfo, &[u8])> = (0..2).map(|block| (tensor(block), &bytes[..])).collect();
    let path = dir.join("m.gguf");
    fathom_gguf::write_file(&path, metadata, &tensors).unwrap();
    File::open(&path).unwrap()
}

/// A profile for [`SHAPE`], with everything that a profile can have.
fn full(policy: Policy, fingerprint: &str) -> Profile {
    let rule = LayerRule { k_min: 1, k_max: 3, theta: 0.25, beta: 0.5, rho: 0.5, alpha: 1.125 };
    Profile {
        policy,
        fingerprint: fingerprint.to_owned(),
        layers: vec![rule, LayerRule { k_min: 2, k_max: 4, theta: 0.1, ..rule }],
        expert_norm: (0..16).map(|index| 1.0 / (1.0 + index as f32)).collect(),
        protected: vec![3, 12],
        route_hash: true,
        calibration: Some(Calibration {
            tokens: 65_536,
            mean_k: 3.5,
            kl: 0.25,
            kl_p99: 1.5,
            top1: 0.875,
            ppl_ratio: 1.0625,
            text_hash: "ab".repeat(32),
        }),
    }
}

fn profiles(of: &[(&str, Profile)]) -> Profiles {
    Profiles { profiles: of.iter().map(|(name, profile)| ((*name).to_owned(), profile.clone())).collect() }
}

fn named(name: &str) -> Routing {
    Routing::Named { file: None, name: Some(name.to_owned()) }
}

fn beside(file: &File) -> Beside {
    Beside::new(sidecar(file.path()))
}

#[test]
fn every_form_is_read_and_written() {
    for (text, routing) in [
        ("off", Routing::Off),
        ("topk:4", Routing::TopK(4)),
        ("rel:0.5", Routing::Rel(0.5)),
        ("rel:0", Routing::Rel(0.0)),
        ("mass:1", Routing::Mass(1.0)),
        ("margin", Routing::Margin),
        ("fast", named("fast")),
        ("a/b.routing.json", Routing::Named { file: Some("a/b.routing.json".into()), name: None }),
        ("/m.routing.json#safe", Routing::Named { file: Some("/m.routing.json".into()), name: Some("safe".into()) }),
        ("m.routing.json", Routing::Named { file: Some("m.routing.json".into()), name: None }),
    ] {
        assert_eq!(text.parse::<Routing>().unwrap(), routing);
        assert_eq!(routing.to_string(), text);
    }
}

#[test]
fn nonsense_is_refused_with_what_was_expected() {
    for text in [
        "",
        "topk",
        "rel",
        "mass:",
        "topk:",
        "topk:-1",
        "topk:4.5",
        "rel:x",
        "fast:1",
        "Fast",
        "a b",
        "é",
        "m.routing.json#A",
    ] {
        let error = text.parse::<Routing>().unwrap_err().to_string();
        assert!(error.contains(&format!("`{text}`")) && error.contains("topk:K"), "{error}");
    }
    for (text, reason) in
        [("topk:0", "at least 1 expert"), ("rel:1.5", "0 to 1"), ("mass:-0.1", "0 to 1"), ("rel:NaN", "0 to 1")]
    {
        let error = text.parse::<Routing>().unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(reason), "{error}");
    }
    for text in ["/etc/passwd", "../m.json", "a/b.routing.json.bak", "/dev/zero"] {
        assert!(matches!(text.parse::<Routing>(), Err(Error::FileName(_))), "{text}");
    }
}

proptest! {
    #[test]
    fn whatever_is_read_is_written_so_that_it_reads_the_same(text in "\\PC{0,24}|(topk|rel|mass):[0-9.]{0,6}|[a-z/.#]{0,8}\\.routing\\.json[a-z#]{0,4}") {
        if let Ok(routing) = text.parse::<Routing>() {
            prop_assert_eq!(routing.to_string().parse::<Routing>().unwrap(), routing);
        }
    }
}

#[test]
fn profiles_lie_beside_their_model() {
    for (model, expected) in [
        ("/m/flash.gguf", "/m/flash.routing.json"),
        ("flash-00001-of-00003.gguf", "flash.routing.json"),
        ("/b/sha256-ab", "/b/sha256-ab.routing.json"),
        ("one-of-many.gguf", "one-of-many.routing.json"),
    ] {
        assert_eq!(sidecar(Path::new(model)), Path::new(expected));
    }
}

#[test]
fn files_and_keys_give_back_what_was_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.routing.json");
    let all = profiles(&[("safe", full(Policy::Margin, "ab")), ("fast", Profile::top_k(3, SHAPE))]);
    all.save(&path).unwrap();
    assert_eq!(Profiles::load(&path).unwrap(), all);

    let mut metadata = Metadata::new();
    assert!(Profile::from_metadata(&metadata).unwrap().is_none());
    full(Policy::Rel, "cd").to_metadata("safe", &mut metadata);
    assert_eq!(Profile::from_metadata(&metadata).unwrap(), Some(("safe".to_owned(), full(Policy::Rel, "cd"))));
    metadata.insert("fathom.routing.kmax", vec![1_u32]);
    assert!(Profile::from_metadata(&metadata).unwrap_err().to_string().contains("different lengths"));
    metadata.insert("fathom.routing.kmax", vec![1_i32, -1]);
    assert!(Profile::from_metadata(&metadata).unwrap_err().to_string().contains("`safe` cannot be used: -1"));
    metadata.insert("fathom.routing.theta", 1.0_f32);
    assert!(matches!(Profile::from_metadata(&metadata), Err(Error::Gguf(_)) | Err(Error::Profile { .. })));
}

#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.routing.json");
    let good = serde_json::json!({"schema": 1, "profiles": {"a": {
        "version": 1, "model_fingerprint": "ab", "policy": "rel", "kmin": [1], "kmax": [2], "theta": [0.5], "beta": [0],
        "rho": [1], "alpha": [1]
    }}});
    let load = |value: &serde_json::Value| {
        std::fs::write(&path, value.to_string()).unwrap();
        Profiles::load(&path)
    };
    assert_eq!(load(&good).unwrap().profiles["a"].layers, [LayerRule::new(1, 2, 0.5)]);
    for (pointer, value, reason) in [
        ("/schema", serde_json::json!(2), "schema is 2"),
        ("/profiles/a/version", serde_json::json!(9), "version is 9"),
        ("/profiles/a/policy", serde_json::json!("off"), "`off` is no rule"),
        ("/profiles/a/theta", serde_json::json!([]), "different lengths"),
        ("/profiles/a/kmin", serde_json::json!([-1]), "invalid value"),
        ("/profiles/a/rho", serde_json::json!("1"), "invalid type"),
        ("/profiles", serde_json::json!({"A": good["profiles"]["a"]}), "`A` is no name"),
        ("/profiles", serde_json::json!([]), "invalid type"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        let error = load(&bad).unwrap_err().to_string();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
    assert!(matches!(Profiles::load(dir.path().join("none.routing.json").as_path()), Err(Error::Io { .. })));
    std::fs::write(dir.path().join("m.json"), good.to_string()).unwrap();
    assert!(matches!(Profiles::load(&dir.path().join("m.json")), Err(Error::FileName(_))));
    std::fs::create_dir(dir.path().join("d.routing.json")).unwrap();
    assert!(Profiles::load(&dir.path().join("d.routing.json")).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn numbers_that_do_not_fit_the_model_are_named() {
    type Change = fn(&mut Profile);
    let check = |change: Change| {
        let mut profile = full(Policy::Margin, "");
        change(&mut profile);
        profile.check("safe", SHAPE).map_err(|error| error.to_string())
    };
    assert_eq!(check(|_| {}), Ok(()));
    let changes: [(Change, &str); 12] = [
        (|p| p.layers.truncate(1), "numbers for 1 layers, the model has 2"),
        (|p| p.layers[1].k_max = 5, "layer 1: it keeps 2 to 5 experts, the router chooses 4"),
        (|p| p.layers[0].k_min = 0, "layer 0: it keeps 0 to 3"),
        (|p| p.layers[0].k_min = 4, "layer 0: it keeps 4 to 3"),
        (|p| p.layers[0].theta = f32::NAN, "theta is NaN"),
        (|p| p.layers[0].beta = f32::INFINITY, "beta is inf"),
        (|p| p.layers[0].rho = 1.5, "rho is 1.5"),
        (|p| p.layers[0].alpha = 0.0, "alpha is 0"),
        (|p| p.expert_norm.truncate(3), "3 expert norms"),
        (|p| p.expert_norm[3] = -1.0, "an expert norm is -1"),
        (|p| p.protected.push(16), "protects expert 16 of 16"),
        (|p| (p.policy, p.layers[0].theta) = (Policy::Mass, 1.5), "theta is 1.5"),
    ];
    for (change, reason) in changes {
        let error = check(change).unwrap_err();
        assert!(error.starts_with("routing profile `safe` cannot be used: ") && error.contains(reason), "{error}");
    }
}

#[test]
fn fingerprints_are_about_values_not_types() {
    let dir = tempfile::tempdir().unwrap();
    let of = |dtype, first| fingerprint(&model(dir.path(), dtype, first, |_| {})).unwrap();
    let one = of(DType::F32, 1.0);
    assert_eq!((one.len(), &one), (64, &of(DType::F32, 1.0)));
    assert_eq!(one, of(DType::BF16, 1.0), "whole numbers survive BF16");
    assert_ne!(one, of(DType::F32, 2.0));
    let other = |metadata: &mut Metadata| drop(metadata.insert("deepseek4.expert_used_count", 3_u32));
    assert_ne!(one, fingerprint(&model(dir.path(), DType::F32, 1.0, other)).unwrap());
}

#[test]
fn simple_rules_fit_every_model_but_for_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let file = model(dir.path(), DType::F32, 1.0, |_| {});
    let resolve = |text: &str| resolve(&text.parse().unwrap(), &file, &beside(&file), SHAPE, &OnceCell::new());
    assert_eq!(resolve("off").unwrap(), None);
    let profile = resolve("topk:4").unwrap().unwrap();
    assert_eq!((profile.policy, profile.layers.len(), profile.layers[1].k_max), (Policy::TopK, 2, 4));
    assert!(profile.check("x", SHAPE).is_ok());
    let error = resolve("topk:5").unwrap_err().to_string();
    assert!(error.contains("computes 4 experts") && error.contains("topk:1 to topk:4"), "{error}");
    let profile = resolve("rel:0.5").unwrap().unwrap();
    assert_eq!((profile.layers[0].k_min, profile.layers[0].k_max, profile.layers[0].theta), (2, 4, 0.5));
    let one = Shape { n_used: 1, ..SHAPE };
    assert!(
        super::resolve(&Routing::Mass(0.5), &file, &beside(&file), one, &OnceCell::new())
            .unwrap()
            .unwrap()
            .check("x", one)
            .is_ok()
    );
}

#[test]
fn profiles_are_found_by_name_and_refused_for_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = model(dir.path(), DType::F32, 1.0, |_| {});
    let own = fingerprint(&file).unwrap();
    let resolve = |routing: &Routing, file: &File| resolve(routing, file, &beside(file), SHAPE, &OnceCell::new());
    let error = resolve(&Routing::Margin, &file).unwrap_err().to_string();
    assert!(error.contains("`margin` needs a routing profile") && error.contains("m.routing.json"), "{error}");

    let (safe, fast) = (full(Policy::Margin, &own), full(Policy::Rel, &own));
    let beside = dir.path().join("m.routing.json");
    profiles(&[("safe", safe.clone()), ("fast", fast.clone())]).save(&beside).unwrap();
    assert_eq!(*resolve(&named("fast"), &file).unwrap().unwrap(), fast);
    assert_eq!(*resolve(&Routing::Margin, &file).unwrap().unwrap(), safe, "the only one of this rule");
    let error = resolve(&named("slow"), &file).unwrap_err().to_string();
    assert!(error.contains("no routing profile `slow`") && error.contains("`fast`, `safe`"), "{error}");
    let of_file = Routing::Named { file: Some(beside.clone()), name: None };
    let error = resolve(&of_file, &file).unwrap_err().to_string();
    assert!(error.contains("called `balanced`"), "{error}");

    // The model's own goes before what lies beside it.
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(&beside, other.path().join("m.routing.json")).unwrap();
    let embedded = model(other.path(), DType::F32, 1.0, |metadata| safe.to_metadata("fast", metadata));
    assert_eq!(*resolve(&named("fast"), &embedded).unwrap().unwrap(), safe);

    profiles(&[("balanced", Profile { fingerprint: "ab".to_owned(), ..safe })]).save(&beside).unwrap();
    let error = resolve(&of_file, &file).unwrap_err();
    assert!(
        matches!(&error, Error::Fingerprint { found, expected, .. } if found == "ab" && *expected == own),
        "{error}"
    );
}

#[test]
fn a_file_of_profiles_is_read_again_only_when_it_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    // Any name: that of a blob of the store has no ending.
    let path = dir.path().join("sha256-ab");
    let beside = Beside::new(path.clone());
    assert!(beside.profiles().unwrap().is_none());
    let write = |all: &Profiles| {
        let file = dir.path().join("new.routing.json");
        all.save(&file).unwrap();
        std::fs::rename(file, &path).unwrap();
    };
    write(&profiles(&[("safe", full(Policy::Margin, "ab"))]));
    let first = beside.profiles().unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &beside.profiles().unwrap().unwrap()));
    write(&profiles(&[("safe", full(Policy::Margin, "ab")), ("fast", full(Policy::Margin, "ab"))]));
    assert_eq!(beside.profiles().unwrap().unwrap().profiles.len(), 2);
    std::fs::write(&path, "{").unwrap();
    assert!(matches!(beside.profiles(), Err(Error::File { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(beside.profiles().unwrap().is_none());
}

#[test]
fn an_id_is_about_what_is_computed() {
    let one = full(Policy::Margin, "ab");
    assert_eq!(one.id(), Profile { fingerprint: "cd".to_owned(), calibration: None, ..one.clone() }.id());
    assert_ne!(one.id(), full(Policy::Rel, "ab").id());
    assert_ne!(one.id(), Profile { protected: vec![3], ..one.clone() }.id());
    assert_ne!(one.id(), Profile { route_hash: false, ..one.clone() }.id());
    assert_ne!(Profile::top_k(3, SHAPE).id(), Profile::top_k(4, SHAPE).id());
    assert_ne!(Profile::top_k(3, SHAPE).id(), RoutingId::OFF);
}
