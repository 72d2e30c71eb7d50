//! `fathom verify`

use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("`fathom verify` is not built yet")
}
