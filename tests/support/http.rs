//! A raw HTTP/1.1 client: what is written and read here is what stands on the wire, so that tests see headers, chunk borders and
//! cut connections that a well-behaved client library would hide.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// No test measures time; this only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// One whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// As they came in chunked transfer; one element when the answer had a length.
    pub chunks: Vec<Vec<u8>>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.chunks.concat()).expect("answers are UTF-8")
    }

    pub fn json(&self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in `{text}`"))
    }

    /// The objects of an NDJSON answer.
    pub fn lines(&self) -> Vec<Value> {
        let text = self.text();
        assert!(text.is_empty() || text.ends_with('\n'), "unfinished line in `{text}`");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is one JSON value")).collect()
    }
}

/// An answer that is still being read. Dropping it closes the connection, as a client that leaves does.
pub struct Exchange {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    body: Body,
    line: Vec<u8>,
}

enum Body {
    Chunked,
    Length(usize),
    Ended,
}

/// Sends a request and reads the head of the answer.
pub fn open(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Exchange {
    Exchange::read_head(send(address, method, path, headers, body), method == "HEAD")
}

/// Sends a request and gives the connection out before any answer is read.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head += &format!("Host: {address}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    // A server that answers before it has read everything may close early: then the answer tells why.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
    stream
}

fn find<'a>(headers: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
}

impl Exchange {
    fn read_head(stream: TcpStream, bodiless: bool) -> Exchange {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("no status line but `{line}`"));
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line).expect("a header");
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => break,
            }
        }
        let body = if bodiless {
            Body::Ended
        } else if find(&headers, "transfer-encoding") == Some("chunked") {
            Body::Chunked
        } else {
            Body::Length(find(&headers, "content-length").map_or(0, |n| n.parse().unwrap()))
        };
        Exchange { status, headers, reader, body, line: Vec::new() }
    }

    /// The next chunk, `None` at the end of the answer.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        match self.body {
            Body::Ended => None,
            Body::Length(length) => {
                let mut bytes = vec![0; length];
                self.reader.read_exact(&mut bytes).expect("the whole body");
                self.body = Body::Ended;
                (length > 0).then_some(bytes)
            }
            Body::Chunked => {
                let mut size = String::new();
                self.reader.read_line(&mut size).expect("a chunk size");
                let size = usize::from_str_radix(size.trim(), 16)
                    .unwrap_or_else(|_| panic!("no chunk size but `{size}`: was the answer cut?"));
                let mut bytes = vec![0; size + 2];
                self.reader.read_exact(&mut bytes).expect("a whole chunk");
                bytes.truncate(size);
                if size == 0 {
                    self.body = Body::Ended;
                    return None;
                }
                Some(bytes)
            }
        }
    }

    /// The next line of an NDJSON answer, `None` at its end.
    pub fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("each line is one JSON value"));
            }
            match self.chunk() {
                Some(chunk) => self.line.extend(chunk),
                None => {
                    assert!(self.line.is_empty(), "the answer ends inside a line");
                    return None;
                }
            }
        }
    }

    /// Everything that is left.
    pub fn finish(mut self) -> Reply {
        let mut chunks = Vec::new();
        while let Some(chunk) = self.chunk() {
            chunks.push(chunk);
        }
        Reply { status: self.status, headers: self.headers, chunks }
    }
}
