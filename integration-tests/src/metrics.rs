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
    fn samples_are_summed_over_labels() {
        let metrics = Metrics::parse("# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 7\nb 0.5\n".to_owned());
        assert_eq!(metrics.get("a"), Some(5.0));
        assert_eq!(metrics.get_labelled("a", "x=\"2\""), Some(3.0));
        assert_eq!(metrics.get("b"), Some(0.5));
        assert_eq!(metrics.get("c"), None);
    }
}
