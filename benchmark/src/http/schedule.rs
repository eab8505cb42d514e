//! When requests arrive in an open loop.

use std::time::Duration;

use crate::random::Random;

/// A Poisson process: independent clients, `rate` arrivals a second on average. The same seed gives the same arrivals.
pub(super) struct Poisson {
    random: Random,
    mean: f64,
    /// Seconds since the start. Sums of gaps rather than gaps from a clock: a late arrival delays none after it.
    at: f64,
}

impl Poisson {
    pub(super) fn new(rate: f64, seed: u64) -> Poisson {
        Poisson { random: Random::new(seed), mean: 1.0 / rate, at: 0.0 }
    }
}

impl Iterator for Poisson {
    type Item = Duration;

    /// The next arrival, since the start.
    fn next(&mut self) -> Option<Duration> {
        self.at += self.random.exponential(self.mean);
        Duration::try_from_secs_f64(self.at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_exponential_with_the_mean_of_the_rate() {
        let arrivals: Vec<f64> = Poisson::new(50.0, 3).take(20_000).map(|at| at.as_secs_f64()).collect();
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        // The standard error of the mean of 20,000 exponential gaps is 0.7 %; four of them.
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // An exponential gap exceeds its mean with probability 1/e (standard error 0.34 %).
        let longer = gaps.iter().filter(|gap| **gap > 0.02).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.014, "{longer}");
    }

    #[test]
    fn a_seed_repeats_itself() {
        let take = |seed| Poisson::new(10.0, seed).take(100).collect::<Vec<_>>();
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }
}
