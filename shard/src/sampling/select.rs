//! Selection without sorting the vocabulary.
//!
//! A sort of 128 k scores takes about 5 ms, which is more than a decode step of a small model; these take 0.1 to 0.5 ms.
//! Both depend on the values alone: no randomness, and no order among equal values that the input does not have.

/// Maps a float that is not NaN to an integer of the same order.
pub(super) fn ascending_key(value: f32) -> u32 {
    // Adding zero turns −0 into +0, so that equal floats have equal keys.
    let bits = (value + 0.0).to_bits();
    // Negative floats order backwards by their bits, and below the positive ones.
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The `n`-th largest of `values`, `1 ≤ n ≤ values.len()`; `scratch` is overwritten.
pub(super) fn nth_largest(values: &[f32], n: usize, scratch: &mut Vec<f32>) -> f32 {
    scratch.clear();
    scratch.extend_from_slice(values);
    let (_, nth, _) = scratch.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
    *nth
}

/// Where a prefix of an order ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    /// Key of its last element. All elements with a larger key belong to it.
    pub(super) last_key: u32,
    /// How many elements with exactly this key belong to it: the first ones by index.
    pub(super) ties: usize,
}

/// The shortest prefix, in descending order of `keys` and ascending order of index, that holds `fraction` of the total
/// of `weights`. At least one element.
///
/// A radix selection: each round sums the weights per value of the next digit and descends into the digit in which the
/// prefix ends. Three passes over the input, whatever the distribution.
pub(super) fn shortest_prefix(keys: &[u32], weights: &[f32], fraction: f64, histogram: &mut Vec<f64>) -> Prefix {
    /// (shift, bits) of the digits, the most significant first. 2048 sums of 8 bytes stay in the L1 cache.
    const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];

    let mass = fraction * weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    // The known leading digits of the last key, which bits they are, and the weight of all larger keys.
    let (mut last_key, mut known, mut ahead) = (0, 0, 0.0);
    for (shift, bits) in DIGITS {
        let digit_mask = (1 << bits) - 1;
        histogram.clear();
        // Negative: no element has this digit. (Weights can be zero, so a sum cannot tell.)
        histogram.resize(1 << bits, -1.0);
        for (&key, &weight) in keys.iter().zip(weights) {
            if key & known == last_key {
                let sum = &mut histogram[(key >> shift & digit_mask) as usize];
                *sum = sum.max(0.0) + f64::from(weight);
            }
        }
        // If rounding keeps the prefix from reaching its mass, it ends with the last element there is.
        let mut last_digit = 0;
        for (digit, &sum) in histogram.iter().enumerate().rev().filter(|&(_, &sum)| sum >= 0.0) {
            last_digit = digit;
            if ahead + sum >= mass {
                break;
            }
            ahead += sum;
        }
        last_key |= (last_digit as u32) << shift;
        known |= digit_mask << shift;
    }

    let mut ties = 0;
    for (_, &weight) in keys.iter().zip(weights).filter(|&(&key, _)| key == last_key) {
        ties += 1;
        ahead += f64::from(weight);
        if ahead >= mass {
            break;
        }
    }
    Prefix { last_key, ties }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_order_of_floats() {
        let ascending =
            [f32::NEG_INFINITY, f32::MIN, -1.0, -f32::MIN_POSITIVE, 0.0, 1e-40, 1.0, f32::MAX, f32::INFINITY];
        assert!(ascending.windows(2).all(|pair| ascending_key(pair[0]) < ascending_key(pair[1])));
        assert_eq!(ascending_key(-0.0), ascending_key(0.0));
    }

    #[test]
    fn nth_largest_counts_from_one() {
        let values = [3.0, 1.0, f32::NEG_INFINITY, 3.0, 2.0];
        let nth: Vec<f32> = (1..=5).map(|n| nth_largest(&values, n, &mut Vec::new())).collect();
        assert_eq!(nth, [3.0, 3.0, 2.0, 1.0, f32::NEG_INFINITY]);
    }

    /// What the selection means: sort, then add up.
    fn definition(keys: &[u32], weights: &[f32], fraction: f64) -> Prefix {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&index| (std::cmp::Reverse(keys[index]), index));
        let mass = fraction * weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
        let mut sum = 0.0;
        let length = order.iter().position(|&index| {
            sum += f64::from(weights[index]);
            sum >= mass
        });
        let prefix = &order[..=length.unwrap_or(order.len() - 1)];
        let last_key = keys[*prefix.last().unwrap()];
        Prefix { last_key, ties: prefix.iter().filter(|&&index| keys[index] == last_key).count() }
    }

    #[test]
    fn the_prefix_is_that_of_a_sort() {
        for seed in 0..200_u64 {
            let mut random = crate::sampling::tests::random(seed);
            let length = 1 + random() as usize % 300;
            // Few distinct keys give ties; whole weights make every sum exact, so no rounding can tell the two apart.
            let key_bits = [2, 12, 32][random() as usize % 3];
            let keys: Vec<u32> = (0..length).map(|_| random() >> (32 - key_bits)).collect();
            let weights: Vec<f32> = (0..length).map(|_| (random() % 8) as f32).collect();
            for fraction in [0.0, 0.1, 0.5, 0.9, 1.0] {
                let prefix = shortest_prefix(&keys, &weights, fraction, &mut Vec::new());
                assert_eq!(prefix, definition(&keys, &weights, fraction), "seed {seed}, fraction {fraction}");
            }
        }
    }
}
