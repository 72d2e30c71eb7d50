//! `fathom bench`: how fast a model is at several depths of its context, and what it takes.
//!
//! Every measurement is a process of its own: its peak memory is that of one engine at one depth, and nothing is warm that
//! should not be. Engines alternate within a round, so that a machine that gets slower gets slower for all; a row is the
//! median of its rounds. Tokens are random and differ from round to round (a model without a tokenizer can be measured, and no
//! expert stays in a cache because the text is the same).

mod measure;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{settings, weights};
use crate::config::Config;
use crate::engine::{self, Kind, KvType, Routing};
use measure::{Job, Measured};
use report::{FillCheck, Report, Row};

/// How a depth is reached before the clock starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Every token before the depth is computed
    Real,
    /// Only the last tokens before the depth are, at their true positions: true shapes and times, wrong numbers
    Jump,
}

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, or the name of a stored model
    #[arg(long, value_name = "FILE.gguf", required_unless_present = "measure")]
    model: Option<String>,
    /// Engines to compare
    #[arg(long, value_name = "E[,E]", value_delimiter = ',')]
    engine: Vec<String>,
    /// Depths: tokens in the cache before prefill and decode are timed
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', default_value = "1024,4096,16384")]
    context: Vec<usize>,
    /// Tokens of the timed prefill, in each sequence
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    prompt: usize,
    /// Tokens of the timed decode, in each sequence
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    r#gen: usize,
    /// Computing threads [default: physical cores within the CPU quota that other programs leave free at the start]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    /// Sequences computed together
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', default_value = "1", value_parser = at_least_one)]
    parallel: Vec<usize>,
    /// How a depth is reached before the clock starts
    #[arg(long, value_enum, default_value_t = Fill::Real)]
    fill: Fill,
    /// Measurements of each row, of which the median is given
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    rounds: usize,
    /// Element type of cached rows [default: that of the settings]
    #[arg(long, value_name = "TYPE")]
    kv: Option<String>,
    /// Leave weights in the layout of the file
    #[arg(long)]
    no_repack: bool,
    /// Routing policies to compare, as `--routing` of `fathom run` names them (`native` only)
    #[arg(long, value_name = "POLICY[,POLICY]", value_delimiter = ',')]
    routing: Vec<String>,
    /// Show where the time of one more prefill chunk and one more decode step goes, node by node (`native` only)
    #[arg(long)]
    nodes: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// One measurement, for the process that asked for it
    #[arg(long, value_name = "JOB", hide = true, conflicts_with = "model")]
    measure: Option<String>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err("it is not a number".to_owned()),
    }
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    if let Some(job) = &args.measure {
        let measured = measure::run(&serde_json::from_str(job)?, config)?;
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let (model, engines) = (args.model.as_deref().context("no model was named")?, engines(&args, config)?);
    let (file, profiles) = weights::open(model, config)?;
    let weights: Vec<PathBuf> = file.shards().map(Into::into).collect();
    let needs_deepseek =
        args.fill == Fill::Jump && file.metadata().opt_str("general.architecture")? != Some("deepseek4");
    ensure!(!needs_deepseek, "--fill jump needs a `deepseek4` model: other caches have no shape without their rows");
    drop(file);

    // Decided once, for rows that can be compared: each process on its own would look at the load of another moment.
    let configured = || config.threads.unwrap_or_else(|| engine::machine::compute_threads().count());
    let threads = args.threads.unwrap_or_else(configured);
    let kv: KvType = args.kv.as_deref().unwrap_or(&config.kv_cache_type).parse()?;
    ensure!(!args.nodes || engines.contains(&Kind::Native), "only engine `native` can show its nodes");

    let routings = routings(&args, config, &engines)?;
    let variants: Vec<(Kind, &Routing)> =
        engines.iter().flat_map(|&engine| routings.iter().map(move |routing| (engine, routing))).collect();

    let job = |(engine, routing): (Kind, &Routing), context: usize, parallel: usize, fill: Fill, round: usize| Job {
        weights: weights.clone(),
        profiles: profiles.clone(),
        engine: engine.to_string(),
        routing: routing.to_string(),
        context,
        prompt: args.prompt,
        generate: args.r#gen,
        threads,
        parallel,
        fill,
        kv: kv.name().to_owned(),
        repack: !args.no_repack,
        nodes: args.nodes && round == 0 && engine == Kind::Native,
        seed: round as u64,
    };
    let mut rows = Vec::new();
    for &parallel in &args.parallel {
        for &context in &args.context {
            let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); variants.len()];
            for round in 0..args.rounds {
                for (variant, measured) in variants.iter().zip(&mut measured) {
                    let (engine, routing) = variant;
                    tracing::debug!(%engine, %routing, context, parallel, round, "measures");
                    measured.push(in_child(&job(*variant, context, parallel, args.fill, round))?);
                }
            }
            rows.extend(variants.iter().zip(&measured).map(|((engine, routing), all)| {
                let mut row = Row::of(*engine, context, parallel, args.fill, all);
                row.routing = routing.to_string();
                row
            }));
        }
    }
    let fill_check = match (args.fill, args.context.iter().min(), rows.first()) {
        (Fill::Jump, Some(&context), Some(_)) => {
            let parallel = args.parallel[0];
            let real = in_child(&job(variants[0], context, parallel, Fill::Real, 0))?;
            // The first of a depth is that of the first variant.
            let jump = rows.iter().find(|row| row.is_for(engines[0], context, parallel)).context("a row per depth")?;
            Some(FillCheck::of(context, jump, &real))
        }
        _ => None,
    };
    let report = Report::new(&weights[0], &args, kv, rows, fill_check)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?
    } else {
        report.write_table(&mut out)?
    }
    Ok(())
}

/// The engines to compare, each once and by its own name.
fn engines(args: &Args, config: &Config) -> anyhow::Result<Vec<Kind>> {
    let mut engines = Vec::new();
    let named: Vec<&str> = args.engine.iter().map(String::as_str).collect();
    let named = if named.is_empty() { vec![config.engine.as_str()] } else { named };
    for name in named {
        let kind = engine::plan::resolve(name.trim().parse()?, &settings::engine(config)?.1);
        ensure!(args.fill == Fill::Real || kind != Kind::Scripted, "engine `{kind}` cannot jump to a depth");
        if !engines.contains(&kind) {
            engines.push(kind);
        }
    }
    Ok(engines)
}

/// The routing policies to compare, each once. Whether they fit the model, its engine says.
fn routings(args: &Args, config: &Config, engines: &[Kind]) -> anyhow::Result<Vec<Routing>> {
    let mut routings = Vec::new();
    let named: Vec<&str> = args.routing.iter().map(String::as_str).collect();
    let named = if named.is_empty() { vec![config.routing.as_str()] } else { named };
    for name in named {
        let routing = settings::routing(name.trim())?;
        if !routings.contains(&routing) {
            routings.push(routing);
        }
    }
    let others = engines.iter().find(|&&engine| engine != Kind::Native);
    if let (Some(engine), Some(routing)) = (others, routings.iter().find(|&routing| *routing != Routing::Off)) {
        bail!("engine `{engine}` cannot follow routing `{routing}`: it computes every chosen expert");
    }
    Ok(routings)
}

/// Runs a job in a process of its own.
fn in_child(job: &Job) -> anyhow::Result<Measured> {
    let program: PathBuf = std::env::current_exe().context("cannot find this program again")?;
    let output = Command::new(program)
        .args(["bench", "--measure", &serde_json::to_string(job)?])
        .stderr(Stdio::piped())
        .output()
        .context("cannot start another process")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let message = stderr.trim().trim_start_matches("error: ");
        bail!("engine `{}` at depth {}: {message} ({})", job.engine, job.context, output.status);
    }
    serde_json::from_slice(&output.stdout).context("a measurement that cannot be read")
}
