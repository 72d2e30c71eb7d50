//! The routing policies of a loaded model: found once, kept by what they contain.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use fathom_gguf::File;

use super::hparams::Hparams;
use crate::engine::routing::{self, Beside, Counts, LayerCount, Profile, RoutingId, Shape, Stamp};
use crate::engine::{Error, Routing, Settings};
use crate::ggml::LayerRouting;

/// Policies that are kept: more than a server's users want, few enough that a client who asks for ever new numbers costs nothing.
const MOST_KNOWN: usize = 32;

/// A policy for this model.
pub(super) struct Followed {
    pub(super) id: RoutingId,
    /// One entry per layer.
    pub(super) layers: Vec<LayerRouting>,
}

/// What was asked for, and what it means.
struct Known {
    routing: Routing,
    /// Of the file that it came from: a new calibration replaces it.
    stamp: Option<Stamp>,
    policy: Arc<Followed>,
}

pub(super) struct Policies {
    file: Rc<File>,
    beside: Beside,
    shape: Shape,
    /// Of the router; hashing it takes a while, so only when a profile asks.
    fingerprint: OnceCell<String>,
    /// The most recently used first.
    known: Vec<Known>,
    /// What sequences follow unless they are told otherwise.
    default: Option<Arc<Followed>>,
    costs: Costs,
}

/// What one expert costs.
struct Costs {
    /// Bytes of the weights of one expert, of each layer.
    bytes: Vec<u64>,
    /// Operations of one expert for a token: 2 for each weight.
    flops: u64,
}

impl Policies {
    /// # Errors
    /// The policy that all sequences shall follow does not fit the model.
    pub(super) fn new(file: &Rc<File>, hparams: &Hparams, settings: &Settings) -> Result<Policies, Error> {
        let n_layer = hparams.layers.len();
        let shape = Shape { n_layer, n_expert: hparams.n_expert, n_used: hparams.n_used };
        let expert_bytes = |layer: usize| {
            let part = |name| file.opt_tensor(&format!("blk.{layer}.ffn_{name}_exps.weight")).map_or(0, |t| t.bytes);
            ["gate", "up", "down"].map(part).iter().sum::<u64>() / hparams.n_expert as u64
        };
        let costs = Costs {
            bytes: (0..n_layer).map(expert_bytes).collect(),
            flops: 2 * 3 * hparams.n_embd as u64 * hparams.n_ff as u64,
        };
        let (fingerprint, known) = (OnceCell::new(), Vec::new());
        let beside = Beside::new(settings.profiles.clone().unwrap_or_else(|| routing::sidecar(file.path())));
        let file = Rc::clone(file);
        let mut policies = Policies { file, beside, shape, fingerprint, known, default: None, costs };
        policies.default = policies.find(&settings.routing)?;
        Ok(policies)
    }

    /// What empty sequences follow.
    pub(super) fn default(&self) -> Option<Arc<Followed>> {
        self.default.clone()
    }

    /// # Errors
    /// It does not fit the model.
    pub(super) fn find(&mut self, routing: &Routing) -> Result<Option<Arc<Followed>>, Error> {
        if *routing == Routing::Off {
            return Ok(None);
        }
        let stamp = self.stamp(routing);
        if let Some(at) = self.known.iter().position(|known| known.routing == *routing) {
            let known = self.known.remove(at);
            if known.stamp == stamp {
                self.known.insert(0, known);
                return Ok(Some(Arc::clone(&self.known[0].policy)));
            }
        }
        let found = routing::resolve(routing, &self.file, &self.beside, self.shape, &self.fingerprint)?;
        let Some(profile) = found else { return Ok(None) };
        let policy = Arc::new(Followed { id: profile.id(), layers: layers(&profile, self.shape) });
        self.known.insert(0, Known { routing: routing.clone(), stamp, policy: Arc::clone(&policy) });
        self.known.truncate(MOST_KNOWN);
        Ok(Some(policy))
    }

    /// The policy of an id that [`Policies::find`] gave.
    pub(super) fn get(&self, id: RoutingId) -> Result<Option<Arc<Followed>>, Error> {
        if id == RoutingId::OFF {
            return Ok(None);
        }
        let policies = self.known.iter().map(|known| &known.policy).chain(&self.default);
        let found = policies.into_iter().find(|policy| policy.id == id);
        found
            .cloned()
            .map(Some)
            .ok_or_else(|| Error::Batch("a routing policy was set that was not asked for".to_owned()))
    }

    /// What a layer adds to its experts' scores when it chooses; of one that chooses by token nothing.
    pub(super) fn selection_bias(&self, layer: usize) -> Vec<f32> {
        let tensor = self.file.opt_tensor(&format!("blk.{layer}.exp_probs_b.bias"));
        let bytes = tensor.map_or(&[][..], |tensor| self.file.data(tensor));
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// Of the file that profiles are read from.
    fn stamp(&self, routing: &Routing) -> Option<Stamp> {
        match routing {
            Routing::Named { file: Some(file), .. } => Stamp::of(file),
            Routing::Named { .. } | Routing::Margin => self.beside.stamp(),
            _ => None,
        }
    }

    /// Nothing counted yet.
    pub(super) fn no_counts(&self) -> Counts {
        Counts {
            n_used: self.shape.n_used,
            layers: vec![LayerCount::default(); self.shape.n_layer],
            bytes_saved: 0,
            flops_saved: 0,
        }
    }

    /// Counts one token of `layer` that kept some of its experts. `alone`: its sequence computed no other token in the step, so that a dropped
    /// expert was not read for it; among the tokens of a prompt another one may have needed it.
    pub(super) fn count(&self, counts: &mut Counts, layer: usize, kept: u32, alone: bool) {
        let dropped = (self.shape.n_used as u64).saturating_sub(kept.into());
        counts.layers[layer].tokens += 1;
        counts.layers[layer].kept += u64::from(kept);
        counts.flops_saved += dropped * self.costs.flops;
        if alone {
            counts.bytes_saved += dropped * self.costs.bytes[layer];
        }
    }
}

/// A checked profile in the kernel's form.
fn layers(profile: &Profile, shape: Shape) -> Vec<LayerRouting> {
    let n_expert = shape.n_expert;
    let of = |(layer, rule): (usize, &routing::LayerRule)| {
        let experts = layer * n_expert..(layer + 1) * n_expert;
        let mut protected = Vec::new();
        for expert in profile.protected.iter().map(|&expert| expert as usize).filter(|expert| experts.contains(expert))
        {
            protected.resize(n_expert, 0);
            protected[expert - experts.start] = 1;
        }
        LayerRouting {
            policy: profile.policy,
            k_min: rule.k_min,
            k_max: rule.k_max,
            route_hash: profile.route_hash,
            threshold: rule.theta,
            beta: rule.beta,
            rho: rule.rho,
            alpha: rule.alpha,
            expert_norm: profile.expert_norm.get(experts.clone()).unwrap_or_default().into(),
            protected: protected.into(),
        }
    };
    profile.layers.iter().enumerate().map(of).collect()
}
