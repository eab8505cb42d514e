//! `seed`: the key of the sampler's noise; drawn at random if not given.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "seed", range: "any unsigned 64-bit integer; not with best_of > 1", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    if asked.seed.is_some() && checked.best_of > 1 {
        return Err(ValidationError::SeedWithBestOf);
    }
    if checked.sampling.do_sample {
        set(checked, asked.seed.unwrap_or_else(rand::random));
    }
    Ok(())
}

/// OpenAI's seed is a signed integer; its bits are the seed.
pub(crate) fn ask_openai(asked: &mut Asked, seed: Option<i128>) -> Result<(), ValidationError> {
    asked.seed = match seed {
        None => None,
        Some(value) => Some(
            u64::try_from(value)
                .or_else(|_| i64::try_from(value).map(i64::cast_unsigned))
                .map_err(|_| ValidationError::Seed { given: value })?,
        ),
    };
    Ok(())
}

/// Gives `checked` another seed: each of `best_of` generations has its own.
pub(crate) fn set(checked: &mut Checked, seed: u64) {
    checked.sampling.seed = seed;
    checked.seed = Some(seed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_and_unsigned_seeds_are_taken_and_larger_ones_refused() {
        let seed = |value| {
            let mut asked = Asked::default();
            ask_openai(&mut asked, value).map(|()| asked.seed)
        };
        assert_eq!(seed(None).unwrap(), None);
        assert_eq!(seed(Some(-1)).unwrap(), Some(u64::MAX));
        assert_eq!(seed(Some(u64::MAX.into())).unwrap(), Some(u64::MAX));
        assert!(seed(Some(1 << 64)).is_err());
        assert!(seed(Some(-(1 << 63) - 1)).is_err());
    }
}
