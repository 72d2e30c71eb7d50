//! The policy of one layer, as `moe_route` reads it.

use crate::kernels::{Policy, sys};

/// What a sequence's tokens follow in one layer; see `csrc/ops/moe_route/args.h`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRouting {
    pub policy: Policy,
    pub k_min: u32,
    pub k_max: u32,
    /// Whether it counts in a layer that chooses by token.
    pub route_hash: bool,
    pub threshold: f32,
    pub beta: f32,
    pub rho: f32,
    pub alpha: f32,
    /// Mean norm of each expert's output: f32 `[n_expert]`, or empty.
    pub expert_norm: Box<[f32]>,
    /// Not zero for experts that are never dropped: u8 `[n_expert]`, or empty.
    pub protected: Box<[u8]>,
}

impl LayerRouting {
    /// Points into `self`.
    pub(super) fn raw(&self) -> sys::fathom_routing {
        let narrow = |k: u32| i32::try_from(k).unwrap_or(i32::MAX);
        sys::fathom_routing {
            policy: self.policy as i32,
            k_min: narrow(self.k_min),
            k_max: narrow(self.k_max),
            route_hash: self.route_hash.into(),
            threshold: self.threshold,
            beta: self.beta,
            rho: self.rho,
            alpha: self.alpha,
            expert_norm: if self.expert_norm.is_empty() { std::ptr::null() } else { self.expert_norm.as_ptr() },
            is_protected: if self.protected.is_empty() { std::ptr::null() } else { self.protected.as_ptr() },
        }
    }

    /// Lengths of its lists that are not empty: each must be the number of experts.
    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        [self.expert_norm.len(), self.protected.len()].into_iter().filter(|&len| len > 0)
    }
}
