//! Every way a request can fail: how it is answered, counted and logged.

mod dialect;
mod validation;

use axum::http::{Method, StatusCode};

pub(crate) use self::dialect::{
    AnthropicBody, AnthropicFailure, Dialect, NativeBody, NativeFailure, OpenAiBody, OpenAiFailure,
};
pub(crate) use self::validation::ValidationError;
use crate::engine::{RequestError, SubmitError};
use crate::grammar::GrammarError;
use crate::metrics::FailureKind;
use crate::text::PoolError;

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

/// How a kind of failure is answered and counted.
struct Kind {
    status: StatusCode,
    /// TGI's name of it: huggingface_hub picks its exception by it.
    error_type: &'static str,
    /// The label of `tgi_request_failure`; `None` where TGI does not count.
    counted: Option<FailureKind>,
}

impl Error {
    fn kind(&self) -> Kind {
        use FailureKind::{Generation, Incomplete, Overloaded, Template, Validation};
        let (status, error_type, counted) = match self {
            Self::Validation(_) => (StatusCode::UNPROCESSABLE_ENTITY, "validation", Some(Validation)),
            Self::Body(BodyError::ContentType) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "validation", None),
            Self::Body(BodyError::Rejected { status, .. }) => (*status, "validation", None),
            Self::Suffix => (StatusCode::UNPROCESSABLE_ENTITY, "suffix not supported", Some(Validation)),
            Self::BatchSize { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "batch size exceeded", Some(Validation)),
            Self::Template { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "template_error", Some(Template)),
            Self::Tool(_) => (StatusCode::UNPROCESSABLE_ENTITY, "tool_error", Some(Validation)),
            Self::NoModel { .. } => (StatusCode::NOT_FOUND, "model_not_found", None),
            Self::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "overloaded", Some(Overloaded)),
            Self::Generation { .. } => (StatusCode::FAILED_DEPENDENCY, "generation", Some(Generation)),
            Self::Incomplete => (StatusCode::INTERNAL_SERVER_ERROR, "incomplete_generation", Some(Incomplete)),
            Self::Unhealthy => (StatusCode::SERVICE_UNAVAILABLE, "healthcheck", None),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some(Overloaded)),
            Self::NoRoute { .. } => (StatusCode::NOT_FOUND, "not_found", None),
            Self::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None),
            // OpenAI's word, which is also this error's `code` on `/v1/*`.
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "invalid_api_key", None),
            // A timeout drops its generation, which is counted there.
            Self::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "timeout", None),
            Self::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, "timeout", None),
        };
        Kind { status, error_type, counted }
    }

    /// TGI's name of the kind of failure.
    pub(crate) fn error_type(&self) -> &'static str {
        self.kind().error_type
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.kind().status
    }

    /// Counts and logs the failure. Called once, where the failure leaves for the client.
    ///
    /// A client's mistake is no error of the server: nobody is to be woken by one, and nobody may fill the log with them.
    /// Their texts can also quote what was sent, which has no place in a log that is read every day.
    fn record(&self) {
        if let Some(kind) = self.kind().counted {
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

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
                error.record();
                assert_eq!(levels.0.lock().unwrap().drain(..).collect::<Vec<_>>(), [expected], "{error}");
            }
        });
    }
}
