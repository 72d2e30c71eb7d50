//! Calibrated profiles: their numbers, their file, their keys in a GGUF file.
//!
//! The names of fields and keys, and their meaning, are those of routing-and-sparse-attention.md A.5.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use fathom_gguf::{Metadata, Value};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{DEFAULT_K_MIN, Error, Policy, RoutingId, SUFFIX, is_name};

/// Version of the numbers' meaning.
const VERSION: u32 = 1;

/// Largest file that is read: three profiles with norms for 61 layers of 384 experts are 1 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Most profiles in a file.
const MAX_PROFILES: usize = 64;

/// The words for [`Policy`] in files.
const POLICIES: &[(&str, Policy)] =
    &[("topk", Policy::TopK), ("rel", Policy::Rel), ("mass", Policy::Mass), ("margin", Policy::Margin)];

/// What a profile must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers, drafts not counted.
    pub n_layer: usize,
    /// Experts of a layer.
    pub n_expert: usize,
    /// Experts that the router chooses for a token.
    pub n_used: usize,
}

/// A rule with its numbers for every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The rule; never [`Policy::Off`].
    pub policy: Policy,
    /// Of the router that the numbers are about: [`super::fingerprint()`]. Checked for profiles of files and keys.
    pub fingerprint: String,
    /// One entry per layer.
    pub layers: Vec<LayerRule>,
    /// Mean norm of each expert's output: f32 `[n_expert, n_layer]`; empty = the same for all.
    pub expert_norm: Vec<f32>,
    /// Experts that are never dropped, each as `layer * n_expert + expert`.
    pub protected: Vec<u32>,
    /// Whether layers that choose by token follow the rule too.
    pub route_hash: bool,
    /// What was measured when it was made.
    pub calibration: Option<Calibration>,
}

/// The numbers of one layer; see `csrc/ops/moe_route/args.h` for the formulas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerRule {
    /// Experts that are kept in any case, from 1.
    pub k_min: u32,
    /// Experts that may be kept, at most those that the router chooses; `topk` keeps so many.
    pub k_max: u32,
    /// What the rule compares with: the part of the largest share (`rel`), of the sum (`mass`), or of `margin`'s sum. `topk` has none.
    pub theta: f32,
    /// Weight of the distance from the best rejected expert, in `margin`.
    pub beta: f32,
    /// Exponent of the renormalisation: 0 keeps the weights of kept experts, 1 restores the sum of all.
    pub rho: f32,
    /// Factor of the weights of a token that lost an expert.
    pub alpha: f32,
}

/// How good a profile was on text that it was not made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calibration {
    /// Tokens of the trace.
    pub tokens: u64,
    /// Experts of a token in the layers that follow the rule.
    pub mean_k: f64,
    /// Mean divergence from all experts, nats for each token.
    pub kl: f64,
    /// 99th percentile of it.
    pub kl_p99: f64,
    /// Part of the tokens whose most likely next token stays.
    pub top1: f64,
    /// Perplexity over that of all experts.
    pub ppl_ratio: f64,
    /// SHA-256 of the text, hexadecimal.
    pub text_hash: String,
}

/// The profiles of one model, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profiles {
    pub profiles: BTreeMap<String, Profile>,
}

impl LayerRule {
    /// Keeps `k_min` to `k_max` by a threshold, and restores the sum of weights.
    pub(super) fn new(k_min: u32, k_max: u32, theta: f32) -> LayerRule {
        LayerRule { k_min, k_max, theta, beta: 0.0, rho: 1.0, alpha: 1.0 }
    }
}

impl Profile {
    /// The same threshold in every layer, no norms, nothing protected, hash layers exempt.
    pub fn uniform(policy: Policy, theta: f32, shape: Shape) -> Profile {
        let n_used = shape.n_used as u32;
        Profile::same(policy, LayerRule::new(DEFAULT_K_MIN.min(n_used), n_used, theta), shape)
    }

    /// A fixed number of experts in every layer.
    pub fn top_k(k: u32, shape: Shape) -> Profile {
        Profile::same(Policy::TopK, LayerRule::new(k, k, 0.0), shape)
    }

    fn same(policy: Policy, rule: LayerRule, shape: Shape) -> Profile {
        Profile {
            policy,
            fingerprint: String::new(),
            layers: vec![rule; shape.n_layer],
            expert_norm: Vec::new(),
            protected: Vec::new(),
            route_hash: false,
            calibration: None,
        }
    }

    /// What two states must share to be mixed: equal for profiles that keep the same experts with the same weights.
    pub fn id(&self) -> RoutingId {
        let mut hash = Sha256::new();
        hash.update([self.policy as u8, self.route_hash.into()]);
        for rule in &self.layers {
            hash.update(rule.k_min.to_le_bytes());
            hash.update(rule.k_max.to_le_bytes());
            [rule.theta, rule.beta, rule.rho, rule.alpha].iter().for_each(|number| hash.update(number.to_le_bytes()));
        }
        hash.update((self.expert_norm.len() as u64).to_le_bytes());
        self.expert_norm.iter().for_each(|norm| hash.update(norm.to_le_bytes()));
        self.protected.iter().for_each(|expert| hash.update(expert.to_le_bytes()));
        RoutingId(hash.finalize().into())
    }

    /// Whether a model of this shape can follow it; `name` is for the error. The fingerprint is not looked at.
    ///
    /// # Errors
    /// [`Error::Profile`] with the first number that is out of range.
    pub fn check(&self, name: &str, shape: Shape) -> Result<(), Error> {
        let bad = |reason: String| Err(Error::Profile { name: name.to_owned(), reason });
        let Shape { n_layer, n_expert, n_used } = shape;
        if self.layers.len() != n_layer {
            return bad(format!("it has numbers for {} layers, the model has {n_layer}", self.layers.len()));
        }
        if !self.expert_norm.is_empty() && self.expert_norm.len() != n_layer * n_expert {
            let n = self.expert_norm.len();
            return bad(format!("it has {n} expert norms, expected {n_layer} layers of {n_expert}"));
        }
        if let Some(norm) = self.expert_norm.iter().find(|norm| !(norm.is_finite() && **norm > 0.0)) {
            return bad(format!("an expert norm is {norm}"));
        }
        if let Some(expert) = self.protected.iter().find(|&&expert| expert as usize >= n_layer * n_expert) {
            return bad(format!("it protects expert {expert} of {}", n_layer * n_expert));
        }
        for (layer, rule) in self.layers.iter().enumerate() {
            if let Some(reason) = rule.fault(self.policy, n_used) {
                return bad(format!("layer {layer}: {reason}"));
            }
        }
        if self.policy == Policy::Off {
            return bad("it has no rule".to_owned());
        }
        Ok(())
    }

    /// Reads the profile that a model file carries, and its name.
    ///
    /// # Errors
    /// Keys of a wrong type, arrays of different lengths, an unknown version or rule.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<(String, Profile)>, Error> {
        const DEFAULT_NAME: &str = "embedded";
        let key = |field: &str| format!("fathom.routing.{field}");
        let Some(policy) = metadata.opt_str(&key("policy"))? else { return Ok(None) };
        let name = metadata.opt_str(&key("name"))?.unwrap_or(DEFAULT_NAME).to_owned();
        let number = |value: i64| {
            let wrong = |_| Error::Profile { name: name.clone(), reason: format!("{value} is no number of experts") };
            u32::try_from(value).map_err(wrong)
        };
        let numbers = |field: &str| metadata.integers(&key(field))?.into_iter().map(number).collect::<Result<_, _>>();
        let floats = |field: &str| Ok::<_, Error>(metadata.f32s(&key(field))?.to_vec());
        let protected = metadata.opt_integers(&key("protected"))?.unwrap_or_default();
        let calibration = match metadata.opt_u64(&key("calib.tokens"))? {
            None => None,
            Some(tokens) => {
                let float = |field: &str| Ok::<_, Error>(f64::from(metadata.f32(&key(field))?));
                Some(Calibration {
                    tokens,
                    mean_k: float("calib.mean_k")?,
                    kl: float("calib.kl")?,
                    kl_p99: float("calib.kl_p99")?,
                    top1: float("calib.top1")?,
                    ppl_ratio: float("calib.ppl_ratio")?,
                    text_hash: metadata.str(&key("calib.text_hash"))?.to_owned(),
                })
            }
        };
        let wire = Wire {
            version: metadata.u32(&key("version"))?,
            model_fingerprint: metadata.str(&key("model_fingerprint"))?.to_owned(),
            policy: policy.to_owned(),
            kmin: numbers("kmin")?,
            kmax: numbers("kmax")?,
            theta: floats("theta")?,
            beta: floats("beta")?,
            rho: floats("rho")?,
            alpha: floats("alpha")?,
            expert_norm: metadata.opt_f32s(&key("expert_norm"))?.unwrap_or_default().to_vec(),
            protected: protected.into_iter().map(number).collect::<Result<_, _>>()?,
            route_hash: metadata.opt_bool(&key("route_hash"))?.unwrap_or(false),
            calib: calibration,
        };
        let profile = wire.read(&name)?;
        Ok(Some((name, profile)))
    }

    /// Writes it into the keys of a model file, under which [`Profile::from_metadata`] finds it. A file carries one.
    pub fn to_metadata(&self, name: &str, metadata: &mut Metadata) {
        let mut set = |field: &str, value: Value| {
            metadata.insert(format!("fathom.routing.{field}"), value);
        };
        let wire = Wire::from(self);
        set("version", wire.version.into());
        set("name", name.into());
        set("model_fingerprint", wire.model_fingerprint.into());
        set("policy", wire.policy.into());
        set("kmin", wire.kmin.into());
        set("kmax", wire.kmax.into());
        for (field, values) in [("theta", wire.theta), ("beta", wire.beta), ("rho", wire.rho), ("alpha", wire.alpha)] {
            set(field, values.into());
        }
        if !wire.expert_norm.is_empty() {
            set("expert_norm", wire.expert_norm.into());
        }
        if !wire.protected.is_empty() {
            set("protected", wire.protected.into());
        }
        if wire.route_hash {
            set("route_hash", true.into());
        }
        if let Some(calib) = wire.calib {
            set("calib.tokens", calib.tokens.into());
            set("calib.text_hash", calib.text_hash.into());
            for (field, value) in [
                ("calib.mean_k", calib.mean_k),
                ("calib.kl", calib.kl),
                ("calib.kl_p99", calib.kl_p99),
                ("calib.top1", calib.top1),
                ("calib.ppl_ratio", calib.ppl_ratio),
            ] {
                set(field, (value as f32).into());
            }
        }
    }
}

impl LayerRule {
    /// What is wrong with it in a layer whose router chooses `n_used` experts.
    fn fault(&self, policy: Policy, n_used: usize) -> Option<String> {
        let LayerRule { k_min, k_max, theta, beta, rho, alpha } = *self;
        if !(1 <= k_min && k_min <= k_max && k_max as usize <= n_used) {
            return Some(format!("it keeps {k_min} to {k_max} experts, the router chooses {n_used}"));
        }
        let theta_fits = match policy {
            Policy::Rel | Policy::Mass => (0.0..=1.0).contains(&theta),
            Policy::Off | Policy::TopK | Policy::Margin => theta.is_finite(),
        };
        let part = |value: f32| (0.0..=1.0).contains(&value);
        let faults = [
            ("theta", theta, theta_fits),
            ("beta", beta, beta.is_finite()),
            ("rho", rho, part(rho)),
            ("alpha", alpha, alpha.is_finite() && alpha > 0.0),
        ];
        faults.into_iter().find(|(_, _, fits)| !fits).map(|(name, value, _)| format!("{name} is {value}"))
    }
}

impl Profiles {
    /// Reads a file of profiles. Whether they fit a model is for [`Profile::check`] and the fingerprint to say.
    ///
    /// # Errors
    /// [`Error::FileName`] for a name with another ending, [`Error::Io`], [`Error::File`] and [`Error::Profile`] for another content.
    pub fn load(path: &Path) -> Result<Profiles, Error> {
        if !path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
            return Err(Error::FileName(path.to_owned()));
        }
        Profiles::read(path)
    }

    /// As [`Profiles::load`], whatever the file is called.
    pub(super) fn read(path: &Path) -> Result<Profiles, Error> {
        let io = |source| Error::Io { what: "read", path: path.to_owned(), source };
        let bad = |reason: String| Error::File { path: path.to_owned(), reason };
        let metadata = std::fs::metadata(path).map_err(io)?;
        // Not a pipe or a device, which may block or never end.
        if !metadata.is_file() {
            return Err(bad("it is not a regular file".to_owned()));
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(bad(format!("it has {} bytes, at most {MAX_FILE_BYTES} are read", metadata.len())));
        }
        let file: File = serde_json::from_slice(&std::fs::read(path).map_err(io)?).map_err(|e| bad(e.to_string()))?;
        if file.schema != 1 {
            return Err(bad(format!("its schema is {}, expected 1", file.schema)));
        }
        if file.profiles.len() > MAX_PROFILES {
            return Err(bad(format!("it has {} profiles, at most {MAX_PROFILES} are read", file.profiles.len())));
        }
        if let Some(name) = file.profiles.keys().find(|name| !is_name(name)) {
            return Err(bad(format!(
                "`{name}` is no name for a profile: expected lower-case letters, digits, - and _"
            )));
        }
        let read = |(name, wire): (String, Wire)| wire.read(&name).map(|profile| (name, profile));
        Ok(Profiles { profiles: file.profiles.into_iter().map(read).collect::<Result<_, _>>()? })
    }

    /// Writes a file of profiles, under another name first, so that no reader sees half of it.
    ///
    /// # Errors
    /// [`Error::FileName`], [`Error::File`] for names that cannot be read back, [`Error::Profile`] for numbers that cannot, [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        if !path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
            return Err(Error::FileName(path.to_owned()));
        }
        if let Some(name) = self.profiles.keys().find(|name| !is_name(name)) {
            return Err(Error::File { path: path.to_owned(), reason: format!("`{name}` is no name for a profile") });
        }
        for (name, profile) in &self.profiles {
            let mut numbers = profile.layers.iter().flat_map(|rule| [rule.theta, rule.beta, rule.rho, rule.alpha]);
            if numbers.any(|number| !number.is_finite()) || profile.policy == Policy::Off {
                let reason = "it has a number that is not finite, or no rule".to_owned();
                return Err(Error::Profile { name: name.clone(), reason });
            }
        }
        let profiles = self.profiles.iter().map(|(name, profile)| (name.clone(), Wire::from(profile))).collect();
        let io = |source| Error::Io { what: "write", path: path.to_owned(), source };
        let mut text = serde_json::to_string(&File { schema: 1, profiles }).map_err(|e| io(e.into()))?;
        text.push('\n');
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut unfinished = tempfile::Builder::new();
        #[cfg(unix)]
        unfinished.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = unfinished.prefix(".fathom-routing-").tempfile_in(folder).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.persist(path).map_err(|error| io(error.error))?;
        Ok(())
    }
}

/// A file of profiles, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: u32,
    profiles: BTreeMap<String, Wire>,
}

/// A profile as it is written: columns over the layers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    model_fingerprint: String,
    policy: String,
    kmin: Vec<u32>,
    kmax: Vec<u32>,
    theta: Vec<f32>,
    beta: Vec<f32>,
    rho: Vec<f32>,
    alpha: Vec<f32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    expert_norm: Vec<f32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    protected: Vec<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    route_hash: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    calib: Option<Calibration>,
}

impl From<&Profile> for Wire {
    fn from(profile: &Profile) -> Wire {
        let column = |of: fn(&LayerRule) -> f32| profile.layers.iter().map(of).collect();
        let word = POLICIES.iter().find(|(_, policy)| *policy == profile.policy).map_or("off", |(word, _)| word);
        Wire {
            version: VERSION,
            model_fingerprint: profile.fingerprint.clone(),
            policy: word.to_owned(),
            kmin: profile.layers.iter().map(|rule| rule.k_min).collect(),
            kmax: profile.layers.iter().map(|rule| rule.k_max).collect(),
            theta: column(|rule| rule.theta),
            beta: column(|rule| rule.beta),
            rho: column(|rule| rule.rho),
            alpha: column(|rule| rule.alpha),
            expert_norm: profile.expert_norm.clone(),
            protected: profile.protected.clone(),
            route_hash: profile.route_hash,
            calib: profile.calibration.clone(),
        }
    }
}

impl Wire {
    fn read(self, name: &str) -> Result<Profile, Error> {
        let bad = |reason: String| Error::Profile { name: name.to_owned(), reason };
        if self.version != VERSION {
            return Err(bad(format!("its version is {}, expected {VERSION}", self.version)));
        }
        let policy = POLICIES.iter().find(|(word, _)| *word == self.policy).map(|(_, policy)| *policy);
        let policy =
            policy.ok_or_else(|| bad(format!("`{}` is no rule: expected topk, rel, mass or margin", self.policy)))?;
        let n_layer = self.kmin.len();
        let columns = [&self.theta, &self.beta, &self.rho, &self.alpha];
        if self.kmax.len() != n_layer || columns.iter().any(|column| column.len() != n_layer) {
            return Err(bad(format!("its columns have different lengths; kmin has {n_layer} layers")));
        }
        let layers = (0..n_layer).map(|layer| LayerRule {
            k_min: self.kmin[layer],
            k_max: self.kmax[layer],
            theta: self.theta[layer],
            beta: self.beta[layer],
            rho: self.rho[layer],
            alpha: self.alpha[layer],
        });
        Ok(Profile {
            policy,
            layers: layers.collect(),
            fingerprint: self.model_fingerprint,
            expert_norm: self.expert_norm,
            protected: self.protected,
            route_hash: self.route_hash,
            calibration: self.calib,
        })
    }
}
