//! `fathom list`: the models in the store.

use jiff::Timestamp;

use super::table::Table;
use super::{connect, human};
use crate::client::Model;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// Only models whose name starts like this
    prefix: Option<String>,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let models = connect::with_server(config, async |client| client.list().await.map_err(connect::explained))?;
    write(&models, args.prefix.as_deref())
}

/// The table of these models on stdout.
pub(super) fn write(models: &[Model], prefix: Option<&str>) -> anyhow::Result<()> {
    let mut table = Table::with_header(&["NAME", "ID", "SIZE", "MODIFIED"]);
    let now = Timestamp::now();
    for model in models.iter().filter(|m| starts_with(&m.name, prefix)) {
        table.row([
            model.name.clone(),
            short_digest(&model.digest),
            human::bytes(model.size),
            human::when(model.modified_at, now),
        ]);
    }
    Ok(table.write(0, &mut std::io::stdout().lock())?)
}

/// Model names are looked up without regard to case, so they are filtered that way too.
pub(super) fn starts_with(name: &str, prefix: Option<&str>) -> bool {
    prefix.is_none_or(|prefix| name.to_lowercase().starts_with(&prefix.to_lowercase()))
}

/// The first twelve digits, as every tool of this kind shows them.
pub(super) fn short_digest(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}
