//! `fathom stop`: a model leaves memory and stays in the store.

use super::connect;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// The model, or the `.gguf` file it was loaded from
    model: String,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    connect::with_server(config, async |client| {
        let model = connect::model_name(&args.model, &client)?;
        client.unload(&model).await.map_err(|error| match error.status() {
            Some(404) => super::hint(
                anyhow::anyhow!("couldn't find model \"{}\" to stop", args.model),
                "`fathom ps` shows the models in memory",
            ),
            _ => connect::explained(error),
        })
    })
}
