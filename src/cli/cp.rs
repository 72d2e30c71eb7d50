//! `fathom cp`: a second name for a model.

use super::{connect, create};
use crate::api::ollama::types::CreateRequest;
use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// The model, or a `.gguf` file
    source: String,
    /// Its second name; nothing is stored twice
    destination: String,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    connect::with_server(config, async |client| {
        if !connect::is_file_name(&args.source) {
            return client.copy(&args.source, &args.destination).await.map_err(connect::explained);
        }
        // A file that is not in the store yet comes into it under this name.
        let path = connect::model_name(&args.source, &client)?;
        let request = CreateRequest { model: args.destination.clone(), path, ..CreateRequest::default() };
        create::follow(client.create(&request).await.map_err(connect::explained)?).await
    })?;
    println!("copied '{}' to '{}'", args.source, args.destination);
    Ok(())
}
