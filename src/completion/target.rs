//! A stored model as requests use it: its prompt format, what can be asked of it, and how it is loaded.

use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use crate::chat::{self, Family};
use crate::engine::scripted::{self, Script, Scripted};
use crate::engine::{self, Engine, Kind, Plan, Progress};
use crate::scheduler::{Loader, ModelSpec};
use crate::store::{Capability, Model};
use crate::tokens::{Specials, Tokenizer};

/// How models are run unless a request says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    pub kind: Kind,
    pub settings: engine::Settings,
    /// What the `scripted` engine plays; `None` = what the settings' file says, or an echo.
    pub script: Option<Script>,
}

/// One model, ready to be asked for.
#[derive(Clone)]
pub struct Target {
    pub model: Arc<Model>,
    pub family: Arc<Family>,
    pub spec: Arc<ModelSpec>,
}

impl Target {
    /// # Errors
    /// When the model's prompt format is not known, or it has no weights that an engine here could read.
    pub fn new(model: Model, runtime: &Runtime) -> Result<Target, Error> {
        if !model.adapters.is_empty() {
            return Err(Error::Adapter { model: model.source.to_string() });
        }
        let family = Arc::new(chat::family::for_model(&facts(&model))?);
        let Some(weights) = model.weights.first().cloned() else {
            return Err(Error::NoWeights { model: model.source.to_string() });
        };
        let spec = ModelSpec {
            name: model.source.to_string(),
            digest: model.digest.to_string(),
            loader: Arc::new(FileLoader {
                shards: model.weights.clone(),
                kind: runtime.kind,
                script: runtime.script.clone(),
            }),
            weights,
            kind: runtime.kind,
            settings: engine::Settings { profiles: model.routing.clone(), ..runtime.settings.clone() },
        };
        Ok(Target { model: Arc::new(model), family, spec: Arc::new(spec) })
    }

    /// What can be asked of it: what the prompt format can say counts, not what the files hint at.
    pub fn can(&self, capability: Capability) -> bool {
        let family = self.family.capabilities();
        match capability {
            Capability::Tools => family.tools,
            Capability::Thinking => family.thinking,
            Capability::Insert => family.insert,
            other => self.model.capabilities.contains(&other),
        }
    }
}

/// What decides about the prompt format: a RENDERER of the Modelfile goes before the architecture of the weights.
pub fn facts(model: &Model) -> chat::family::Facts<'_> {
    let header = &model.header;
    let renderer = Some(model.config.renderer.as_str()).filter(|name| !name.is_empty());
    let known = |name: &&str| chat::family::TABLE.iter().any(|(known, _)| known == name);
    chat::family::Facts {
        architecture: renderer.filter(known).unwrap_or(&header.architecture),
        is_renderer: renderer.is_some_and(|name| known(&name)),
        chosen: renderer.filter(|name| !known(name)),
        release: header.release.as_deref(),
        jinja: header.chat_template.as_deref(),
        // What `show --modelfile` writes for models without a template says nothing.
        go: model.template.as_deref().filter(|template| template.trim() != "{{ .Prompt }}"),
        bos: header.bos.as_deref().unwrap_or_default(),
        eos: header.eos.as_deref().unwrap_or_default(),
    }
}

/// A GGUF model and the engine that is to run it.
struct FileLoader {
    /// Its files: one, or all shards.
    shards: Vec<PathBuf>,
    kind: Kind,
    script: Option<Script>,
}

impl FileLoader {
    /// The script in tokens of this file's vocabulary, when the engine plays one. An engine knows no text, so this is done for it.
    fn script(&self, file: &fathom_gguf::File, settings: &engine::Settings) -> Result<Option<Script>, engine::Error> {
        // As `engine::plan` resolves `Auto`: whoever gives a script wants it played.
        let scripted = self.kind == Kind::Scripted || (self.kind == Kind::Auto && settings.script.is_some());
        if !scripted {
            return Ok(None);
        }
        let mut script = match (&self.script, &settings.script) {
            (Some(script), _) => script.clone(),
            (None, Some(path)) => Script::read(path)?,
            (None, None) => Script::default(),
        };
        let failed = |error: crate::tokens::Error| engine::Error::Load {
            path: file.path().to_owned(),
            reason: error.to_string(),
        };
        let tokenizer = Tokenizer::from_gguf(file.metadata()).map_err(failed)?;
        script.resolve(|text| tokenizer.encode(text, Specials::Parse)).map_err(failed)?;
        Ok(Some(script))
    }
}

impl Loader for FileLoader {
    fn plan(&self, settings: &engine::Settings, available_bytes: u64) -> Result<Plan, engine::Error> {
        let file = fathom_gguf::File::open_shards(&self.shards)?;
        match self.script(&file, settings)? {
            Some(script) => scripted::plan(&script, &engine::scripted_model(&file)?, settings, available_bytes),
            None => engine::plan(&file, self.kind, settings, available_bytes),
        }
    }

    fn engine(&self, settings: &engine::Settings, on_progress: Progress) -> Result<Box<dyn Engine>, engine::Error> {
        let file = fathom_gguf::File::open_shards(&self.shards)?;
        match self.script(&file, settings)? {
            Some(script) => {
                let model = engine::scripted_model(&file)?;
                Ok(Box::new(Scripted::load(script, &model, settings, on_progress)?))
            }
            None => engine::load_file(&file, self.kind, settings, on_progress),
        }
    }

    fn tokenizer(&self) -> Result<Arc<Tokenizer>, crate::tokens::Error> {
        let file = fathom_gguf::File::open_shards(&self.shards)?;
        Ok(Arc::new(Tokenizer::from_gguf(file.metadata())?))
    }
}
