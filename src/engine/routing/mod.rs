//! Routing policies: how many of the experts that the router chose are computed for a token.
//!
//! [`Routing`] is what somebody asks for, in one form everywhere (a request's option, a Modelfile, a flag); [`Profile`] is what an engine
//! follows: a rule with its numbers for every layer. The simple forms are a rule with the same number in all layers; a calibrated profile comes from a
//! file beside the model or from the model's own keys. [`resolve`] makes the one from the other and refuses what does not fit
//! the model. `off` is the default and the reference: no file switches anything on by being there.
//!
//! Always compiled: options are read by builds whose engines cannot follow them, and those say so. What the rules compute is the contract of
//! `csrc/ops/moe_route/args.h`.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

mod beside;
mod counts;
mod fingerprint;
mod profile;

pub use crate::kernels::Policy;
/// How the file name of profiles ends; nothing else is opened as one, whoever names it. Where a model's profiles lie.
pub use crate::store::{ROUTING_SUFFIX as SUFFIX, routing_beside as sidecar};
pub use beside::{Beside, Stamp};
pub use counts::{Counts, LayerCount};
pub use fingerprint::fingerprint;
pub use profile::{Calibration, LayerRule, Profile, Profiles, Shape};

/// Least experts of a token under the rules that drop by a threshold, unless a profile says otherwise.
pub const DEFAULT_K_MIN: u32 = 2;

/// The profile that is meant when only the rule is named.
pub const DEFAULT_PROFILE: &str = "balanced";

/// Longest name of a profile.
const MAX_NAME_BYTES: usize = 64;

/// Which of the chosen experts are computed, as it is asked for.
///
/// ```
/// use fathom::engine::Routing;
/// assert_eq!("topk:4".parse::<Routing>().unwrap(), Routing::TopK(4));
/// assert_eq!("rel:0.50".parse::<Routing>().unwrap().to_string(), "rel:0.5");
/// assert!("topk".parse::<Routing>().is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Routing {
    /// All of them.
    #[default]
    Off,
    /// The first so many, by weight.
    TopK(u32),
    /// Those whose weight is at least this part of the largest; [`DEFAULT_K_MIN`] in any case.
    Rel(f32),
    /// The fewest whose weights are this part of the sum; [`DEFAULT_K_MIN`] in any case.
    Mass(f32),
    /// By the thresholds of the model's profile for this rule.
    Margin,
    /// A calibrated profile by its name, of this file or of what comes with the model; without a name, the one of a file that has one, or
    /// [`DEFAULT_PROFILE`].
    Named { file: Option<PathBuf>, name: Option<String> },
    /// This one. Has no written form: for programs that make profiles.
    Given(Arc<Profile>),
}

/// Why a policy cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "`{value}` is not a routing policy: expected off, topk:K, rel:T, mass:P, margin, the name of a profile or FILE.routing.json#NAME"
    )]
    Syntax { value: String },
    #[error("`{value}` is not a routing policy: {reason}")]
    Value { value: String, reason: &'static str },
    #[error(
        "`topk:{k}` does not fit: this model computes {n_used} experts for a token, expected topk:1 to topk:{n_used}"
    )]
    TopK { k: u32, n_used: usize },
    #[error(
        "`{asked}` needs a routing profile, and this model has none: no `fathom.routing.policy` among its keys and no file `{}`",
        sidecar.display()
    )]
    NoProfiles { asked: String, sidecar: PathBuf },
    #[error("there is no routing profile {wanted} for this model; it has {}", list(known))]
    NoProfile { wanted: String, known: Vec<String> },
    #[error("`{}` cannot be a file of routing profiles: its name does not end in {SUFFIX}", .0.display())]
    FileName(PathBuf),
    #[error("cannot {what} the routing profiles `{}`: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("routing profile `{name}` cannot be used: {reason}")]
    Profile { name: String, reason: String },
    #[error("`{}` is not a file of routing profiles: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// Its numbers are about another model's router.
    #[error(
        "routing profile `{name}` was made for another model: its fingerprint is {found}, this model's is {expected}"
    )]
    Fingerprint { name: String, found: String, expected: String },
    #[error("the router cannot be read: {0}")]
    Router(String),
    #[error(transparent)]
    Gguf(#[from] fathom_gguf::Error),
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl FromStr for Routing {
    type Err = Error;

    /// The written form. Whether it fits a model is not known here.
    fn from_str(text: &str) -> Result<Routing, Error> {
        let syntax = || Error::Syntax { value: text.to_owned() };
        let part = |number: &str| -> Result<f32, Error> {
            let number: f32 = number.parse().map_err(|_| syntax())?;
            if (0.0..=1.0).contains(&number) {
                return Ok(number);
            }
            Err(Error::Value { value: text.to_owned(), reason: "its number must be 0 to 1" })
        };
        if is_file(text) {
            let (file, name) = text.rsplit_once('#').map_or((text, None), |(file, name)| (file, Some(name)));
            if name.is_some_and(|name| !is_name(name)) {
                return Err(syntax());
            }
            if !file.ends_with(SUFFIX) {
                return Err(Error::FileName(file.into()));
            }
            return Ok(Routing::Named { file: Some(file.into()), name: name.map(str::to_owned) });
        }
        match text.split_once(':') {
            Some(("topk", k)) => match k.parse() {
                Ok(0) => Err(Error::Value { value: text.to_owned(), reason: "it must keep at least 1 expert" }),
                Ok(k) => Ok(Routing::TopK(k)),
                Err(_) => Err(syntax()),
            },
            Some(("rel", number)) => Ok(Routing::Rel(part(number)?)),
            Some(("mass", number)) => Ok(Routing::Mass(part(number)?)),
            Some(_) => Err(syntax()),
            None => match text {
                "off" => Ok(Routing::Off),
                "margin" => Ok(Routing::Margin),
                // A rule without its number is a slip, not the name of a profile.
                "topk" | "rel" | "mass" => Err(syntax()),
                name if is_name(name) => Ok(Routing::Named { file: None, name: Some(name.to_owned()) }),
                _ => Err(syntax()),
            },
        }
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Routing::Off => f.pad("off"),
            Routing::TopK(k) => f.pad(&format!("topk:{k}")),
            Routing::Rel(part) => f.pad(&format!("rel:{part}")),
            Routing::Mass(part) => f.pad(&format!("mass:{part}")),
            Routing::Margin => f.pad("margin"),
            Routing::Named { file, name } => {
                let file = file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
                match name {
                    Some(name) if file.is_empty() => f.pad(name),
                    Some(name) => f.pad(&format!("{file}#{name}")),
                    None => f.pad(&file),
                }
            }
            Routing::Given(_) => f.pad("given"),
        }
    }
}

impl Routing {
    /// The file that it names, if it does: whoever passes a request on decides whether its sender may name files.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Routing::Named { file, .. } => file.as_deref(),
            _ => None,
        }
    }

    /// The same with its file, if it names one, counted from `folder`.
    pub fn within(self, folder: &Path) -> Routing {
        match self {
            Routing::Named { file: Some(file), name } => Routing::Named { file: Some(folder.join(file)), name },
            other => other,
        }
    }
}

/// Tells policies apart that do not compute the same. What was computed under one is no prefix for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RoutingId(pub(crate) [u8; 32]);

impl RoutingId {
    /// All experts.
    pub const OFF: RoutingId = RoutingId([0; 32]);
}

/// Whether a text names a file, and no profile.
fn is_file(text: &str) -> bool {
    text.contains('/') || text.contains(SUFFIX)
}

/// Whether a profile can be called so: lower-case letters, digits, `-` and `_`, beginning with a letter.
pub(crate) fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    text.len() <= MAX_NAME_BYTES && text.bytes().all(plain) && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// For engines that compute every chosen expert.
///
/// # Errors
/// [`crate::engine::Error::Unsupported`] for anything but [`Routing::Off`].
pub(super) fn only_off(engine: &'static str, routing: &Routing) -> Result<(), super::Error> {
    if *routing == Routing::Off {
        return Ok(());
    }
    let what = format!("follow routing `{routing}`: it computes every chosen expert; engine `native` can");
    Err(super::Error::Unsupported { engine, what })
}

/// What `routing` means for the model in `file`; `None` = off. `beside` are the profiles that come with it, `shape` is the model's, `own` its
/// [`fingerprint()`], which is made when a profile asks for it first.
///
/// # Errors
/// [`Error`]: a number that the model does not have, a profile that is not there, damaged or made for another model.
pub fn resolve(
    routing: &Routing,
    file: &fathom_gguf::File,
    beside: &Beside,
    shape: Shape,
    own: &OnceCell<String>,
) -> Result<Option<Arc<Profile>>, Error> {
    let uniform = |policy, theta| Ok(Some(Arc::new(Profile::uniform(policy, theta, shape))));
    match routing {
        Routing::Off => Ok(None),
        Routing::TopK(k) if *k as usize > shape.n_used => Err(Error::TopK { k: *k, n_used: shape.n_used }),
        Routing::TopK(k) => Ok(Some(Arc::new(Profile::top_k(*k, shape)))),
        Routing::Rel(part) => uniform(Policy::Rel, *part),
        Routing::Mass(part) => uniform(Policy::Mass, *part),
        Routing::Given(profile) => {
            profile.check("given", shape)?;
            Ok(Some(Arc::clone(profile)))
        }
        Routing::Margin | Routing::Named { .. } => {
            let (name, profile) = find(routing, file, beside)?;
            profile.check(&name, shape)?;
            let expected = match own.get() {
                Some(expected) => expected,
                None => {
                    let made = fingerprint(file)?;
                    own.get_or_init(|| made)
                }
            };
            if profile.fingerprint != *expected {
                return Err(Error::Fingerprint { name, found: profile.fingerprint, expected: expected.clone() });
            }
            Ok(Some(Arc::new(profile)))
        }
    }
}

/// The profile that is meant, of the file that `routing` names or of those that come with the model. The model's own goes before one of the
/// same name beside it.
fn find(routing: &Routing, file: &fathom_gguf::File, beside: &Beside) -> Result<(String, Profile), Error> {
    if let Some(path) = routing.file() {
        return pick(routing, Profiles::load(path)?.profiles.iter().collect());
    }
    let there = beside.profiles()?;
    let own = Profile::from_metadata(file.metadata())?;
    if there.is_none() && own.is_none() {
        return Err(Error::NoProfiles { asked: routing.to_string(), sidecar: beside.path().to_owned() });
    }
    let mut all: BTreeMap<&String, &Profile> = there.iter().flat_map(|there| &there.profiles).collect();
    all.extend(own.iter().map(|(name, profile)| (name, profile)));
    pick(routing, all)
}

fn pick(routing: &Routing, mut all: BTreeMap<&String, &Profile>) -> Result<(String, Profile), Error> {
    let wanted = match routing {
        Routing::Named { name: Some(name), .. } => format!("`{name}`"),
        Routing::Margin => {
            all.retain(|_, profile| profile.policy == Policy::Margin);
            "for the rule `margin`".to_owned()
        }
        _ => format!("called `{DEFAULT_PROFILE}`"),
    };
    let default = DEFAULT_PROFILE.to_owned();
    let name = match (routing, all.first_key_value()) {
        (Routing::Named { name: Some(name), .. }, _) => name,
        (_, Some((&only, _))) if all.len() == 1 => only,
        _ => &default,
    };
    match all.get(name) {
        Some(&profile) => Ok((name.clone(), profile.clone())),
        None => Err(Error::NoProfile { wanted, known: all.into_keys().cloned().collect() }),
    }
}

#[cfg(test)]
mod tests;
