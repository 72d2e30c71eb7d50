//! Modules use lower layers only, and `unsafe` stays where it belongs. Reads the sources as text.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer of every top-level module of the root package; see the picture in `docs/architecture.md`.
const LAYERS: &[(&str, u8)] = &[
    ("ids", 0),
    ("config", 0),
    ("telemetry", 0),
    ("kernels", 0),
    ("ggml", 1),
    ("store", 2),
    ("engine", 3),
    ("tokens", 3),
    ("sampler", 3),
    ("chat", 3),
    ("registry", 3),
    ("modelfile", 3),
    ("scheduler", 4),
    ("eval", 4),
    ("completion", 5),
    ("calibrate", 5),
    ("api", 6),
    ("client", 7),
    ("cli", 8),
];

/// Modules of the same or a higher layer that may be used all the same, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("client", "api", "wire types are known to api and client only"),
    ("cli", "api", "`serve` puts the server together"),
];

/// Where `unsafe` may appear.
const UNSAFE_HOMES: &[&str] = &["src/ggml/", "src/kernels/", "src/engine/llama/sys.rs", "crates/gguf/src/map.rs"];

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a source folder") {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                into.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(&root.join(dir), &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|p| {
            let text = fs::read_to_string(&p).expect("a source file");
            (p.strip_prefix(root).expect("below the root").to_owned(), text)
        })
        .collect()
}

/// The part of a line that is code: comments and string contents do not count as uses.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

/// Top-level modules that a line names behind `crate::`, also in `use crate::{a, b::c};` on one line.
fn uses(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut word)),
                    c if depth == 0 => word.push(c),
                    _ => {}
                }
            }
            found.push(word);
        } else {
            found.push(rest.to_owned());
        }
    }
    found
        .into_iter()
        .map(|w| w.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned())
        .filter(|w| !w.is_empty())
        .collect()
}

#[test]
fn modules_use_lower_layers_only() {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let mut faults = Vec::new();
    let mut seen = 0;
    for (path, text) in sources("src") {
        let module = path.components().nth(1).expect("src/MODULE").as_os_str().to_string_lossy().replace(".rs", "");
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let Some(&layer) = layers.get(module.as_str()) else {
            faults.push(format!("{}: module `{module}` has no row in LAYERS", path.display()));
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for used in uses(code(line)) {
                seen += 1;
                let Some(&below) = layers.get(used.as_str()) else { continue };
                let allowed = used == module
                    || below < layer
                    || EXCEPTIONS.iter().any(|(a, b, _)| *a == module && *b == used.as_str());
                if !allowed {
                    faults.push(format!(
                        "{}:{}: `{module}` (layer {layer}) uses `{used}` (layer {below})",
                        path.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(seen > 3, "only {seen} uses were recognised: does the parser of this test still work?");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn uses_are_recognised() {
    assert_eq!(uses("use crate::store::Name;"), ["store"]);
    assert_eq!(uses("use crate::{chat::{Message, Role}, store};"), ["chat", "store"]);
    assert_eq!(uses("let x = crate::api::error::Error::Busy;"), ["api"]);
    assert_eq!(uses(code("// crate::api is above")), Vec::<String>::new());
}

#[test]
fn unsafe_stays_at_home() {
    let mut faults = Vec::new();
    for dir in ["src", "crates/gguf/src", "converters/src"] {
        for (path, text) in sources(dir) {
            let name = path.to_string_lossy();
            if UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) {
                continue;
            }
            for (number, line) in text.lines().enumerate() {
                let words = code(line).split(|c: char| !c.is_alphanumeric() && c != '_');
                if words.into_iter().any(|w| w == "unsafe") {
                    faults.push(format!("{name}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "unsafe outside its home (CONTRIBUTING.md says where):\n{}", faults.join("\n"));
}
