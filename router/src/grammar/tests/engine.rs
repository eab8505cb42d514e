//! The engine: cache, queue, deadline, cost.

use super::*;

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
            // As the mask workers do it: a token is read, then the mask that follows it is computed.
            let ids = tokenizer.encode(text, false).unwrap();
            let mut started = Instant::now();
            let mut matcher = compiled.matcher();
            for id in ids {
                let mask = matcher.mask().unwrap();
                times.push(started.elapsed());
                if !has(&mask, id) {
                    break;
                }
                started = Instant::now();
                matcher.accept(id).unwrap();
            }
        }
        times.sort_unstable();
        println!(
            "{name}: {size} tokens, vocabulary {first:?}, schema {compile_time:?}, mask mean {:?} p50 {:?} p99 {:?} max {:?} of {}",
            times.iter().sum::<std::time::Duration>() / u32::try_from(times.len()).unwrap(),
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            times[times.len() - 1],
            times.len()
        );
    }
}
