//! `fathom create`: a model of your own from a Modelfile.
//!
//! The Modelfile is read here; the server gets a structured request. Files reach it by their path when it runs on this
//! machine, which copies nothing, and as uploaded blobs otherwise.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{connect, hint, progress};
use crate::api::ollama::types::{CreateRequest, StoredMessage};
use crate::client::{self, Client, Lines, Progress};
use crate::config::Config;
use crate::engine::Routing;
use crate::modelfile::{self, Instruction, Modelfile};
use crate::store::routing_beside;

/// What a checkpoint directory gives besides its weights.
const CHECKPOINT_FILES: &[&str] = &["json", "jinja", "model"];

/// Bytes hashed at a time.
const HASH_BYTES: usize = 1 << 20;

#[derive(clap::Args)]
pub struct Args {
    /// Name of the new model
    model: String,
    /// The Modelfile; without it, `Modelfile` in this directory
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Change the number format of the weights
    #[arg(short, long, value_name = "TYPE")]
    quantize: Option<String>,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let path = args.file.clone().unwrap_or_else(|| "Modelfile".into());
    let bytes = std::fs::read(&path).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("cannot read `{}`", path.display()));
        if args.file.is_some() { error } else { hint(error, "`-f FILE` names another Modelfile") }
    })?;
    let parsed = modelfile::parse_bytes(&bytes).with_context(|| format!("cannot use `{}`", path.display()))?;
    for warning in &parsed.warnings {
        eprintln!("warning: {warning}");
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut request, files) = translated(&parsed.modelfile, folder)?;
    request.model = args.model;
    request.quantize = args.quantize.unwrap_or_default();
    connect::with_server(config, async |client| {
        deliver(&client, &mut request, files).await?;
        let lines = client.create(&request).await.map_err(|error| without_pull(error, &request.from))?;
        follow(lines).await
    })
}

/// The server's words for a base model that is not here are those of a failed pull, which clients compare; people are told
/// what is the matter.
fn without_pull(error: client::Error, from: &str) -> anyhow::Error {
    match &error {
        client::Error::Status { text, .. } if text == "pull model manifest: file does not exist" => hint(
            anyhow::anyhow!("FROM names `{from}`, and there is neither a file nor a model of that name"),
            "`fathom list` shows the models that are here; a file is named with its path",
        ),
        _ => connect::explained(error),
    }
}

/// Files and folders that a Modelfile names, still on this machine.
#[derive(Debug, Default, PartialEq)]
struct Named {
    from: Vec<PathBuf>,
    adapters: Vec<PathBuf>,
    drafts: Vec<PathBuf>,
}

/// A Modelfile as a request, and the files it needs.
fn translated(modelfile: &Modelfile, folder: &Path) -> anyhow::Result<(CreateRequest, Named)> {
    let mut request = CreateRequest::default();
    let mut named = Named::default();
    let mut licenses = Vec::new();
    for instruction in &modelfile.instructions {
        match instruction {
            Instruction::From(text) => match local_path(text, folder)? {
                Some(path) => named.from.push(path),
                None => request.from = text.clone(),
            },
            Instruction::Adapter(text) => named.adapters.push(existing(text, folder, "ADAPTER")?),
            Instruction::Draft(text) => named.drafts.push(existing(text, folder, "DRAFT")?),
            Instruction::Template(text) => request.template = text.clone(),
            Instruction::System(text) => request.system = text.clone(),
            Instruction::License(text) => licenses.push(json!(text)),
            Instruction::Renderer(text) => request.renderer = text.clone(),
            Instruction::Parser(text) => request.parser = text.clone(),
            Instruction::Requires(text) => request.requires = text.clone(),
            Instruction::Message { role, content } => {
                request.messages.push(StoredMessage { role: role.word().into(), content: content.clone() })
            }
            // `stop` stands once per string and is one list in the request.
            Instruction::Parameter { name, value } => match request.parameters.get_mut(name) {
                Some(Value::Array(list)) => list.push(value.clone()),
                _ if name == "stop" => {
                    request.parameters.insert(name.clone(), json!([value]));
                }
                _ if name == "routing" => {
                    let routing: Routing = value.as_str().unwrap_or_default().parse().context("PARAMETER routing")?;
                    // The server does not know where the Modelfile lies.
                    let routing = match routing.file() {
                        Some(_) => routing.within(
                            &std::env::current_dir().context("cannot tell the current directory")?.join(folder),
                        ),
                        None => routing,
                    };
                    request.parameters.insert(name.clone(), json!(routing.to_string()));
                }
                _ => {
                    request.parameters.insert(name.clone(), value.clone());
                }
            },
        }
    }
    if !licenses.is_empty() {
        request.license = Value::Array(licenses);
    }
    Ok((request, named))
}

/// The file or folder that FROM names; `None` = it names a model.
fn local_path(text: &str, folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let path = resolved(text, folder);
    if path.exists() {
        return Ok(Some(path));
    }
    if connect::is_file_name(text) || text.starts_with(['/', '.', '~']) {
        anyhow::bail!("FROM names `{text}`, and there is no `{}`", path.display());
    }
    Ok(None)
}

fn existing(text: &str, folder: &Path, instruction: &str) -> anyhow::Result<PathBuf> {
    let path = resolved(text, folder);
    anyhow::ensure!(path.exists(), "{instruction} names `{text}`, and there is no `{}`", path.display());
    Ok(path)
}

/// Relative to the Modelfile; `~` is the home directory.
fn resolved(text: &str, folder: &Path) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => folder.join(text),
    }
}

/// Makes every file known to the server and names it in the request.
async fn deliver(client: &Client, request: &mut CreateRequest, named: Named) -> anyhow::Result<()> {
    match named.from.as_slice() {
        [] => {}
        [one] if client.shares_files() => request.path = absolute(one)?,
        many => {
            let mut files = expanded(many)?;
            files.extend(many.iter().map(|file| routing_beside(file)).find(|profiles| profiles.is_file()));
            request.files = upload(client, &files).await?;
        }
    }
    request.adapters = upload(client, &expanded(&named.adapters)?).await?;
    request.draft_files = upload(client, &named.drafts).await?;
    Ok(())
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize().with_context(|| format!("cannot open `{}`", path.display()))?;
    let text = path.into_os_string().into_string();
    text.map_err(|path| anyhow::anyhow!("the path `{}` is not valid UTF-8 and cannot be sent", path.display()))
}

/// Folders become the files of the checkpoint in them, in the order of their names.
fn expanded(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let cannot_read = || format!("cannot read the folder `{}`", path.display());
        let entries = std::fs::read_dir(path).with_context(cannot_read)?;
        let mut inside =
            entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().with_context(cannot_read)?;
        inside.sort();
        let with = |extensions: &[&str]| {
            let has =
                |p: &&PathBuf| p.extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x)));
            inside.iter().filter(has).cloned().collect::<Vec<_>>()
        };
        let weights = [with(&["safetensors"]), with(&["gguf"])].into_iter().find(|found| !found.is_empty());
        let Some(weights) = weights else {
            anyhow::bail!("`{}` holds neither safetensors nor GGUF files", path.display());
        };
        files.extend(weights);
        files.extend(with(CHECKPOINT_FILES));
    }
    Ok(files)
}

/// Sends what the server does not have; gives the digest of each file under its name.
async fn upload(client: &Client, paths: &[PathBuf]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for path in paths {
        let cannot_read = || format!("cannot read `{}`", path.display());
        let bytes = std::fs::metadata(path).with_context(cannot_read)?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bar = progress::bytes(bytes, format!("hashing {name}"));
        let digest = {
            let (path, bar) = (path.clone(), bar.clone());
            tokio::task::spawn_blocking(move || sha256(&path, &bar)).await.context("hashing was cut short")?
        };
        let digest = digest.with_context(cannot_read)?;
        if !client.has_blob(&digest).await.map_err(connect::explained)? {
            bar.set_message(format!("sending {name}"));
            bar.set_position(0);
            bar.reset_eta();
            let sent = bar.clone();
            client.upload_blob(&digest, path, move |n| sent.inc(n)).await.map_err(connect::explained)?;
        }
        bar.finish_and_clear();
        if digests.insert(name.clone(), digest).is_some() {
            anyhow::bail!("two files are called `{name}`");
        }
    }
    Ok(digests)
}

fn sha256(path: &Path, bar: &ProgressBar) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok(format!("sha256:{hex}"));
        }
        hasher.update(&buffer[..n]);
        bar.inc(n as u64);
    }
}

/// Shows what the server does: one line per step, a bar while a step counts bytes.
pub(super) async fn follow(mut lines: Lines<Progress>) -> anyhow::Result<()> {
    let mut bar: Option<(String, ProgressBar)> = None;
    let mut last = String::new();
    while let Some(line) = lines.next().await.map_err(connect::explained)? {
        if line.total > 0 {
            if bar.as_ref().is_none_or(|(status, _)| *status != line.status) {
                bar = Some((line.status.clone(), progress::bytes(line.total, line.status.clone())));
            }
            if let Some((_, bar)) = &bar {
                bar.set_position(line.completed);
            }
            continue;
        }
        if let Some((_, bar)) = bar.take() {
            bar.finish_and_clear();
        }
        if line.status != last {
            eprintln!("{}", line.status);
            last = line.status;
        }
    }
    anyhow::ensure!(last == "success", "the server stopped before the model was made");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modelfile_becomes_a_request_and_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.gguf"), "x").unwrap();
        let text = "FROM ./m.gguf\nPARAMETER temperature 0.5\nPARAMETER stop a\nPARAMETER stop b\nSYSTEM be brief\n\
                    LICENSE one\nLICENSE two\nMESSAGE user hi\n";
        let parsed = modelfile::parse(text).unwrap();
        let (request, named) = translated(&parsed.modelfile, folder.path()).unwrap();
        assert_eq!(named.from, [folder.path().join("./m.gguf")]);
        assert_eq!(Value::Object(request.parameters), json!({"temperature": 0.5, "stop": ["a", "b"]}));
        assert_eq!(request.license, json!(["one", "two"]));
        assert_eq!((request.system.as_str(), request.messages.len()), ("be brief", 1));
    }

    #[test]
    fn from_is_a_file_if_there_is_one_and_a_name_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("checkpoint")).unwrap();
        assert!(local_path("checkpoint", folder.path()).unwrap().is_some());
        assert_eq!(local_path("deepseek-v4-flash:q4", folder.path()).unwrap(), None);
        let error = local_path("./missing.gguf", folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("FROM names `./missing.gguf`, and there is no `"), "{error}");
    }

    #[test]
    fn a_checkpoint_folder_gives_its_weights_and_descriptions() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["model-1.safetensors", "config.json", "notes.txt", "old.gguf"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let files = expanded(&[folder.path().to_owned()]).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["model-1.safetensors", "config.json"]);
    }

    #[test]
    fn digests_are_those_of_sha256() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        assert_eq!(
            sha256(file.path(), &ProgressBar::hidden()).unwrap(),
            // FIPS 180-2, appendix B.1
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
