//! `fathom rm`: models leave memory and store.

use super::connect;
use crate::client;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// The models
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    connect::with_server(config, async |client| {
        for model in &args.models {
            anyhow::ensure!(
                !connect::is_file_name(model),
                "`{model}` is a file of yours and no model in the store; fathom does not remove it"
            );
            match client.unload(model).await {
                // Whether it exists is for `delete` to say; a model that cannot be loaded can still be removed.
                Ok(()) | Err(client::Error::Status { .. }) => {}
                Err(error) => return Err(connect::explained(error)),
            }
            client.delete(model).await.map_err(connect::explained)?;
            println!("deleted '{model}'");
        }
        Ok(())
    })
}
