//! Every counter, gauge and histogram of the program, created in one place and passed explicitly.
//!
//! Names carry their unit and units are base units (seconds, bytes, tokens). A [`Metrics`] is cheap to clone; clones count
//! into the same numbers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// How a request ended: `stop`, `length`, `cancelled`, `stalled` or `failed`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabel {
    pub reason: &'static str,
}

/// What computed a request: the engine, and the element type of its cached rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EngineLabel {
    pub engine: &'static str,
    pub kv: &'static str,
}

/// The program's metrics. Clones share their numbers.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Requests that reached a model, by how they ended.
    pub requests: Family<EndLabel, Counter>,
    /// Requests that got a sequence, by what computes them.
    pub computed: Family<EngineLabel, Counter>,
    /// Tokens of prompts, cached ones included.
    pub prompt_tokens: Counter,
    /// Tokens of prompts that were not computed again.
    pub cached_tokens: Counter,
    pub generated_tokens: Counter,
    /// Requests that found part of their prompt in the prefix cache.
    pub prefix_hits: Counter,
    /// Cached prefixes that an engine refused to go back to; each was computed again.
    pub prefix_failures: Counter,
    /// Memory held by checkpoints of the prefix caches.
    pub prefix_bytes: Gauge,
    /// Requests waiting for a model to be loaded.
    pub waiting_for_load: Gauge,
    /// Requests waiting for a sequence of a loaded model.
    pub waiting_for_slot: Gauge,
    /// Sequences being computed.
    pub running: Gauge,
    pub models_loaded: Gauge,
    /// Loads, failed ones included.
    pub loads: Counter,
    pub load_seconds: Histogram,
    pub step_seconds: Histogram,
    pub step_tokens: Histogram,
    /// From the request's arrival at the model to its first token.
    pub first_token_seconds: Histogram,
    /// Experts that routers chose, in requests that follow a routing policy; others are not counted.
    pub experts_chosen: Counter,
    /// Those of them that were computed.
    pub experts_computed: Counter,
    /// Weights of the others that were not read for decoded tokens.
    pub expert_bytes_saved: Counter,
    /// Operations of the others.
    pub expert_flops_saved: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        // 0.5 ms (a tiny model) to about 17 min in steps of two.
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 22));
        let mut metrics = Metrics {
            registry: Arc::default(),
            requests: Family::default(),
            computed: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            prefix_hits: Counter::default(),
            prefix_failures: Counter::default(),
            prefix_bytes: Gauge::default(),
            waiting_for_load: Gauge::default(),
            waiting_for_slot: Gauge::default(),
            running: Gauge::default(),
            models_loaded: Gauge::default(),
            loads: Counter::default(),
            load_seconds: seconds(),
            step_seconds: seconds(),
            step_tokens: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            first_token_seconds: seconds(),
            experts_chosen: Counter::default(),
            experts_computed: Counter::default(),
            expert_bytes_saved: Counter::default(),
            expert_flops_saved: Counter::default(),
        };
        let mut r = Registry::with_prefix("fathom");
        r.register("requests", "Requests that reached a model, by how they ended", metrics.requests.clone());
        r.register("computed_requests", "Requests by engine and type of cached rows", metrics.computed.clone());
        r.register("prompt_tokens", "Tokens of prompts, cached ones included", metrics.prompt_tokens.clone());
        r.register("cached_tokens", "Prompt tokens taken from the prefix cache", metrics.cached_tokens.clone());
        r.register("generated_tokens", "Tokens generated", metrics.generated_tokens.clone());
        r.register("prefix_hits", "Requests with a cached prefix", metrics.prefix_hits.clone());
        r.register("prefix_failures", "Cached prefixes that an engine refused", metrics.prefix_failures.clone());
        r.register("prefix_bytes", "Memory of prefix checkpoints in bytes", metrics.prefix_bytes.clone());
        r.register("waiting_for_load", "Requests waiting for a load", metrics.waiting_for_load.clone());
        r.register("waiting_for_slot", "Requests waiting for a sequence", metrics.waiting_for_slot.clone());
        r.register("running", "Sequences being computed", metrics.running.clone());
        r.register("models_loaded", "Models in memory", metrics.models_loaded.clone());
        r.register("loads", "Model loads, failed ones included", metrics.loads.clone());
        r.register("load_seconds", "Time to load a model", metrics.load_seconds.clone());
        r.register("step_seconds", "Time of one engine step", metrics.step_seconds.clone());
        r.register("step_tokens", "Tokens of one engine step", metrics.step_tokens.clone());
        r.register("first_token_seconds", "Time to the first token", metrics.first_token_seconds.clone());
        r.register(
            "experts_chosen",
            "Experts chosen in requests with a routing policy",
            metrics.experts_chosen.clone(),
        );
        r.register("experts_computed", "Experts computed in these requests", metrics.experts_computed.clone());
        let saved = "Bytes of dropped experts that decoding did not read";
        r.register("expert_bytes_saved", saved, metrics.expert_bytes_saved.clone());
        let saved = "Floating point operations of dropped experts";
        r.register("expert_flops_saved", saved, metrics.expert_flops_saved.clone());
        metrics.registry = Arc::new(r);
        metrics
    }

    /// All numbers in the OpenMetrics text format.
    ///
    /// # Errors
    /// Only when formatting into memory fails.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_clone_appear_in_the_text() {
        let metrics = Metrics::new();
        metrics.clone().requests.get_or_create(&EndLabel { reason: "stop" }).inc();
        metrics.step_seconds.observe(0.25);
        let text = metrics.encode().expect("formats");
        assert!(text.contains("fathom_requests_total{reason=\"stop\"} 1\n"), "{text}");
        assert!(text.contains("fathom_step_seconds_sum 0.25\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
