//! The Prometheus text of `/metrics`, as far as tests read it.

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// From the body of `/metrics`.
    pub fn parse(text: String) -> Metrics {
        Metrics(text)
    }

    /// The sum of all samples called `name`, over all labels; `None` if there is none.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.samples(name).map(|(_, value)| value).reduce(|sum, value| sum + value)
    }

    /// The sum of the samples called `name` that have `label` (for example `method="decode"`).
    pub fn get_labelled(&self, name: &str, label: &str) -> Option<f64> {
        self.samples(name)
            .filter(|(labels, _)| labels.contains(label))
            .map(|(_, value)| value)
            .reduce(|sum, value| sum + value)
    }

    /// An upper bound of the quantile `q` of the histogram called `name`: the bucket in which it lies ends there.
    ///
    /// `None` if it has no observation; infinite beyond the last bucket.
    pub fn quantile(&self, name: &str, q: f64) -> Option<f64> {
        let mut buckets: Vec<(f64, f64)> = self
            .samples(&format!("{name}_bucket"))
            .filter_map(|(labels, count)| {
                let end = labels.split("le=\"").nth(1)?.split('"').next()?;
                Some((end.parse().ok()?, count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total = buckets.last().map(|&(_, count)| count).filter(|&count| count > 0.0)?;
        buckets.iter().find(|&&(_, count)| count >= q * total).map(|&(end, _)| end)
    }

    /// Labels and value of each sample called `name`.
    fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            (found == name).then_some((labels, value.parse().ok()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bucket_ends() {
        let text = "a_bucket{le=\"0.1\"} 5\na_bucket{le=\"0.2\"} 9\na_bucket{le=\"+Inf\"} 10\na_sum 1\na_count 10\n";
        let metrics = Metrics::parse(text.to_owned());
        assert_eq!(metrics.quantile("a", 0.5), Some(0.1));
        assert_eq!(metrics.quantile("a", 0.9), Some(0.2));
        assert_eq!(metrics.quantile("a", 0.99), Some(f64::INFINITY));
        assert_eq!(metrics.quantile("b", 0.5), None);
    }

    #[test]
    fn samples_are_summed_over_labels() {
        let metrics = Metrics::parse("# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 7\nb 0.5\n".to_owned());
        assert_eq!(metrics.get("a"), Some(5.0));
        assert_eq!(metrics.get_labelled("a", "x=\"2\""), Some(3.0));
        assert_eq!(metrics.get("b"), Some(0.5));
        assert_eq!(metrics.get("c"), None);
    }
}
