//! Rotary position embedding: the scaling variants, and the frequencies they come to.
//!
//! Computed in f32 in the order of transformers' `modeling_rope_utils`, because a position multiplies a frequency by up
//! to 10⁵ and with it any difference of rounding.

use super::{ConfigFile, layer_types};
use crate::error::Result;
use crate::limits::MAX_POSITIONS;

/// Base and scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// How it is stretched beyond the positions of the pre-training.
    pub scaling: RopeScaling,
}

/// The variants, under the names of config.json's `rope_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Positions are divided by `factor` (position interpolation).
    Linear {
        /// By how much positions shrink.
        factor: f64,
    },
    /// The base grows with the position (NTK), beyond `original_positions`. See [`RopeSpec::frequencies`].
    Dynamic {
        /// How steeply.
        factor: f64,
        /// Positions below this are not touched.
        original_positions: usize,
    },
    /// Long wavelengths are divided by `factor`, short ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// By how much.
        factor: f64,
        /// Wavelengths above `original_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions of the pre-training.
        original_positions: usize,
    },
    /// As llama3 but by dimension, with a correction of the attention's temperature (arXiv:2309.00071).
    Yarn {
        /// By how much.
        factor: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Dimensions that turn more often than this over `original_positions` are kept.
        beta_fast: f64,
        /// Dimensions that turn less often are divided.
        beta_slow: f64,
        /// Positions of the pre-training.
        original_positions: usize,
        /// Whether the limits between them are rounded to whole dimensions.
        truncate: bool,
    },
}

/// RoPE scaling from the command line (TGI's `--rope-scaling` and `--rope-factor`), in place of the model's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeOverride {
    /// Which variant.
    pub kind: RopeKind,
    /// Its factor; the model then serves that many times its positions.
    pub factor: f32,
}

/// The variants that the command line offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// [`RopeScaling::Linear`].
    Linear,
    /// [`RopeScaling::Dynamic`].
    Dynamic,
}

const SUPPORTED: &str = "\"default\", \"linear\", \"dynamic\", \"llama3\", \"yarn\"";

impl RopeSpec {
    /// Reads `rope_parameters`, or `rope_scaling` and `rope_theta`. `trained_positions` is `max_position_embeddings`.
    ///
    /// # Errors
    /// A field that is missing, malformed or names an unknown variant.
    pub fn from_config(
        config: &ConfigFile,
        trained_positions: usize,
        override_: Option<RopeOverride>,
    ) -> Result<RopeSpec> {
        let rope = match config.object("rope_parameters")? {
            Some(rope) => Some(rope),
            None => config.object("rope_scaling")?,
        };
        if let Some(rope) = &rope {
            for layer_type in [layer_types::FULL, layer_types::SLIDING] {
                if rope.get(layer_type).is_some() {
                    return Err(rope.unsupported(layer_type, "the same RoPE in all layers"));
                }
            }
        }
        RopeSpec::read(config, rope, "rope_theta", 10_000.0, trained_positions, override_)
    }

    /// That of layers of one type: an object inside `rope_parameters`, or where there is none, `rope_scaling` (of layers that see
    /// everything) and the base that `theta_field` states, else `default_theta`.
    ///
    /// # Errors
    /// As [`from_config`](RopeSpec::from_config).
    pub fn of_layers(
        config: &ConfigFile,
        layer_type: &str,
        (theta_field, default_theta): (&str, f64),
        trained_positions: usize,
        override_: Option<RopeOverride>,
    ) -> Result<RopeSpec> {
        let rope = match config.object("rope_parameters")? {
            Some(rope) => Some(rope.object(layer_type)?.ok_or_else(|| rope.wrong(layer_type, "an object"))?),
            None if layer_type == layer_types::FULL => config.object("rope_scaling")?,
            None => None,
        };
        RopeSpec::read(config, rope, theta_field, default_theta, trained_positions, override_)
    }

    fn read(
        config: &ConfigFile,
        rope: Option<ConfigFile>,
        theta_field: &str,
        default_theta: f64,
        trained_positions: usize,
        override_: Option<RopeOverride>,
    ) -> Result<RopeSpec> {
        let own_theta = rope.as_ref().map(|rope| rope.positive("rope_theta")).transpose()?.flatten();
        let theta = match own_theta {
            Some(theta) => theta,
            None => config.positive(theta_field)?.unwrap_or(default_theta),
        };
        let scaling = match (override_, &rope) {
            (Some(RopeOverride { kind: RopeKind::Linear, factor }), _) => RopeScaling::Linear { factor: factor.into() },
            (Some(RopeOverride { kind: RopeKind::Dynamic, factor }), _) => {
                RopeScaling::Dynamic { factor: factor.into(), original_positions: trained_positions }
            }
            (None, Some(rope)) => RopeScaling::from_config(config, rope, trained_positions)?,
            (None, None) => RopeScaling::Default,
        };
        Ok(RopeSpec { theta, scaling })
    }

    /// Positions that can be served: those of the configuration, or more where the scaling is there to reach them and
    /// `max_position_embeddings` by convention states the unscaled ones.
    pub fn reachable_positions(&self, trained_positions: usize, override_: Option<RopeOverride>) -> usize {
        let times = |positions: usize, factor: f64| (positions as f64 * factor.max(1.0)) as usize;
        let reachable = match self.scaling {
            RopeScaling::Dynamic { factor, original_positions } => times(original_positions, factor),
            RopeScaling::Linear { factor } if override_.is_some() => times(trained_positions, factor),
            RopeScaling::Yarn { factor, original_positions, .. } => {
                trained_positions.max(times(original_positions, factor))
            }
            _ => trained_positions,
        };
        reachable.min(MAX_POSITIONS)
    }

    /// Whether [`RopeSpec::frequencies`] differ from position to position.
    pub fn depends_on_position(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. })
    }

    /// Multiplies every cosine and sine.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// The frequencies (radians per position) of the `dim / 2` rotated pairs at `position`.
    ///
    /// Only [`RopeScaling::Dynamic`] depends on the position. transformers recomputes its base for the length of each call,
    /// so that a key's rotation depends on how the prompt was cut into calls; with chunked prefill, a prefix cache
    /// and recovery by recomputation, the same token would then have many keys. Here position p always uses the base
    /// for length p + 1: what transformers computes when it decodes token by token, and for any prompt that is not
    /// longer than the original positions the same as its `generate`.
    pub fn frequencies(&self, dim: usize, position: usize) -> Vec<f32> {
        let theta = self.theta as f32;
        let default = |theta: f32| move |pair: usize| 1.0 / theta.powf((2 * pair) as f32 / dim as f32);
        let pairs = 0..dim / 2;
        match self.scaling {
            RopeScaling::Default => pairs.map(default(theta)).collect(),
            RopeScaling::Linear { factor } => pairs.map(default(theta)).map(|f| f / factor as f32).collect(),
            RopeScaling::Dynamic { factor, original_positions } => {
                let length = (position + 1).max(original_positions);
                let stretch = factor as f32 * length as f32 / original_positions as f32 - (factor as f32 - 1.0);
                pairs.map(default(theta * stretch.powf(dim as f32 / (dim as f32 - 2.0)))).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let [factor, low, high, original] =
                    [factor as f32, low_freq_factor as f32, high_freq_factor as f32, original_positions as f32];
                let stretch = |frequency: f32| {
                    let wavelength = 2.0 * std::f32::consts::PI / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                pairs.map(default(theta)).map(stretch).collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate, .. } => {
                let (low, high) = self.yarn_range(dim, beta_fast, beta_slow, original_positions, truncate);
                let frequency = |pair: usize| {
                    let wavelength = theta.powf((2 * pair) as f32 / dim as f32);
                    let (kept, divided) = (1.0 / wavelength, 1.0 / (factor as f32 * wavelength));
                    let share_kept = 1.0 - ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    divided * (1.0 - share_kept) + kept * share_kept
                };
                pairs.map(frequency).collect()
            }
        }
    }

    /// The pairs between which yarn goes from kept to divided frequencies.
    fn yarn_range(&self, dim: usize, fast: f64, slow: f64, original_positions: usize, truncate: bool) -> (f32, f32) {
        let pair_that_turns = |rotations: f64| {
            let wavelength = original_positions as f64 / (rotations * 2.0 * std::f64::consts::PI);
            dim as f64 * wavelength.ln() / (2.0 * self.theta.ln())
        };
        let (low, high) = (pair_that_turns(fast), pair_that_turns(slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        // Equal limits would divide by zero; the width of the step is transformers' choice.
        (low as f32, if low == high { high + 0.001 } else { high } as f32)
    }
}

impl RopeScaling {
    fn from_config(config: &ConfigFile, rope: &ConfigFile, trained_positions: usize) -> Result<RopeScaling> {
        if rope.positive("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(rope.unsupported("partial_rotary_factor", "1.0"));
        }
        let type_field = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        // A few models state the length at the top level, which transformers prefers.
        let original_positions = match config.optional_size("original_max_position_embeddings", MAX_POSITIONS)? {
            Some(positions) => positions,
            None => rope.optional_size("original_max_position_embeddings", MAX_POSITIONS)?.unwrap_or(trained_positions),
        };
        match rope.text(type_field)?.unwrap_or("default") {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: rope.required_positive("factor")? }),
            "dynamic" => Ok(RopeScaling::Dynamic {
                factor: rope.required_positive("factor")?,
                original_positions: trained_positions,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: rope.required_positive("factor")?,
                low_freq_factor: rope.required_positive("low_freq_factor")?,
                high_freq_factor: rope.required_positive("high_freq_factor")?,
                original_positions,
            }),
            "yarn" => {
                let factor = match rope.positive("factor")? {
                    Some(factor) => factor,
                    None => trained_positions as f64 / original_positions as f64,
                };
                Ok(RopeScaling::Yarn {
                    factor,
                    attention_factor: yarn_attention_factor(rope, factor)?,
                    beta_fast: rope.positive("beta_fast")?.unwrap_or(32.0),
                    beta_slow: rope.positive("beta_slow")?.unwrap_or(1.0),
                    original_positions,
                    truncate: rope.flag("truncate", true)?,
                })
            }
            _ => Err(rope.unsupported(type_field, SUPPORTED)),
        }
    }
}

fn yarn_attention_factor(rope: &ConfigFile, factor: f64) -> Result<f64> {
    if let Some(attention_factor) = rope.positive("attention_factor")? {
        return Ok(attention_factor);
    }
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    Ok(match (rope.positive("mscale")?, rope.positive("mscale_all_dim")?) {
        (Some(mscale), Some(all_dims)) => temperature(mscale) / temperature(all_dims),
        _ => temperature(1.0),
    })
}
