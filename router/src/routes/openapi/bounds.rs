//! Bounds in the document. Those that are the same everywhere stand beside their field; one that a flag sets is named by
//! the extension `x-limit` in the committed document, and is a number in the document that a server serves.

use std::ops::RangeInclusive;

use serde_json::{Value, json};
use utoipa::Number;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::schema::{Array, ArrayBuilder, Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};

use crate::limits::MAX_STOP_BYTES;
use crate::server::Server;

/// The extension that names a limit.
pub(super) const X_LIMIT: &str = "x-limit";

/// The limits that flags set, by the names they have in `/info` or on the command line.
#[cfg(test)]
pub(super) const LIMITS: &[&str] = &[
    "max_best_of",
    "max_stop_sequences",
    "max_top_n_tokens",
    "max_input_tokens",
    "max_total_tokens",
    "max_client_batch_size",
    "max_concurrent_requests",
    "payload_limit",
];

/// The value of a limit on this server.
pub(super) fn value(limit: &str, server: &Server) -> Option<usize> {
    let (args, limits) = (&server.args, &server.validation.limits);
    Some(match limit {
        "max_best_of" => limits.max_best_of,
        "max_stop_sequences" => limits.max_stop_sequences,
        "max_top_n_tokens" => limits.max_top_n_tokens as usize,
        "max_input_tokens" => limits.max_input_tokens,
        "max_total_tokens" => limits.max_total_tokens,
        "max_client_batch_size" => args.max_client_batch_size,
        "max_concurrent_requests" => args.max_concurrent_requests,
        "payload_limit" => args.payload_limit,
        _ => return None,
    })
}

/// Adds to every schema with a named limit the keyword that states it.
pub(super) fn fill(schema: &mut Value, value: &dyn Fn(&str) -> Option<usize>) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, value)),
        Value::Object(fields) => {
            if let Some(limit) = fields.get(X_LIMIT).and_then(Value::as_str).and_then(value) {
                let is = |name: &str| match &fields["type"] {
                    Value::Array(types) => types.iter().any(|kind| kind == name),
                    kind => kind == name,
                };
                let keywords = [
                    ("array", "maxItems"),
                    ("string", "maxLength"),
                    ("object", "maxProperties"),
                    ("integer", "maximum"),
                ];
                let keywords: Vec<&str> =
                    keywords.into_iter().filter(|(kind, _)| is(kind)).map(|(_, keyword)| keyword).collect();
                for keyword in keywords {
                    fields.insert(keyword.to_owned(), json!(limit));
                }
            }
            fields.values_mut().for_each(|field| fill(field, value));
        }
        _ => {}
    }
}

/// A list of `items`, still without its bound.
pub(in crate::routes) fn array(items: impl Into<RefOr<Schema>>) -> ArrayBuilder {
    ArrayBuilder::new().items(items.into())
}

/// `array` with the limit named `limit`.
pub(in crate::routes) fn limited(array: ArrayBuilder, limit: &str) -> ArrayBuilder {
    array.extensions(Some(ExtensionsBuilder::new().add(X_LIMIT, limit).build()))
}

/// A list of the schema named `item` with the limit named `limit`. (The derive drops extensions of lists.)
pub(in crate::routes) fn limited_list(item: &str, limit: &str) -> ArrayBuilder {
    limited(ArrayBuilder::new().items(Ref::from_schema_name(item)), limit)
}

/// An integer of this range.
pub(in crate::routes) fn integer(range: RangeInclusive<u64>) -> Object {
    let number = |value: u64| Number::UInt(value as usize);
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(number(*range.start())))
        .maximum(Some(number(*range.end())))
        .build()
}

/// A text with the limit named `limit`.
pub(in crate::routes) fn limited_string(limit: &str) -> Object {
    let extensions = ExtensionsBuilder::new().add(X_LIMIT, limit).build();
    ObjectBuilder::new().schema_type(Type::String).extensions(Some(extensions)).build()
}

/// Stop strings. (Their limit is in bytes; a text of so many characters has at least as many.)
pub(in crate::routes) fn stop_strings() -> Array {
    let item =
        ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(MAX_STOP_BYTES)).build();
    limited(array(item), "max_stop_sequences").description(Some("Texts that end the reply")).build()
}
