//! The HTTP client against a real server, and against servers that misbehave.

use std::io::{Read, Write};
use std::net::TcpListener;

use fathom::client::{Client, Error, MAX_LINE_BYTES};
use fathom::config::Host;
use serde_json::json;

use super::Home;

fn client(address: &str) -> Client {
    Client::new(&Host::parse(address, false).unwrap()).unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn files_reach_a_server_as_blobs() {
    let home = Home::new();
    let server = home.serve(&home.script(&["Hello."], 0));
    let model = home.model();
    let digest = fathom::store::Digest::of(&std::fs::read(&model).unwrap()).to_string();
    let client = client(&server.address.to_string());
    block_on(async {
        assert!(!client.has_blob(&digest).await.unwrap());
        let (sender, sent) = std::sync::mpsc::channel();
        client.upload_blob(&digest, &model, move |n| sender.send(n).unwrap()).await.unwrap();
        assert_eq!(sent.iter().sum::<u64>(), std::fs::metadata(&model).unwrap().len());
        assert!(client.has_blob(&digest).await.unwrap());

        let request = json!({"model": "uploaded", "files": {"tiny.gguf": digest}});
        let mut lines = client.create(&request).await.unwrap();
        let mut last = String::new();
        while let Some(line) = lines.next().await.unwrap() {
            last = line.status;
        }
        assert_eq!(last, "success");
        assert_eq!(client.list().await.unwrap()[0].name, "uploaded:latest");
        assert_eq!(client.version().await.unwrap(), fathom::api::OLLAMA_VERSION);
    });
}

/// A server that answers its one request with these bytes and hangs up.
fn answering(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        // The client may have heard enough before the end.
        let _ = stream.write_all(&bytes);
    });
    address
}

fn first_error(body: &[u8], announced: usize) -> Error {
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {announced}\r\n\r\n").into_bytes();
    answer.extend_from_slice(body);
    let client = client(&answering(answer));
    block_on(async {
        let mut lines = client.chat(&json!({})).await.unwrap();
        loop {
            match lines.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the answer ended without an error"),
                Err(error) => return error,
            }
        }
    })
}

#[test]
fn answers_that_cannot_be_right_are_errors() {
    let good = b"{\"message\":{\"content\":\"a\"}}\n";

    let failed = [&good[..], b"{\"error\":\"out of luck\"}\n"].concat();
    assert_eq!(first_error(&failed, failed.len()).to_string(), "out of luck");

    assert!(matches!(first_error(good, good.len() + 10), Error::Broken { .. }));

    let endless = vec![b'x'; MAX_LINE_BYTES + 1];
    let error = first_error(&endless, endless.len() + 10).to_string();
    assert!(error.ends_with("a line is longer than 8000000 bytes"), "{error}");

    let error = first_error(b"{\"message\":", 11);
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn nobody_at_the_address_is_not_an_error_of_alive() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut client = client(&free);
    block_on(async {
        assert!(!client.alive().await.unwrap());
        assert!(matches!(client.list().await, Err(Error::Unreachable { .. })));
    });
}
