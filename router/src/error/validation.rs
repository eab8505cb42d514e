//! Every rule that a parameter or a prompt can break. The texts are TGI's where TGI has one, because clients match on them.

/// A parameter or prompt that breaks a rule. Printed with TGI's text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ValidationError {
    #[error("`best_of` != 1 is not allowed for this endpoint")]
    BestOfDisabled,
    #[error("`best_of` must be > 0 and <= {limit}. Given: {given}")]
    BestOf { limit: usize, given: usize },
    #[error("`best_of` != 1 is not supported when streaming tokens")]
    BestOfStream,
    #[error("you must use sampling when `best_of` is > 1")]
    BestOfWithoutSampling,
    #[error("`seed` must not be set when `best_of` > 1")]
    SeedWithBestOf,
    #[error("`seed` must fit into 64 bits. Given: {given}")]
    Seed { given: i128 },
    #[error("`{field}` must be strictly positive")]
    NotPositive { field: &'static str },
    #[error("`{field}` must be a finite number")]
    NotFinite { field: &'static str },
    #[error("`{field}` must be > 0.0 and < 1.0")]
    NotAFraction { field: &'static str },
    #[error("`frequency_penalty` must be >= -2.0 and <= 2.0")]
    FrequencyPenalty,
    #[error("`stop` supports up to {limit} stop sequences. Given: {given}")]
    StopSequences { limit: usize, given: usize },
    #[error("`stop` must not contain an empty string")]
    EmptyStop,
    #[error("`stop` strings must have at most {limit} bytes. Given: {given}")]
    StopBytes { limit: usize, given: usize },
    #[error("`{field}` must be >= 0 and <= {limit}. Given: {given}")]
    TopNTokens { field: &'static str, limit: u32, given: u32 },
    #[error("`inputs` cannot be empty")]
    EmptyInput,
    #[error("`truncate` must be strictly positive and less than {limit}. Given: {given}")]
    Truncate { limit: usize, given: usize },
    #[error("tokenizer error {reason}")]
    Tokenizer { reason: String },
    #[error(
        "`inputs` tokens + `max_new_tokens` must be <= {limit}. Given: {input} `inputs` tokens and {new} `max_new_tokens`"
    )]
    TotalTokens { limit: usize, input: usize, new: u32 },
    #[error("`inputs` must have less than {limit} tokens. Given: {given}")]
    InputTokens { limit: usize, given: usize },
    #[error("`{field}` must have at most {limit} {unit}. Given: {given}")]
    TooMany { field: &'static str, unit: &'static str, limit: usize, given: usize },
    #[error("`{field}` is not supported by this version")]
    Unsupported { field: &'static str },
    #[error("`{field}` must have at least one item")]
    Empty { field: &'static str },
    /// A body that could be one of several kinds and has the mark of none.
    #[error("one of {fields} is required")]
    MissingOneOf { fields: &'static str },
    #[error("`{field}` is not a list of strings, nor the bytes of a UTF-8 text")]
    TensorData { field: String },
    #[error("`{field}` has datatype {given}; texts are BYTES")]
    TensorType { field: String, given: String },
    #[error("`inputs` and `outputs` must have the same length. Given: {inputs} and {outputs}")]
    TensorCount { inputs: usize, outputs: usize },
    #[error("`messages[{index}].content` must be a string or a list of text parts")]
    NoContent { index: usize },
    #[error("`messages[{index}].content` of type `{kind}` is not supported by this version")]
    ContentPart { index: usize, kind: String },
    #[error("`{field}` must be >= {least:?} and <= {most:?}. Given: {given:?}")]
    OutOfRange { field: &'static str, least: f32, most: f32, given: f32 },
    #[error("`{field}` names token {token_id} twice")]
    Repeated { field: &'static str, token_id: u32 },
    #[error("`{field}` names token {token_id}; the model's tokens are 0 to {last}")]
    UnknownToken { field: &'static str, token_id: u32, last: u32 },
    #[error("`bad_words` must not contain an empty list")]
    EmptyBadWord,
    #[error("`min_tokens` must be <= {limit}, the most tokens that this reply may have. Given: {given}")]
    MinTokens { limit: u32, given: u32 },
    #[error("`n` must be >= 1 and <= {limit}. Given: {given}")]
    N { limit: usize, given: usize },
    #[error("`n` must be <= `best_of`. Given: {n} and {best_of}")]
    NBeyondBestOf { n: usize, best_of: usize },
    #[error("adapter `{given}` is not loaded; this server has no adapters")]
    Adapter { given: String },
    #[error("`decoder_input_details` == true is not supported when streaming tokens")]
    PromptLogprobsStream,
    #[error("grammar is not supported")]
    NoGrammar,
    #[error("grammar is not valid: {reason}")]
    Grammar { reason: String },
    #[error("the shortest reply that `grammar` allows has {needed} tokens. This reply may have {limit}")]
    GrammarTooLong { needed: u32, limit: u32 },
    #[error("`{field}` cannot be combined with `{other}`")]
    Conflict { field: &'static str, other: &'static str },
    #[error("`{field}` must be {expected}")]
    Malformed { field: &'static str, expected: &'static str },
    #[error("`{field}[{index}]`: {reason}")]
    Item { field: &'static str, index: usize, reason: String },
    #[error("`{field}[{index}]` of type `{kind}` is not supported by this version")]
    ToolType { field: &'static str, index: usize, kind: String },
}

impl ValidationError {
    /// The request field at fault, in the native API's name.
    pub(super) fn field(&self) -> &'static str {
        match self {
            Self::BestOfDisabled | Self::BestOf { .. } | Self::BestOfStream | Self::BestOfWithoutSampling => "best_of",
            Self::SeedWithBestOf | Self::Seed { .. } => "seed",
            Self::NotPositive { field }
            | Self::NotFinite { field }
            | Self::NotAFraction { field }
            | Self::TooMany { field, .. }
            | Self::Unsupported { field }
            | Self::Conflict { field, .. }
            | Self::Malformed { field, .. }
            | Self::Item { field, .. }
            | Self::ToolType { field, .. } => field,
            Self::FrequencyPenalty => "frequency_penalty",
            Self::StopSequences { .. } | Self::EmptyStop | Self::StopBytes { .. } => "stop",
            Self::TopNTokens { field, .. } => field,
            Self::Truncate { .. } => "truncate",
            Self::EmptyInput | Self::Tokenizer { .. } | Self::InputTokens { .. } => "inputs",
            Self::TotalTokens { .. } => "max_new_tokens",
            Self::NoContent { .. } | Self::ContentPart { .. } => "messages",
            Self::OutOfRange { field, .. } | Self::Repeated { field, .. } | Self::UnknownToken { field, .. } => field,
            Self::EmptyBadWord => "bad_words",
            Self::MinTokens { .. } => "min_tokens",
            Self::N { .. } | Self::NBeyondBestOf { .. } => "n",
            Self::Adapter { .. } => "adapter_id",
            Self::PromptLogprobsStream => "decoder_input_details",
            Self::NoGrammar | Self::Grammar { .. } => "grammar",
            Self::GrammarTooLong { .. } => "max_new_tokens",
            Self::Empty { field } => field,
            Self::MissingOneOf { .. } | Self::TensorData { .. } | Self::TensorType { .. } => "inputs",
            Self::TensorCount { .. } => "outputs",
        }
    }
}
