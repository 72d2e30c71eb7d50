//! Answers that stream: one JSON object per line.

use std::marker::PhantomData;

use bytes::{Buf, BytesMut};
use reqwest::Response;
use serde::de::DeserializeOwned;

use super::{Error, types::Failure};

/// Longest line that is read; the limit of Ollama's own client.
pub const MAX_LINE_BYTES: usize = 8_000_000;

/// The lines of one answer. Dropping it closes the connection and so cancels the request.
#[derive(Debug)]
pub struct Lines<T> {
    response: Response,
    url: String,
    splitter: Splitter,
    item: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(response: Response, url: String) -> Lines<T> {
        Lines { response, url, splitter: Splitter::default(), item: PhantomData }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Stream`] when the line says that the request failed, [`Error::Broken`] when the connection was cut,
    /// [`Error::Protocol`] when a line is too long or no JSON.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(line) = self.splitter.line() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.parse(&line).map(Some);
            }
            if self.splitter.pending() > MAX_LINE_BYTES {
                return Err(self.protocol(format!("a line is longer than {MAX_LINE_BYTES} bytes")));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.splitter.push(&chunk),
                Ok(None) => {
                    let rest = self.splitter.rest();
                    if rest.trim_ascii().is_empty() {
                        return Ok(None);
                    }
                    return self.parse(&rest).map(Some);
                }
                Err(source) => return Err(Error::Broken { url: self.url.clone(), source }),
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<T, Error> {
        if let Ok(failure) = serde_json::from_slice::<Failure>(line) {
            return Err(Error::Stream(failure.error));
        }
        serde_json::from_slice(line).map_err(|e| self.protocol(e.to_string()))
    }

    fn protocol(&self, reason: String) -> Error {
        Error::Protocol { url: self.url.clone(), reason }
    }
}

/// Cuts a stream of bytes at its line ends, looking at each byte once.
#[derive(Debug, Default)]
struct Splitter {
    buffer: BytesMut,
    /// Bytes of `buffer` known to hold no line end.
    seen: usize,
}

impl Splitter {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes out the next whole line, without its end.
    fn line(&mut self) -> Option<BytesMut> {
        match self.buffer[self.seen..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.seen + at);
                self.buffer.advance(1);
                self.seen = 0;
                Some(line)
            }
            None => {
                self.seen = self.buffer.len();
                None
            }
        }
    }

    fn pending(&self) -> usize {
        self.buffer.len()
    }

    fn rest(&mut self) -> BytesMut {
        self.seen = 0;
        self.buffer.split()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        let text = b"one\n\ntwo\xc3\xa9\nthree";
        for piece in 1..=text.len() {
            let mut splitter = Splitter::default();
            let mut lines = Vec::new();
            for bytes in text.chunks(piece) {
                splitter.push(bytes);
                while let Some(line) = splitter.line() {
                    lines.push(line.to_vec());
                }
            }
            lines.push(splitter.rest().to_vec());
            assert_eq!(lines, [&b"one"[..], b"", b"two\xc3\xa9", b"three"], "pieces of {piece}");
        }
    }
}
