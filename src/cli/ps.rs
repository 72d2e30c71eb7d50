//! `fathom ps`: the models in memory.

use jiff::Timestamp;

use super::list::{short_digest, starts_with};
use super::table::Table;
use super::{connect, human};
use crate::client::Loaded;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// Only models whose name starts like this
    prefix: Option<String>,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let models = connect::with_server(config, async |client| client.ps().await.map_err(connect::explained))?;
    let mut table = Table::with_header(&["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]);
    let now = Timestamp::now();
    for model in models.iter().filter(|m| starts_with(&m.name, args.prefix.as_deref())) {
        table.row([
            model.name.clone(),
            short_digest(&model.digest),
            human::bytes(model.size),
            processor(model),
            model.context_length.to_string(),
            until(model.expires_at, now),
        ]);
    }
    Ok(table.write(0, &mut std::io::stdout().lock())?)
}

/// `100% CPU`, `100% GPU`, `48%/52% CPU/GPU`
fn processor(model: &Loaded) -> String {
    match (model.size_vram, model.size) {
        (0, _) => "100% CPU".into(),
        (vram, size) if vram == size => "100% GPU".into(),
        (vram, size) if vram > size => "Unknown".into(),
        (vram, size) => {
            let cpu = ((size - vram) as f64 / size as f64 * 100.0).round();
            format!("{cpu}%/{}% CPU/GPU", 100.0 - cpu)
        }
    }
}

fn until(expires_at: Timestamp, now: Timestamp) -> String {
    if expires_at < now { "Stopping...".into() } else { human::when(expires_at, now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_model_is_computed() {
        for (size, size_vram, text) in
            [(100, 0, "100% CPU"), (100, 100, "100% GPU"), (100, 52, "48%/52% CPU/GPU"), (100, 200, "Unknown")]
        {
            let model = Loaded {
                name: String::new(),
                digest: String::new(),
                size,
                size_vram,
                expires_at: Timestamp::UNIX_EPOCH,
                context_length: 0,
            };
            assert_eq!(processor(&model), text);
        }
    }
}
