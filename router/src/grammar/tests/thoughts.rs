//! A thought before the text of a grammar.

use super::*;
use crate::chat::{ReasoningFormat, ReplyStart, ToolFormat};

/// What follows a thought in the words of the family that `template` belongs to.
pub(super) fn after_thought(template: &str, start: ReplyStart, answer: GrammarSpec) -> GrammarSpec {
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
