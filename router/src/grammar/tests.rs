//! What grammars accept and refuse, by texts walked through the masks.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::engine::GrammarEngine;
use super::error::{GrammarError, MatcherError};
use super::matcher::Matcher;
use super::spec::GrammarSpec;
use crate::chat::{ReasoningFormat, ReplyStart, ToolFormat};
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
    /// The ids of `"`, `}`, `]` and `0`.
    closing: Vec<u32>,
}

impl Walker {
    fn new() -> Self {
        let tokenizer = byte_level();
        let closing = tokenizer.encode("\"}]0", false).unwrap();
        Self { engine: engine(), tokenizer, closing }
    }

    fn accepts(&self, compiled: &super::CompiledGrammar, text: &str) -> bool {
        let ids = self.tokenizer.encode(text, false).unwrap();
        let accepted = accepts_ids(&mut compiled.matcher(), &ids, END);
        assert!(!accepted || compiled.min_tokens() as usize <= ids.len(), "min_tokens is beyond {text:?}");
        accepted
    }

    /// Replies of a model that chooses at random: how many ended, and those that another validator of JSON Schema (or of
    /// JSON) refuses. None may get stuck.
    fn random_replies(&self, compiled: &super::CompiledGrammar, document: &Value, seed: usize) -> (usize, Vec<String>) {
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
    let (mut random, mut wrongly_generated) = (0, Vec::new());
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
        // Validators divide doubles, and find 35879.45 no multiple of 0.0001. It is one.
        if let Some(compiled) = compiled.as_ref().filter(|_| !name.ends_with("by small number")) {
            let (ended, wrong) = walker.random_replies(compiled, &document, groups);
            random += ended;
            wrongly_generated.extend(wrong.into_iter().map(|text| format!("{name}: {text}")));
        }
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
    println!(
        "valid {valid}: accepted {accepted}, in another spelling {respelled}, rejected {}",
        wrongly_rejected.len()
    );
    println!("invalid {invalid}: accepted {}", wrongly_accepted.len());
    println!("random replies that ended {random}: invalid {}", wrongly_generated.len());
    for (title, list) in [
        ("WRONGLY GENERATED", &wrongly_generated),
        ("refused", &refused),
        ("wrongly rejected", &wrongly_rejected),
        ("WRONGLY ACCEPTED", &wrongly_accepted),
    ] {
        list.iter().for_each(|line| println!("{title}: {line}"));
    }
    assert_eq!(wrongly_accepted, Vec::<String>::new());
    assert_eq!(wrongly_generated, Vec::<String>::new());
    assert!(random > 1000, "random replies end");
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

#[test]
fn schemas_accept_what_they_say() {
    let walker = Walker::new();
    let person = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name"], "additionalProperties": false});
    let cases: &[(Value, &[&str], &[&str])] = &[
        (
            person,
            &[r#"{"name":"x"}"#, r#"{"name": "x", "age": 3}"#, "{\n  \"name\": \"x\\u0007\"\n}"],
            &[
                r#"{"age":3}"#,
                r#"{"name":"x","b":1}"#,
                r#"{"name":  "x"}"#,
                r#"{"name":"x"}}"#,
                r#" {"name":"x"}"#,
                "{\"name\":\"\n\"}",
            ],
        ),
        (json!(true), &["1", "null", r#"{"a":[{}]}"#, "-0.5", "1e10"], &["-0", "01", "nul", "1e999", ".5", "1."]),
        (
            json!({"properties": {"foo": {"$ref": "#"}}, "additionalProperties": false, "type": "object"}),
            &["{}", r#"{"foo":{"foo":{"foo":{}}}}"#],
            &[r#"{"foo":1}"#, r#"{"foo":{"bar":{}}}"#],
        ),
        (
            json!({"minimum": -2, "maximum": 1.5, "type": "number"}),
            &["-2", "-1.99", "0", "1.50", "1.5"],
            &["-2.01", "1.51", "-3", "2", "10", "-0"],
        ),
        (
            json!({"type": "integer", "minimum": 10, "exclusiveMaximum": 1000, "multipleOf": 5}),
            &["10", "995"],
            &["5", "11", "1000", "10.0", "1e2"],
        ),
        // Draft 4.
        (
            json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 1, "exclusiveMinimum": true}),
            &["2"],
            &["1", "0"],
        ),
        (
            json!({"type": "string", "minLength": 2, "maxLength": 3}),
            &[r#""ab""#, r#""é\né""#],
            &[r#""a""#, r#""abcd""#, "\"a\nb\""],
        ),
        (
            json!({"type": "string", "pattern": "^a+$", "not": {"enum": ["aa"]}}),
            &[r#""a""#, r#""aaa""#],
            &[r#""aa""#, r#""ba""#],
        ),
        (
            json!({"type": "string", "format": "date"}),
            &[r#""2024-02-29""#, r#""2000-02-29""#],
            &[r#""2023-02-29""#, r#""1900-02-29""#, r#""2024-13-01""#, r#""0000-01-01""#],
        ),
        (
            json!({"type": "string", "format": "ipv6"}),
            &[r#""::1""#, r#""fe80::1:2""#],
            &[r#""1::2::3""#, r#""12345::""#],
        ),
        (
            json!({"type": "string", "format": "json-pointer"}),
            &[r#""""#, r#""/""#, r#""/a~1b/~0/\"/c""#],
            &[r#""a""#, r#""/~""#, r#""/a~2""#],
        ),
        (
            json!({"type": "string", "format": "relative-json-pointer"}),
            &[r#""0""#, r#""12#""#, r#""1/a""#],
            &[r#""01""#, r#""/a""#, r#""1a""#],
        ),
        (
            json!({"type": "string", "format": "uri"}),
            &[r#""https://a.example/b?c=d#e""#, r#""urn:x:y""#],
            &[r#""a b""#, r#""/path""#],
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            &[r#""2024-05-06T07:08:09Z""#],
            &[r#""2024-05-06 07:08:09Z""#],
        ),
        (json!({"type": "string", "format": "no-such-format"}), &[r#""anything""#], &["1"]),
        (
            json!({"enum": ["a", 1, null, {"b": [true]}]}),
            &[r#""a""#, "1", "null", r#"{"b":[true]}"#],
            &[r#""b""#, "2", r#"{"b":[]}"#],
        ),
        (json!({"type": ["integer", "string"], "enum": ["x", 1, 1.5, null]}), &[r#""x""#, "1"], &["null", "1.5"]),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 2}]}),
            &["1", "2.5"],
            &["3", "1.5", "3.0"],
        ),
        (
            json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "n": {"type": "integer"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "s": {"type": "string"}}, "required": ["kind"]}]}),
            &[r#"{"kind":"a","n":1}"#, r#"{"kind":"b","s":""}"#],
            &[r#"{"kind":"a","n":""}"#, r#"{"kind":"c"}"#, "{}"],
        ),
        (
            json!({"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}, "type": "object",
            "properties": {"a": {}, "b": {}}, "additionalProperties": false}),
            &["{}", r#"{"a":2}"#, r#"{"a":1,"b":0}"#],
            &[r#"{"a":1}"#],
        ),
        (
            json!({"type": "array", "uniqueItems": true, "items": {"enum": ["a", "b", true]}}),
            &["[]", r#"["b","a"]"#, r#"[true,"a","b"]"#],
            &[r#"["a","a"]"#, r#"["b","a","b"]"#],
        ),
        (
            json!({"type": "array", "contains": {"const": 1}, "maxContains": 2, "items": {"type": "integer"}}),
            &["[1]", "[0,1,2,1]"],
            &["[]", "[0]", "[1,1,1]"],
        ),
        (
            json!({"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 5}),
            &["[1,2,3]", "[1,2,3,4,5]"],
            &["[1,2]", "[1,2,3,4,5,6]", "[1,2,3,]"],
        ),
        (
            json!({"type": "object", "minProperties": 1, "maxProperties": 2, "properties": {"a": {}, "b": {}, "c": {}}}),
            &[r#"{"b":1}"#, r#"{"a":1,"c":1}"#, r#"{"a":1,"z":1}"#],
            &["{}", r#"{"a":1,"b":1,"c":1}"#, r#"{"a":1,"b":1,"y":1}"#],
        ),
        (
            json!({"type": "object", "patternProperties": {"^x": {"type": "integer"}, "y$": {"minimum": 5}}, "additionalProperties": false}),
            &["{}", r#"{"xa":1}"#, r#"{"xy":5}"#, r#"{"ay":"s"}"#],
            &[r#"{"xa":""}"#, r#"{"xy":4}"#, r#"{"a":1}"#],
        ),
        (json!({"type": "object", "propertyNames": {"maxLength": 2}}), &[r#"{"ab":1}"#], &[r#"{"abc":1}"#]),
        (
            json!({"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}, "additionalProperties": false}),
            &["{}", r#"{"b":1}"#, r#"{"a":1,"b":1}"#],
            &[r#"{"a":1}"#],
        ),
        (
            json!({"$defs": {"node": {"$anchor": "n", "type": "object", "properties": {"next": {"anyOf": [{"$ref": "#n"}, {"type": "null"}]}},
            "required": ["next"], "additionalProperties": false}}, "$ref": "#/$defs/node"}),
            &[r#"{"next":null}"#, r#"{"next":{"next":null}}"#],
            &[r#"{"next":{}}"#, r#"{"next":{"next":1}}"#],
        ),
        (
            json!({"allOf": [{"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"type": "integer"}}, "required": ["a"]}], "type": "object"}),
            &[r#"{"a":1}"#],
            &["{}", r#"{"a":0}"#, r#"{"a":1.5}"#],
        ),
    ];
    let mut random = 0;
    for (seed, (document, accepted, rejected)) in cases.iter().enumerate() {
        walker.check(&schema(document), accepted, rejected);
        let compiled = compile(&walker.engine, &schema(document)).unwrap();
        let (ended, wrong) = walker.random_replies(&compiled, document, seed);
        assert!(wrong.is_empty(), "{document}: {wrong:?}");
        random += ended;
    }
    assert!(random > 50, "random replies end");
    walker.check(&GrammarSpec::JsonObject, &["{}", r#"{"a":{"b":[1,"x"]}}"#], &["[]", "1", "{", r#"{"a"}"#]);
}

#[test]
fn what_cannot_be_enforced_is_refused_with_keyword_and_path() {
    let walker = Walker::new();
    let refused = |document: Value, expected: &str| walker.refuses(&schema(&document), expected);
    refused(
        json!({"properties": {"a/b": {"type": "array", "uniqueItems": true}}}),
        "`uniqueItems` at `#/properties/a~1b`",
    );
    refused(json!({"items": {"pattern": "(?=a)b"}}), "`pattern` at `#/items`");
    refused(json!({"items": {"pattern": r"(a)\1"}}), "`pattern` at `#/items`");
    refused(json!({"$ref": "https://example.com/schema"}), "`$ref` at `#`");
    refused(json!({"$ref": "#/nowhere"}), "points at nothing");
    refused(json!({"$ref": "#"}), "`$ref` at `#`");
    refused(
        json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}),
        "refers to itself",
    );
    refused(json!({"$dynamicRef": "#x"}), "`$dynamicRef`");
    refused(json!({"type": "object", "minProperties": 2}), "`minProperties` at `#`");
    refused(json!({"allOf": [{}, {"type": "integer"}], "unevaluatedProperties": false}), "`unevaluatedProperties`");
    refused(json!({"type": "strnig"}), "no type of JSON");
    refused(json!({"properties": 3}), "`properties` at `#` is invalid");
    refused(json!({"items": {"minLength": -1}}), "`minLength` at `#/items` is invalid");
    refused(json!([]), "a schema is an object or a Boolean");
    refused(json!(false), "no JSON document");
    refused(json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "no JSON document");
    refused(json!({"type": "integer", "minimum": 3, "maximum": 2}), "no JSON document");
    refused(json!({"type": "string", "minLength": 9_999_999}), "is more than");
}

#[test]
fn regexes_match_from_end_to_end() {
    let walker = Walker::new();
    let regex = |pattern: &str| GrammarSpec::Regex(pattern.into());
    walker.check(&regex(r"[0-9]{3}-[a-z]+"), &["123-a", "000-zz"], &["12-a", "123-", "x123-a", "123-a "]);
    walker.check(&regex(r"^(yes|no)$"), &["yes", "no"], &["yesno", ""]);
    walker.check(&regex(r"a/b\.c"), &["a/b.c"], &["a/bxc"]);
    walker.check(&regex(r"(?i)é+"), &["é", "ÉÉ"], &["e"]);
    walker.check(&regex(r"a*"), &["", "aaa"], &["b"]);
    for pattern in [r"(?=a)a", r"(a)\1", "(", "[z-a]", "[^\\s\\S]", r"a^b"] {
        walker.refuses(&regex(pattern), "regex: ");
    }
    walker.refuses(&regex(&"a".repeat(20_000)), "the regex has 20000, limit 16384");
    walker.refuses(&regex(&format!("{}a{}", "(".repeat(5000), ")".repeat(5000))), "regex: ");
}

#[test]
fn choices_are_exact() {
    let walker = Walker::new();
    let choice = |choices: &[&str]| GrammarSpec::Choice(choices.iter().map(|&choice| choice.to_owned()).collect());
    walker.check(&choice(&["a", "ab", "x.y"]), &["a", "ab", "x.y"], &["", "b", "abc", "xzy"]);
    walker.refuses(&choice(&[]), "the list is empty");
    walker.refuses(&choice(&["a", ""]), "choice 1 is empty");
    walker.refuses(&choice(&vec!["a"; 5000]), "limit 4096");
}

#[test]
fn lark_and_gbnf_are_read() {
    let walker = Walker::new();
    let lark = |text: &str| GrammarSpec::Lark(text.into());
    walker.check(&lark("start: \"a\" B+\nB: /[0-9]/"), &["a1", "a12"], &["a", "1"]);
    let arithmetic = "# sums\nroot ::= expr\nexpr ::= term (\"+\" term)*\nterm ::= [0-9]{1,2} | \"(\" expr \")\" | some-Name\n\
                      some-Name ::= \"\\\"\" [^\"\\n\\x41]+ \"\\\"\"\n";
    walker.check(&lark(arithmetic), &["1", "12+(3+4)", "\"x\"+1"], &["123", "1+", "()", "\"A\""]);
    walker.check(&lark("root ::= \"yes\" | \"no\" |"), &["yes", "no", ""], &["maybe"]);
    walker.refuses(&lark("start: b"), "grammar: ");
    walker.refuses(&lark("start: %json {\"uniqueItems\": true}"), "`%json` is not supported");
    walker.refuses(&lark("start ::= \"a\""), "no rule `root`");
    walker.refuses(&lark("root ::= (\"a\""), "line 1: expected `)`");
    walker.refuses(&lark("root ::= \"a"), "line 1: expected");
    walker.refuses(&lark(&format!("start: {}\"a\"{}", "(".repeat(500), ")".repeat(500))), "nesting");
}

#[test]
fn a_reply_ends_where_the_grammar_says() {
    let walker = Walker::new();
    let object = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let compiled = compile(&walker.engine, &schema(&object)).unwrap();
    let mut matcher = compiled.matcher();
    for id in walker.tokenizer.encode(r#"{"a":1"#, false).unwrap() {
        assert!(!has(&matcher.mask().unwrap(), END));
        assert_eq!(matcher.accept(END), Err(MatcherError::NotAllowed { token_id: END }));
        matcher.accept(id).unwrap();
    }
    assert_eq!(matcher.accept(9999), Err(MatcherError::NotAllowed { token_id: 9999 }));
    matcher.accept(walker.tokenizer.encode("}", false).unwrap()[0]).unwrap();
    // A closed document must end: only the end is allowed, before and after it.
    for _ in 0..2 {
        let mask = matcher.mask().unwrap();
        assert!(has(&mask, END));
        assert_eq!(mask.iter().map(|word| word.count_ones()).sum::<u32>(), 1, "nothing but the end");
        matcher.accept(END).unwrap();
    }
    let space = walker.tokenizer.encode(" ", false).unwrap()[0];
    assert_eq!(matcher.accept(space), Err(MatcherError::NotAllowed { token_id: space }));
}

#[test]
fn white_space_is_bounded() {
    let walker = Walker::new();
    let compiled = compile(&walker.engine, &GrammarSpec::JsonObject).unwrap();
    let mut matcher = compiled.matcher();
    let ids = |text: &str| walker.tokenizer.encode(text, false).unwrap();
    matcher.accept(ids("{")[0]).unwrap();
    matcher.accept(ids("\n")[0]).unwrap();
    let spaces = (0..100).take_while(|_| matcher.accept(ids(" ")[0]).is_ok()).count();
    assert_eq!(spaces, 32);
    assert!(matcher.accept(ids("\n")[0]).is_err());
    assert!(matcher.accept(ids("}")[0]).is_ok());
}

#[test]
fn several_ends_and_a_padded_vocabulary() {
    let engine = GrammarEngine::new(&Arc::new(byte_level()), 300, &[256, END, 9999]).unwrap();
    let compiled = compile(&engine, &GrammarSpec::Choice(Arc::new(["a".to_owned()]))).unwrap();
    let mut matcher = compiled.matcher();
    let a = byte_level().encode("a", false).unwrap()[0];
    let mask = matcher.mask().unwrap();
    assert_eq!(mask.len(), 10);
    assert!(has(&mask, a) && mask.iter().map(|word| word.count_ones()).sum::<u32>() == 1);
    matcher.accept(a).unwrap();
    let mask = matcher.mask().unwrap();
    assert!(has(&mask, 256) && has(&mask, END) && mask.iter().map(|word| word.count_ones()).sum::<u32>() == 2);
    assert!(GrammarEngine::new(&Arc::new(byte_level()), 100, &[END]).is_err());
}

/// Every tokenizer at hand: the bytes of the tokens, joined, are what the tokenizer decodes.
#[test]
fn token_bytes_join_to_the_decoded_text() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tokenizers = vec![byte_level(), byte_fallback(&["▁the", "▁", "a", "é"])];
    tokenizers.push(TextTokenizer::load(&root.join("launcher/demo-model/tokenizer.json")).unwrap());
    for folder in std::fs::read_dir(root.join("../shared/models")).into_iter().flatten().flatten() {
        let path = folder.path().join("tokenizer.json");
        if path.exists() {
            tokenizers.push(TextTokenizer::load(&path).unwrap());
        }
    }
    println!("{} tokenizers", tokenizers.len());
    let texts = ["Hello, the  world!\n\t{\"a\": [1, 2.5]}", "žluťoučký 😀 kůň", " leading", "a", "<0x41> ▁ \u{7f}"];
    for tokenizer in &tokenizers {
        let size = tokenizer.inner().get_vocab_size(true);
        let bytes = super::vocabulary::token_bytes(tokenizer.inner(), size + 3).unwrap();
        assert_eq!(bytes.len(), size + 3);
        assert!(bytes[size..].iter().all(Option::is_none));
        for text in texts {
            let ids = tokenizer.encode(text, false).unwrap();
            let joined: Vec<u8> = ids.iter().filter_map(|id| bytes[*id as usize].clone()).flatten().collect();
            let decoded = tokenizer.decode(&ids);
            let joined = String::from_utf8_lossy(&joined);
            // A decoder may take the space off the start of a whole text, not off a reply in the middle of one.
            assert!(*joined == decoded || joined.strip_prefix(' ') == Some(&decoded), "{joined:?} is not {decoded:?}");
        }
    }
}

#[test]
fn min_tokens_is_a_lower_bound() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model/tokenizer.json");
    let tokenizer = Arc::new(TextTokenizer::load(&demo).unwrap());
    let size = tokenizer.inner().get_vocab_size(true);
    let engine = GrammarEngine::new(&tokenizer, size, &[0]).unwrap();
    let fewest = |spec: &GrammarSpec| compile(&engine, spec).unwrap().min_tokens();
    let longer = json!({"type": "object", "properties": {"a_rather_long_name": {"const": "and a constant of some length"}},
        "required": ["a_rather_long_name"]});
    let cases = [
        (schema(&longer), r#"{"a_rather_long_name":"and a constant of some length"}"#),
        (
            schema(&json!({"type": "array", "items": {"enum": [1000, 20000]}, "minItems": 30, "maxItems": 30})),
            &format!("[{}]", vec!["1000"; 30].join(",")),
        ),
        (GrammarSpec::Regex("(?:abcdefghij){20}x?".into()), &"abcdefghij".repeat(20)),
        (GrammarSpec::Choice(Arc::new(["once upon a time there was".to_owned()])), "once upon a time there was"),
        (GrammarSpec::JsonObject, "{}"),
    ];
    for (spec, shortest) in cases {
        let tokens = tokenizer.encode(shortest, false).unwrap().len();
        let bound = fewest(&spec);
        println!("{bound} <= {tokens} tokens for {shortest:?}");
        assert!(bound >= 1 && bound as usize <= tokens);
    }
    // One choice: exactly its shortest cut.
    assert!(fewest(&GrammarSpec::Regex("(?:abcdefghij){20}x?".into())) >= 10, "not a trivial bound");
    assert_eq!(fewest(&GrammarSpec::Regex("a*".into())), 0);
}

#[tokio::test]
async fn one_grammar_is_compiled_once_at_a_time() {
    let engine = Arc::new(engine());
    let spec = schema(&json!({"type": "object", "properties": {"a": {"type": "string"}}}));
    let all = futures::future::join_all((0..8).map(|_| engine.compile(&spec))).await;
    let first = all[0].as_ref().unwrap();
    assert!(all.iter().all(|other| Arc::ptr_eq(first, other.as_ref().unwrap())));
    assert!(Arc::ptr_eq(first, &engine.compile(&spec).await.unwrap()), "and then found in the cache");
    assert_eq!(engine.load().1, 0);
}

#[tokio::test]
async fn the_cache_keeps_within_its_bytes() {
    let limit = 400_000;
    let engine =
        GrammarEngine::start(&Arc::new(byte_level()), 258, vec![END], limit, crate::limits::GRAMMAR_COMPILE_TIMEOUT)
            .unwrap();
    let mut largest = 0;
    for index in 0..40 {
        let compiled = engine.compile(&GrammarSpec::Regex(format!("a{{{index}}}b").into())).await.unwrap();
        largest = largest.max(compiled.bytes());
        assert!(engine.load().0 <= limit);
    }
    assert!(engine.load().0 > limit - 2 * largest, "full, not empty: {} of {limit}", engine.load().0);
}

/// A schema that takes some hundred milliseconds, different for every `seed`.
fn slow_schema(seed: usize) -> GrammarSpec {
    let properties: serde_json::Map<String, Value> = (0..300)
        .map(|index| (format!("p{seed}_{index}"), json!({"type": ["string", "null"], "maxLength": 100})))
        .collect();
    schema(&json!({"type": "object", "properties": properties, "additionalProperties": false}))
}

#[tokio::test]
async fn a_slow_grammar_is_said() {
    let limit = std::time::Duration::ZERO;
    let engine = GrammarEngine::start(&Arc::new(byte_level()), 258, vec![END], 1 << 20, limit).unwrap();
    assert_eq!(engine.compile(&slow_schema(0)).await.err(), Some(GrammarError::TimedOut { limit }));
}

#[tokio::test]
async fn a_full_queue_is_said() {
    let engine = engine();
    // One for each worker, then more than the queue holds; none of them is waited for.
    let slow: Vec<_> = (0..crate::limits::GRAMMAR_WORKERS).map(slow_schema).collect();
    let quick: Vec<_> = (0..400).map(|index| GrammarSpec::Regex(format!("x{{{index}}}").into())).collect();
    let mut waiting = Vec::new();
    let mut refused = 0;
    for spec in slow.iter().chain(&quick) {
        let mut compilation = Box::pin(engine.compile(spec));
        match futures::poll!(&mut compilation) {
            std::task::Poll::Ready(Err(GrammarError::Overloaded { limit })) => {
                assert_eq!(limit, crate::limits::QUEUED_GRAMMARS);
                refused += 1;
            }
            std::task::Poll::Ready(other) => panic!("{:?}", other.err()),
            std::task::Poll::Pending => waiting.push(compilation),
        }
    }
    assert!(refused > 0);
    for compilation in waiting {
        compilation.await.map(drop).unwrap();
    }
}

/// Schemas built to hurt end with an answer or a typed error, soon, and leave the engine working.
#[test]
fn hostile_grammars_are_bounded() {
    let walker = Walker::new();
    let mut deep = json!({"type": "integer"});
    for _ in 0..100 {
        deep = json!({"items": deep});
    }
    let mut chain: serde_json::Map<String, Value> =
        (0..2000).map(|index| (format!("d{index}"), json!({"$ref": format!("#/$defs/d{}", index + 1)}))).collect();
    chain.insert("d2000".to_owned(), json!({"type": "integer"}));
    let product = json!({"allOf": (0..12).map(|index| json!({"anyOf": (0..4).map(|option|
        json!({"properties": {format!("p{index}_{option}"): {"type": "integer"}}, "required": [format!("p{index}_{option}")]})).collect::<Vec<_>>()})).collect::<Vec<_>>()});
    let optional: serde_json::Map<String, Value> = (0..500)
        .map(|index| (format!("property_{index}"), json!({"type": ["string", "null"], "maxLength": 100})))
        .collect();
    let nots = (1..30)
        .map(|index| json!({"not": {"properties": {format!("a{index}"): {"minLength": index}}}}))
        .collect::<Vec<_>>();
    let cases = [
        ("deep", schema(&deep)),
        ("chain of references", schema(&json!({"$ref": "#/$defs/d0", "$defs": chain}))),
        ("product", schema(&product)),
        (
            "500 optional properties",
            schema(&json!({"type": "object", "properties": optional, "additionalProperties": false})),
        ),
        ("nots", schema(&json!({"allOf": nots}))),
        (
            "long strings",
            schema(
                &json!({"type": "array", "items": {"type": "string", "pattern": "^(a|b|c)*d(a|b|c){200}$", "minLength": 1000}}),
            ),
        ),
        (
            "counted",
            schema(
                &json!({"type": "array", "items": {"maxItems": 100_000, "items": {"maxLength": 1_000_000}}, "minItems": 30_000}),
            ),
        ),
        (
            "email",
            schema(
                &json!({"format": "email", "minLength": 6, "pattern": r"^\w+([\.-]?\w+)*@\w+([\.-]?\w+)*(\.\w{2,})+$"}),
            ),
        ),
        ("regex", GrammarSpec::Regex("(?:(?:(?:a{0,100}){0,100}){0,100}){0,100}".into())),
        ("regex of classes", GrammarSpec::Regex(r"(\w{1,50}\s){1,500}x(.*y.{100}){20}".into())),
    ];
    for (name, spec) in cases {
        let started = Instant::now();
        let outcome = match compile(&walker.engine, &spec) {
            Ok(compiled) => format!("{} bytes", compiled.bytes()),
            Err(GrammarError::Internal { reason }) => panic!("{name}: {reason}"),
            Err(error) => error.to_string().chars().take(160).collect(),
        };
        println!("{name}: {:?}: {outcome}", started.elapsed());
    }
    walker.check(&GrammarSpec::JsonObject, &["{}"], &["["]);
    let too_deep = (0..500).fold(json!(true), |inner, _| Value::Array(vec![inner]));
    walker.refuses(&GrammarSpec::JsonSchema(Arc::new(too_deep)), "nesting");
}

/// Figures: `cargo test -p router --lib --release mask_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn mask_cost() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model/tokenizer.json");
    let mut tokenizers = vec![("demo model", Arc::new(TextTokenizer::load(&demo).unwrap()))];
    if let Ok(path) = std::env::var("TOKENIZER_JSON") {
        tokenizers.push(("TOKENIZER_JSON", Arc::new(TextTokenizer::load(Path::new(&path)).unwrap())));
    }
    let document = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150}, "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
        "note": {"type": "string"}}, "required": ["name", "age"], "additionalProperties": false});
    let text =
        r#"{"name": "Robert", "age": 12, "tags": ["a", "b"], "note": "once upon a time there was a little girl"}"#;
    for (name, tokenizer) in tokenizers {
        let size = tokenizer.inner().get_vocab_size(true);
        let started = Instant::now();
        let engine = GrammarEngine::new(&tokenizer, size, &[0]).unwrap();
        compile(&engine, &GrammarSpec::Regex("a".into())).unwrap();
        let first = started.elapsed();
        let started = Instant::now();
        let compiled = compile(&engine, &schema(&document)).unwrap();
        let compile_time = started.elapsed();
        let mut times = Vec::new();
        for _ in 0..20 {
            let mut matcher = compiled.matcher();
            for id in tokenizer.encode(text, false).unwrap() {
                let started = Instant::now();
                let mask = matcher.mask().unwrap();
                times.push(started.elapsed());
                if !has(&mask, id) {
                    break;
                }
                matcher.accept(id).unwrap();
            }
        }
        times.sort_unstable();
        println!(
            "{name}: {size} tokens, vocabulary {first:?}, schema {compile_time:?}, mask p50 {:?} p99 {:?} max {:?} of {}",
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            times[times.len() - 1],
            times.len()
        );
    }
}

/// Calls as the simplest of formats: the arguments of one function.
fn calls(tool: &str, parameters: Value) -> GrammarSpec {
    let lark = format!("start: %json {parameters}").into();
    GrammarSpec::ToolCalls { lark, schemas: [(tool.to_owned(), Arc::new(parameters))].into() }
}

/// What follows a thought in the words of the family that `template` belongs to.
fn after_thought(template: &str, start: ReplyStart, answer: GrammarSpec) -> GrammarSpec {
    let reasoning = ReasoningFormat::detect(Some(template), |_| None).unwrap();
    ToolFormat::detect(None, |_| None).after_thought(answer, (&reasoning, start))
}

#[test]
fn an_answer_may_follow_a_thought() {
    use ReplyStart::{Content, Reasoning};
    let walker = Walker::new();
    let integer = || schema(&json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}));
    walker.check(
        &after_thought("<think>", Content, integer()),
        &[
            r#"{"a": 1}"#,
            r#"<think>{"a": "x"} < 3</think>{"a": 1}"#,
            "<think>\n\n</think>\n\n{\"a\": 1}",
            "\n<think>a</think> {\"a\": 1}",
        ],
        &[
            "",
            r#"{"a": "x"}"#,
            r#"<think>{"a": 1}"#,
            r#"<think></think>{"a": "x"}"#,
            "<think></think>",
            "<think></think>\n\n",
            "<think></think>\n\n\n\n\n{\"a\": 1}",
            r#"a</think>{"a": 1}"#,
            r#"<think></think><think></think>{"a": 1}"#,
        ],
    );
    walker.check(
        &after_thought("<think>", Reasoning, integer()),
        &[r#"</think>{"a": 1}"#, "{\"a\": 1}</think>\n{\"a\": 1}"],
        &["", r#"{"a": 1}"#, "</think>", r#"</think>{}"#],
    );
    let yes = || GrammarSpec::Choice(Arc::new([" yes".to_owned(), "<no>".to_owned()]));
    walker.check(
        &after_thought("<think>", Content, yes()),
        &[" yes", "<no>", "<think>a</think> yes", "<think></think><no>"],
        &["yes", "<think></think>  yes", "<thi"],
    );
    walker.check(
        &after_thought("<think>", Reasoning, GrammarSpec::Lark("start: \"a\"+".into())),
        &["</think>a", "hm</think>aaa"],
        &["aaa", "</think>", "</think>\na"],
    );
    let harmony = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant";
    walker.check(
        &after_thought("<|channel|>analysis", Content, integer()),
        &[
            r#"{"a": 1}"#,
            r#"<|channel|>final<|message|>{"a": 1}"#,
            &format!(r#"{harmony}<|channel|>final<|message|>{{"a": 1}}"#),
        ],
        &[&format!(r#"{harmony}{{"a": 1}}"#), harmony],
    );
}

#[test]
fn a_thought_costs_at_least_its_end() {
    let engine = engine();
    let fewest = |spec: &GrammarSpec| compile(&engine, spec).unwrap().min_tokens();
    let answer = || GrammarSpec::Choice(Arc::new(["yes".to_owned()]));
    assert_eq!(fewest(&answer()), 3);
    assert_eq!(fewest(&after_thought("<think>", ReplyStart::Content, answer())), 3);
    assert_eq!(fewest(&after_thought("<think>", ReplyStart::Reasoning, answer())), 4);
    let refused = after_thought("<think>", ReplyStart::Content, GrammarSpec::JsonSchema(Arc::new(json!(false))));
    assert_eq!(compile(&engine, &refused).err(), Some(GrammarError::Unsatisfiable));
}

#[test]
fn a_tool_whose_schema_cannot_be_enforced_is_refused_by_keyword_and_place() {
    let walker = Walker::new();
    let refuses = |schema: Value, expected: &str| {
        // Below a property, and in a draft that knows few keywords.
        let nested = json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "object",
            "properties": {"a/b": schema}});
        walker.refuses(&calls("f", schema), &format!("{expected} at `#` of the parameters of `f`"));
        walker.refuses(&calls("f", nested), &format!("{expected} at `#/properties/a~1b` of the parameters of `f`"));
    };
    refuses(json!({"not": {"type": "string"}}), "`not`");
    refuses(json!({"type": "array", "uniqueItems": true}), "`uniqueItems`");
    refuses(json!({"type": "array", "contains": {"type": "integer"}}), "`contains`");
    refuses(json!({"type": "object", "propertyNames": {"maxLength": 3}}), "`propertyNames`");
    refuses(json!({"type": "object", "dependentRequired": {"a": ["b"]}}), "`dependentRequired`");
    refuses(json!({"type": "object", "dependencies": {"a": ["b"]}}), "`dependencies`");
    refuses(json!({"type": "object", "unevaluatedProperties": false}), "`unevaluatedProperties`");
    refuses(json!({"if": {"type": "string"}, "then": {"maxLength": 3}}), "`if`");
    refuses(json!({"type": "string", "format": "regex"}), "`format`");
    let defined = json!({"type": "object", "$defs": {"x": {"anyOf": [{"not": {}}]}}});
    walker.refuses(&calls("f", defined), "`not` at `#/$defs/x/anyOf/0` of the parameters of `f`");
    // What is left to llguidance has the tool's name at least.
    walker.refuses(&calls("f", json!({"type": "string", "minLength": "3"})), "the parameters of `f`: ");
    walker.refuses(&calls("f", json!({"$ref": "https://example.com/x"})), "the parameters of `f`: ");
}

#[test]
fn the_formats_of_tools_are_enforced() {
    let walker = Walker::new();
    for (format, right, wrong) in [
        ("date-time", "2024-02-29T10:00:00Z", "2024-02-30T10:00:00Z"),
        ("time", "10:00:00Z", "24:00:00Z"),
        ("date", "2024-02-29", "2024-13-01"),
        ("duration", "P1Y", "1Y"),
        ("email", "a@b.c", "a.b.c"),
        ("hostname", "a-b.c", "-a"),
        ("ipv4", "1.2.3.4", "1.2.3.256"),
        ("ipv6", "1::2", "1:2"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ("uri", "https://a.b/c", "a b"),
    ] {
        let spec = calls("f", json!({"type": "string", "format": format}));
        walker.check(&spec, &[&format!("\"{right}\"")], &[&format!("\"{wrong}\"")]);
    }
    walker.check(&calls("f", json!({"type": "integer", "format": "int32"})), &["7"], &["\"7\""]);
}

#[test]
fn the_official_suite_as_tools_has_no_invalid_instance_accepted() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/json_schema/testsuite.jsonl"));
    let Ok(suite) = std::fs::read_to_string(path) else {
        println!("skipped: {} is not there", path.display());
        return;
    };
    let walker = Walker::new();
    let (mut compiled_groups, mut invalid) = (0, 0);
    let mut wrong = Vec::new();
    for line in suite.lines() {
        let group: Value = serde_json::from_str(line).unwrap();
        let name = group["name"].as_str().unwrap();
        let Ok(compiled) = compile(&walker.engine, &calls("f", group["schema"].clone())) else { continue };
        compiled_groups += 1;
        for test in group["tests"].as_array().unwrap().iter().filter(|test| test["valid"] == false) {
            invalid += 1;
            let text = test["data"].to_string();
            wrong.extend(walker.accepts(&compiled, &text).then(|| format!("{name}: {text}")));
        }
    }
    println!("tools: {compiled_groups} groups, {invalid} invalid instances");
    wrong.iter().for_each(|line| println!("TOOLS {line}"));
    assert_eq!(wrong, Vec::<String>::new());
}
