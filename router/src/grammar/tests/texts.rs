//! Regular expressions, choices, Lark and GBNF; how a reply ends.

use super::*;

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
