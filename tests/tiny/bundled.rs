//! First use: nobody has made the model, and it is there all the same.

use serde_json::json;

use super::{chat, engines, serve};
use crate::support::http;
use crate::support::program;

#[test]
fn the_first_requests_make_the_model_and_it_is_made_once() {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let server = serve(home.path(), engine);
        let list = || server.get("/api/tags").json()["models"].as_array().unwrap().clone();
        assert!(list().is_empty(), "nobody asked for it yet");
        let request =
            json!({"think": false, "messages": [{"role": "user", "content": "What is the capital of Italy?"}]});
        let answers: Vec<String> = std::thread::scope(|scope| {
            let askers: Vec<_> = (0..3).map(|_| scope.spawn(|| chat(&server, &request))).collect();
            askers.into_iter().map(|asker| asker.join().unwrap()["message"]["content"].to_string()).collect()
        });
        println!("{engine}: {answers:?}");
        assert!(answers.iter().all(|answer| answer.len() > 2), "{answers:?}");
        let models = list();
        assert_eq!(models.len(), 1, "{models:?}");
        assert_eq!(
            (&models[0]["name"], &models[0]["details"]["family"]),
            (&json!("fathom-tiny:latest"), &json!("deepseek4"))
        );

        // Whoever deletes it gets it again.
        let deleted = http::open(server.address, "DELETE", "/api/delete", &[], br#"{"model": "fathom-tiny"}"#).finish();
        assert_eq!(deleted.status, 200, "{}", deleted.text());
        assert!(list().is_empty());
        let copy = http::open(
            server.address,
            "POST",
            "/api/copy",
            &[],
            br#"{"source": "fathom-tiny", "destination": "mine"}"#,
        );
        assert_eq!(copy.finish().status, 200);
        assert_eq!(list().len(), 2, "{:?}", list());
    }
}

#[test]
fn run_shows_the_making_and_then_the_answer() {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let server = serve(home.path(), engine);
        let run = || {
            let mut command = program::fathom(home.path());
            command.args(["run", "fathom-tiny", "--think=false", "What is the capital of Italy?"]);
            command.env("FATHOM_HOST", server.address.to_string()).stdin(std::process::Stdio::null());
            let output = command.output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let (out, err) = (text(output.stdout), text(output.stderr));
            assert!(output.status.success(), "{engine}: {out}{err}");
            (out, err)
        };
        let (answer, progress) = run();
        assert!(progress.contains("writing manifest\nsuccess\n"), "{progress}");
        assert!(answer.len() > 2, "{answer}");
        let (again, silent) = run();
        assert_eq!((again, silent), (answer, String::new()), "{engine}: the second time there is nothing to make");
    }
}
