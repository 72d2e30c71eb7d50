//! Converts a checkpoint and prints what it took, as JSON: for `benches/convert_vs_cp.py`, which needs neither server nor llama.cpp.
//!
//! `convert CHECKPOINT_DIR OUT.gguf [--threads N] [--memory BYTES] [--sync-every BYTES]`

use std::process::ExitCode;
use std::time::Instant;

use fathom_converters::{Options, Silent, convert};

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<serde_json::Value, String> {
    let mut args = std::env::args().skip(1);
    let mut places = Vec::new();
    let (mut threads, mut memory_bytes, mut sync_bytes) = (0, 1 << 30, 256 << 20);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse().ok()).ok_or(format!("{arg} needs a number"));
        match arg.as_str() {
            "--threads" => threads = number()?,
            "--memory" => memory_bytes = number()? as u64,
            "--sync-every" => sync_bytes = number()? as u64,
            _ => places.push(arg),
        }
    }
    let [checkpoint, output] = places.as_slice() else {
        return Err("give a checkpoint directory and an output file".into());
    };
    let options = Options { threads, memory_bytes, sync_bytes, force: true, ..Options::new(checkpoint, output) };
    let begun = Instant::now();
    let report = convert(&options, &mut Silent).map_err(|error| error.to_string())?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(serde_json::json!({"schema": 1, "bytes": report.bytes, "seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}))
}

/// The most memory this process has held; Linux only.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
