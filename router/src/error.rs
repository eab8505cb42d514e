//! Every way a request can fail, and the one place where a failure becomes an HTTP answer and is counted.
//!
//! Two dialects exist: TGI's `{"error", "error_type"}` on its native routes and OpenAI's `{"error": {..}}` on `/v1/*`.
//! The texts are TGI's where TGI has one, because clients match on them.

use axum::body::Body;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{RequestError, SubmitError};
use crate::grammar::GrammarError;
use crate::metrics::FailureKind;
use crate::text::PoolError;

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

/// Tools that a request cannot have as it asks. Printed with TGI's text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("Tool with name {name} not found")]
    NotFound { name: String },
    #[error("Grammar and tools are mutually exclusive")]
    GrammarAndTools,
    #[error("`tool_choice` asks for a call and there are no tools")]
    NoTools,
    /// A schema that no mask can enforce; the text names tool, keyword and path.
    #[error("{reason}")]
    Schema { reason: String },
}

impl ValidationError {
    /// The request field at fault, in the native API's name.
    fn field(&self) -> &'static str {
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

/// A request body that no handler ever saw. TGI sends these texts as text/plain; here they are JSON like every other
/// error (status and text are TGI's), so that a client needs one parser and huggingface_hub finds its `error_type`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("Expected request with `Content-Type: application/json`")]
    ContentType,
    /// Over `--payload-limit`, broken off, not JSON, or JSON of the wrong shape: the extractor's status and text.
    #[error("{text}")]
    Rejected { status: StatusCode, text: String },
}

/// Every way a request can fail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("Input validation error: {0}")]
    Validation(#[from] ValidationError),
    #[error("{0}")]
    Body(#[from] BodyError),
    #[error("Suffix is not supported and can be achieved by preprocessing the prompt.")]
    Suffix,
    #[error("Number of prompts exceeds the maximum allowed batch size of {limit}")]
    BatchSize { limit: usize },
    #[error("Template error: {reason}")]
    Template { reason: String },
    #[error("Tool error: {0}")]
    Tool(#[from] ToolError),
    /// Another name than the served model's.
    #[error("The model `{model}` does not exist")]
    NoModel { model: String },
    #[error("Model is overloaded")]
    Overloaded { retry_after_seconds: u64 },
    #[error("Request failed during generation: {reason}")]
    Generation { reason: String },
    #[error("Incomplete generation")]
    Incomplete,
    #[error("unhealthy")]
    Unhealthy,
    /// The router drains.
    #[error("the server is shutting down")]
    Stopping,
    #[error("no route `{path}`; GET /docs shows those there are")]
    NoRoute { path: String },
    #[error("`{path}` does not answer to {method}")]
    Method { path: String, method: Method },
    /// No key, or one that the server does not have. The text must not say which: that would help guessing.
    #[error("the API key is missing or wrong; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`")]
    Unauthorized,
    /// `--request-timeout` is over.
    #[error("the request was not finished within {seconds} s")]
    Timeout { seconds: u64 },
    /// The client took too long to send its body.
    #[error("the request body did not arrive within {seconds} s")]
    BodyTimeout { seconds: u64 },
}

impl From<SubmitError> for Error {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Overloaded { retry_after, .. } => {
                Error::Overloaded { retry_after_seconds: retry_after.as_secs_f64().ceil() as u64 }
            }
            SubmitError::Misfit(misfit) => Error::Generation { reason: misfit.to_string() },
            SubmitError::Stopped => Error::Stopping,
        }
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        Error::Generation { reason: error.to_string() }
    }
}

impl From<GrammarError> for Error {
    fn from(error: GrammarError) -> Self {
        match error {
            // A compilation takes milliseconds: the shortest wait that HTTP can express is enough.
            GrammarError::Overloaded { .. } => Error::Overloaded { retry_after_seconds: 1 },
            GrammarError::Internal { .. } => Error::Generation { reason: error.to_string() },
            GrammarError::UnsupportedTool { .. } | GrammarError::InvalidTools { .. } => {
                ToolError::Schema { reason: error.to_string() }.into()
            }
            error => ValidationError::Grammar { reason: error.to_string() }.into(),
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            // The queue holds about 13 ms of work per worker: the shortest wait that HTTP can express is enough.
            PoolError::Full => Error::Overloaded { retry_after_seconds: 1 },
            PoolError::Panicked => Error::Generation { reason: error.to_string() },
        }
    }
}

impl Error {
    /// TGI's name of the kind of failure: huggingface_hub picks its exception by it.
    pub(crate) fn error_type(&self) -> &'static str {
        match self {
            Self::Validation(_) | Self::Body(_) => "validation",
            Self::Suffix => "suffix not supported",
            Self::BatchSize { .. } => "batch size exceeded",
            Self::Template { .. } => "template_error",
            Self::Tool(_) => "tool_error",
            Self::NoModel { .. } => "model_not_found",
            Self::Overloaded { .. } => "overloaded",
            Self::Generation { .. } => "generation",
            Self::Incomplete => "incomplete_generation",
            Self::Unhealthy => "healthcheck",
            Self::Stopping => "overloaded",
            Self::NoRoute { .. } => "not_found",
            Self::Method { .. } => "method_not_allowed",
            // OpenAI's word, which is also this error's `code` on `/v1/*`.
            Self::Unauthorized => "invalid_api_key",
            Self::Timeout { .. } | Self::BodyTimeout { .. } => "timeout",
        }
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Body(BodyError::ContentType) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Body(BodyError::Rejected { status, .. }) => *status,
            Self::Validation(_) | Self::Suffix | Self::BatchSize { .. } | Self::Template { .. } | Self::Tool(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::NoModel { .. } => StatusCode::NOT_FOUND,
            Self::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Generation { .. } => StatusCode::FAILED_DEPENDENCY,
            Self::Incomplete => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unhealthy | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// The label of `tgi_request_failure`; `None` where TGI does not count.
    fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::Validation(_) | Self::Suffix | Self::BatchSize { .. } | Self::Tool(_) => {
                Some(FailureKind::Validation)
            }
            Self::Template { .. } => Some(FailureKind::Template),
            Self::Overloaded { .. } | Self::Stopping => Some(FailureKind::Overloaded),
            Self::Generation { .. } => Some(FailureKind::Generation),
            Self::Incomplete => Some(FailureKind::Incomplete),
            // A timeout drops its generation, which is counted there.
            Self::Body(_)
            | Self::Unhealthy
            | Self::NoRoute { .. }
            | Self::NoModel { .. }
            | Self::Method { .. }
            | Self::Unauthorized
            | Self::Timeout { .. }
            | Self::BodyTimeout { .. } => None,
        }
    }

    /// OpenAI's class of the error.
    fn openai_type(&self) -> &'static str {
        match self.status().as_u16() {
            429 => "rate_limit_error",
            424 | 500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Anthropic's class of the error.
    fn anthropic_type(&self) -> &'static str {
        match self.status().as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            424 | 500.. => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// The request field at fault in OpenAI's name, where there is one.
    fn openai_param(&self) -> Option<&'static str> {
        match self {
            Self::Validation(error) => Some(match error.field() {
                "max_new_tokens" => "max_tokens",
                "top_n_tokens" => "top_logprobs",
                "inputs" => "prompt",
                "grammar" => "response_format",
                field => field,
            }),
            Self::Suffix => Some("suffix"),
            Self::BatchSize { .. } => Some("prompt"),
            Self::Template { .. } => Some("messages"),
            Self::Tool(_) => Some("tools"),
            Self::NoModel { .. } => Some("model"),
            _ => None,
        }
    }

    /// Counts and logs the failure. Called once, where the failure leaves for the client.
    ///
    /// A client's mistake is no error of the server: nobody is to be woken by one, and nobody may fill the log with them.
    /// Their texts can also quote what was sent, which has no place in a log that is read every day.
    fn record(&self) {
        if let Some(kind) = self.failure_kind() {
            kind.count();
        }
        match self.status().as_u16() {
            // 424 is TGI's status of a failed generation.
            424 | 500..=502 | 504.. => tracing::error!("{self}"),
            429 | 503 => tracing::warn!("{self}"),
            _ => tracing::debug!("{self}"),
        }
    }
}

/// TGI's error object.
#[derive(Serialize, ToSchema)]
#[schema(as = ErrorResponse)]
pub(crate) struct NativeBody<'a> {
    #[schema(example = "Model is overloaded")]
    error: &'a str,
    #[schema(example = "overloaded")]
    error_type: &'a str,
}

/// OpenAI's error object. The second key is for huggingface_hub, which picks its exception by it; OpenAI clients ignore it.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiErrorResponse)]
pub(crate) struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
    error_type: &'a str,
}

#[derive(Serialize, ToSchema)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
    /// TGI's key in stream errors (it always says 422 there; this is the true status).
    http_status_code: u16,
}

/// Anthropic's error object.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicErrorResponse)]
pub(crate) struct AnthropicBody<'a> {
    r#type: &'a str,
    error: AnthropicError<'a>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AnthropicError<'a> {
    r#type: &'a str,
    message: &'a str,
}

/// Which error shape a route speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Native,
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// The dialect of a path: Anthropic's for `/v1/messages`, OpenAI's below `/v1/`, TGI's elsewhere.
    pub(crate) fn of(path: &str) -> Self {
        match path.strip_prefix("/v1/") {
            Some("messages" | "messages/count_tokens") => Dialect::Anthropic,
            Some(_) => Dialect::OpenAi,
            None => Dialect::Native,
        }
    }

    /// The JSON text of `error`; counts and logs it.
    pub(crate) fn body(self, error: &Error) -> Vec<u8> {
        error.record();
        let (text, error_type) = (error.to_string(), error.error_type());
        match self {
            Dialect::Native => serde_json::to_vec(&NativeBody { error: &text, error_type }),
            Dialect::OpenAi => serde_json::to_vec(&OpenAiBody {
                error: OpenAiError {
                    message: &text,
                    r#type: error.openai_type(),
                    param: error.openai_param(),
                    code: error_type,
                    http_status_code: error.status().as_u16(),
                },
                error_type,
            }),
            Dialect::Anthropic => serde_json::to_vec(&AnthropicBody {
                r#type: "error",
                error: AnthropicError { r#type: error.anthropic_type(), message: &text },
            }),
        }
        .expect("strings and numbers always serialise")
    }

    /// The HTTP answer for `error`; counts and logs it.
    pub(crate) fn response(self, error: &Error) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body(error)));
        *response.status_mut() = match (self, error.status()) {
            // Anthropic's status of an invalid request.
            (Dialect::Anthropic, StatusCode::UNPROCESSABLE_ENTITY) => StatusCode::BAD_REQUEST,
            (_, status) => status,
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Error::Overloaded { retry_after_seconds } = error {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_seconds));
        }
        if let Error::Unauthorized = error {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A failure of a native route; `?` makes it from any error.
pub(crate) struct NativeFailure(Error);

/// A failure of a `/v1/*` route; `?` makes it from any error.
pub(crate) struct OpenAiFailure(Error);

impl<E: Into<Error>> From<E> for NativeFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// A failure of a route in Anthropic's shape; `?` makes it from any error.
pub(crate) struct AnthropicFailure(Error);

impl<E: Into<Error>> From<E> for AnthropicFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for AnthropicFailure {
    fn into_response(self) -> Response<Body> {
        Dialect::Anthropic.response(&self.0)
    }
}

impl<E: Into<Error>> From<E> for OpenAiFailure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for NativeFailure {
    fn into_response(self) -> Response<Body> {
        Dialect::Native.response(&self.0)
    }
}

impl IntoResponse for OpenAiFailure {
    fn into_response(self) -> Response<Body> {
        Dialect::OpenAi.response(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[track_caller]
    fn check(dialect: Dialect, error: Error, status: u16, body: &str) {
        let response = dialect.response(&error);
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(String::from_utf8(dialect.body(&error)).unwrap(), body);
    }

    #[test]
    fn native_errors_have_tgis_shape_text_and_status() {
        use Dialect::Native;
        check(
            Native,
            ValidationError::NotAFraction { field: "top_p" }.into(),
            422,
            r#"{"error":"Input validation error: `top_p` must be > 0.0 and < 1.0","error_type":"validation"}"#,
        );
        check(
            Native,
            Error::Overloaded { retry_after_seconds: 3 },
            429,
            r#"{"error":"Model is overloaded","error_type":"overloaded"}"#,
        );
        check(
            Native,
            Error::Generation { reason: "Server error: x".into() },
            424,
            r#"{"error":"Request failed during generation: Server error: x","error_type":"generation"}"#,
        );
        check(Native, Error::Unhealthy, 503, r#"{"error":"unhealthy","error_type":"healthcheck"}"#);
    }

    #[test]
    fn openai_errors_name_type_param_and_code() {
        check(
            Dialect::OpenAi,
            ValidationError::TopNTokens { field: "top_n_tokens", limit: 5, given: 9 }.into(),
            422,
            r#"{"error":{"message":"Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 9","type":"invalid_request_error","param":"top_logprobs","code":"validation","http_status_code":422},"error_type":"validation"}"#,
        );
    }

    /// The levels at which failures are logged.
    #[derive(Clone, Default)]
    struct Levels(Arc<Mutex<Vec<tracing::Level>>>);

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Levels {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }
    }

    #[test]
    fn only_the_servers_own_failures_are_logged_as_errors() {
        use tracing::Level;
        let levels = Levels::default();
        let subscriber = tracing_subscriber::registry().with(levels.clone());
        tracing::subscriber::with_default(subscriber, || {
            for (error, expected) in [
                (Error::Incomplete, Level::ERROR),
                (Error::Generation { reason: "x".into() }, Level::ERROR),
                (Error::Timeout { seconds: 1 }, Level::ERROR),
                (Error::Overloaded { retry_after_seconds: 1 }, Level::WARN),
                (Error::Unhealthy, Level::WARN),
                (Error::Unauthorized, Level::DEBUG),
                (Error::NoRoute { path: "/x".into() }, Level::DEBUG),
                (Error::Method { path: "/x".into(), method: Method::PUT }, Level::DEBUG),
                (BodyError::ContentType.into(), Level::DEBUG),
                (ValidationError::EmptyInput.into(), Level::DEBUG),
            ] {
                Dialect::Native.response(&error);
                assert_eq!(levels.0.lock().unwrap().drain(..).collect::<Vec<_>>(), [expected], "{error}");
            }
        });
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let response = Dialect::Native.response(&Error::Overloaded { retry_after_seconds: 7 });
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    }
}
