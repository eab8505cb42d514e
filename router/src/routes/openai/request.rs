//! The fields that chat completions and completions share, and what they ask of validation. A parameter of both routes
//! is added here, once.

use std::fmt;
use std::sync::Arc;

use proto::v1::{TokenBias, TokenSequence};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};

use crate::error::{Error, ValidationError};
use crate::limits::{MAX_BAD_WORD_BYTES, MAX_BAD_WORD_STRINGS};
use crate::params::{Asked, at_most};
use crate::server::Server;
use crate::text::TextTokenizer;

/// Declares the body of a route: the fields given here and those that OpenAI's routes share. The body gets
/// `take_asked`, which moves the shared parameters into an [`Asked`].
macro_rules! request_body {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident { $($fields:tt)* }) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        $visibility struct $name {
            $($fields)*
            /// Echoed in the answer. `tgi` stands for the served model.
            #[schema(max_length = 256)]
            model: Option<String>,
            /// Answers wanted, each with its own seed.
            #[schema(minimum = 1, maximum = 128)]
            n: Option<usize>,
            stream: Option<bool>,
            stream_options: Option<$crate::routes::openai::StreamOptions>,
            /// Most tokens of the reply.
            #[schema(minimum = 0, maximum = 4294967295_u32)]
            max_tokens: Option<u32>,
            /// 0 is greedy; without it the answer is sampled at 1.
            #[schema(minimum = 0)]
            temperature: Option<f32>,
            #[schema(minimum = 0, maximum = 1)]
            top_p: Option<f32>,
            /// 0 and -1 are off.
            #[schema(minimum = -1, maximum = 2147483647)]
            top_k: Option<i32>,
            #[schema(minimum = 0, maximum = 1)]
            min_p: Option<f32>,
            #[schema(exclusive_minimum = 0, maximum = 1)]
            typical_p: Option<f32>,
            /// Any 64-bit integer.
            #[schema(value_type = Option<i64>, minimum = -9223372036854775808_i64, maximum = 9223372036854775807_i64)]
            seed: Option<i128>,
            #[schema(value_type = Option<$crate::routes::openapi::StopStrings>)]
            stop: Option<$crate::routes::openai::Stop>,
            /// Once per distinct token of the reply.
            #[schema(minimum = -2, maximum = 2)]
            presence_penalty: Option<f32>,
            /// Per occurrence in the reply.
            #[schema(minimum = -2, maximum = 2)]
            frequency_penalty: Option<f32>,
            #[schema(exclusive_minimum = 0)]
            repetition_penalty: Option<f32>,
            /// Token ids and what is added to their logits, -100 to 100.
            #[schema(schema_with = $crate::routes::openai::request::LogitBias::described)]
            logit_bias: Option<$crate::routes::openai::request::LogitBias>,
            #[schema(minimum = 0, extensions(("x-limit" = json!("max_total_tokens"))))]
            min_tokens: Option<u32>,
            ignore_eos: Option<bool>,
            /// Words that the reply must not contain.
            #[schema(value_type = Option<Vec<$crate::routes::openapi::BadWordText>>, max_items = 256)]
            bad_words: Option<Vec<String>>,
            /// The same as token ids.
            #[schema(value_type = Option<Vec<$crate::routes::openapi::BadWordTokens>>, max_items = 1024)]
            bad_words_ids: Option<Vec<Vec<u32>>>,
            /// Keep only so many tokens of the prompt's end.
            #[serde(alias = "truncate")]
            #[schema(minimum = 1, extensions(("x-limit" = json!("max_input_tokens"))))]
            truncate_prompt_tokens: Option<usize>,
            #[schema(extensions(("x-limit" = json!("payload_limit"))))]
            adapter_id: Option<String>,
            response_format: Option<$crate::routes::openai::response_format::ResponseFormat>,
            structured_outputs: Option<$crate::routes::openai::response_format::StructuredOutputs>,
            #[schema(value_type = Option<$crate::routes::openapi::JsonObjectOrText>)]
            guided_json: Option<serde_json::Value>,
            #[schema(extensions(("x-limit" = json!("payload_limit"))))]
            guided_regex: Option<String>,
            #[schema(value_type = Option<Vec<$crate::routes::openapi::ChoiceText>>, max_items = 4096)]
            guided_choice: Option<Vec<String>>,
            /// A grammar in llguidance's dialect of Lark.
            #[schema(extensions(("x-limit" = json!("payload_limit"))))]
            guided_grammar: Option<String>,
        }

        impl $name {
            /// The shared parameters in validation's terms.
            fn take_asked(&mut self) -> Result<$crate::params::Asked, $crate::error::ValidationError> {
                let formats = $crate::routes::openai::response_format::Formats {
                    response_format: self.response_format.take(),
                    structured_outputs: self.structured_outputs.take(),
                    guided: $crate::routes::openai::response_format::StructuredOutputs {
                        json: self.guided_json.take(),
                        regex: self.guided_regex.take(),
                        choice: self.guided_choice.take(),
                        grammar: self.guided_grammar.take(),
                        json_object: None,
                    },
                };
                let mut sampling = proto::v1::SamplingParams {
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    occurrence_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    logit_bias: self.logit_bias.take().map(|bias| bias.0).unwrap_or_default(),
                    min_tokens: self.min_tokens,
                    bad_words: $crate::routes::openai::request::sequences(self.bad_words_ids.take().unwrap_or_default()),
                    ..Default::default()
                };
                $crate::params::temperature::ask_openai(&mut sampling, self.temperature);
                $crate::params::top_k::ask_openai(&mut sampling, self.top_k);
                $crate::params::top_p::ask_openai(&mut sampling, self.top_p);
                $crate::params::typical_p::ask_openai(&mut sampling, self.typical_p);
                $crate::params::seed::ask_openai(&mut sampling, self.seed)?;
                Ok($crate::params::Asked {
                    sampling,
                    n: self.n,
                    max_new_tokens: self.max_tokens,
                    stop: $crate::routes::openai::Stop::into_list(self.stop.take()),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    truncate: self.truncate_prompt_tokens,
                    adapter_id: self.adapter_id.take(),
                    grammar: formats.into_grammar()?,
                    ..Default::default()
                })
            }
        }
    };
}
pub(crate) use request_body;

/// `logit_bias`: an object whose keys are token ids.
#[derive(Debug)]
pub(crate) struct LogitBias(pub(crate) Vec<TokenBias>);

impl LogitBias {
    /// Its schema. (The derive knows no bound of a map.)
    pub(crate) fn described() -> Object {
        let bias = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(-100)).maximum(Some(100));
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
            .description(Some("Token ids and what is added to their logits"))
            .additional_properties(Some(bias))
            .max_properties(Some(1024))
            .build()
    }
}

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = LogitBias;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with token ids as keys and numbers as values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, bias)) = map.next_entry::<String, f32>()? {
                    let token_id = key.parse().map_err(|_| A::Error::custom("a key is not a token id"))?;
                    entries.push(TokenBias { token_id, bias });
                }
                Ok(LogitBias(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Adds `words` to the token lists that the reply must not contain. A word has other tokens after a space than at the
/// beginning of a line, so both spellings are forbidden.
///
/// # Errors
/// [`ValidationError`] if there are too many or one is too long, overload if the tokenizer threads cannot keep up.
pub(crate) async fn forbid_words(asked: &mut Asked, words: Option<Vec<String>>, server: &Server) -> Result<(), Error> {
    let words = words.unwrap_or_default();
    if words.is_empty() {
        return Ok(());
    }
    let longest = words.iter().map(String::len).max().unwrap_or(0);
    at_most("bad_words", "strings", MAX_BAD_WORD_STRINGS, words.len())?;
    at_most("bad_words", "bytes", MAX_BAD_WORD_BYTES, longest)?;
    let tokenizer = server.validation.tokenizer.clone();
    let spellings = server.validation.pool.run(move || spellings(&tokenizer, &words)).await??;
    asked.sampling.bad_words.extend(sequences(spellings));
    Ok(())
}

/// Token lists as the sampler reads them.
pub(crate) fn sequences(lists: Vec<Vec<u32>>) -> Vec<TokenSequence> {
    lists.into_iter().map(|ids| TokenSequence { ids }).collect()
}

fn spellings(tokenizer: &Arc<TextTokenizer>, words: &[String]) -> Result<Vec<Vec<u32>>, ValidationError> {
    let mut lists = Vec::new();
    for word in words {
        let word = word.trim_start();
        let first = tokenizer.encode(word, false)?;
        let spaced = tokenizer.encode(&format!(" {word}"), false)?;
        // A tokenizer without tokens that begin with a space spells the space apart: then the first list finds it.
        if spaced.len() == first.len() && spaced.first() != first.first() {
            lists.push(spaced);
        }
        lists.push(first);
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::test_tokenizers::byte_level;

    #[test]
    fn logit_bias_keys_are_token_ids() {
        let bias: LogitBias = serde_json::from_str(r#"{"7": -100, "12": 0.5}"#).unwrap();
        assert_eq!(bias.0, [(7, -100.0), (12, 0.5)].map(|(token_id, bias)| TokenBias { token_id, bias }));
        for bad in [r#"{"a": 1}"#, r#"{"-1": 1}"#, r#"{"1": "x"}"#, "[1]"] {
            assert!(serde_json::from_str::<LogitBias>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_forbidden_in_every_spelling_of_one_token_list() {
        let bytes = Arc::new(byte_level());
        let expected = [bytes.encode("ab", false).unwrap()];
        assert_eq!(spellings(&bytes, &["ab".to_owned()]).unwrap(), expected);
        assert_eq!(spellings(&bytes, &["  ab".to_owned()]).unwrap(), expected);
    }
}
