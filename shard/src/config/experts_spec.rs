//! What a mixture of experts is, as far as the forward pass is concerned.

use kernels::limits::{MAX_EXPERTS, MAX_EXPERTS_PER_ROW};

use super::ConfigFile;
use crate::error::Result;
use crate::limits::MAX_DIMENSION;

/// The experts of the layers that have some. Sizes are those of the whole model, not of a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// Experts of a layer, X.
    pub num_experts: usize,
    /// Of them those that a row goes to, k.
    pub experts_per_row: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Whether the weights of a row's experts sum to one.
    pub normalise: bool,
    /// Per layer: whether it has experts, rather than one MLP.
    pub layers: Vec<bool>,
}

impl ExpertsSpec {
    /// Reads how many experts there are, of the width of this field, and how many of them a row goes to, which all families spell alike.
    /// In every layer, with weights that sum to one: a family changes what differs.
    ///
    /// # Errors
    /// A field that is missing, malformed or beyond a limit.
    pub fn from_config(config: &ConfigFile, width_field: &str, num_layers: usize) -> Result<ExpertsSpec> {
        // transformers knows it by both names, for every family, and writes the one or the other.
        let count_field = if config.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
        let num_experts = config.size(count_field, MAX_EXPERTS)?;
        let experts_per_row = config.size("num_experts_per_tok", num_experts.min(MAX_EXPERTS_PER_ROW))?;
        Ok(ExpertsSpec {
            num_experts,
            experts_per_row,
            intermediate_size: config.size(width_field, MAX_DIMENSION)?,
            normalise: true,
            layers: vec![true; num_layers],
        })
    }
}
