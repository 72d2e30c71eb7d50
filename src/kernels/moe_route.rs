//! `moe_route`: which experts compute a token, and with which weight.

use super::{Version, count, or_null, run, sys};

/// How a routing policy chooses among the experts that the router has chosen; see `csrc/ops/moe_route/args.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Keep all.
    Off = sys::FATHOM_ROUTING_OFF as isize,
    /// Keep the first `k_max`.
    TopK = sys::FATHOM_ROUTING_TOPK as isize,
    /// Keep those whose share is at least `threshold` of the largest.
    Rel = sys::FATHOM_ROUTING_REL as isize,
    /// Keep the fewest whose shares sum to `threshold`.
    Mass = sys::FATHOM_ROUTING_MASS as isize,
    /// Keep while the share, corrected by the distance from the best rejected expert, is at least `threshold`.
    Margin = sys::FATHOM_ROUTING_MARGIN as isize,
}

/// The routing policy of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    /// The rule.
    pub policy: Policy,
    /// Experts that are always kept.
    pub k_min: usize,
    /// Experts that may be kept.
    pub k_max: usize,
    /// Whether hash layers follow the policy.
    pub route_hash: bool,
    /// What the rule compares with.
    pub threshold: f32,
    /// Weight of the margin in [`Policy::Margin`].
    pub beta: f32,
    /// Exponent of the renormalisation: 0 keeps the weights, 1 restores their sum.
    pub rho: f32,
    /// Factor of the kept weights of a token that lost an expert.
    pub alpha: f32,
    /// Mean norm of every expert's output.
    pub expert_norm: Option<&'a [f32]>,
    /// Experts that are never dropped, not zero for each.
    pub protected: Option<&'a [u8]>,
}

/// Inputs of [`moe_route`].
#[derive(Debug, Clone, Copy)]
pub struct MoeRoute<'a> {
    /// Experts of the layer.
    pub n_expert: usize,
    /// Experts of a token.
    pub n_used: usize,
    /// Sum of a token's weights.
    pub scale: f32,
    /// f32 `[n_expert, n_tokens]`.
    pub logits: &'a [f32],
    /// f32 `[n_expert]`, for the selection only.
    pub bias: Option<&'a [f32]>,
    /// Hash layers: i32 `[n_used, n_vocab]` and the tokens.
    pub table: Option<(&'a [i32], &'a [i32])>,
    /// The policy of every token; empty: none for all.
    pub routing: &'a [Option<Routing<'a>>],
}

/// Outputs of [`moe_route`].
#[derive(Debug, Clone, PartialEq)]
pub struct Routed {
    /// i32 `[n_used, n_tokens]`, -1 for a dropped expert.
    pub ids: Vec<i32>,
    /// f32 `[n_used, n_tokens]`, 0 for a dropped expert.
    pub weights: Vec<f32>,
    /// Kept experts of every token.
    pub n_active: Vec<i32>,
}

/// Chooses the experts of every token.
///
/// # Panics
/// If a length, a token or an expert of the table does not fit the rest.
pub fn moe_route(version: Version, input: &MoeRoute, nth: usize) -> Routed {
    let MoeRoute { n_expert, n_used, scale, logits, bias, table, routing } = *input;
    assert!(0 < n_used && n_used <= n_expert && n_used <= sys::FATHOM_MOE_ROUTE_MAX_USED as usize);
    assert_eq!(logits.len() % n_expert, 0);
    let n_tokens = logits.len() / n_expert;
    assert!(bias.is_none_or(|bias| bias.len() == n_expert));
    if let Some((table, tokens)) = table {
        assert_eq!((table.len() % n_used, tokens.len()), (0, n_tokens));
        assert!(tokens.iter().all(|&token| usize::try_from(token).is_ok_and(|token| token < table.len() / n_used)));
        assert!(table.iter().all(|&id| usize::try_from(id).is_ok_and(|id| id < n_expert)));
    }
    assert!(routing.is_empty() || routing.len() == n_tokens);
    let policies: Vec<Option<sys::fathom_routing>> =
        routing.iter().map(|r| r.as_ref().map(|r| of(r, n_expert))).collect();
    let pointers: Vec<*const sys::fathom_routing> =
        policies.iter().map(|policy| policy.as_ref().map_or(std::ptr::null(), std::ptr::from_ref)).collect();

    let mut routed = Routed {
        ids: vec![-2; n_used * n_tokens],
        weights: vec![f32::NAN; n_used * n_tokens],
        n_active: vec![-2; n_tokens],
    };
    let args = sys::fathom_moe_route_args {
        n_tokens: count(n_tokens),
        n_expert: count(n_expert),
        n_used: count(n_used),
        scale,
        logits: logits.as_ptr(),
        bias: or_null(bias),
        table: or_null(table.map(|(table, _)| table)),
        tokens: or_null(table.map(|(_, tokens)| tokens)),
        routing: or_null((!pointers.is_empty()).then_some(&pointers)),
        ids: routed.ids.as_mut_ptr(),
        weights: routed.weights.as_mut_ptr(),
        n_active: routed.n_active.as_mut_ptr(),
    };
    // SAFETY: every length and index was compared with the sizes above; `policies` and `pointers` live to the end.
    #[expect(unsafe_code, reason = "a call into csrc")]
    unsafe {
        match version {
            Version::Reference => sys::fathom_moe_route_reference(&raw const args),
            Version::Kernel(isa) => run(isa.table().expect("an available set").moe_route, &args, nth),
        }
    }
    routed
}

fn of(routing: &Routing, n_expert: usize) -> sys::fathom_routing {
    assert!(routing.k_min <= routing.k_max);
    assert!(routing.expert_norm.is_none_or(|norm| norm.len() == n_expert));
    assert!(routing.protected.is_none_or(|protected| protected.len() == n_expert));
    sys::fathom_routing {
        policy: routing.policy as i32,
        k_min: count(routing.k_min),
        k_max: count(routing.k_max),
        route_hash: i32::from(routing.route_hash),
        threshold: routing.threshold,
        beta: routing.beta,
        rho: routing.rho,
        alpha: routing.alpha,
        expert_norm: or_null(routing.expert_norm),
        is_protected: or_null(routing.protected),
    }
}
