//! What grammars accept and refuse, by texts walked through the masks.

mod automata;
mod engine;
mod schemas;
mod suite;
mod texts;
mod thoughts;
mod tokens;
mod tools;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::CompiledGrammar;
use super::engine::GrammarEngine;
use super::error::{GrammarError, MatcherError};
use super::matcher::Matcher;
use super::spec::GrammarSpec;
use crate::text::TextTokenizer;
use crate::text::test_tokenizers::{byte_fallback, byte_level};

/// `</s>` of the byte-level test tokenizer.
const END: u32 = 257;

fn engine() -> GrammarEngine {
    GrammarEngine::new(&Arc::new(byte_level()), 258, &[END]).unwrap()
}

fn compile(engine: &GrammarEngine, spec: &GrammarSpec) -> Result<Arc<CompiledGrammar>, GrammarError> {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(engine.compile(spec))
}

fn schema(schema: &Value) -> GrammarSpec {
    GrammarSpec::JsonSchema(Arc::new(schema.clone()))
}

fn has(mask: &[u32], id: u32) -> bool {
    mask[id as usize / 32] & (1 << (id % 32)) != 0
}

/// Whether `ids`, then the end, pass every mask.
fn accepts_ids(matcher: &mut Matcher, ids: &[u32], end: u32) -> bool {
    for &id in ids {
        let allowed = has(&matcher.mask().unwrap(), id);
        assert_eq!(matcher.accept(id).is_ok(), allowed, "the mask and the step agree");
        if !allowed {
            return false;
        }
    }
    let allowed = has(&matcher.mask().unwrap(), end);
    assert_eq!(matcher.accept(end).is_ok(), allowed);
    allowed
}

struct Walker {
    engine: GrammarEngine,
    tokenizer: TextTokenizer,
    /// The ids of `"`, `}`, `]` and `0`.
    closing: Vec<u32>,
}

impl Walker {
    fn new() -> Self {
        let tokenizer = byte_level();
        let closing = tokenizer.encode("\"}]0", false).unwrap();
        Self { engine: engine(), tokenizer, closing }
    }

    fn accepts(&self, compiled: &CompiledGrammar, text: &str) -> bool {
        let ids = self.tokenizer.encode(text, false).unwrap();
        let accepted = accepts_ids(&mut compiled.matcher(), &ids, END);
        assert!(!accepted || compiled.min_tokens() as usize <= ids.len(), "min_tokens is beyond {text:?}");
        accepted
    }

    /// Replies of a model that chooses at random: how many ended, and those that another validator of JSON Schema (or of
    /// JSON) refuses. None may get stuck.
    fn random_replies(&self, compiled: &CompiledGrammar, document: &Value, seed: usize) -> (usize, Vec<String>) {
        let validator = jsonschema::options().should_validate_formats(true).build(document).unwrap();
        let mut random = StdRng::seed_from_u64(seed as u64);
        let (mut ended, mut wrong) = (0, Vec::new());
        for _ in 0..6 {
            let mut matcher = compiled.matcher();
            let mut ids = Vec::new();
            for step in 0..160 {
                let mask = matcher.mask().unwrap_or_else(|error| panic!("{document} after {ids:?}: {error}"));
                let allowed: Vec<u32> = (0..257).filter(|&id| has(&mask, id)).collect();
                if has(&mask, END) && (allowed.is_empty() || random.random_bool(0.3)) {
                    let text = self.tokenizer.decode(&ids);
                    ended += 1;
                    let value: Result<Value, _> = serde_json::from_str(&text);
                    if !value.is_ok_and(|value| validator.is_valid(&value)) {
                        wrong.push(text);
                    }
                    break;
                }
                // Towards the end after a while: what closes comes first.
                let closing = self.closing.iter().copied().find(|&id| step > 40 && has(&mask, id));
                let id = closing.unwrap_or_else(|| allowed[random.random_range(0..allowed.len())]);
                matcher.accept(id).unwrap();
                ids.push(id);
            }
        }
        (ended, wrong)
    }

    #[track_caller]
    fn check(&self, spec: &GrammarSpec, accepted: &[&str], rejected: &[&str]) {
        let compiled = compile(&self.engine, spec).unwrap_or_else(|error| panic!("{spec:?}: {error}"));
        for text in accepted {
            assert!(self.accepts(&compiled, text), "{spec:?} must accept {text:?}");
        }
        for text in rejected {
            assert!(!self.accepts(&compiled, text), "{spec:?} must reject {text:?}");
        }
    }

    #[track_caller]
    fn refuses(&self, spec: &GrammarSpec, expected: &str) {
        let error = compile(&self.engine, spec).err().unwrap_or_else(|| panic!("{spec:?} must be refused"));
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Calls as the simplest of formats: the arguments of one function.
fn calls(tool: &str, parameters: Value) -> GrammarSpec {
    let lark = format!("start: %json {parameters}").into();
    GrammarSpec::ToolCalls { lark, schemas: [(tool.to_owned(), Arc::new(parameters))].into() }
}
