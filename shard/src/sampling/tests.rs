//! The whole pipeline against a plain definition, and the draw against its distribution.

use std::cmp::Ordering;

use proto::v1::{SamplingParams, TokenBias, TokenSequence, Watermark};

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

/// Token 0 ends a sequence.
const EOS: [u32; 1] = [0];

/// A row without a prompt.
fn sample(logits: &[f32], sampling: &SamplingParams, tokens: &[u32], position: u32) -> Result<Choice, RowFailure> {
    sample_allowed(logits, &Params::new(sampling.clone(), 0, false), tokens, position, None)
}

fn sample_allowed(
    logits: &[f32],
    params: &Params,
    tokens: &[u32],
    position: u32,
    allowed: Option<&[u8]>,
) -> Result<Choice, RowFailure> {
    let mut history = History::default();
    (0..).zip(tokens).for_each(|(position, &token_id)| history.push(params, position, token_id));
    let row = Row { logits, params, history: &history, eos_token_ids: &EOS, allowed, position };
    Sampler::new(device()).sample(row, &mut TopTokens::default())
}

/// What the parameters mean, in f64 with sorts: the log-probability of every token, minus infinity for the removed.
fn definition(logits: &[f32], params: &Params, tokens: &[u32], allowed: Option<&[u8]>) -> Vec<f64> {
    let mut scores: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
    let prompt_tokens = params.prompt_tokens as usize;
    let params = &params.sampling;
    params.logit_bias.iter().for_each(|entry| scores[entry.token_id as usize] += f64::from(entry.bias));
    if let Some(Watermark { delta, .. }) = &params.watermark {
        // Which tokens are green is for the watermark's own tests.
        let mut candidates = Candidates::default();
        candidates.load(&vec![0.0; logits.len()]);
        watermark::apply(&mut candidates, params.watermark.as_ref().unwrap(), *tokens.last().unwrap());
        let green = |id: &usize| candidates.scores()[*id] != 0.0;
        (0..scores.len()).filter(green).for_each(|id| scores[id] += f64::from(*delta));
    }
    for (id, score) in scores.iter_mut().enumerate() {
        let count = tokens.iter().filter(|&&token| token as usize == id).count();
        if count > 0 {
            let penalty = f64::from(params.repetition_penalty.unwrap_or(1.0));
            *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
            *score -= f64::from(params.frequency_penalty.unwrap_or(0.0)) * count as f64 / tokens.len() as f64;
        }
        let reply = &tokens[prompt_tokens..];
        let count = reply.iter().filter(|&&token| token as usize == id).count() as f64;
        *score -= f64::from(params.presence_penalty.unwrap_or(0.0)) * count.min(1.0);
        *score -= f64::from(params.occurrence_penalty.unwrap_or(0.0)) * count;
        let too_short = EOS.contains(&(id as u32)) && reply.len() < params.min_tokens.unwrap_or(0) as usize;
        let sequence = [tokens, &[id as u32]].concat();
        let is_bad = params.bad_words.iter().any(|word| sequence.ends_with(&word.ids));
        if too_short || is_bad || allowed.is_some_and(|allowed| allowed[id / 8] >> (id % 8) & 1 == 0) {
            *score = f64::NEG_INFINITY;
        }
    }
    if params.do_sample {
        scores.iter_mut().for_each(|score| *score /= f64::from(params.temperature.unwrap_or(1.0)));
        let descending = |scores: &[f64]| {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap().then(a.cmp(&b)));
            order
        };
        if let Some(top_k) = params.top_k {
            let kth = scores[descending(&scores)[(top_k as usize).min(scores.len()) - 1]];
            scores.iter_mut().filter(|score| **score < kth).for_each(|score| *score = f64::NEG_INFINITY);
        }
        if let Some(top_p) = params.top_p {
            let probabilities = softmax(&scores);
            let mut ahead = 0.0;
            for id in descending(&scores) {
                if ahead >= f64::from(top_p) {
                    scores[id] = f64::NEG_INFINITY;
                }
                ahead += probabilities[id];
            }
        }
        if let Some(min_p) = params.min_p {
            let probabilities = softmax(&scores);
            let least = f64::from(min_p) * probabilities.iter().copied().fold(0.0, f64::max);
            (0..scores.len()).filter(|&id| probabilities[id] < least).for_each(|id| scores[id] = f64::NEG_INFINITY);
        }
        if let Some(typical_p) = params.typical_p {
            let probabilities = softmax(&scores);
            let information = |p: f64| if p > 0.0 { -p.ln() } else { f64::INFINITY };
            let entropy: f64 = probabilities.iter().filter(|&&p| p > 0.0).map(|&p| p * information(p)).sum();
            let distance: Vec<f64> = probabilities.iter().map(|&p| (information(p) - entropy).abs()).collect();
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| distance[a].partial_cmp(&distance[b]).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
            let mut ahead = 0.0;
            for id in order {
                if ahead >= f64::from(typical_p) {
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
fn random_params(random: &mut impl FnMut() -> u32, vocab_size: u32, tokens: &[u32]) -> SamplingParams {
    let mut logit_bias: Vec<TokenBias> = vec![];
    for token_id in 0..vocab_size {
        if random().is_multiple_of(40) {
            logit_bias.push(TokenBias { token_id, bias: [-3.0, 2.0, f32::NEG_INFINITY][random() as usize % 3] });
        }
    }
    // What the sequence ends with, followed by something; and a word that does not occur.
    let mut bad_words = vec![];
    if random().is_multiple_of(2) {
        let before = random() as usize % tokens.len().min(4);
        let ids = [&tokens[tokens.len() - before..], &[random() % vocab_size]].concat();
        bad_words.push(TokenSequence { ids });
        bad_words.push(TokenSequence { ids: vec![u32::MAX, random() % vocab_size] });
    }
    let mut maybe = |choices: [f32; 3]| choices.get(random() as usize % 6).copied();
    SamplingParams {
        temperature: maybe([0.3, 0.7, 1.5]),
        top_k: maybe([1.0, 5.0, 40.0]).map(|top_k| top_k as i32),
        top_p: maybe([0.1, 0.5, 0.95]),
        typical_p: maybe([0.2, 0.6, 0.95]),
        repetition_penalty: maybe([0.8, 1.2, 2.0]),
        frequency_penalty: maybe([-1.0, 0.5, 2.0]),
        min_p: maybe([0.01, 0.1, 0.5]),
        presence_penalty: maybe([-1.0, 0.5, 2.0]),
        occurrence_penalty: maybe([-0.25, 0.125, 0.5]),
        min_tokens: maybe([1.0, 10.0, 100.0]).map(|min_tokens| min_tokens as u32),
        watermark: maybe([0.25, 0.5, 0.9]).map(|gamma| Watermark { gamma: gamma.into(), delta: 1.5 }),
        do_sample: maybe([1.0; 3]).is_some(),
        seed: Some(random().into()),
        top_n_tokens: Some(random() % 4),
        logit_bias,
        bad_words,
        ..SamplingParams::default()
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
        let params = random_params(&mut random, vocab_size as u32, &tokens);
        let mask: Vec<u8> = (0..mask_bytes(vocab_size)).map(|_| (random() | random()) as u8).collect();
        let allowed = if random().is_multiple_of(2) { Some(&mask[..]) } else { None };
        let params = Params::new(params, random() % (tokens.len() as u32 + 1), allowed.is_some());

        let expected = definition(&grid, &params, &tokens, allowed);
        let choice = sample_allowed(&grid, &params, &tokens, tokens.len() as u32, allowed);
        if expected.iter().all(|logprob| logprob.is_nan()) {
            assert!(matches!(choice, Err(RowFailure::NothingAllowed { .. })), "seed {seed} {params:?}: {choice:?}");
            continue;
        }
        let choice = choice.unwrap();
        let at = expected[choice.token_id as usize];
        // f32 scores up to 20 carry an error of 1e-6; a log-sum-exp over 200 of them adds as much again.
        assert!((f64::from(choice.logprob) - at).abs() < 2e-5, "seed {seed} {params:?}: {choice:?}, expected {at}");
        if !params.sampling.do_sample {
            let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!(best - at < 1e-6, "seed {seed} {params:?}: greedy took {choice:?}, the best is {best}");
        }
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_a_tie_and_ignores_the_warpers() {
    let params = SamplingParams { temperature: Some(0.1), top_k: Some(1), ..SamplingParams::default() };
    let choice = sample(&[1.0, 3.0, 3.0], &params, &[], 0).unwrap();
    assert_eq!(choice.token_id, 1);
    let sum = 1.0_f64.exp() + 2.0 * 3.0_f64.exp();
    assert!((f64::from(choice.logprob) - (3.0 - sum.ln())).abs() < 1e-6);
}

#[test]
fn penalties_apply_to_greedy_rows_in_order() {
    // Repetition first: 4 / 2 = 2; then frequency: 2 − 3 · 2/4 = 0.5, below token 1. The other order would give 1.25.
    let params =
        SamplingParams { repetition_penalty: Some(2.0), frequency_penalty: Some(3.0), ..SamplingParams::default() };
    assert_eq!(sample(&[4.0, 0.75, 0.0], &params, &[0, 0, 2, 2], 4).unwrap().token_id, 1);
}

#[test]
fn greedy_rows_obey_what_is_forced_and_forbidden() {
    let logits = [5.0, 4.0, 3.0, 2.0];
    let takes = |sampling: SamplingParams, prompt_tokens| {
        sample_allowed(&logits, &Params::new(sampling, prompt_tokens, false), &[1, 2], 2, None).unwrap().token_id
    };
    let off = SamplingParams::default;
    assert_eq!(takes(off(), 2), 0);
    let longer = SamplingParams { min_tokens: Some(1), ..off() };
    assert_eq!(takes(longer.clone(), 2), 1);
    assert_eq!(takes(longer, 1), 0, "one token of the reply is there");
    let bad_words = [&[2, 0][..], &[2, 1, 0]].map(|ids| TokenSequence { ids: ids.to_vec() }).to_vec();
    assert_eq!(takes(SamplingParams { bad_words, ..off() }, 2), 1);
    let bias = |token_id, bias| vec![TokenBias { token_id, bias }];
    assert_eq!(takes(SamplingParams { logit_bias: bias(3, 100.0), ..off() }, 2), 3);
    // 4 − 2 and 3 − 2: the reply is [1, 2]; of OpenAI's penalties the prompt knows nothing.
    let penalised = SamplingParams { logit_bias: bias(0, f32::NEG_INFINITY), presence_penalty: Some(2.5), ..off() };
    assert_eq!(takes(penalised.clone(), 0), 3);
    assert_eq!(takes(penalised, 2), 1);
    let masked = Params::new(SamplingParams { temperature: Some(0.5), ..off() }, 2, true);
    let allowed = |bits: u8| sample_allowed(&logits, &masked, &[1, 2], 2, Some(&[bits, 0, 0, 0]));
    assert_eq!(allowed(0b1100), Ok(Choice { token_id: 2, logprob: allowed(0b1100).unwrap().logprob }));
    assert_eq!(allowed(0b1000), Ok(Choice { token_id: 3, logprob: 0.0 }));
    assert_eq!(allowed(0), Err(RowFailure::NothingAllowed { position: 2 }));
}

#[test]
fn a_mask_that_allows_everything_changes_no_bit() {
    let logits: Vec<f32> = (0..100).map(|id| (id * 37 % 101) as f32 * 0.1).collect();
    let params =
        SamplingParams { do_sample: true, temperature: Some(0.8), top_p: Some(0.9), ..SamplingParams::default() };
    for position in 0..20 {
        let masked = Params::new(params.clone(), 0, true);
        let with = sample_allowed(&logits, &masked, &[], position, Some(&[0xFF; 16])).unwrap();
        assert_eq!(with, sample(&logits, &params, &[], position).unwrap());
    }
}

#[test]
fn the_draw_depends_on_seed_position_and_token_only() {
    let logits: Vec<f32> = (0..100).map(|id| (id % 7) as f32 * 0.1).collect();
    let draw = |seed, position, params: SamplingParams| {
        let params = SamplingParams { do_sample: true, seed: Some(seed), ..params };
        sample(&logits, &params, &[], position).unwrap().token_id
    };
    let plain = |seed, position| draw(seed, position, SamplingParams::default());
    let tokens: Vec<u32> = (0..50).map(|position| plain(1, position)).collect();
    assert_eq!(tokens, (0..50).map(|position| plain(1, position)).collect::<Vec<_>>());
    assert_ne!(tokens, (0..50).map(|position| plain(2, position)).collect::<Vec<_>>());
    assert!(tokens.windows(2).any(|pair| pair[0] != pair[1]), "positions draw differently");
    // A warper that keeps the drawn token changes no other token's noise, so the draw stays.
    let nucleus = SamplingParams { top_p: Some(0.999), ..SamplingParams::default() };
    let same = (0..50).filter(|&position| draw(1, position, nucleus.clone()) == tokens[position as usize]).count();
    assert!(same >= 48, "only {same} of 50 draws survived a nucleus of 0.999");
}

/// Pearson's chi-square test of draws at consecutive positions against the softmax of `logits`.
#[track_caller]
fn check_distribution(logits: &[f32], params: SamplingParams, upper: f64) {
    const DRAWS: u32 = 20_000;
    let expected = definition(logits, &Params::new(params.clone(), 0, false), &[], None);
    let mut drawn = vec![0_u32; logits.len()];
    for position in 0..DRAWS {
        // Half over positions with one seed, half over seeds at one position: both must be independent.
        let (seed, position) = if position % 2 == 0 { (7, position) } else { (u64::from(position), 3) };
        let params = SamplingParams { seed: Some(seed), ..params.clone() };
        drawn[sample(logits, &params, &[], position).unwrap().token_id as usize] += 1;
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
    let sampled = SamplingParams { do_sample: true, ..SamplingParams::default() };
    check_distribution(&logits, sampled.clone(), 24.32);
    check_distribution(&logits, SamplingParams { temperature: Some(0.5), top_k: Some(4), ..sampled.clone() }, 16.27);
    check_distribution(&logits, SamplingParams { top_k: Some(3), ..sampled }, 13.82);
}

#[test]
fn what_is_no_distribution_fails_with_its_place() {
    let fails = |logits: &[f32]| sample(logits, &SamplingParams::default(), &[], 9).unwrap_err().to_string();
    assert_eq!(fails(&[0.0, f32::NAN, 1.0]), "the logit of token 1 at position 9 is NaN");
    assert_eq!(fails(&[0.0, f32::INFINITY]), "the logit of token 1 at position 9 is inf");
    assert_eq!(
        fails(&[f32::NEG_INFINITY; 2]),
        "no token can be sampled at position 9: the processed scores sum to -inf"
    );
    // A token that cannot come is no failure.
    assert_eq!(sample(&[f32::NEG_INFINITY, 0.0], &SamplingParams::default(), &[], 9).unwrap().token_id, 1);
    // Scores that overflow are one, and not a panic.
    let hot = SamplingParams { do_sample: true, temperature: Some(1e-40), ..SamplingParams::default() };
    assert!(matches!(sample(&[1.0, 2.0], &hot, &[], 9), Err(RowFailure::NoCandidate { .. })));
}

#[test]
fn top_tokens_are_of_the_processed_scores() {
    let sampling = SamplingParams {
        do_sample: true,
        temperature: Some(0.5),
        top_k: Some(2),
        top_n_tokens: Some(3),
        ..SamplingParams::default()
    };
    let params = Params::new(sampling, 0, false);
    let mut top = TopTokens::default();
    let history = History::default();
    let row = Row {
        logits: &[1.0, 2.0, 0.0],
        params: &params,
        history: &history,
        eos_token_ids: &EOS,
        allowed: None,
        position: 0,
    };
    Sampler::new(device()).sample(row, &mut top).unwrap();
    let [(1, first), (0, second)] = top.tokens() else { panic!("{top:?}") };
    assert!((first - -(1.0_f32 + (-2.0_f32).exp()).ln()).abs() < 1e-6 && (first - second - 2.0).abs() < 1e-6);
    // And gone when the next row asks for none.
    let params = Params::default();
    Sampler::new(device()).sample(Row { params: &params, ..row }, &mut top).unwrap();
    assert!(top.tokens().is_empty());
}
