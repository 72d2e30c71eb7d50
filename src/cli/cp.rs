//! `fathom cp`: a second name for a model.

use super::connect;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// The model
    source: String,
    /// Its second name; nothing is stored twice
    destination: String,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    connect::with_server(config, async |client| {
        client.copy(&args.source, &args.destination).await.map_err(connect::explained)
    })?;
    println!("copied '{}' to '{}'", args.source, args.destination);
    Ok(())
}
