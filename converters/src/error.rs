//! What can go wrong between a checkpoint and a GGUF file. Every variant carries the names and numbers a user needs to act.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: "read", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The GGUF layer refused a file or a layout.
    #[error(transparent)]
    Gguf(#[from] fathom_gguf::Error),

    // ---- the checkpoint directory
    /// A file that every checkpoint has is not there.
    #[error("`{dir}` has no `{file}`")]
    MissingFile {
        /// The checkpoint directory.
        dir: PathBuf,
        /// The file that is missing.
        file: String,
        /// What to do.
        hint: &'static str,
    },
    /// A JSON file does not parse or is not UTF-8.
    #[error("`{path}` is not valid JSON: {reason}")]
    BadJson {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// `model.safetensors.index.json` names something that is not a plain file name.
    #[error("the index names shard `{shard}`, which is not a plain file name")]
    ShardPath {
        /// The name.
        shard: String,
    },
    /// A shard named by the index is not there.
    #[error("shard `{shard}` is missing: the index says it holds `{tensor}` and {others} other tensors")]
    MissingShard {
        /// The shard's file name.
        shard: String,
        /// One of its tensors.
        tensor: String,
        /// How many more.
        others: usize,
    },
    /// A shard's safetensors header is damaged.
    #[error("`{path}` is not a valid safetensors file: {reason}")]
    BadShard {
        /// The shard.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A shard ends before its last tensor does.
    #[error("`{path}` is cut off: its header describes {expected} bytes, the file has {found}")]
    TruncatedShard {
        /// The shard.
        path: PathBuf,
        /// Bytes that the header describes.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// The index and the headers of the shards disagree.
    #[error("the index says that `{tensor}` is in `{shard}`, but that file does not hold it")]
    IndexMismatch {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A shard holds a tensor that the index does not mention (or places elsewhere).
    #[error("`{shard}` holds `{tensor}`, which the index does not place there")]
    NotInIndex {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },

    // ---- the recipe
    /// No recipe for this architecture.
    #[error("model type `{model_type}` is not supported: fathom converts {supported}")]
    Architecture {
        /// `model_type` of config.json.
        model_type: String,
        /// The list of what is.
        supported: String,
    },
    /// DeepSeek-V4.1: near enough to be taken for V4, and wrong if it were.
    #[error(
        "`{model_type}` (DeepSeek-V4.1) is another architecture than DeepSeek-V4: FP8 blocks of 32x32, shared compressed \
         caches, Engram tables and a vision tower, none of which a `deepseek4` GGUF can hold"
    )]
    V41 {
        /// `model_type` of config.json.
        model_type: String,
    },
    /// config.json lacks a field, or its type is wrong.
    #[error("config.json: `{field}` {problem}")]
    Config {
        /// The field, with dots for nesting.
        field: String,
        /// "is missing", "is 3, expected 4", ...
        problem: String,
    },
    /// A tensor that the architecture has is not in the checkpoint.
    #[error("tensor `{tensor}` is missing{}", more(.others))]
    MissingTensor {
        /// The first one.
        tensor: String,
        /// How many more are missing.
        others: usize,
    },
    /// An FP8 or FP4 tensor without its scale.
    #[error("tensor `{tensor}` has no scale: `{scale}` is missing")]
    MissingScale {
        /// The quantised tensor.
        tensor: String,
        /// The scale's name.
        scale: String,
    },
    /// A tensor that the architecture does not have.
    #[error("unknown tensor `{tensor}`{}", more(.others))]
    UnknownTensor {
        /// The first one.
        tensor: String,
        /// How many more there are.
        others: usize,
        /// What it looks like, if it looks like something known.
        hint: &'static str,
    },
    /// A tensor has another element type than the architecture's.
    #[error("tensor `{tensor}` has dtype {found}, expected {expected}")]
    WrongDtype {
        /// The tensor.
        tensor: String,
        /// safetensors name found.
        found: String,
        /// safetensors name or names expected.
        expected: String,
    },
    /// A tensor has another shape than config.json implies.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// The tensor.
        tensor: String,
        /// Found.
        found: Vec<u64>,
        /// Expected.
        expected: Vec<u64>,
    },
    /// tokenizer.json does not describe a byte-level BPE tokenizer of this vocabulary.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// A choice of output type that cannot be honoured.
    #[error("{0}")]
    Choice(String),

    // ---- the numbers
    /// An FP8 NaN code.
    #[error("tensor `{tensor}`: NaN code 0x{byte:02X} at row {row}, column {column}")]
    NanCode {
        /// The tensor.
        tensor: String,
        /// The byte.
        byte: u8,
        /// Row (out axis).
        row: u64,
        /// Column (in axis).
        column: u64,
    },
    /// An E8M0 scale byte of 255 (NaN).
    #[error("tensor `{tensor}`: scale byte 255 (NaN) at row {row}, column {column}")]
    NanScale {
        /// The scale tensor.
        tensor: String,
        /// Row of the scale tensor.
        row: u64,
        /// Column of the scale tensor.
        column: u64,
    },
    /// Scale bytes whose values no GGUF float type can hold.
    #[error("tensor `{tensor}`: scale byte {byte} puts values beyond the range of F32")]
    ScaleRange {
        /// The scale tensor.
        tensor: String,
        /// The largest byte.
        byte: u8,
    },
    /// A hash-routing table that names an expert which does not exist.
    #[error("tensor `{tensor}`: entry {index} is {value}, but the model has {n_expert} experts")]
    ExpertId {
        /// The tensor.
        tensor: String,
        /// Flat index.
        index: u64,
        /// The number found.
        value: i64,
        /// Experts of the model.
        n_expert: u64,
    },

    // ---- the output
    /// The output is already there.
    #[error("`{path}` exists")]
    Exists {
        /// The file or directory.
        path: PathBuf,
    },
    /// A name that the files of another conversion might have.
    #[error("`{path}` {problem}")]
    OutputName {
        /// What was asked for.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
        /// What to do.
        instead: String,
    },
    /// Something else lies where the journal of what is unfinished has its place.
    #[error("`{path}` is in the way: it was not written by fathom")]
    NoJournal {
        /// The file.
        path: PathBuf,
    },
    /// Another process is writing the same output.
    #[error("`{path}` is being written by another process")]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// An unfinished conversion is there, but of something else.
    #[error("`{path}` belongs to an unfinished conversion with other settings: {difference}")]
    OtherJournal {
        /// The journal.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// Not enough room for the output.
    #[error("not enough disk: {needed} needed in `{dir}`, {available} available", needed = crate::units::bytes(*.needed), available = crate::units::bytes(*.available))]
    Disk {
        /// The directory.
        dir: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// A memory budget below what the conversion needs.
    #[error("a memory budget of {given} is too small: at least {least} are needed", given = crate::units::bytes(*.given), least = crate::units::bytes(*.least))]
    Memory {
        /// What was asked.
        given: u64,
        /// What is needed.
        least: u64,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Cancelled,

    // ---- export and verify
    /// The GGUF file was not made by this converter, or keys are missing.
    #[error("`{path}` cannot be taken back to a checkpoint: {reason}")]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The draft file named by the trunk is not beside it.
    #[error("the draft file `{path}` is missing")]
    MissingDraft {
        /// Where it should be.
        path: PathBuf,
        /// Whether the model lies in a store, where the draft would be a part of it.
        in_store: bool,
    },
    /// A draft was given in place of its model.
    #[error("`{path}` holds the draft blocks of a model, not a model")]
    DraftGiven {
        /// The file.
        path: PathBuf,
        /// The model that names it as its draft, if it lies beside it.
        model: Option<PathBuf>,
    },
    /// Some tensors were converted with a lossy choice.
    #[error(
        "the file was converted with a lossy choice, so the released bytes of {count} tensors are gone: {examples}"
    )]
    Lossy {
        /// How many released tensors.
        count: usize,
        /// GGUF tensors with their types.
        examples: String,
    },
    /// A stored value that is no FP8 number under its recorded scale.
    #[error("tensor `{tensor}`: the stored value at row {row}, column {column} is no FP8 number of its scale")]
    NotRepresentable {
        /// The released tensor.
        tensor: String,
        /// Row.
        row: u64,
        /// Column.
        column: u64,
    },
    /// A checksum does not match.
    #[error("checksum of `{tensor}` does not match: recorded {recorded}, computed {computed}")]
    Checksum {
        /// A released tensor or a file.
        tensor: String,
        /// Hex.
        recorded: String,
        /// Hex.
        computed: String,
    },
}

impl Error {
    /// What the user could do about it, if we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::MissingFile { hint, .. } | Error::UnknownTensor { hint, .. } if !hint.is_empty() => {
                Some((*hint).to_string())
            }
            Error::MissingShard { .. } | Error::TruncatedShard { .. } => {
                Some("download the checkpoint again; finished shards are kept by the usual download tools".into())
            }
            Error::V41 { .. } => {
                Some("DeepSeek-V4 Flash, Pro, their Base forms and the 0731 and 0813 updates are supported".into())
            }
            Error::OutputName { instead, .. } => Some(instead.clone()),
            Error::NoJournal { .. } => Some("move it away, or give the output another name".into()),
            Error::Disk { dir, .. } => Some(format!("free space in `{}`, or write to another disk", dir.display())),
            Error::Exists { .. } => Some("give another name, or `--force` to overwrite it".into()),
            Error::OtherJournal { .. } => {
                Some("repeat the first command to continue it, or give `--force` to give it up".into())
            }
            Error::Lossy { .. } => Some("convert the checkpoint again without `--dense` and `--experts`".into()),
            Error::MissingDraft { in_store: false, .. } => {
                Some("put the draft file beside the model; export needs both".into())
            }
            Error::MissingDraft { in_store: true, .. } => {
                Some("make the model again, from a file that has its draft beside it; export needs both".into())
            }
            Error::DraftGiven { model: Some(model), .. } => {
                Some(format!("give the model: `{}`; its draft is found from there", model.display()))
            }
            Error::DraftGiven { model: None, .. } => {
                Some("give the model's file and put this one beside it: it is found from there".into())
            }
            Error::NotOurs { .. } => Some("only what `fathom convert` has written can be taken back".into()),
            Error::Gguf(fathom_gguf::Error::ShardMissing { .. } | fathom_gguf::Error::ShardName { .. }) => {
                Some("all shards must lie in one folder, under the names that they were written with".into())
            }
            Error::Checksum { .. } | Error::NotRepresentable { .. } => {
                Some("the file is damaged: convert or copy it again".into())
            }
            _ => None,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn config(field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Config { field: field.into(), problem: problem.into() }
    }
}

fn more(others: &usize) -> String {
    match others {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    }
}
