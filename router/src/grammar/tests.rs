//! What grammars accept and refuse, by texts walked through the masks.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

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

fn compile(engine: &GrammarEngine, spec: &GrammarSpec) -> Result<Arc<super::CompiledGrammar>, GrammarError> {
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
}

impl Walker {
    fn new() -> Self {
        Self { engine: engine(), tokenizer: byte_level() }
    }

    fn accepts(&self, compiled: &super::CompiledGrammar, text: &str) -> bool {
        let ids = self.tokenizer.encode(text, false).unwrap();
        let accepted = accepts_ids(&mut compiled.matcher(), &ids, END);
        assert!(!accepted || compiled.min_tokens() as usize <= ids.len(), "min_tokens is beyond {text:?}");
        accepted
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

#[test]
fn the_official_suite_has_no_invalid_instance_accepted() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/json_schema/testsuite.jsonl"));
    let Ok(suite) = std::fs::read_to_string(path) else {
        println!("skipped: {} is not there", path.display());
        return;
    };
    let walker = Walker::new();
    let (mut groups, mut refused, mut unsatisfiable) = (0, Vec::new(), 0);
    let (mut valid, mut accepted, mut respelled, mut invalid) = (0, 0, 0, 0);
    let (mut wrongly_accepted, mut wrongly_rejected) = (Vec::new(), Vec::new());
    for line in suite.lines() {
        let group: Value = serde_json::from_str(line).unwrap();
        groups += 1;
        let name = group["name"].as_str().unwrap();
        let mut document = group["schema"].clone();
        // The suite's folders say which draft a schema is in.
        if let Value::Object(object) = &mut document
            && name.starts_with("draft7/")
        {
            object.entry("$schema").or_insert_with(|| "http://json-schema.org/draft-07/schema#".into());
        }
        let compiled = match compile(&walker.engine, &schema(&document)) {
            Ok(compiled) => Some(compiled),
            Err(GrammarError::Unsatisfiable) => {
                unsatisfiable += 1;
                None
            }
            Err(error) => {
                refused.push(format!("{name}: {error}"));
                continue;
            }
        };
        for test in group["tests"].as_array().unwrap() {
            let text = test["data"].to_string();
            let passes = |text: &str| compiled.as_ref().is_some_and(|compiled| walker.accepts(compiled, text));
            if test["valid"] == false {
                invalid += 1;
                if passes(&text) {
                    wrongly_accepted.push(format!("{name}: {text}"));
                }
                continue;
            }
            valid += 1;
            if passes(&text) {
                accepted += 1;
            } else if spellings(&test["data"]).iter().any(|text| passes(text)) {
                respelled += 1;
            } else {
                wrongly_rejected.push(format!("{name}: {text}"));
            }
        }
    }
    println!("groups {groups}: refused {}, unsatisfiable {unsatisfiable}", refused.len());
    println!("valid {valid}: accepted {accepted}, in another spelling {respelled}, rejected {}", wrongly_rejected.len());
    println!("invalid {invalid}: accepted {}", wrongly_accepted.len());
    for (title, list) in
        [("refused", &refused), ("wrongly rejected", &wrongly_rejected), ("WRONGLY ACCEPTED", &wrongly_accepted)]
    {
        list.iter().for_each(|line| println!("{title}: {line}"));
    }
    assert_eq!(wrongly_accepted, Vec::<String>::new());
    assert!(refused.len() * 100 <= groups * 15, "{} of {groups} groups are refused", refused.len());
}

/// Other spellings of a value: keys in other orders, whole numbers without a fraction.
fn spellings(value: &Value) -> Vec<String> {
    let mut all = Vec::new();
    match value {
        Value::Object(map) => {
            let fields: Vec<Vec<String>> = map
                .iter()
                .map(|(name, value)| {
                    spellings(value).into_iter().map(|text| format!("{}:{text}", Value::from(name.as_str()))).collect()
                })
                .collect();
            for order in permutations(fields.len().min(5)) {
                for last in 0..2 {
                    let fields: Vec<&str> = order
                        .iter()
                        .copied()
                        .chain(5..fields.len())
                        .map(|at| fields[at].get(last).unwrap_or(&fields[at][0]).as_str())
                        .collect();
                    all.push(format!("{{{}}}", fields.join(",")));
                }
            }
        }
        Value::Array(items) => {
            for pick in 0..3 {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| {
                        let mut texts = spellings(item);
                        texts.swap_remove(pick.min(texts.len() - 1))
                    })
                    .collect();
                all.push(format!("[{}]", items.join(",")));
            }
        }
        Value::Number(number) => {
            all.push(number.to_string());
            if let Some(whole) = number.as_f64().filter(|value| value.fract() == 0.0) {
                all.push(format!("{whole}"));
            }
        }
        other => all.push(other.to_string()),
    }
    all
}

fn permutations(length: usize) -> Vec<Vec<usize>> {
    if length == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in permutations(length - 1) {
        for at in 0..length {
            let mut longer = shorter.clone();
            longer.insert(at, length - 1);
            all.push(longer);
        }
    }
    all
}
