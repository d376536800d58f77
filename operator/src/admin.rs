//! `/healthz`, `/readyz`, `/metrics`: never data.

use crate::{
    http::{Reply, reply, text},
    metrics::Metrics,
};
use http::StatusCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// What must hold before the API server is sent here.
#[derive(Debug, Default)]
pub struct Readiness {
    certificate: AtomicBool,
    cache: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// The webhook has a certificate that the API server trusts.
    pub fn certificate_is_trusted(&self) {
        self.certificate.store(true, Ordering::Relaxed);
    }

    /// CacheClusters and pods have been listed.
    pub fn cache_is_synced(&self) {
        self.cache.store(true, Ordering::Relaxed);
    }

    /// The process is about to end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What is missing; empty when ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if !self.certificate.load(Ordering::Relaxed) {
            missing.push("certificate: not issued yet, or its CA is not in the webhook configuration (see the log)");
        }
        if !self.cache.load(Ordering::Relaxed) {
            missing.push("cache: CacheClusters and pods are not listed yet");
        }
        if self.draining.load(Ordering::Relaxed) {
            missing.push("draining: the process is about to end");
        }
        missing
    }
}

/// Answers one request by its path.
pub fn answer(path: &str, readiness: &Readiness, metrics: &Metrics) -> Reply {
    match path {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let missing = readiness.missing();
            if missing.is_empty() {
                text(StatusCode::OK, "ok\n")
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", missing.join("\n")))
            }
        }
        "/metrics" => {
            reply(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.text())
        }
        _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_certificate_and_cache_and_no_shutdown() {
        let (readiness, metrics) = (Readiness::default(), Metrics::new());
        let status = || answer("/readyz", &readiness, &metrics).status();
        assert_eq!(status(), StatusCode::SERVICE_UNAVAILABLE);
        readiness.certificate_is_trusted();
        assert_eq!(status(), StatusCode::SERVICE_UNAVAILABLE);
        readiness.cache_is_synced();
        assert_eq!(status(), StatusCode::OK);
        readiness.drain();
        assert_eq!(status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer("/healthz", &readiness, &metrics).status(), StatusCode::OK);
    }
}
