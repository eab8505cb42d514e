//! The whole pipeline against a plain definition, and the draw against its distribution.

use std::cmp::Ordering;

use super::*;

/// A reproducible source of test values (splitmix64, the upper half).
pub(crate) fn random(seed: u64) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 32) as u32
    }
}

/// One device for all tests: finding out what the machine can do takes longer than a draw.
fn device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    DEVICE.get_or_init(|| Device::cpu(1)).clone()
}

fn sample(logits: &[f32], params: &Params, tokens: &[u32], position: u32) -> Result<Choice, RowFailure> {
    let mut counts = TokenCounts::default();
    counts.extend(tokens.iter().copied());
    Sampler::new(device()).sample(Row { logits, params, counts: &counts, position }, &mut TopTokens::default())
}

/// What the parameters mean, in f64 with sorts: the log-probability of every token, minus infinity for the removed.
fn definition(logits: &[f32], params: &Params, tokens: &[u32]) -> Vec<f64> {
    let mut scores: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
    for (id, score) in scores.iter_mut().enumerate() {
        let count = tokens.iter().filter(|&&token| token as usize == id).count();
        if count > 0 {
            let penalty = f64::from(params.repetition_penalty);
            *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
            *score -= f64::from(params.frequency_penalty) * count as f64 / tokens.len() as f64;
        }
    }
    if params.do_sample {
        scores.iter_mut().for_each(|score| *score /= f64::from(params.temperature));
        let descending = |scores: &[f64]| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap().then(a.cmp(&b)));
            order
        };
        if params.top_k > 0 {
            let kth = scores[descending(&scores)[(params.top_k as usize).min(scores.len()) - 1]];
            scores.iter_mut().filter(|score| **score < kth).for_each(|score| *score = f64::NEG_INFINITY);
        }
        if params.top_p < 1.0 {
            let probabilities = softmax(&scores);
            let mut ahead = 0.0;
            for id in descending(&scores) {
                if ahead >= f64::from(params.top_p) {
                    scores[id] = f64::NEG_INFINITY;
                }
                ahead += probabilities[id];
            }
        }
        if params.typical_p < 1.0 {
            let probabilities = softmax(&scores);
            let information = |p: f64| if p > 0.0 { -p.ln() } else { f64::INFINITY };
            let entropy: f64 = probabilities.iter().filter(|&&p| p > 0.0).map(|&p| p * information(p)).sum();
            let distance: Vec<f64> = probabilities.iter().map(|&p| (information(p) - entropy).abs()).collect();
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| distance[a].partial_cmp(&distance[b]).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
            let mut ahead = 0.0;
            for id in order {
                if ahead >= f64::from(params.typical_p) {
                    scores[id] = f64::NEG_INFINITY;
                }
                ahead += probabilities[id];
            }
        }
    }
    softmax(&scores).iter().map(|p| p.ln()).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    scores.iter().map(|score| (score - max).exp() / sum).collect()
}

/// Parameters of every kind, each on in half of the cases.
fn random_params(random: &mut impl FnMut() -> u32) -> Params {
    let mut maybe = |off: f32, choices: [f32; 3]| {
        let at = random() as usize % 6;
        choices.get(at).copied().unwrap_or(off)
    };
    Params {
        temperature: maybe(1.0, [0.3, 0.7, 1.5]),
        top_k: maybe(0.0, [1.0, 5.0, 40.0]) as u32,
        top_p: maybe(1.0, [0.1, 0.5, 0.95]),
        typical_p: maybe(1.0, [0.2, 0.6, 0.95]),
        repetition_penalty: maybe(1.0, [0.8, 1.2, 2.0]),
        frequency_penalty: maybe(0.0, [-1.0, 0.5, 2.0]),
        do_sample: maybe(0.0, [1.0; 3]) > 0.0,
        seed: random().into(),
        top_n_tokens: random() % 4,
    }
}

#[test]
fn every_combination_of_parameters_agrees_with_its_definition() {
    for seed in 0..500 {
        let mut random = random(seed);
        let vocab_size = 1 + random() as usize % 200;
        // Logits on a grid, apart enough that rounding in f32 reorders nothing; distinct, so that no tie is in play.
        let mut grid: Vec<f32> = (0..vocab_size).map(|step| step as f32 * 0.07 - 5.0).collect();
        (1..vocab_size).rev().for_each(|at| grid.swap(at, random() as usize % (at + 1)));
        let tokens: Vec<u32> = (0..1 + random() % 30).map(|_| random() % vocab_size as u32).collect();
        let params = random_params(&mut random);

        let expected = definition(&grid, &params, &tokens);
        let choice = sample(&grid, &params, &tokens, tokens.len() as u32).unwrap();
        let at = expected[choice.token_id as usize];
        // f32 scores up to 20 carry an error of 1e-6; a log-sum-exp over 200 of them adds as much again.
        assert!((f64::from(choice.logprob) - at).abs() < 2e-5, "seed {seed} {params:?}: {choice:?}, expected {at}");
        if !params.do_sample {
            let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!(best - at < 1e-6, "seed {seed} {params:?}: greedy took {choice:?}, the best is {best}");
        }
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_a_tie_and_ignores_the_warpers() {
    let params = Params { temperature: 0.1, top_k: 1, ..Params::default() };
    let choice = sample(&[1.0, 3.0, 3.0], &params, &[], 0).unwrap();
    assert_eq!(choice.token_id, 1);
    let sum = 1.0_f64.exp() + 2.0 * 3.0_f64.exp();
    assert!((f64::from(choice.logprob) - (3.0 - sum.ln())).abs() < 1e-6);
}

#[test]
fn penalties_apply_to_greedy_rows_in_order() {
    // Repetition first: 4 / 2 = 2; then frequency: 2 − 3 · 2/4 = 0.5, below token 1. The other order would give 1.25.
    let params = Params { repetition_penalty: 2.0, frequency_penalty: 3.0, ..Params::default() };
    assert_eq!(sample(&[4.0, 0.75, 0.0], &params, &[0, 0, 2, 2], 4).unwrap().token_id, 1);
}

#[test]
fn the_draw_depends_on_seed_position_and_token_only() {
    let logits: Vec<f32> = (0..100).map(|id| (id % 7) as f32 * 0.1).collect();
    let draw = |seed, position, params: Params| {
        sample(&logits, &Params { do_sample: true, seed, ..params }, &[], position).unwrap().token_id
    };
    let plain = |seed, position| draw(seed, position, Params::default());
    let tokens: Vec<u32> = (0..50).map(|position| plain(1, position)).collect();
    assert_eq!(tokens, (0..50).map(|position| plain(1, position)).collect::<Vec<_>>());
    assert_ne!(tokens, (0..50).map(|position| plain(2, position)).collect::<Vec<_>>());
    assert!(tokens.windows(2).any(|pair| pair[0] != pair[1]), "positions draw differently");
    // A warper that keeps the drawn token changes no other token's noise, so the draw stays.
    let nucleus = Params { top_p: 0.999, ..Params::default() };
    let same = (0..50).filter(|&position| draw(1, position, nucleus.clone()) == tokens[position as usize]).count();
    assert!(same >= 48, "only {same} of 50 draws survived a nucleus of 0.999");
}

/// Pearson's chi-square test of draws at consecutive positions against the softmax of `logits`.
#[track_caller]
fn check_distribution(logits: &[f32], params: Params, upper: f64) {
    const DRAWS: u32 = 20_000;
    let expected = definition(logits, &params, &[]);
    let mut drawn = vec![0_u32; logits.len()];
    for position in 0..DRAWS {
        // Half over positions with one seed, half over seeds at one position: both must be independent.
        let (seed, position) = if position % 2 == 0 { (7, position) } else { (u64::from(position), 3) };
        drawn[sample(logits, &Params { seed, ..params.clone() }, &[], position).unwrap().token_id as usize] += 1;
    }
    let mut statistic = 0.0;
    for (id, (&count, logprob)) in drawn.iter().zip(expected).enumerate() {
        let mean = logprob.exp() * f64::from(DRAWS);
        assert!(mean > 0.0 || count == 0, "token {id} is impossible and was drawn {count} times");
        if mean > 0.0 {
            statistic += (f64::from(count) - mean).powi(2) / mean;
        }
    }
    assert!(statistic < upper, "chi-square {statistic}, 99.9 % of honest samplers stay below {upper}: {drawn:?}");
}

#[test]
fn draws_follow_the_distribution() {
    // The bounds are the 99.9 % quantiles of chi-square with 7, 3 and 2 degrees of freedom. The seeds are fixed, so this
    // passes or fails the same way every time.
    let logits = [0.0, 0.5, -1.0, 1.0, 0.2, -0.3, 0.9, -2.0];
    let sampled = Params { do_sample: true, ..Params::default() };
    check_distribution(&logits, sampled.clone(), 24.32);
    check_distribution(&logits, Params { temperature: 0.5, top_k: 4, ..sampled.clone() }, 16.27);
    check_distribution(&logits, Params { top_k: 3, ..sampled }, 13.82);
}

#[test]
fn what_is_no_distribution_fails_with_its_place() {
    let fails = |logits: &[f32]| sample(logits, &Params::default(), &[], 9).unwrap_err().to_string();
    assert_eq!(fails(&[0.0, f32::NAN, 1.0]), "the logit of token 1 at position 9 is NaN");
    assert_eq!(fails(&[0.0, f32::INFINITY]), "the logit of token 1 at position 9 is inf");
    assert_eq!(
        fails(&[f32::NEG_INFINITY; 2]),
        "no token can be sampled at position 9: the processed scores sum to -inf"
    );
    // A token that cannot come is no failure.
    assert_eq!(sample(&[f32::NEG_INFINITY, 0.0], &Params::default(), &[], 9).unwrap().token_id, 1);
    // Scores that overflow are one, and not a panic.
    let hot = Params { do_sample: true, temperature: 1e-40, ..Params::default() };
    assert!(matches!(sample(&[1.0, 2.0], &hot, &[], 9), Err(RowFailure::NoCandidate { .. })));
}

#[test]
fn top_tokens_are_of_the_processed_scores() {
    let params = Params { do_sample: true, temperature: 0.5, top_k: 2, top_n_tokens: 3, ..Params::default() };
    let mut top = TopTokens::default();
    let row = Row { logits: &[1.0, 2.0, 0.0], params: &params, counts: &TokenCounts::default(), position: 0 };
    Sampler::new(device()).sample(row, &mut top).unwrap();
    let [(1, first), (0, second)] = top.tokens() else { panic!("{top:?}") };
    assert!((first - -(1.0_f32 + (-2.0_f32).exp()).ln()).abs() < 1e-6 && (first - second - 2.0).abs() < 1e-6);
    // And gone when the next row asks for none.
    let params = Params::default();
    Sampler::new(device()).sample(Row { params: &params, ..row }, &mut top).unwrap();
    assert!(top.tokens().is_empty());
}
