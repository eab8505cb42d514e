//! Distributions of measured values in bounded memory: what every figure of a report is made of.

use std::collections::BTreeMap;

/// Bits of a value's mantissa that a bucket keeps. 9: a percentile is at most 0.1 % beside the value that was measured,
/// which is far below the noise of any run, and a distribution of any length has at most a few thousand buckets.
const MANTISSA_BITS: u32 = 9;
/// The bits of an f64 below those.
const DROPPED_BITS: u32 = f64::MANTISSA_DIGITS - 1 - MANTISSA_BITS;

/// Positive values, counted in buckets of equal relative width. Sum, lowest and highest are exact.
///
/// The bits of positive floats are ordered as their values are, so the leading bits of a value are its bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    buckets: BTreeMap<u64, u64>,
    count: u64,
    sum: f64,
    lowest: f64,
    highest: f64,
}

/// The figures of a distribution that reports show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of values.
    pub count: u64,
    /// Arithmetic mean.
    pub average: f64,
    /// Smallest value.
    pub lowest: f64,
    /// Largest value.
    pub highest: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Distribution {
    /// Adds a value.
    ///
    /// # Panics
    /// If it is negative or no number: durations and rates are neither.
    pub fn record(&mut self, value: f64) {
        assert!(value >= 0.0 && value.is_finite(), "{value} is no duration and no rate");
        *self.buckets.entry(value.to_bits() >> DROPPED_BITS).or_default() += 1;
        self.lowest = if self.count == 0 { value } else { self.lowest.min(value) };
        self.highest = self.highest.max(value);
        self.count += 1;
        self.sum += value;
    }

    /// Adds all values of `other`.
    pub fn merge(&mut self, other: &Distribution) {
        if other.count == 0 {
            return;
        }
        other.buckets.iter().for_each(|(bucket, count)| *self.buckets.entry(*bucket).or_default() += count);
        self.lowest = if self.count == 0 { other.lowest } else { self.lowest.min(other.lowest) };
        self.highest = self.highest.max(other.highest);
        self.count += other.count;
        self.sum += other.sum;
    }

    /// The smallest value that at least `percent` % of all values do not exceed (nearest rank); `None` without values.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let rank = ((percent / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        let (bucket, _) = self.buckets.iter().find(|(_, count)| {
            below += **count;
            below >= rank
        })?;
        let middle = f64::from_bits((bucket << DROPPED_BITS) + (1 << (DROPPED_BITS - 1)));
        Some(middle.clamp(self.lowest, self.highest))
    }

    /// The figures of a report; `None` without values.
    pub fn summary(&self) -> Option<Summary> {
        Some(Summary {
            count: self.count,
            average: self.sum / self.count as f64,
            lowest: self.lowest,
            highest: self.highest,
            p50: self.percentile(50.0)?,
            p90: self.percentile(90.0)?,
            p99: self.percentile(99.0)?,
        })
    }

    /// How many values fall into each of `bins` ranges of equal width from the lowest value to the highest.
    pub fn histogram(&self, bins: usize) -> Vec<u64> {
        let mut counts = vec![0; bins];
        let width = (self.highest - self.lowest) / bins as f64;
        for (bucket, count) in &self.buckets {
            let value = f64::from_bits(bucket << DROPPED_BITS).clamp(self.lowest, self.highest);
            let bin = if width > 0.0 { ((value - self.lowest) / width) as usize } else { 0 };
            counts[bin.min(bins - 1)] += count;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn distribution(values: &[f64]) -> Distribution {
        let mut distribution = Distribution::default();
        values.iter().for_each(|value| distribution.record(*value));
        distribution
    }

    /// What a percentile means: sort, then take the value at the rank.
    fn definition(values: &[f64], percent: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted[rank.max(1) - 1]
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut random = Random::new(1);
        for count in [1, 2, 3, 10, 99, 100, 101, 5_000] {
            // Latencies spread over orders of magnitude.
            let values: Vec<f64> = (0..count).map(|_| 1e-4 * random.exponential(1.0).exp2()).collect();
            let distribution = distribution(&values);
            for percent in [0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0] {
                let (actual, expected) = (distribution.percentile(percent).unwrap(), definition(&values, percent));
                let relative = (actual - expected).abs() / expected;
                // Half a bucket: 2^-9 / 2 at most.
                assert!(relative <= 1.0 / 1024.0, "p{percent} of {count}: {actual} instead of {expected}");
            }
        }
    }

    #[test]
    fn average_lowest_and_highest_are_exact() {
        let summary = distribution(&[0.25, 0.0, 1.75]).summary().unwrap();
        assert_eq!((summary.count, summary.average, summary.lowest, summary.highest), (3, 2.0 / 3.0, 0.0, 1.75));
        assert_eq!(distribution(&[0.1]).summary().unwrap().p99, 0.1, "one value is every percentile of itself");
        assert_eq!(Distribution::default().summary(), None);
    }

    #[test]
    fn merged_values_are_those_of_both() {
        let mut merged = distribution(&[1.0, 4.0]);
        merged.merge(&distribution(&[0.5, 2.0]));
        merged.merge(&Distribution::default());
        assert_eq!(merged, distribution(&[1.0, 4.0, 0.5, 2.0]));
        let mut empty = Distribution::default();
        empty.merge(&merged);
        assert_eq!(empty, merged);
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        assert_eq!(distribution(&[1.0, 1.0, 2.0, 5.0]).histogram(4), [2, 1, 0, 1]);
        assert_eq!(distribution(&[3.0, 3.0]).histogram(3), [2, 0, 0]);
        assert_eq!(Distribution::default().histogram(2), [0, 0]);
    }

    #[test]
    fn a_million_values_stay_small() {
        let mut random = Random::new(2);
        let mut distribution = Distribution::default();
        (0..1_000_000).for_each(|_| distribution.record(random.exponential(0.02)));
        assert!(distribution.buckets.len() < 16_000, "{}", distribution.buckets.len());
    }
}
