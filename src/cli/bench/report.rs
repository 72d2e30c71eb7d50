//! What a run of measurements says, as JSON and as a table.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::measure::{Measured, NodeTime};
use super::{Args, Fill};
use crate::cli::table::Table;
use crate::engine::{Kind, KvType, machine};

/// The JSON output. Rates are tokens per second of all sequences together.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: u32,
    machine: Machine,
    file: ModelFile,
    prompt: usize,
    r#gen: usize,
    rounds: usize,
    /// Element type of cached rows.
    kv: &'static str,
    rows: Vec<Row>,
    /// The first row measured with a jump, and once with a real fill.
    #[serde(skip_serializing_if = "Option::is_none")]
    fill_check: Option<FillCheck>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    /// Computing threads.
    threads: usize,
    memory_available_bytes: u64,
    system: String,
    fathom: &'static str,
    ggml: Option<String>,
}

#[derive(Debug, Serialize)]
struct ModelFile {
    path: String,
    bytes: u64,
    architecture: String,
}

/// Medians of the rounds at one depth.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    engine: String,
    context: usize,
    parallel: usize,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    decode_ms_p50: f64,
    peak_rss_bytes: Option<u64>,
    fill: Fill,
    repack: bool,
    pub(super) routing: String,
    /// Experts of a token under a policy, over all layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_experts: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<NodeTime>,
    #[serde(skip)]
    threads: usize,
}

/// How a jump compares with the real thing: 1 = the same speed.
#[derive(Debug, Serialize)]
pub(super) struct FillCheck {
    context: usize,
    /// Jump over real.
    prefill_ratio: f64,
    decode_ratio: f64,
}

impl Row {
    pub(super) fn of(engine: Kind, context: usize, parallel: usize, fill: Fill, all: &[Measured]) -> Row {
        Row {
            engine: engine.to_string(),
            context,
            parallel,
            prefill_tok_s: median(all.iter().map(prefill_tok_s)),
            decode_tok_s: median(all.iter().map(|one| decode_tok_s(one, parallel))),
            decode_ms_p50: median(all.iter().map(|one| median(one.decode_ms.iter().copied()))),
            peak_rss_bytes: all.iter().filter_map(|one| one.peak_rss_bytes).max(),
            fill,
            repack: all.iter().any(|one| one.repack),
            routing: "off".to_owned(),
            mean_experts: all.first().and_then(|one| one.mean_experts),
            nodes: all.first().map_or(Vec::new(), |one| one.nodes.clone()),
            threads: all.first().map_or(0, |one| one.threads),
        }
    }

    pub(super) fn is_for(&self, engine: Kind, context: usize, parallel: usize) -> bool {
        self.engine == engine.to_string() && self.context == context && self.parallel == parallel
    }
}

impl FillCheck {
    pub(super) fn of(context: usize, jump: &Row, real: &Measured) -> FillCheck {
        FillCheck {
            context,
            prefill_ratio: jump.prefill_tok_s / prefill_tok_s(real),
            decode_ratio: jump.decode_tok_s / decode_tok_s(real, jump.parallel),
        }
    }
}

fn prefill_tok_s(one: &Measured) -> f64 {
    one.prefill_tokens as f64 / one.prefill_s
}

fn decode_tok_s(one: &Measured, parallel: usize) -> f64 {
    let seconds = one.decode_ms.iter().sum::<f64>() / 1e3;
    (one.decode_ms.len() * parallel) as f64 / seconds
}

/// The middle value, of an even number the mean of the two in the middle; NaN of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

impl Report {
    pub(super) fn new(
        path: &Path,
        args: &Args,
        kv: KvType,
        rows: Vec<Row>,
        fill_check: Option<FillCheck>,
    ) -> anyhow::Result<Report> {
        let file = fathom_gguf::File::open(path)?;
        Ok(Report {
            schema: 1,
            machine: Machine {
                cpu: machine::cpu_name(),
                threads: rows.first().map_or(0, |row| row.threads),
                memory_available_bytes: machine::available_bytes(),
                system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
                fathom: env!("CARGO_PKG_VERSION"),
                ggml: machine::build_info().ggml,
            },
            file: ModelFile {
                path: path.display().to_string(),
                bytes: file.file_bytes(),
                architecture: file.metadata().opt_str("general.architecture")?.unwrap_or("none").to_owned(),
            },
            prompt: args.prompt,
            r#gen: args.r#gen,
            rounds: args.rounds,
            kv: kv.name(),
            rows,
            fill_check,
        })
    }

    pub(super) fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let machine = &self.machine;
        let plural = if machine.threads == 1 { "" } else { "s" };
        let ggml = machine.ggml.as_deref().map_or(String::new(), |version| format!(", ggml {version}"));
        writeln!(
            out,
            "{}, {} thread{plural}, {}, fathom {}{ggml}",
            machine.cpu, machine.threads, machine.system, machine.fathom
        )?;
        writeln!(out, "{} ({}, {})", self.file.path, self.file.architecture, machine::human(self.file.bytes))?;
        writeln!(
            out,
            "prefill of {} and decode of {} tokens at each depth, {} rows, median of {} rounds\n",
            self.prompt, self.r#gen, self.kv, self.rounds
        )?;
        let mut table = Table::with_header(&[
            "ENGINE",
            "DEPTH",
            "PARALLEL",
            "PREFILL",
            "DECODE",
            "STEP P50",
            "PEAK MEMORY",
            "FILL",
            "REPACK",
            "ROUTING",
        ]);
        for row in &self.rows {
            table.row([
                row.engine.clone(),
                row.context.to_string(),
                row.parallel.to_string(),
                rate(row.prefill_tok_s),
                rate(row.decode_tok_s),
                format!("{:.1} ms", row.decode_ms_p50),
                row.peak_rss_bytes.map_or("unknown".to_owned(), machine::human),
                if row.fill == Fill::Jump { "jump".to_owned() } else { "real".to_owned() },
                if row.repack { "yes".to_owned() } else { "no".to_owned() },
                match row.mean_experts {
                    Some(mean) => format!("{} ({mean:.2} experts)", row.routing),
                    None => row.routing.clone(),
                },
            ]);
        }
        table.write(0, out)?;
        for row in self.rows.iter().filter(|row| !row.nodes.is_empty()) {
            writeln!(out, "\nnodes of {} at depth {}:\n", row.engine, row.context)?;
            let mut table = Table::with_header(&["NODE", "PREFILL", "DECODE"]);
            for node in &row.nodes {
                let ms = |ms: f64| format!("{ms:.2} ms");
                table.row([node.kind.clone(), ms(node.prefill_ms), ms(node.decode_ms)]);
            }
            table.write(0, out)?;
        }
        if let Some(check) = &self.fill_check {
            writeln!(
                out,
                "\njump over real fill at depth {}: prefill {:.2}x, decode {:.2}x (one round of the latter)",
                check.context, check.prefill_ratio, check.decode_ratio
            )?;
        }
        Ok(())
    }
}

/// Three digits are what two runs agree on.
fn rate(tokens_per_second: f64) -> String {
    match tokens_per_second {
        r if r >= 100.0 => format!("{r:.0} tok/s"),
        r if r >= 10.0 => format!("{r:.1} tok/s"),
        r => format!("{r:.2} tok/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(prefill_s: f64, decode_ms: &[f64], peak: u64) -> Measured {
        Measured {
            load_s: 0.0,
            prefill_s,
            prefill_tokens: 100,
            decode_ms: decode_ms.to_vec(),
            peak_rss_bytes: Some(peak),
            repack: false,
            threads: 2,
            mean_experts: None,
            nodes: Vec::new(),
        }
    }

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_row_is_the_median_of_its_rounds_and_the_peak_of_all() {
        let rounds = [measured(1.0, &[10.0, 30.0], 5), measured(2.0, &[20.0, 20.0], 9), measured(4.0, &[5.0, 5.0], 7)];
        let row = Row::of(Kind::Llama, 1024, 2, Fill::Real, &rounds);
        assert_eq!((row.prefill_tok_s, row.decode_tok_s, row.decode_ms_p50), (50.0, 100.0, 20.0));
        assert_eq!(row.peak_rss_bytes, Some(9));
        let json = serde_json::to_value(&row).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "engine",
                "context",
                "parallel",
                "prefill_tok_s",
                "decode_tok_s",
                "decode_ms_p50",
                "peak_rss_bytes",
                "fill",
                "repack",
                "routing"
            ]
        );
        assert_eq!((json["engine"].as_str(), json["fill"].as_str()), (Some("llama"), Some("real")));
    }

    #[test]
    fn a_jump_is_compared_with_the_real_fill() {
        let jump = Row::of(Kind::Llama, 64, 1, Fill::Jump, &[measured(1.0, &[10.0], 1)]);
        let check = FillCheck::of(64, &jump, &measured(1.1, &[8.0], 1));
        assert!((check.prefill_ratio - 1.1).abs() < 1e-9 && (check.decode_ratio - 0.8).abs() < 1e-9);
    }

    #[test]
    fn rates_carry_three_digits() {
        assert_eq!([rate(1234.5), rate(45.67), rate(3.456)], ["1234 tok/s", "45.7 tok/s", "3.46 tok/s"]);
    }
}
