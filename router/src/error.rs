//! Every way a request can fail, and the one place where a failure becomes an HTTP answer and is counted.
//!
//! Two dialects exist: TGI's `{"error", "error_type"}` on its native routes and OpenAI's `{"error": {..}}` on `/v1/*`.
//! The texts are TGI's where TGI has one, because clients match on them.

use axum::body::Body;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;

use crate::engine::{RequestError, SubmitError};
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
    #[error("`top_n_tokens` must be >= 0 and <= {limit}. Given: {given}")]
    TopNTokens { limit: u32, given: u32 },
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
    #[error("`messages[{index}].content` must be a string or a list of text parts")]
    NoContent { index: usize },
    #[error("`messages[{index}].content` of type `{kind}` is not supported by this version")]
    ContentPart { index: usize, kind: String },
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
            Self::TopNTokens { .. } => "top_n_tokens",
            Self::Truncate { .. } => "truncate",
            Self::EmptyInput | Self::Tokenizer { .. } | Self::InputTokens { .. } => "inputs",
            Self::TotalTokens { .. } => "max_new_tokens",
            Self::NoContent { .. } | Self::ContentPart { .. } => "messages",
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
    #[error("no route `{path}`; there are {routes}")]
    NoRoute { path: String, routes: String },
    #[error("`{path}` does not answer to {method}")]
    Method { path: String, method: Method },
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
        }
    }

    /// The label of `tgi_request_failure`; `None` where TGI does not count.
    fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::Validation(_) | Self::Suffix | Self::BatchSize { .. } | Self::Tool(_) => Some(FailureKind::Validation),
            Self::Template { .. } => Some(FailureKind::Template),
            Self::Overloaded { .. } | Self::Stopping => Some(FailureKind::Overloaded),
            Self::Generation { .. } => Some(FailureKind::Generation),
            Self::Incomplete => Some(FailureKind::Incomplete),
            Self::Body(_)
            | Self::Unhealthy
            | Self::NoRoute { .. }
            | Self::NoModel { .. }
            | Self::Method { .. } => None,
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
    fn record(&self) {
        if let Some(kind) = self.failure_kind() {
            kind.count();
        }
        tracing::error!("{self}");
    }
}

/// TGI's error object.
#[derive(Serialize)]
struct NativeBody<'a> {
    error: &'a str,
    error_type: &'a str,
}

/// OpenAI's error object. The second key is for huggingface_hub, which picks its exception by it; OpenAI clients ignore it.
#[derive(Serialize)]
struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
    error_type: &'a str,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
    /// TGI's key in stream errors (it always says 422 there; this is the true status).
    http_status_code: u16,
}

/// Anthropic's error object.
#[derive(Serialize)]
struct AnthropicBody<'a> {
    r#type: &'a str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
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
            ValidationError::TopNTokens { limit: 5, given: 9 }.into(),
            422,
            r#"{"error":{"message":"Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 9","type":"invalid_request_error","param":"top_logprobs","code":"validation","http_status_code":422},"error_type":"validation"}"#,
        );
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let response = Dialect::Native.response(&Error::Overloaded { retry_after_seconds: 7 });
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    }
}
