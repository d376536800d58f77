//! One reading of a process's OpenMetrics text.

use anyhow::{Result, ensure};

use super::cluster::{Cluster, Pod};

/// The sidecar's admin port.
const PORT: u16 = 9464;

/// Samples, as the process printed them.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Reads the sidecar of a pod, through the API server.
    pub fn of(cluster: &Cluster, pod: &Pod) -> Result<Self> {
        let path = format!("/api/v1/namespaces/{}/pods/{}:{PORT}/proxy/metrics", pod.namespace, pod.name);
        let text = cluster.kubectl(["get", "--raw", &path])?;
        ensure!(text.contains("# EOF"), "not OpenMetrics: {text}");
        Ok(Self(text))
    }

    /// The sum of a counter's samples that carry all of the labels, each written as `name="value"`; 0 without any.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        self.0
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (found, rest) = series.split_once('{').unwrap_or((series, ""));
                (found == name && labels.iter().all(|label| rest.contains(label))).then(|| value.parse::<u64>().ok())?
            })
            .sum()
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let text = "# TYPE caddy_hits counter\ncaddy_hits_total{tier=\"l1\",db=\"0\"} 3\ncaddy_hits_total{tier=\"l2\"} 4\n\
                    caddy_hits_total_other 9\ncaddy_up 1\n# EOF\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum("caddy_hits_total", &[]), 7);
        assert_eq!(metrics.sum("caddy_hits_total", &["tier=\"l1\""]), 3);
        assert_eq!(metrics.sum("caddy_up", &[]), 1);
        assert_eq!(metrics.sum("caddy_none", &[]), 0);
    }
}
