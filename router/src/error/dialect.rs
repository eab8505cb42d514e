//! The shapes that clients read errors in: TGI's `{"error", "error_type"}` on its native routes, OpenAI's `{"error": {..}}`
//! on `/v1/*`, Anthropic's on `/v1/messages`.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::Error;

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

/// Failures of a route in its dialect; `?` makes them from any error.
macro_rules! failures {
    ($($(#[doc = $doc:literal])+ $name:ident = $dialect:ident;)+) => {
        $(
            $(#[doc = $doc])+
            pub(crate) struct $name(Error);

            impl<E: Into<Error>> From<E> for $name {
                fn from(error: E) -> Self {
                    Self(error.into())
                }
            }

            impl IntoResponse for $name {
                fn into_response(self) -> Response<Body> {
                    Dialect::$dialect.response(&self.0)
                }
            }
        )+
    };
}

failures! {
    /// A failure of a native route.
    NativeFailure = Native;
    /// A failure of a `/v1/*` route.
    OpenAiFailure = OpenAi;
    /// A failure of a route in Anthropic's shape.
    AnthropicFailure = Anthropic;
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

impl Error {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ValidationError;

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

    #[test]
    fn overload_says_when_to_come_back() {
        let response = Dialect::Native.response(&Error::Overloaded { retry_after_seconds: 7 });
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    }
}
