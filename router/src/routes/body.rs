//! Request bodies: JSON of a known shape, and nothing silently dropped.
//!
//! A body is read twice: once into its type, and once along its keys, for fields that clients know and this version does
//! not serve (refused by name) and for fields that nobody knows (named back in a header on `/v1/*`).

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use serde::de::value::Error as FieldsError;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::header_name;
use crate::error::{BodyError, Dialect, Error, ValidationError};
use crate::limits::{BODY_READ_TIMEOUT, MAX_REPORTED_FIELD_BYTES, MAX_REPORTED_FIELDS};
use crate::params::unsupported::Unsupported;

/// A type that a request body can be.
pub(super) trait Wire: DeserializeOwned {
    /// Fields that are refused unless they ask for nothing.
    const UNSUPPORTED: &'static [&'static [Unsupported]] = &[];
}

/// A request body of type `T`.
pub(super) struct Body<T> {
    pub(super) value: T,
    /// Names of fields that mean nothing here.
    pub(super) unknown: UnknownFields,
    /// When the request came in.
    pub(super) arrived: Instant,
}

/// Names of fields that mean nothing here, as a header value.
#[derive(Default)]
pub(super) struct UnknownFields(Option<HeaderValue>);

const UNKNOWN_FIELDS: HeaderName = header_name("x-unknown-fields");

impl UnknownFields {
    fn new(names: &[String]) -> Self {
        // Names are the client's text: only what a header may hold.
        let is_plain = |name: &&String| {
            name.len() <= MAX_REPORTED_FIELD_BYTES && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        };
        let names: Vec<&str> = names.iter().filter(is_plain).map(String::as_str).take(MAX_REPORTED_FIELDS).collect();
        Self(if names.is_empty() { None } else { HeaderValue::try_from(names.join(",")).ok() })
    }

    /// Tells the client in `response`.
    pub(super) fn tell(self, mut response: Response<HttpBody>) -> Response<HttpBody> {
        if let Some(names) = self.0 {
            response.headers_mut().insert(UNKNOWN_FIELDS, names);
        }
        response
    }
}

impl<T: Wire, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response<HttpBody>;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let arrived = Instant::now();
        let dialect = Dialect::of(request.uri().path());
        read(request, state, arrived).await.map_err(|error| dialect.response(&error))
    }
}

async fn read<T: Wire, S: Send + Sync>(request: Request, state: &S, arrived: Instant) -> Result<Body<T>, Error> {
    if !is_json(request.headers()) {
        return Err(BodyError::ContentType.into());
    }
    let bytes = bytes(request, state).await?;
    let Json(value) = Json::<T>::from_bytes(&bytes)
        .map_err(|rejection| BodyError::Rejected { status: rejection.status(), text: rejection.body_text() })?;
    let unknown = UnknownFields::new(&scan::<T>(&bytes)?);
    Ok(Body { value, unknown, arrived })
}

/// The whole body, within its bounds of size and time.
pub(super) async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    bytes_within(BODY_READ_TIMEOUT, request, state).await
}

async fn bytes_within<S: Send + Sync>(limit: Duration, request: Request, state: &S) -> Result<Bytes, Error> {
    match tokio::time::timeout(limit, Bytes::from_request(request, state)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) => {
            Err(BodyError::Rejected { status: rejection.status(), text: rejection.body_text() }.into())
        }
        Err(_) => Err(Error::BodyTimeout { seconds: limit.as_secs() }),
    }
}

/// `application/json` or `application/*+json`, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Refuses unsupported fields and returns the names of unknown ones. `bytes` has already been read as a `T`.
fn scan<T: Wire>(bytes: &[u8]) -> Result<Vec<String>, Error> {
    let mut scan = Scan { unsupported: T::UNSUPPORTED, known: fields_of::<T>(), refused: None, unknown: Vec::new() };
    // Fails only for what is no object: serde reads a struct from an array too, which has no keys to look at.
    let _ = serde_json::Deserializer::from_slice(bytes).deserialize_map(&mut scan);
    match scan.refused {
        Some(field) => Err(ValidationError::Unsupported { field }.into()),
        None => Ok(scan.unknown),
    }
}

/// Walks one object's keys.
struct Scan {
    unsupported: &'static [&'static [Unsupported]],
    known: &'static [&'static str],
    refused: Option<&'static str>,
    unknown: Vec<String>,
}

impl<'de> Visitor<'de> for &mut Scan {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.unsupported.iter().copied().flatten().find(|unsupported| unsupported.field == key) {
                Some(unsupported) => {
                    if !unsupported.neutral.covers(&map.next_value::<Value>()?) {
                        self.refused.get_or_insert(unsupported.field);
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                    if !self.known.contains(&&*key) && self.unknown.len() < MAX_REPORTED_FIELDS {
                        self.unknown.push(key.into_owned());
                    }
                }
            }
        }
        Ok(())
    }
}

/// The names of a struct's fields, from its `Deserialize`.
fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Probe<'f>(&'f mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = FieldsError;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, FieldsError> {
            Err(serde::de::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, FieldsError> {
            *self.0 = fields;
            Err(serde::de::Error::custom("only its fields are wanted"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    // Always an error: the probe has no value to give.
    let _ = <T as Deserialize>::deserialize(Probe(&mut fields));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::unsupported::Neutral;

    #[derive(serde::Deserialize)]
    #[allow(dead_code)]
    struct Sample {
        inputs: String,
        #[serde(default)]
        parameters: Value,
    }

    impl Wire for Sample {
        const UNSUPPORTED: &'static [&'static [Unsupported]] =
            &[&[], &[Unsupported { field: "audio", neutral: Neutral::False }]];
    }

    #[track_caller]
    fn check(body: &str, expected: &str) {
        let outcome = scan::<Sample>(body.as_bytes());
        assert_eq!(outcome.map_or_else(|error| error.to_string(), |unknown| unknown.join(",")), expected);
    }

    #[test]
    fn fields_are_read_from_the_type() {
        assert_eq!(fields_of::<Sample>(), ["inputs", "parameters"]);
    }

    #[test]
    fn unsupported_fields_are_refused_and_unknown_ones_named() {
        check(r#"{"inputs":"a","audio":false}"#, "");
        check(
            r#"{"inputs":"a","audio":true,"x":1}"#,
            "Input validation error: `audio` is not supported by this version",
        );
        check(r#"{"inputs":"a","parameters":{"y":1},"x":1}"#, "x");
        check(r#"["a",{}]"#, "");
    }

    #[test]
    fn content_types_are_axums() {
        for (value, expected) in [
            ("application/json", true),
            ("application/json; charset=utf-8", true),
            ("Application/vnd.x+json", true),
            ("text/json", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_json(&headers), expected, "{value:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_given_up() {
        let body = HttpBody::from_stream(futures::stream::pending::<Result<Bytes, std::convert::Infallible>>());
        let error = bytes_within(Duration::from_millis(5), Request::new(body), &()).await.unwrap_err();
        assert_eq!((error.status().as_u16(), error.error_type()), (408, "timeout"));
    }

    #[test]
    fn names_that_no_header_can_hold_are_left_out() {
        let names = ["good".to_owned(), "bad\r\nx: y".to_owned(), "also,bad".to_owned()];
        assert_eq!(UnknownFields::new(&names).0.unwrap(), "good");
    }
}
