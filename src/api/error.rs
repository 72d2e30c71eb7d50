//! What goes wrong, as clients see it: one status and one text per error. Clients compare some of these texts, so this is
//! the only place that spells them.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ollama::{duration, options};
use crate::modelfile::CreateError;
use crate::{chat, completion, scheduler, store};

/// Every way a request can fail. `Display` is the text of the answer's `error` field.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("missing request body")]
    MissingBody,
    /// The JSON decoder's text.
    #[error("{0}")]
    Json(String),
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    /// The connection broke inside the body.
    #[error("cannot read the request body: {0}")]
    Body(String),

    // Names.
    #[error("model is required")]
    ModelRequired,
    #[error("invalid model name")]
    InvalidName,
    #[error("use either :local or :cloud, not both: \"{0}\"")]
    LocalAndCloud(String),
    /// `role` is `name`, `source` or `destination`.
    #[error("{role} \"{name}\" is invalid")]
    InvalidRole { role: &'static str, name: String },
    #[error("model '{0}' not found")]
    NotFound(String),
    /// The bundled model in a build without it.
    #[error("{0}")]
    NotBundled(String),
    /// copy quotes differently.
    #[error("model \"{0}\" not found")]
    CopySourceNotFound(String),
    #[error("ollama cloud is disabled: {what}")]
    Cloud { what: &'static str },
    /// A path where only a model name may stand.
    #[error("paths are accepted only on this machine, with the header `Sec-Fathom-Local: 1`")]
    PathNotAllowed,

    // What a model cannot do.
    #[error("\"{0}\" does not support thinking")]
    NoThinking(String),
    /// `what` is `generate` or `chat`.
    #[error("\"{name}\" does not support {what}")]
    NoCompletion { name: String, what: &'static str },
    /// `name` is the full one; one line per capability.
    #[error("{}", missing.iter().map(|m| format!("{name} does not support {m}")).collect::<Vec<_>>().join("\n"))]
    Missing { name: String, missing: Vec<&'static str> },

    // Fields.
    #[error("top_logprobs must be between 0 and 20")]
    TopLogprobs,
    #[error("raw mode does not support template, system, or context")]
    Raw,
    #[error("invalid think value: {0:?} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)")]
    ThinkValue(String),
    #[error("think must be a boolean or string (\"high\", \"medium\", \"low\", \"max\", true, or false)")]
    ThinkType,
    #[error(transparent)]
    KeepAlive(#[from] duration::Error),
    #[error("invalid format: {0}; expected \"json\" or a valid JSON Schema object")]
    Format(String),
    /// The text of `options::Error`.
    #[error("{0}")]
    Option(String),
    #[error("invalid digest format")]
    InvalidDigest,

    // create.
    #[error("file path must be relative")]
    FilePath,
    #[error("neither 'from' or 'files' was specified")]
    NothingToCreateFrom,
    #[error("unknown type")]
    UnknownType,
    #[error("supplied file was not in GGUF format")]
    SuppliedNotGguf,
    #[error("only one adapter is currently supported")]
    OneAdapter,
    #[error("no base model was found")]
    NoBaseModel,
    /// `create` from a model that is not here; nothing can be pulled.
    #[error("pull model manifest: file does not exist")]
    PullNotFound,

    // Running.
    #[error(
        "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the \
         context length in settings, or use a model with a longer context length"
    )]
    PromptTooLong,
    /// Asked for, understood, and not there.
    #[error("{0}")]
    NotImplemented(String),
    /// Any other fault of the request.
    #[error("{0}")]
    BadRequest(String),
    #[error("server busy, please try again.  maximum pending requests exceeded")]
    Busy,
    #[error("{0}")]
    Internal(String),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Scheduler(#[from] scheduler::Error),
    /// A prompt that this model's format or vocabulary cannot express.
    #[error("{0}")]
    Prompt(String),
    /// With `truncate: false`, in the words of Ollama's runner.
    #[error("request ({tokens} tokens) exceeds the available context size ({n_ctx} tokens), try increasing it")]
    ContextExceeded { tokens: usize, n_ctx: usize },
    #[error("unknown renderer \"{0}\"")]
    Renderer(String),
}

impl From<options::Error> for Error {
    fn from(error: options::Error) -> Self {
        match error {
            // Ollama has no such option, so no client expects the status of its options.
            options::Error::Routing(_) => Error::BadRequest(error.to_string()),
            options::Error::Type { .. }
            | options::Error::Strings { .. }
            | options::Error::Word { .. }
            | options::Error::Mirostat(_) => Error::Option(error.to_string()),
        }
    }
}

impl From<completion::Error> for Error {
    fn from(error: completion::Error) -> Self {
        match error {
            completion::Error::Scheduler(error) => Error::Scheduler(error),
            completion::Error::PromptTooLong { .. } => Error::PromptTooLong,
            completion::Error::ContextExceeded { tokens, n_ctx } => Error::ContextExceeded { tokens, n_ctx },
            completion::Error::Chat(chat::Error::Generation { given }) => Error::Renderer(given),
            completion::Error::Chat(error) => Error::Prompt(error.to_string()),
            completion::Error::Tokens(error) => Error::Prompt(error.to_string()),
            completion::Error::NoWeights { .. } | completion::Error::Adapter { .. } => {
                Error::NotImplemented(error.to_string())
            }
            completion::Error::Preparation => Error::Internal(error.to_string()),
        }
    }
}

impl Error {
    /// The status that goes with the text.
    pub fn status(&self) -> StatusCode {
        match self {
            Error::MissingBody
            | Error::Json(_)
            | Error::Body(_)
            | Error::ModelRequired
            | Error::InvalidName
            | Error::LocalAndCloud(_)
            | Error::InvalidRole { .. }
            | Error::NoThinking(_)
            | Error::NoCompletion { .. }
            | Error::Missing { .. }
            | Error::TopLogprobs
            | Error::Raw
            | Error::ThinkValue(_)
            | Error::ThinkType
            | Error::KeepAlive(_)
            | Error::InvalidDigest
            | Error::FilePath
            | Error::NothingToCreateFrom
            | Error::UnknownType
            | Error::SuppliedNotGguf
            | Error::OneAdapter
            | Error::NoBaseModel
            | Error::PromptTooLong
            | Error::ContextExceeded { .. }
            | Error::Prompt(_)
            | Error::BadRequest(_) => StatusCode::BAD_REQUEST,
            Error::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Error::Cloud { .. } | Error::PathNotAllowed => StatusCode::FORBIDDEN,
            Error::NotFound(_) | Error::NotBundled(_) | Error::CopySourceNotFound(_) => StatusCode::NOT_FOUND,
            // Ollama calls these the server's fault; clients only look for an error status.
            Error::Format(_) | Error::Option(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Error::Renderer(_) | Error::PullNotFound | Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Error::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Error::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Error::Store(error) => store_status(error),
            Error::Scheduler(error) => scheduler_status(error),
        }
    }

    /// The answer's body, also a line of a stream that had begun.
    pub fn body(&self) -> serde_json::Value {
        let text = match self {
            Error::Scheduler(scheduler::Error::Busy { .. }) => Error::Busy.to_string(),
            Error::Scheduler(scheduler::Error::PromptTooLong { .. }) => Error::PromptTooLong.to_string(),
            Error::Scheduler(stopped @ scheduler::Error::Stopped { .. }) => format!(
                "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, \
                 check ollama server logs for details: {stopped}"
            ),
            Error::Scheduler(step @ scheduler::Error::Step { .. }) => {
                format!("an error was encountered while running the model: {step}")
            }
            Error::Store(store::Error::NotFound(name)) => Error::NotFound(name.to_string()).to_string(),
            other => other.to_string(),
        };
        json!({ "error": text })
    }
}

/// Texts that clients know stay as they are; the detail goes to the log.
impl From<CreateError> for Error {
    fn from(error: CreateError) -> Self {
        tracing::debug!(%error, "not created");
        match error {
            CreateError::BaseNotFound(_) => Error::PullNotFound,
            CreateError::UnknownType(_) => Error::UnknownType,
            CreateError::NotGguf { .. } => Error::SuppliedNotGguf,
            CreateError::SeveralAdapters(_) => Error::OneAdapter,
            CreateError::NoBaseModel => Error::NoBaseModel,
            CreateError::Store(error) => Error::Store(error),
            CreateError::NotBundled(_) => Error::NotBundled(error.to_string()),
            CreateError::BundledModelfile(_) => Error::Internal(error.to_string()),
            CreateError::Convert(fathom_converters::Error::Io { .. }) | CreateError::Merge(_) => {
                Error::Internal(error.to_string())
            }
            CreateError::NoBlob(_)
            | CreateError::SeveralModels { .. }
            | CreateError::Shards(_)
            | CreateError::BadPath { .. }
            | CreateError::UnknownPath(_)
            | CreateError::Convert(_)
            | CreateError::Info(_)
            | CreateError::Cancelled => Error::BadRequest(error.to_string()),
        }
    }
}

fn store_status(error: &store::Error) -> StatusCode {
    match error {
        store::Error::NotFound(_) | store::Error::NoFile(_) => StatusCode::NOT_FOUND,
        store::Error::DigestMismatch { .. } | store::Error::NoBlob(_) | store::Error::BadFile { .. } => {
            StatusCode::BAD_REQUEST
        }
        store::Error::BrokenManifest { .. }
        | store::Error::MissingBlob { .. }
        | store::Error::BrokenLayer { .. }
        | store::Error::Gguf { .. }
        | store::Error::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn scheduler_status(error: &scheduler::Error) -> StatusCode {
    match error {
        scheduler::Error::Busy { .. } | scheduler::Error::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        // Its answer had begun, or it would not have stalled.
        scheduler::Error::Stalled { .. } => StatusCode::REQUEST_TIMEOUT,
        scheduler::Error::EmptyPrompt
        | scheduler::Error::PromptTooLong { .. }
        | scheduler::Error::UnknownToken { .. }
        | scheduler::Error::Routing { .. }
        | scheduler::Error::Sampler(_) => StatusCode::BAD_REQUEST,
        scheduler::Error::Load { .. }
        | scheduler::Error::Tokenizer { .. }
        | scheduler::Error::Stopped { .. }
        | scheduler::Error::Step { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), error = %self, "request failed");
        } else {
            tracing::debug!(status = status.as_u16(), error = %self, "request refused");
        }
        tracing::debug!(error = ?self, "in detail");
        let mut response = super::json(&self.body());
        *response.status_mut() = status;
        response
    }
}
