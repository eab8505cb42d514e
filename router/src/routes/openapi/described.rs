//! Types that exist in the document only: what stands in a field whose Rust type is free JSON, an untagged union, or a list
//! whose items have a bound, for which the derive has no words.

use std::borrow::Cow;

use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, extensions::ExtensionsBuilder};
use utoipa::{PartialSchema, ToSchema};

use super::bounds::{X_LIMIT, array, integer, limited, limited_string, stop_strings};
use crate::limits::{MAX_BAD_WORD_BYTES, MAX_GRAMMAR_BYTES, MAX_STOP_BYTES, MAX_TEMPLATE_VARIABLES};

macro_rules! described {
    ($($(#[doc = $doc:literal])+ $name:ident = $schema:expr;)+) => {
        $(
            $(#[doc = $doc])+
            #[allow(dead_code, reason = "only the document speaks of it")]
            pub(in crate::routes) struct $name;

            impl PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    Schema::from($schema).into()
                }
            }

            impl ToSchema for $name {
                fn name() -> Cow<'static, str> {
                    stringify!($name).into()
                }
            }
        )+
    };
}

described! {
    /// Any JSON object.
    JsonObject = free(&[Type::Object]);
    /// Any JSON object, or text: a word, or JSON in a string.
    JsonObjectOrText = free(&[Type::Object, Type::String]);
    /// An event of the responses API; its type says what else it holds.
    NumberedEvent = ObjectBuilder::new()
        .property("type", ObjectBuilder::new().schema_type(Type::String))
        .property("sequence_number", ObjectBuilder::new().schema_type(Type::Integer))
        .required("type")
        .required("sequence_number")
        .build();
    /// One text per item, or the bytes of one text, which may be empty.
    OutputTensorData = OneOfBuilder::new()
        .item(array(Schema::from(ObjectBuilder::new().schema_type(Type::String))).min_items(Some(1)).build())
        .item(array(Schema::from(integer(0..=255))).build())
        .build();
    /// Variables of a chat template.
    TemplateVariables =
        ObjectBuilder::new().schema_type(Type::Object).max_properties(Some(MAX_TEMPLATE_VARIABLES)).build();
    /// A token.
    TokenId = token_id();
    /// A regular expression.
    RegexText = limited_string("payload_limit");
    /// One of the texts that a reply can be.
    ChoiceText = text(0, MAX_GRAMMAR_BYTES);
    /// The name of a further output.
    IncludedOutput = limited_string("payload_limit");
    /// A word that the reply must not contain.
    BadWordText = text(0, MAX_BAD_WORD_BYTES);
    /// The tokens of such a word.
    BadWordTokens =
        array(Schema::from(token_id())).min_items(Some(1)).max_items(Some(proto::MAX_BAD_WORD_TOKENS)).build();
    /// Texts that end the reply.
    StopList = stop_strings();
    /// A text that ends the reply, or several.
    StopStrings = OneOfBuilder::new().item(text(1, MAX_STOP_BYTES)).item(stop_strings()).build();
    /// A prompt as text or tokens, or several of a kind.
    PromptOrPrompts = OneOfBuilder::new()
        .item(limited_string("payload_limit"))
        .item(prompts(limited_string("payload_limit")))
        .item(prompt_tokens().build())
        .item(prompts(prompt_tokens().build()))
        .build();
}

/// Free JSON of these types, whose only limit is the body's.
fn free(types: &[Type]) -> Object {
    let extensions = ExtensionsBuilder::new().add(X_LIMIT, "payload_limit").build();
    ObjectBuilder::new().schema_type(SchemaType::from_iter(types.iter().cloned())).extensions(Some(extensions)).build()
}

fn token_id() -> Object {
    integer(0..=u64::from(u32::MAX))
}

/// The limit is in bytes; a text of so many characters has at least as many.
fn text(shortest: usize, longest: usize) -> Object {
    ObjectBuilder::new().schema_type(Type::String).min_length(Some(shortest)).max_length(Some(longest)).build()
}

fn prompt_tokens() -> ArrayBuilder {
    limited(array(Schema::from(token_id())), "payload_limit").min_items(Some(1))
}

fn prompts(item: impl Into<Schema>) -> Schema {
    limited(array(item.into()), "max_client_batch_size").min_items(Some(1)).into()
}

/// A text, or at most `longest` of the schema named `item`.
pub(in crate::routes) fn text_or_list(item: &str, longest: usize) -> RefOr<Schema> {
    let list = array(Ref::from_schema_name(item)).max_items(Some(longest)).build();
    Schema::from(OneOfBuilder::new().item(limited_string("payload_limit")).item(list).build()).into()
}

/// Describes an untagged union of a text and a list of items.
macro_rules! describe_text_or_list {
    ($union:ty as $name:literal, $item:ty, $longest:expr) => {
        impl utoipa::PartialSchema for $union {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $crate::routes::openapi::text_or_list(&<$item as utoipa::ToSchema>::name(), $longest)
            }
        }

        impl utoipa::ToSchema for $union {
            fn name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
                let item = <$item as utoipa::PartialSchema>::schema();
                schemas.push((<$item as utoipa::ToSchema>::name().into_owned(), item));
                <$item as utoipa::ToSchema>::schemas(schemas);
            }
        }
    };
}
pub(in crate::routes) use describe_text_or_list;
