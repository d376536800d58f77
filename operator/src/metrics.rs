//! What the operator counts, as OpenMetrics.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// One label: what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// A fixed word.
    pub outcome: &'static str,
}

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciliations by outcome: applied, invalid, failed.
    pub reconciliations: Family<Outcome, Counter>,
    /// Admission requests by outcome: injected, unchanged, skipped, denied, failed.
    pub admissions: Family<Outcome, Counter>,
    /// Time an admission request took.
    pub admission_seconds: Histogram,
    /// Events that were not sent: the queue was full or the server refused them.
    pub events_lost: Counter,
    /// When the webhook's serving certificate expires, in seconds since 1970.
    pub certificate_expiry: Gauge,
    /// 1 while this replica reconciles.
    pub leader: Gauge,
    /// How often it has begun to.
    pub leaderships: Counter,
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("caddy_operator");
        let metrics = Self {
            reconciliations: Family::default(),
            admissions: Family::default(),
            admission_seconds: Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
            events_lost: Counter::default(),
            certificate_expiry: Gauge::default(),
            leader: Gauge::default(),
            leaderships: Counter::default(),
            registry: Registry::default(),
        };
        registry.register("reconciliations", "Reconciliations of CacheClusters", metrics.reconciliations.clone());
        registry.register("admissions", "Admission requests for pods", metrics.admissions.clone());
        registry.register_with_unit(
            "admission",
            "Time an admission request took",
            Unit::Seconds,
            metrics.admission_seconds.clone(),
        );
        registry.register("events_lost", "Events that were not sent", metrics.events_lost.clone());
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the webhook's serving certificate expires",
            metrics.certificate_expiry.clone(),
        );
        registry.register("leader", "1 while this replica reconciles", metrics.leader.clone());
        registry.register("leaderships", "How often this replica began to reconcile", metrics.leaderships.clone());
        // From zero on, so that the first failure is an increase and not a new series.
        for outcome in ["applied", "invalid", "failed"] {
            drop(metrics.reconciliations.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["injected", "unchanged", "skipped", "denied", "failed"] {
            drop(metrics.admissions.get_or_create(&Outcome { outcome }));
        }
        Self { registry, ..metrics }
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_our_prefix_and_their_values() {
        let metrics = Metrics::new();
        metrics.admissions.get_or_create(&Outcome { outcome: "injected" }).inc();
        let text = metrics.text();
        assert!(text.contains("caddy_operator_admissions_total{outcome=\"injected\"} 1"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
