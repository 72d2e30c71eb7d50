//! Routing policies on the whole engine: `off` is the reference, each rule does what it says, states of different policies do not mix.
//! What a rule keeps of a token's experts is tested with the kernel.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom::engine::native::Native;
use fathom::engine::routing::{self, Counts, LayerRule, Policy, Profile, Profiles, Shape};
use fathom::engine::{
    Batch, BatchToken, Engine, Error, Inspect, Kind, Output, Outputs, Probe, Routing, Settings, Value,
};
use fathom::ids::{SeqId, TokenId};
use fathom_gguf::{DType, File, TensorInfo};
use serde_json::json;

use super::super::{TOLERANCE, assert_close, load_kind, logits, scratch, text, tiny_a, tiny_b, tokens};
use super::{exact, native_exact};
use crate::support::http;
use crate::support::program::{self, Program};

const THRESHOLDS: [Policy; 3] = [Policy::Rel, Policy::Mass, Policy::Margin];

fn shape(path: &Path) -> Shape {
    let file = File::open(path).unwrap();
    let number = |key: &str| file.metadata().u32(&format!("deepseek4.{key}")).unwrap() as usize;
    Shape { n_layer: number("block_count"), n_expert: number("expert_count"), n_used: number("expert_used_count") }
}

/// Layers that choose by token.
fn hash_layers(path: &Path) -> usize {
    File::open(path).unwrap().metadata().u32("deepseek4.hash_layer_count").unwrap() as usize
}

/// The same rule in every layer.
fn uniform(shape: Shape, policy: Policy, k_min: usize, k_max: usize, theta: f32) -> Routing {
    let rule = LayerRule { k_min: k_min as u32, k_max: k_max as u32, theta, beta: 0.5, rho: 1.0, alpha: 1.0 };
    Routing::Given(Arc::new(Profile { policy, layers: vec![rule; shape.n_layer], ..Profile::top_k(1, shape) }))
}

/// Lets an empty sequence follow a policy.
fn follow(engine: &mut dyn Engine, seq: u32, routing: &Routing) {
    engine.release(SeqId(seq));
    let id = engine.find_routing(routing).unwrap();
    engine.set_routing(SeqId(seq), id).unwrap();
}

/// Logits of a text under a policy, in sequence 0, in steps of `chunk` tokens.
fn under(engine: &mut dyn Engine, routing: &Routing, text: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
    follow(engine, 0, routing);
    logits(engine, 0, 0, text, chunk)
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

#[track_caller]
fn assert_same(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert!(bits(got) == bits(expected), "{what}");
}

/// Chosen experts of every layer and token, -1 where one was dropped.
fn experts(engine: &mut Native, routing: &Routing, text: &[TokenId]) -> Vec<Vec<i32>> {
    follow(engine, 0, routing);
    let mut probe = Probe::default();
    let batch = Batch { tokens: tokens(0, 0, text) };
    engine.inspect(&batch, &mut Outputs::default(), Inspect::Values(&mut probe)).unwrap();
    let ids = probe.values.into_iter().filter(|value| value.name.ends_with(".experts"));
    ids.map(|probed| match probed.value {
        Value::I32(ids) => ids,
        Value::F32(_) => panic!("ids are integers"),
    })
    .collect()
}

#[test]
fn policies_that_drop_nothing_are_the_reference_to_the_last_bit() {
    for path in [tiny_a(), tiny_b()] {
        let shape = shape(path);
        let mut engine = native_exact(path, &exact());
        let text = text(200, engine.info().n_vocab);
        let reference = logits(&mut engine, 0, 0, &text, 64);
        let mut same = vec![Routing::Off, Routing::TopK(shape.n_used as u32), Routing::Rel(0.0), Routing::Mass(1.0)];
        same.extend(THRESHOLDS.map(|policy| uniform(shape, policy, shape.n_used, shape.n_used, 0.9)));
        same.push(uniform(shape, Policy::Margin, 1, shape.n_used, f32::MIN));
        for routing in &same {
            assert_same(&format!("{routing:?}"), &under(&mut engine, routing, &text, 64), &reference);
        }
        // And off again after something that is not.
        let one = under(&mut engine, &Routing::TopK(1), &text, 64);
        assert!(bits(&one) != bits(&reference), "one expert is not {}", shape.n_used);
        assert_same("off again", &under(&mut engine, &Routing::Off, &text, 64), &reference);
        engine.release(SeqId(0));
        assert_same("released", &logits(&mut engine, 0, 0, &text, 64), &reference);
    }
}

#[test]
fn the_highest_threshold_is_the_smallest_static_number() {
    let (shape, mut engine) = (shape(tiny_a()), native_exact(tiny_a(), &exact()));
    let text = text(150, engine.info().n_vocab);
    for k in 1..=shape.n_used {
        let fixed = under(&mut engine, &Routing::TopK(k as u32), &text, 50);
        for (policy, theta) in [(Policy::Rel, 1.0), (Policy::Mass, 0.0), (Policy::Margin, f32::MAX)] {
            let highest = uniform(shape, policy, k, shape.n_used, theta);
            assert_same(&format!("{policy:?}, {k}"), &under(&mut engine, &highest, &text, 50), &fixed);
        }
    }
    let fixed = under(&mut engine, &Routing::TopK(routing::DEFAULT_K_MIN), &text, 50);
    assert_same("rel:1", &under(&mut engine, &"rel:1".parse().unwrap(), &text, 50), &fixed);
    assert_same("mass:0", &under(&mut engine, &"mass:0".parse().unwrap(), &text, 50), &fixed);
}

#[test]
fn hash_layers_are_left_alone_unless_a_profile_asks() {
    let (shape, n_hash) = (shape(tiny_a()), hash_layers(tiny_a()));
    let mut engine = native_exact(tiny_a(), &exact());
    let text = text(60, engine.info().n_vocab);
    let all = experts(&mut engine, &Routing::Off, &text);
    let one = experts(&mut engine, &Routing::TopK(1), &text);
    assert!(0 < n_hash && n_hash < shape.n_layer && all.len() == shape.n_layer);
    assert_eq!(one[..n_hash], all[..n_hash]);
    let dropped = |ids: &[i32]| ids.iter().filter(|&&id| id < 0).count();
    for (layer, ids) in one.iter().enumerate().skip(n_hash) {
        assert_eq!(dropped(ids), text.len() * (shape.n_used - 1), "layer {layer}");
    }
    let asked = Profile { route_hash: true, ..Profile::top_k(1, shape) };
    for ids in experts(&mut engine, &Routing::Given(Arc::new(asked)), &text) {
        assert_eq!(dropped(&ids), text.len() * (shape.n_used - 1));
    }
}

#[test]
fn counters_fall_exactly_as_k() {
    let (shape, n_hash) = (shape(tiny_a()), hash_layers(tiny_a()));
    let file = File::open(tiny_a()).unwrap();
    let key = |key: &str| file.metadata().u32(&format!("deepseek4.{key}")).unwrap() as u64;
    let one_expert = 2 * 3 * key("embedding_length") * key("expert_feed_forward_length");
    let bytes = |layer: usize| -> u64 {
        let part = |name| file.tensor(&format!("blk.{layer}.ffn_{name}_exps.weight")).unwrap().bytes;
        ["gate", "up", "down"].map(part).iter().sum::<u64>() / shape.n_expert as u64
    };
    let mut engine = native_exact(tiny_a(), &exact());
    let text = text(70, engine.info().n_vocab);
    assert_eq!(engine.routing_counts(SeqId(0)), None);
    for k in 1..=shape.n_used as u64 {
        follow(&mut engine, 0, &Routing::TopK(k as u32));
        let n_layer = shape.n_layer as u64;
        // A prompt whose last token is asked for: the last layer computes that token only. Then three tokens one by one.
        let mut batch = Batch { tokens: tokens(0, 0, &text[..60]) };
        batch.tokens[..59].iter_mut().for_each(|token| token.output = None);
        engine.step(&batch, &mut Outputs::default()).unwrap();
        logits(&mut engine, 0, 60, &text[60..63], 1);
        let counts = engine.routing_counts(SeqId(0)).unwrap();
        let mut dropped = 0;
        for (layer, count) in counts.layers.iter().enumerate() {
            let tokens = if layer + 1 == shape.n_layer { 4 } else { 63 };
            let kept = if layer < n_hash { shape.n_used as u64 } else { k };
            assert_eq!((count.tokens, count.kept), (tokens, tokens * kept), "layer {layer}, k {k}");
            dropped += tokens * (shape.n_used as u64 - kept);
        }
        assert_eq!(counts.flops_saved, dropped * one_expert);
        let decoded: u64 = (n_hash..shape.n_layer).map(bytes).sum::<u64>() * 3 * (shape.n_used as u64 - k);
        assert_eq!(counts.bytes_saved, decoded);
        assert_eq!((counts.chosen() - counts.computed(), counts.n_used), (dropped, shape.n_used));
        let tokens = 63 * (n_layer - 1) + 4;
        assert!((counts.mean().unwrap() - counts.computed() as f64 / tokens as f64).abs() < 1e-12);
    }
    follow(&mut engine, 0, &Routing::Off);
    logits(&mut engine, 0, 0, &text, 64);
    assert_eq!(engine.routing_counts(SeqId(0)), None, "nothing is counted without a policy");
}

/// The model with its experts as F32, and with every expert but `kept` of each layer beyond the hash layers made of NaN.
fn poisoned(kept: &[BTreeSet<i32>], n_hash: usize) -> [PathBuf; 2] {
    let source = File::open(tiny_a()).unwrap();
    let mut whole: Vec<(TensorInfo, Vec<u8>)> = Vec::new();
    for tensor in source.tensors() {
        let data = source.data(tensor);
        if !tensor.name.contains("_exps.") {
            whole.push((tensor.clone(), data.to_vec()));
            continue;
        }
        let mut values = vec![0.0; tensor.elements() as usize];
        fathom_gguf::block::decode(tensor.dtype, data, &mut values).unwrap();
        let wide = TensorInfo::new(tensor.name.clone(), DType::F32, tensor.ne.clone()).unwrap();
        whole.push((wide, values.iter().flat_map(|value| value.to_le_bytes()).collect()));
    }
    let write = |name: &str, tensors: &[(TensorInfo, Vec<u8>)]| {
        let path = scratch(name);
        let tensors: Vec<_> = tensors.iter().map(|(info, data)| (info.clone(), &data[..])).collect();
        fathom_gguf::write_file(&path, source.metadata().clone(), &tensors).unwrap();
        path
    };
    let clean = write("wide-experts.gguf", &whole);
    for (info, data) in whole.iter_mut().filter(|(info, _)| info.name.contains("_exps.")) {
        let layer: usize = info.name.split('.').nth(1).unwrap().parse().unwrap();
        let bytes = data.len() / info.ne[2] as usize;
        for (expert, data) in data.chunks_mut(bytes).enumerate() {
            if layer >= n_hash && !kept[layer].contains(&(expert as i32)) {
                data.as_chunks_mut::<4>().0.fill(f32::NAN.to_le_bytes());
            }
        }
    }
    [clean, write("poisoned-experts.gguf", &whole)]
}

#[test]
fn dropped_experts_never_reach_the_output() {
    let n_hash = hash_layers(tiny_a());
    let routing = Routing::TopK(1);
    let (kept, text) = {
        let mut engine = native_exact(tiny_a(), &exact());
        let text = text(4, engine.info().n_vocab);
        let ids = experts(&mut engine, &routing, &text);
        (ids.iter().map(|ids| ids.iter().copied().filter(|&id| id >= 0).collect()).collect::<Vec<_>>(), text)
    };
    let [clean, poisoned] =
        poisoned(&kept, n_hash).map(|path| native_exact(&path, &exact())).map(std::cell::RefCell::new);
    for chunk in [1, 4] {
        let expected = under(&mut *clean.borrow_mut(), &routing, &text, chunk);
        assert!(expected.iter().flatten().all(|value| value.is_finite()));
        assert_same(&format!("chunk {chunk}"), &under(&mut *poisoned.borrow_mut(), &routing, &text, chunk), &expected);
    }
    let all = under(&mut *poisoned.borrow_mut(), &Routing::Off, &text, 4);
    assert!(all.iter().flatten().any(|value| !value.is_finite()), "the poison is not where it should be");
}

#[test]
fn every_sequence_of_a_batch_follows_its_own_policy() {
    let shape = shape(tiny_a());
    let mut engine = native_exact(tiny_a(), &exact());
    let text = text(90, engine.info().n_vocab);
    let policies = [Routing::TopK(1), Routing::Off, uniform(shape, Policy::Rel, 1, shape.n_used, 0.8)];
    let alone: Vec<(Vec<Vec<f32>>, Option<Counts>)> = policies
        .iter()
        .map(|routing| (under(&mut engine, routing, &text, 30), engine.routing_counts(SeqId(0))))
        .collect();
    // The same tokens in all three at once: prompts of 30 tokens, of which each wants its last ones only.
    (0..3).for_each(|seq| follow(&mut engine, seq, &policies[seq as usize]));
    let mut rows = vec![Vec::new(); 3];
    let mut out = Outputs::default();
    for start in (0..90).step_by(30) {
        let tokens = |seq| tokens(seq, start, &text[start..start + 30]);
        let mut batch = Batch { tokens: (0..3).flat_map(tokens).collect::<Vec<BatchToken>>() };
        for (index, token) in batch.tokens.iter_mut().enumerate() {
            token.output = (index % 30 >= 25 - token.seq.0 as usize).then_some(Output::Logits);
        }
        engine.step(&batch, &mut out).unwrap();
        let asked = batch.tokens.iter().filter(|token| token.output.is_some());
        for (row, token) in asked.enumerate() {
            rows[token.seq.0 as usize].push((token.pos.0 as usize, out.row(row).to_vec()));
        }
    }
    for (seq, (alone, counts)) in alone.iter().enumerate() {
        let (places, got): (Vec<usize>, Vec<Vec<f32>>) = rows[seq].iter().cloned().unzip();
        let expected: Vec<Vec<f32>> = places.iter().map(|&pos| alone[pos].clone()).collect();
        assert_close(&format!("sequence {seq}"), &got, &expected, TOLERANCE);
        let found = engine.routing_counts(SeqId(seq as u32));
        assert_eq!(found.is_some(), counts.is_some());
        if let (Some(found), Some(counts)) = (found, counts) {
            let last = shape.n_layer - 1;
            assert_eq!(found.layers[..last], counts.layers[..last], "sequence {seq}");
            assert_eq!(found.layers[last].tokens as usize, places.len(), "the last layer computes what is asked for");
        }
    }
}

#[test]
fn a_step_of_one_is_a_step_of_many() {
    let mut engine = native_exact(tiny_a(), &exact());
    let text = text(120, engine.info().n_vocab);
    for routing in [Routing::TopK(1), Routing::TopK(2), Routing::Rel(0.9)] {
        let whole = under(&mut engine, &routing, &text, 120);
        let counts = engine.routing_counts(SeqId(0)).unwrap();
        assert_close(&routing.to_string(), &under(&mut engine, &routing, &text, 1), &whole, TOLERANCE);
        assert_eq!(engine.routing_counts(SeqId(0)).unwrap().layers, counts.layers, "{routing}");
    }
}

#[test]
fn states_carry_their_policy_and_refuse_another() {
    let mut engine = native_exact(tiny_a(), &exact());
    let text = text(200, engine.info().n_vocab);
    let (start, next) = text.split_at(150);
    let one = engine.find_routing(&Routing::TopK(1)).unwrap();
    let off = engine.find_routing(&Routing::Off).unwrap();
    follow(&mut engine, 0, &Routing::TopK(1));
    logits(&mut engine, 0, 0, start, 64);
    let here = engine.checkpoint(SeqId(0)).unwrap();
    let mut saved = Vec::new();
    engine.save(SeqId(0), &mut saved).unwrap();
    engine.fork(SeqId(0), SeqId(1), None).unwrap();
    let expected = logits(&mut engine, 0, 150, next, 50);

    for seq in [0, 1] {
        let error = engine.set_routing(SeqId(seq), off).unwrap_err();
        assert!(matches!(error, Error::Batch(_)) && error.to_string().contains("another routing policy"), "{error}");
        engine.set_routing(SeqId(seq), one).unwrap();
    }
    assert_same("forked", &logits(&mut engine, 1, 150, next, 50), &expected);
    engine.rewind(SeqId(2), &here).unwrap();
    assert!(engine.set_routing(SeqId(2), off).is_err(), "a checkpoint brings its policy");
    assert_same("rewound", &logits(&mut engine, 2, 150, next, 50), &expected);

    engine.release(SeqId(1));
    let error = engine.restore(SeqId(1), &mut saved.as_slice()).unwrap_err();
    assert!(matches!(&error, Error::State(why) if why.contains("routing policy")), "{error}");
    engine.set_routing(SeqId(1), one).unwrap();
    engine.restore(SeqId(1), &mut saved.as_slice()).unwrap();
    assert_same("restored", &logits(&mut engine, 1, 150, next, 50), &expected);
}

#[test]
fn profiles_are_followed_by_name_and_refused_for_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    std::fs::copy(tiny_a(), &model).unwrap();
    let shape = shape(&model);
    let beside = dir.path().join("m.routing.json");
    let fingerprint = |path: &Path| routing::fingerprint(&File::open(path).unwrap()).unwrap();
    let save = |profile: Profile| Profiles { profiles: [("fast".to_owned(), profile)].into() }.save(&beside).unwrap();
    save(Profile { fingerprint: fingerprint(&model), ..Profile::top_k(1, shape) });

    let mut engine = native_exact(&model, &exact());
    let text = text(50, engine.info().n_vocab);
    let one = under(&mut engine, &Routing::TopK(1), &text, 50);
    let fast: Routing = "fast".parse().unwrap();
    assert_same("by name", &under(&mut engine, &fast, &text, 50), &one);
    let file: Routing = beside.to_str().unwrap().parse().unwrap();
    assert_same("by file", &under(&mut engine, &file, &text, 50), &one);
    // As the setting of all sequences.
    let mut loaded = native_exact(&model, &Settings { routing: fast.clone(), ..exact() });
    assert_same("loaded with it", &logits(&mut loaded, 0, 0, &text, 50), &one);
    assert!(loaded.routing_counts(SeqId(0)).is_some());

    // A new calibration counts at once.
    save(Profile { fingerprint: fingerprint(&model), ..Profile::top_k(2, shape) });
    let two = under(&mut engine, &Routing::TopK(2), &text, 50);
    assert_same("the new file", &under(&mut engine, &fast, &text, 50), &two);

    save(Profile { fingerprint: fingerprint(tiny_b()), ..Profile::top_k(1, shape) });
    let error = engine.find_routing(&fast).unwrap_err();
    assert!(matches!(error, Error::Routing(routing::Error::Fingerprint { .. })), "{error}");
    save(Profile { fingerprint: fingerprint(&model), ..Profile::top_k(1, Shape { n_layer: 1, ..shape }) });
    let error = engine.find_routing(&fast).unwrap_err().to_string();
    assert!(error.contains("numbers for 1 layers"), "{error}");
    let error = engine.find_routing(&Routing::Margin).unwrap_err().to_string();
    assert!(error.contains("for the rule `margin`"), "{error}");
}

#[test]
fn policies_that_do_not_fit_are_refused_before_anything_is_computed() {
    let load = |routing: &str, kind| {
        let settings = Settings { routing: routing.parse().unwrap(), ..exact() };
        fathom::engine::load(tiny_a(), kind, &settings, &mut |_| true).err().map(|error| error.to_string())
    };
    let error = load("topk:4", Kind::Native).unwrap();
    assert!(error.contains("computes 3 experts for a token, expected topk:1 to topk:3"), "{error}");
    let error = load("margin", Kind::Native).unwrap();
    assert!(error.contains("needs a routing profile, and this model has none"), "{error}");
    let error = load("topk:2", Kind::Llama).unwrap();
    assert!(error.contains("llama cannot follow routing `topk:2`"), "{error}");
    let mut llama = load_kind(tiny_a(), Kind::Llama, &exact());
    assert!(llama.find_routing(&Routing::TopK(2)).is_err() && llama.find_routing(&Routing::Off).is_ok());
}

/// A server of one file, asked with several policies: answers, statistics and totals.
#[test]
fn a_request_chooses_its_policy_and_hears_what_it_did() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("m.gguf");
    std::fs::copy(tiny_a(), &model).unwrap();
    let settings = [("FATHOM_ENGINE", "native"), ("FATHOM_THREADS", "1"), ("FATHOM_CONTEXT_LENGTH", "1024")];
    let server = Program::serve(home.path(), &settings);
    let ask = |options: serde_json::Value| {
        let body = json!({
            "model": model, "prompt": "abcdefghijklmnopqrstuvwxyz", "raw": true, "stream": false,
            "options": {"temperature": 0, "num_predict": 8, "routing": options},
        });
        let headers = [("Sec-Fathom-Local", "1")];
        http::open(server.address, "POST", "/api/generate", &headers, body.to_string().as_bytes()).finish()
    };
    let off = ask(json!("off"));
    assert_eq!(off.status, 200, "{}", off.text());
    assert!(off.json().get("routing").is_none());
    let one = ask(json!("topk:1")).json();
    let (shape, n_hash) = (shape(tiny_a()), hash_layers(tiny_a()));
    let routing = &one["routing"];
    assert_eq!((&routing["schema"], &routing["policy"]), (&1.into(), &"topk:1".into()));
    assert_eq!(routing["experts_used"], shape.n_used);
    let layers: Vec<f64> = routing["layers"].as_array().unwrap().iter().map(|mean| mean.as_f64().unwrap()).collect();
    assert_eq!(layers[..n_hash], vec![shape.n_used as f64; n_hash]);
    assert_eq!(layers[n_hash..], vec![1.0; shape.n_layer - n_hash]);
    assert!(routing["bytes_saved"].as_u64().unwrap() > 0 && routing["flops_saved"].as_u64().unwrap() > 0);
    // The prompt of the first request is no past for the second, and its own past is.
    let metric = |name: &str| {
        let text = server.get("/metrics").text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("{text}"));
        line.parse::<f64>().unwrap()
    };
    assert_eq!(metric("fathom_cached_tokens_total"), 0.0);
    let again = ask(json!("topk:1")).json();
    assert!(metric("fathom_cached_tokens_total") > 0.0);
    assert_eq!((&again["response"], again["routing"]["policy"].as_str()), (&one["response"], Some("topk:1")));
    let of = |answer: &serde_json::Value, name: &str| answer["routing"][name].as_f64().unwrap();
    for (name, field) in [
        ("fathom_experts_chosen_total", "experts_chosen"),
        ("fathom_experts_computed_total", "experts_computed"),
        ("fathom_expert_bytes_saved_total", "bytes_saved"),
        ("fathom_expert_flops_saved_total", "flops_saved"),
    ] {
        assert_eq!(metric(name), of(&one, field) + of(&again, field), "{name}");
    }
    assert_eq!(ask(json!("off")).json()["response"], off.json()["response"], "off is off");

    for (value, status, expected) in [
        (json!("topk:9"), 400, "computes 3 experts"),
        (json!("slow"), 400, "this model has none"),
        (json!("topk"), 400, "is not a routing policy"),
        (json!(4), 500, "must be of type string"),
        (json!("m.routing.json"), 400, "must be an absolute path"),
        (json!("/etc/passwd"), 400, "does not end in .routing.json"),
        (json!(home.path().join("x.routing.json")), 400, "cannot read the routing profiles"),
    ] {
        let reply = ask(value.clone());
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(reply.status == status && error.contains(expected), "{value}: {} {error}", reply.status);
    }

    let run = |args: &[&str]| {
        let mut command = program::fathom(home.path());
        command.env("FATHOM_HOST", server.address.to_string()).stdin(std::process::Stdio::null());
        command.args(["run", "--verbose"]).args(args).arg(&model).arg("abc").output().unwrap()
    };
    let output = run(&["--routing", "topk:1"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("routing policy:       topk:1\n") && stderr.contains(" of 3 a token\n"), "{stderr}");
    let output = run(&["--routing", "topk:7"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("`topk:7` does not fit"), "{stderr}");
}

#[test]
fn bench_compares_policies_and_logits_follow_one() {
    let home = tempfile::tempdir().unwrap();
    let fathom = |args: &[&str]| {
        let mut command = program::fathom(home.path());
        let output = command.current_dir(home.path()).args(args).args(["--threads", "1"]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let model = tiny_a().to_str().unwrap();
    let sizes = ["--context", "16", "--prompt", "4", "--gen", "2", "--rounds", "1", "--json"];
    let bench = [&["bench", "--model", model, "--engine", "native", "--routing", "off,topk:1"][..], &sizes].concat();
    let report: serde_json::Value = serde_json::from_slice(&fathom(&bench)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let policies: Vec<_> = rows.iter().map(|row| row["routing"].as_str().unwrap()).collect();
    assert_eq!(policies, ["off", "topk:1"]);
    assert!(rows[0].get("mean_experts").is_none(), "{report}");
    let mean = rows[1]["mean_experts"].as_f64().unwrap();
    assert!((1.0..3.0).contains(&mean), "hash layers keep all: {mean}");

    let logits = |routing: &str, out: &str| {
        let tokens = ["--tokens", "5,6,7,8,9,10,11,12", "--out", out];
        fathom(&[&["logits", "--model", model, "--engine", "native", "--routing", routing][..], &tokens].concat());
        std::fs::read(home.path().join(out)).unwrap()
    };
    let off = logits("off", "off.safetensors");
    assert!(off == logits("topk:3", "all.safetensors") && off != logits("topk:1", "one.safetensors"));
}
