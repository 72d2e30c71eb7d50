//! Starting a server for a user who did not.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{connect, hint};
use crate::client::Client;
use crate::config::Config;

/// A server opens its port before it loads anything, so even a slow disk is far below this.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Nobody remembers to end a server that he did not start.
const IDLE_EXIT: &str = "--idle-exit=30m";

/// Bytes of the log shown when the server did not come up.
const LOG_TAIL_BYTES: u64 = 2000;

/// Makes sure that a server answers, starting one in the background if need be. `flags` are for that server; says on stderr
/// what it did.
///
/// # Errors
/// Nothing answers at an address of another machine, the server ended at once, or one with settings of its own runs already.
pub(super) async fn ensure_server(client: &mut Client, config: &Config, flags: &[String]) -> anyhow::Result<()> {
    if client.alive().await.map_err(connect::explained)? {
        return if flags.is_empty() {
            Ok(())
        } else {
            Err(hint(
                anyhow::anyhow!("`{}` cannot be applied: a server runs already at {}", flags.join(" "), client.url()),
                "end that server first, or set `FATHOM_HOST` to another port for this command",
            ))
        };
    }
    if !config.host.is_loopback() {
        return Err(hint(
            anyhow::anyhow!("no server answers at {}", client.url()),
            "start `fathom serve` there, or unset `FATHOM_HOST` to use this machine",
        ));
    }
    let log = config.home.join("logs/serve.log");
    let started = open_log(&log)?;
    let offset = started.metadata().map_or(0, |m| m.len());
    let mut flags = flags.to_vec();
    if config.idle_exit.is_none() {
        flags.push(IDLE_EXIT.into());
    }
    let mut server = spawn(&started, &flags)?;
    eprintln!("starting a server at {} (process {}, log {})", client.url(), server.id(), log.display());
    wait_until_up(client, &mut server).await.map_err(|error| with_log(error, &log, offset))
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(path)
        .with_context(|| format!("cannot write `{}`", path.display()))
}

fn spawn(log: &File, flags: &[String]) -> anyhow::Result<Child> {
    let program: PathBuf = std::env::current_exe().context("cannot find the program file of fathom")?;
    let stream = || log.try_clone().context("cannot share the server's log");
    Command::new(&program)
        .arg("serve")
        .args(flags)
        .stdin(Stdio::null())
        .stdout(stream()?)
        .stderr(stream()?)
        // A group of its own: Ctrl-C in this terminal is not meant for the server.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{} serve`", program.display()))
}

async fn wait_until_up(client: &mut Client, server: &mut Child) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if client.alive().await.map_err(connect::explained)? {
            return Ok(());
        }
        if let Some(status) = server.try_wait().context("cannot watch the server")? {
            // Somebody else's server may have won the race for the port.
            if client.alive().await.map_err(connect::explained)? {
                return Ok(());
            }
            anyhow::bail!("the server ended at once ({status})");
        }
        if Instant::now() > deadline {
            anyhow::bail!("the server did not answer within {} s", START_TIMEOUT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Shows what the server itself said about its end.
fn with_log(error: anyhow::Error, path: &Path, offset: u64) -> anyhow::Error {
    let mut text = String::new();
    if let Ok(mut log) = File::open(path) {
        let length = log.metadata().map_or(0, |m| m.len());
        if log.seek(SeekFrom::Start(offset.max(length.saturating_sub(LOG_TAIL_BYTES)))).is_ok() {
            let mut bytes = Vec::new();
            let _ = log.read_to_end(&mut bytes);
            text = String::from_utf8_lossy(&bytes).trim().to_string();
        }
    }
    if !text.is_empty() {
        eprintln!("{text}");
    }
    hint(error, format!("its log is `{}`", path.display()))
}
