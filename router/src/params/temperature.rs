//! `temperature`: logits are divided by it; below 1 the likely tokens gain.

use super::{Asked, Checked, ParamLimits, Parameter, finite};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "temperature", range: "> 0", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let temperature = finite("temperature", asked.temperature.unwrap_or(1.0))?;
    if temperature <= 0.0 {
        return Err(ValidationError::NotPositive { field: "temperature" });
    }
    checked.sampling.temperature = temperature;
    Ok(())
}

/// OpenAI's rule: 0 is greedy, and without a temperature the answer is sampled at 1.
pub(crate) fn ask_openai(asked: &mut Asked, temperature: Option<f32>) {
    asked.do_sample = temperature != Some(0.0);
    asked.temperature = temperature.filter(|value| *value != 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_greedy_for_openai_clients() {
        for (temperature, sampled) in [(None, true), (Some(0.0), false), (Some(1.0), true), (Some(0.2), true)] {
            let mut asked = Asked::default();
            ask_openai(&mut asked, temperature);
            assert_eq!(asked.is_sampling(), sampled, "{temperature:?}");
        }
    }
}
