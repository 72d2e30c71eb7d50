//! What a policy did: experts chosen and computed, and what the difference saved.

/// What was computed for one sequence while it followed a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts {
    /// Experts that the router chooses for a token.
    pub n_used: usize,
    /// One entry per layer. Layers that choose by token count, too, though most policies leave them alone.
    pub layers: Vec<LayerCount>,
    /// Weights of dropped experts that were not read for decoded tokens. Tokens of a prompt are computed together and share experts: a dropped one
    /// may have been read for another token, so they count nothing here.
    pub bytes_saved: u64,
    /// Operations that were not done, 2 for each weight of each dropped expert.
    pub flops_saved: u64,
}

/// One layer's part of [`Counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerCount {
    /// Tokens whose experts were computed. The last layer of most steps computes only tokens whose output is wanted.
    pub tokens: u64,
    /// Experts that were computed for them.
    pub kept: u64,
}

impl LayerCount {
    /// Mean number of experts of a token; `None` before there is one.
    pub fn mean(self) -> Option<f64> {
        (self.tokens > 0).then(|| self.kept as f64 / self.tokens as f64)
    }
}

impl Counts {
    /// Experts that were computed.
    pub fn computed(&self) -> u64 {
        self.layers.iter().map(|layer| layer.kept).sum()
    }

    /// Experts that the router chose.
    pub fn chosen(&self) -> u64 {
        self.layers.iter().map(|layer| layer.tokens * self.n_used as u64).sum()
    }

    /// Mean number of experts of a token over all layers; `None` before there is one.
    pub fn mean(&self) -> Option<f64> {
        LayerCount { tokens: self.layers.iter().map(|layer| layer.tokens).sum(), kept: self.computed() }.mean()
    }
}
