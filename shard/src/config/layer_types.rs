//! Which layers see a window of the most recent positions only.

use super::ConfigFile;
use crate::error::Result;

/// What a configuration calls a layer that sees everything, and one that sees a window.
pub const FULL: &str = "full_attention";
/// See [`FULL`].
pub const SLIDING: &str = "sliding_attention";

/// Of each layer whether it has a window: what `layer_types` says, or where it is absent `default` of the layer's number.
///
/// # Errors
/// A list of another length, or with a type that is neither.
pub fn sliding_layers(config: &ConfigFile, num_layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(layer_types) = config.texts("layer_types")? else { return Ok((0..num_layers).map(default).collect()) };
    if layer_types.len() != num_layers {
        return Err(config.wrong("layer_types", &format!("one entry for each of {num_layers} layers")));
    }
    let is_sliding = |layer_type: &String| match layer_type.as_str() {
        FULL => Ok(false),
        SLIDING => Ok(true),
        _ => Err(config.unsupported("layer_types", &format!("\"{FULL}\", \"{SLIDING}\""))),
    };
    layer_types.iter().map(is_sliding).collect()
}
