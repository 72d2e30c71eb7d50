//! The built program as users start it: `fathom serve`, as a child process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::http::{self, Reply};

/// A running `fathom serve`. Dropping it ends the process.
pub struct Program {
    pub address: SocketAddr,
    pub child: Child,
}

/// `fathom` with an environment of its own: nothing of the developer's settings comes through.
pub fn fathom(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fathom"));
    let ours = |name: &str| name.starts_with("FATHOM_") || name.starts_with("OLLAMA_");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command.env("HOME", home).env("FATHOM_MODELS", home.join("models"));
    command
}

impl Program {
    /// Starts `fathom serve` on a free port and waits until it listens. `settings` are environment variables.
    pub fn serve(home: &Path, settings: &[(&str, &str)]) -> Program {
        let mut command = fathom(home);
        command.arg("serve").env("FATHOM_HOST", "127.0.0.1:0").envs(settings.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            if log.read_line(&mut line).unwrap() == 0 {
                panic!("`fathom serve` ended: {:?}\n{seen}", child.wait());
            }
            seen.push_str(&line);
            if let Some(address) = address_in(&line) {
                break address;
            }
        };
        // The log must go on being read, or the server waits for space in the pipe. It comes out when a test fails.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("serve: {line}");
            }
        });
        Program { address, child }
    }

    pub fn get(&self, path: &str) -> Reply {
        http::open(self.address, "GET", path, &[], b"").finish()
    }
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("http://")?;
    let end = rest.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c))).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
