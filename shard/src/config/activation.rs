//! The activation of the MLP by the names that transformers gives it.

use kernels::ops::Activation;

use super::ConfigFile;
use crate::error::Result;

/// Names of `transformers.activations.ACT2FN`: two of them are one function, and "gelu_new" is computed in another order only.
const NAMES: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
];

/// What `field` names, or `default` where it is absent.
///
/// # Errors
/// A name that is not in the table, with those that are.
pub fn activation(config: &ConfigFile, field: &str, default: Activation) -> Result<Activation> {
    let Some(name) = config.text(field)? else { return Ok(default) };
    let found = NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, activation)| *activation).ok_or_else(|| {
        let known: Vec<String> = NAMES.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        config.unsupported(field, &known.join(", "))
    })
}
