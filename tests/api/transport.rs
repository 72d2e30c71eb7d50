//! What holds for all endpoints: methods, unknown paths, redirects, bodies, and who may ask.

use serde_json::json;

use crate::support::http::{self, Reply};
use crate::support::{Server, answers};

/// Every path of the table with the methods it has.
const TABLE: &[(&str, &[&str])] = &[
    ("/", &["GET", "HEAD"]),
    ("/api/version", &["GET", "HEAD"]),
    ("/api/tags", &["GET", "HEAD"]),
    ("/api/ps", &["GET"]),
    ("/api/show", &["POST"]),
    ("/api/create", &["POST"]),
    ("/api/copy", &["POST"]),
    ("/api/delete", &["DELETE"]),
    ("/api/blobs/{digest}", &["HEAD", "POST"]),
    ("/api/generate", &["POST"]),
    ("/api/chat", &["POST"]),
    ("/metrics", &["GET"]),
];
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    http::open(server.address, method, path, headers, body.as_bytes()).finish()
}

#[test]
fn the_table_is_complete_and_documented() {
    let mut expected: Vec<(&str, Vec<&str>)> = TABLE.iter().map(|(path, methods)| (*path, methods.to_vec())).collect();
    let paths = fathom::api::paths();
    let mut found: Vec<(&str, Vec<&str>)> =
        paths.iter().map(|(path, methods)| (*path, methods.iter().map(|m| m.as_str()).collect())).collect();
    for (_, methods) in expected.iter_mut().chain(&mut found) {
        methods.sort_unstable();
    }
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let document = include_str!("../../docs/api.md");
    for (path, _) in TABLE {
        assert!(document.contains(path.trim_end_matches("{digest}")), "docs/api.md says nothing about {path}");
    }
}

#[test]
fn only_the_listed_methods_exist() {
    let server = Server::start(answers(&[]));
    for (path, methods) in TABLE {
        for method in METHODS {
            let path = path.replace("{digest}", "sha256:00");
            let reply = ask(&server, method, &path, &[], "");
            assert_eq!(reply.status == 405, !methods.contains(method), "{method} {path}: {}", reply.status);
            if reply.status == 405 && *method != "HEAD" {
                assert_eq!(reply.text(), "405 method not allowed", "{method} {path}");
                assert_eq!(reply.header("content-type"), Some("text/plain"), "{method} {path}");
            }
        }
    }
}

#[test]
fn unknown_paths_are_not_found() {
    let server = Server::start(answers(&[]));
    for path in ["/api", "/api/", "/api/nothing", "/api/tags/x", "/api/blobs", "/api/embed", "/v1/models", "/api//tags"]
    {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.text().as_str()), (404, "404 page not found"), "{path}");
        assert_eq!(reply.header("content-type"), Some("text/plain"), "{path}");
    }
    assert_eq!(ask(&server, "OPTIONS", "/api/tags", &[("Host", "localhost")], "").status, 204);
}

#[test]
fn a_slash_too_much_is_redirected() {
    let server = Server::start(answers(&[]));
    for (method, path, status, location) in [
        ("GET", "/api/tags/", 301, Some("/api/tags")),
        ("GET", "/api/tags/?x=1", 301, Some("/api/tags?x=1")),
        ("HEAD", "/api/tags/", 307, Some("/api/tags")),
        ("POST", "/api/show/", 307, Some("/api/show")),
        ("POST", "/api/blobs/sha256:00/", 307, Some("/api/blobs/sha256:00")),
        ("GET", "/api/show/", 404, None),
        ("GET", "/api/tags//", 404, None),
    ] {
        let reply = ask(&server, method, path, &[], "");
        assert_eq!((reply.status, reply.header("location")), (status, location), "{method} {path}");
    }
}

#[test]
fn the_health_probe_and_the_version_are_what_clients_compare() {
    let server = Server::start(answers(&[]));
    let root = server.get("/");
    assert_eq!((root.status, root.text().as_str()), (200, "Ollama is running"));
    assert!(root.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
    let version = server.get("/api/version");
    assert_eq!(version.json(), json!({"version": "0.32.1"}));
    assert_eq!(version.header("content-type"), Some("application/json; charset=utf-8"));
    for path in ["/", "/api/version", "/api/tags"] {
        let head = ask(&server, "HEAD", path, &[], "");
        assert_eq!((head.status, head.text().as_str()), (200, ""), "HEAD {path}");
    }
}

#[test]
fn bodies_need_no_content_type() {
    let server = Server::start(answers(&[]));
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"] {
        let reply = ask(&server, "POST", "/api/show", &[("Content-Type", kind)], r#"{"MODEL":"tiny"}{"model":"x"}"#);
        assert_eq!(reply.status, 200, "{kind}: {}", reply.text());
    }
    for (body, error) in [
        ("", "missing request body"),
        (" \n", "missing request body"),
        ("null", "model is required"),
        ("{", "unexpected EOF"),
        ("{\"model\":7}", "json: cannot unmarshal number into Go struct field ShowRequest.model of type string"),
    ] {
        let reply = ask(&server, "POST", "/api/show", &[], body);
        assert_eq!((reply.status, reply.json()), (400, json!({"error": error})), "{body:?}");
        assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
    }
}

#[test]
fn pages_of_other_origins_are_kept_out() {
    let server = Server::start(answers(&[]));
    for (origin, status, allowed) in [
        ("http://localhost:3000", 200, Some("http://localhost:3000")),
        ("app://obsidian.md", 200, Some("app://obsidian.md")),
        ("https://evil.example", 403, None),
    ] {
        let reply = ask(&server, "GET", "/api/tags", &[("Origin", origin)], "");
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (status, allowed), "{origin}");
        assert_eq!(reply.header("vary"), allowed.map(|_| "Origin"), "{origin}");
        assert_eq!(reply.text().is_empty(), status == 403, "{origin}");
    }
    let own = format!("http://{}", server.address);
    let same = ask(&server, "GET", "/api/tags", &[("Origin", &own)], "");
    assert_eq!((same.status, same.header("access-control-allow-origin")), (200, None));

    let preflight = ask(&server, "OPTIONS", "/api/chat", &[("Origin", "http://localhost:3000")], "");
    assert_eq!((preflight.status, preflight.text().as_str()), (204, ""));
    assert_eq!(preflight.header("access-control-allow-methods"), Some("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"));
    assert!(preflight.header("access-control-allow-headers").is_some_and(|h| h.contains("x-stainless-timeout")));
    assert_eq!(preflight.header("access-control-max-age"), Some("43200"));
    assert_eq!(ask(&server, "OPTIONS", "/api/chat", &[("Origin", "https://evil.example")], "").status, 403);
}

#[test]
fn names_that_were_rebound_to_this_machine_are_kept_out() {
    let server = Server::start(answers(&[]));
    for (host, status) in
        [("localhost:11434", 200), ("nas.local", 200), ("[::1]:1", 200), ("evil.example", 403), ("203.0.113.7:80", 403)]
    {
        let reply = ask(&server, "GET", "/api/tags", &[("Host", host)], "");
        assert_eq!((reply.status, reply.text().is_empty()), (status, status == 403), "{host}");
    }
}
