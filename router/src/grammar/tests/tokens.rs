//! Grammars over tokenizers: bytes of tokens, ends, fewest tokens.

use super::*;

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
        let bytes = crate::grammar::vocabulary::token_bytes(tokenizer.inner(), size + 3).unwrap();
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
