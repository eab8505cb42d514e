//! `seed`: the key of the sampler's noise; drawn at random if not given.

use proto::v1::SamplingParams;

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "seed", range: "any unsigned 64-bit integer; not with best_of > 1", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    if asked.sampling.seed.is_some() && checked.best_of > 1 {
        return Err(ValidationError::SeedWithBestOf);
    }
    // Greedy answers report none.
    checked.sampling.seed = match checked.sampling.do_sample {
        true => asked.sampling.seed.or_else(|| Some(rand::random())),
        false => None,
    };
    Ok(())
}

/// OpenAI's seed is a signed integer; its bits are the seed.
pub(crate) fn ask_openai(sampling: &mut SamplingParams, seed: Option<i128>) -> Result<(), ValidationError> {
    let bits = |value: i128| u64::try_from(value).or_else(|_| i64::try_from(value).map(i64::cast_unsigned));
    sampling.seed = seed.map(|given| bits(given).map_err(|_| ValidationError::Seed { given })).transpose()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_and_unsigned_seeds_are_taken_and_larger_ones_refused() {
        let seed = |value| {
            let mut sampling = SamplingParams::default();
            ask_openai(&mut sampling, value).map(|()| sampling.seed)
        };
        assert_eq!(seed(None).unwrap(), None);
        assert_eq!(seed(Some(-1)).unwrap(), Some(u64::MAX));
        assert_eq!(seed(Some(u64::MAX.into())).unwrap(), Some(u64::MAX));
        assert!(seed(Some(1 << 64)).is_err());
        assert!(seed(Some(-(1 << 63) - 1)).is_err());
    }
}
