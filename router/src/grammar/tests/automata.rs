//! What replies teach an automaton changes no mask.

use super::*;
use crate::chat::ReplyStart;

/// Random replies, some cut short, two at a time: each against the same grammar that nobody has taught anything.
fn check(engine: &GrammarEngine, spec: &GrammarSpec, vocab_size: u32, closing: &[u32]) {
    let seed = 7;
    let mut random = StdRng::seed_from_u64(seed);
    let compiled = compile(engine, spec).unwrap();
    let untaught = compiled.untaught();
    for reply in 0..6 {
        let (mut warm, mut cold) = (compiled.matcher(), untaught.matcher());
        // Takes the warmest lexer: the next reply starts with another one, or a cold one.
        let other = (reply % 3 == 2).then(|| compiled.matcher());
        let mut ids = Vec::new();
        for _ in 0..random.random_range(5..40) {
            let mask = warm.mask().unwrap();
            assert_eq!(mask, cold.mask().unwrap(), "{spec:?} after {ids:?} of reply {reply}");
            let (allowed, refused): (Vec<u32>, Vec<u32>) = (0..vocab_size).partition(|&id| has(&mask, id));
            if !refused.is_empty() {
                let id = refused[random.random_range(0..refused.len())];
                assert_eq!(warm.accept(id), cold.accept(id));
            }
            let closing = closing.iter().copied().find(|&id| has(&mask, id)).filter(|_| random.random_bool(0.4));
            let id = closing.unwrap_or_else(|| allowed[random.random_range(0..allowed.len())]);
            warm.accept(id).unwrap();
            cold.accept(id).unwrap();
            ids.push(id);
        }
        drop(other);
    }
}

#[test]
fn masks_of_taught_automata_are_those_of_untaught_ones() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model/tokenizer.json");
    let demo = Arc::new(TextTokenizer::load(&demo).unwrap());
    let document = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150}, "tags": {"type": "array", "items": {"enum": ["a", "bc"]}},
        "when": {"type": "string", "format": "date"}}, "required": ["name"], "additionalProperties": false});
    let any = json!({"anyOf": [{"type": "string", "pattern": "^[a-f]{3,9}x?"}, {"type": "array", "items": {"type": "number"}}]});
    let lark = "start: (word sep)* /[0-9]{2,5}/\nword: /[a-z]+(ing|ed)/\nsep: \" \" | \", \"";
    let specs = [
        schema(&document),
        schema(&any),
        GrammarSpec::JsonObject,
        GrammarSpec::Regex(r"(once|twice) upon (a|the) [a-z ]{4,30}[.!]+".into()),
        GrammarSpec::Choice(Arc::new(["once".to_owned(), "once upon".to_owned(), "one".to_owned()])),
        GrammarSpec::Lark(lark.into()),
        calls("f", document.clone()),
        thoughts::after_thought("<think>", ReplyStart::Content, schema(&document)),
        thoughts::after_thought("<think>", ReplyStart::Reasoning, GrammarSpec::Regex("[ab]{2,40}c".into())),
    ];
    for (tokenizer, end) in [(Arc::new(byte_level()), END), (demo, 0)] {
        let size = tokenizer.inner().get_vocab_size(true);
        let engine = GrammarEngine::new(&tokenizer, size, &[end]).unwrap();
        let closing = tokenizer.encode("</think>\"}]0", false).unwrap();
        for spec in &specs {
            check(&engine, spec, u32::try_from(size).unwrap(), &closing);
        }
    }
}
