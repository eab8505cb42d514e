//! `temperature`: logits are divided by it; below 1 the likely tokens gain.

use proto::v1::SamplingParams;

use super::{Asked, Checked, ParamLimits, Parameter, positive};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "temperature", range: "> 0", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    positive("temperature", checked.sampling.temperature)
}

/// OpenAI's rule: 0 is greedy, and without a temperature the answer is sampled at 1.
pub(crate) fn ask_openai(sampling: &mut SamplingParams, temperature: Option<f32>) {
    sampling.do_sample = temperature != Some(0.0);
    sampling.temperature = temperature.filter(|value| *value != 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_greedy_for_openai_clients() {
        for (temperature, sampled) in [(None, true), (Some(0.0), false), (Some(1.0), true), (Some(0.2), true)] {
            let mut sampling = SamplingParams::default();
            ask_openai(&mut sampling, temperature);
            assert_eq!(
                (sampling.do_sample, sampling.temperature),
                (sampled, temperature.filter(|value| *value != 0.0))
            );
        }
    }
}
