//! The formats as a whole: one sample reply per family, through the parser with every cut and through the mask.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::families::{FALLBACK, FAMILIES};
use super::format::Begin;
use super::*;
use crate::grammar::GrammarSpec;

fn tools() -> Arc<[Tool]> {
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        description: None,
        parameters: Arc::new(parameters),
        original: Arc::new(Value::Null),
    };
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"]});
    Arc::new([tool("get_weather", weather), tool("get", json!({"type": "object", "properties": {}}))])
}

/// Which texts of the formats are special tokens of the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Specials {
    None,
    All,
}

/// All literal texts that some tokenizer holds as special tokens.
fn special_literals() -> Vec<&'static str> {
    let mut all: Vec<&str> = FAMILIES.iter().flat_map(|family| family.tokens.iter().copied()).collect();
    all.extend([
        "<think>",
        "</think>",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    ]);
    all.sort_unstable();
    all.dedup();
    all
}

/// The id of a special token: behind the 256 bytes.
fn special_id(literal: &str, specials: Specials) -> Option<u32> {
    let at = special_literals().iter().position(|known| *known == literal)?;
    (specials == Specials::All).then_some(256 + u32::try_from(at).unwrap())
}

fn format(name: &str, specials: Specials) -> ToolFormat {
    let description = FAMILIES.iter().find(|family| family.name == name).unwrap_or(&FALLBACK);
    assert_eq!(description.name, name);
    let special_tokens = super::format::resolve(description.tokens, |literal| special_id(literal, specials));
    ToolFormat { description, special_tokens }
}

fn think(template: &str, specials: Specials) -> ReasoningFormat {
    ReasoningFormat::detect(Some(template), |literal| special_id(literal, specials)).unwrap()
}

/// Two calls in each family's words: `{W}` and `{G}` stand for the arguments of `get_weather` and `get`.
const SAMPLES: &[(&str, &str)] = &[
    ("harmony", "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{W}"),
    (
        "kimi-k2",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{W}<|tool_call_end|><|tool_call_begin|>functions.get:1<|tool_call_argument_begin|>{G}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    (
        "deepseek-v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{W}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n{G}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{W}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{G}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        "glm",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Zü\"r\nich</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call><tool_call>get</tool_call>",
    ),
    (
        "qwen3-coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nZü\"r\nich\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get>\n</function>\n</tool_call>",
    ),
    (
        "seed-oss",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Zü\"r\nich</parameter>\n<parameter=days>2</parameter>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=get>\n</function>\n</seed:tool_call>",
    ),
    ("functionary-v3.1", "<function=get_weather>{W}</function><function=get>{G}</function>"),
    (
        "hermes",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {W}}\n</tool_call>\n<tool_call>\n{\"name\": \"get\", \"arguments\": {G}}\n</tool_call>",
    ),
    ("mistral-args", "[TOOL_CALLS]get_weather[CALL_ID]call00001[ARGS]{W}[TOOL_CALLS]get[ARGS]{G}"),
    (
        "mistral",
        "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {W}}, {\"name\": \"get\", \"arguments\": {G}}]",
    ),
    (
        "granite",
        "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {W}}, {\"name\": \"get\", \"arguments\": {G}}]",
    ),
    (
        "granite-20b",
        "<function_call> {\"name\": \"get_weather\", \"arguments\": {W}}\n<function_call> {\"name\": \"get\", \"arguments\": {G}}",
    ),
    (
        "firefunction-v1",
        "<functioncall>{\"name\": \"get_weather\", \"arguments\": {W}}<functioncall>{\"name\": \"get\", \"arguments\": {G}}",
    ),
    (
        "functools",
        "functools[{\"name\": \"get_weather\", \"arguments\": {W}}, {\"name\": \"get\", \"arguments\": {G}}]",
    ),
    (
        "nemotron",
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {W}}, {\"name\": \"get\", \"arguments\": {G}}]</TOOLCALL>",
    ),
    (
        "minimax-m1",
        "<tool_calls>\n{\"name\": \"get_weather\", \"arguments\": {W}}\n\n{\"name\": \"get\", \"arguments\": {G}}\n</tool_calls>",
    ),
    (
        "jamba",
        "<tool_calls>[{\"name\": \"get_weather\", \"arguments\": {W}}, {\"name\": \"get\", \"arguments\": {G}}]</tool_calls>",
    ),
    (
        "command-r7b",
        "<|START_ACTION|>[{\"tool_name\": \"get_weather\", \"parameters\": {W}}, {\"tool_name\": \"get\", \"parameters\": {G}}]<|END_ACTION|>",
    ),
    (
        "command-r",
        "Action: ```json\n[{\"tool_name\": \"get_weather\", \"parameters\": {W}}, {\"tool_name\": \"get\", \"parameters\": {G}}]```",
    ),
    (
        "internlm2",
        "<|action_start|><|plugin|>\n{\"name\": \"get_weather\", \"parameters\": {W}}<|action_end|>\n<|action_start|><|plugin|>\n{\"name\": \"get\", \"parameters\": {G}}<|action_end|>",
    ),
    (
        "minicpm3",
        "<|tool_call_start|>\n```python\nget_weather(city=\"Zü\\\"r\\nich\",days=2)\nget()\n```\n<|tool_call_end|>",
    ),
    ("lfm2", "<|tool_call_start|>[get_weather(city=\"Zü\\\"r\\nich\", days=2), get()]<|tool_call_end|>"),
    ("olmo3", "<function_calls>get_weather(city=\"Zü\\\"r\\nich\", days=2)\nget()</function_calls>"),
    ("pythonic", "[get_weather(city='Zü\"r\\nich', days=2), get()]"),
    ("llama3", "{\"name\": \"get_weather\", \"parameters\": {W}}; {\"name\": \"get\", \"parameters\": {G}}"),
    ("xlam", "[{\"name\": \"get_weather\", \"arguments\": {W}}, {\"name\": \"get\", \"arguments\": {G}}]"),
    ("json", "{\"name\": \"get_weather\", \"arguments\": {W}}; {\"name\": \"get\", \"arguments\": {G}}"),
];

const WEATHER: &str = r#"{"city": "Zü\"r\nich", "days": 2}"#;

fn sample(template: &str) -> String {
    template.replace("{W}", WEATHER).replace("{G}", "{}")
}

/// The parts of a reply that came in `pieces`, text parts joined: `c:`, `r:`, `call:`, and `!` if a call is broken.
fn parse<'a>(
    format: Option<&ToolFormat>,
    reasoning: Option<(&ReasoningFormat, ReplyStart)>,
    pieces: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    read(ReplyParser::new(format, reasoning, tools(), &ToolChoice::Auto), pieces)
}

fn read<'a>(mut parser: ReplyParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut parts = Vec::new();
    pieces.into_iter().for_each(|piece| parser.push(piece, &mut parts));
    let outcome = parser.finish(&mut parts);
    let mut joined: Vec<String> = Vec::new();
    let mut kind = String::new();
    for part in &parts {
        let (next, text) = match part {
            ReplyPart::Content(text) => ("c:".to_owned(), text.clone()),
            ReplyPart::Reasoning(text) => ("r:".to_owned(), text.clone()),
            ReplyPart::ToolCall { index, name } => (format!("call {index}"), format!("{index} {name} ")),
            ReplyPart::Arguments { index, fragment } => (format!("call {index}"), fragment.clone()),
        };
        assert!(!text.is_empty(), "empty part in {parts:?}");
        match joined.last_mut() {
            Some(last) if kind == next && !matches!(part, ReplyPart::ToolCall { .. }) => last.push_str(&text),
            _ if next.starts_with("call") => joined.push(text),
            _ => joined.push(format!("{next}{text}")),
        }
        kind = next;
    }
    assert_eq!(parser.calls(), parts.iter().filter(|part| matches!(part, ReplyPart::ToolCall { .. })).count());
    joined.extend(outcome.err().map(|error| format!("!{} {}", error.index, error.name)));
    joined
}

/// Parses `text` whole, with every single cut, character by character, and with random cuts: always the same parts.
#[track_caller]
fn check_cuts(
    format: Option<&ToolFormat>,
    reasoning: Option<(&ReasoningFormat, ReplyStart)>,
    text: &str,
) -> Vec<String> {
    check_parts(text, || ReplyParser::new(format, reasoning, tools(), &ToolChoice::Auto))
}

#[track_caller]
fn check_parts(text: &str, parser: impl Fn() -> ReplyParser) -> Vec<String> {
    let whole = read(parser(), [text]);
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    for cut in &ends {
        assert_eq!(read(parser(), [&text[..*cut], &text[*cut..]]), whole, "cut at {cut} of {text:?}");
    }
    assert_eq!(read(parser(), ends.windows(2).map(|pair| &text[pair[0]..pair[1]])), whole, "{text:?}");
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..100 {
        let mut cuts: Vec<usize> = ends.iter().copied().filter(|_| random.random_bool(0.2)).collect();
        cuts.insert(0, 0);
        cuts.push(text.len());
        let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
        assert_eq!(read(parser(), pieces), whole, "cuts {cuts:?} of {text:?}");
    }
    whole
}

#[test]
fn every_family_has_a_sample() {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).chain(["json"]).collect();
    assert_eq!(names, SAMPLES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

#[test]
fn every_cut_of_every_family_gives_the_same_calls() {
    for (name, template) in SAMPLES {
        let format = format(name, Specials::None);
        let is_marked = format.description.begin != Begin::Start;
        for lead in ["", "\n", "Let me see <b> [x] {y}.\n\n"] {
            if !is_marked && lead.contains('L') {
                continue;
            }
            let parts = check_cuts(Some(&format), None, &format!("{lead}{}", sample(template)));
            let mut expected: Vec<String> = Vec::new();
            expected.extend((lead.len() > 1).then(|| format!("c:{}", lead.trim_end())));
            expected.push(format!("0 get_weather {WEATHER}"));
            expected.extend(template.contains("get\"").then(|| "1 get {}".to_owned()));
            if !template.contains("get\"") && *name != "harmony" {
                expected.push("1 get {}".to_owned());
            }
            assert_eq!(parts, expected, "{name}");
        }
    }
}

#[test]
fn every_prefix_of_every_family_is_the_same_for_every_cut() {
    for (name, template) in SAMPLES {
        let format = format(name, Specials::None);
        let text = sample(template);
        for (end, _) in text.char_indices().step_by(3) {
            let prefix = &text[..end];
            let whole = parse(Some(&format), None, [prefix]);
            let single = prefix.char_indices().map(|(at, c)| &prefix[at..at + c.len_utf8()]);
            assert_eq!(parse(Some(&format), None, single), whole, "{name} {prefix:?}");
        }
    }
}

#[test]
fn texts_that_only_look_like_calls_are_content() {
    let check = |name: &str, text: &str, expected: &[&str]| {
        assert_eq!(check_cuts(Some(&format(name, Specials::None)), None, text), expected, "{name} {text:?}");
    };
    check("hermes", "I use <tool_call> tags <tool", &["c:I use <tool_call> tags <tool"]);
    check(
        "hermes",
        "<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>",
        &["c:<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>"],
    );
    check(
        "hermes",
        "<tool_call>\n{\"name\": \"get\", \"arguments\": 7}",
        &["c:<tool_call>\n{\"name\": \"get\", \"arguments\": 7}"],
    );
    check(
        "hermes",
        "<tool_call><tool_call>{\"name\": \"get\"}</tool_call> done",
        &["c:<tool_call>", "0 get {}", "c:done"],
    );
    check(
        "hermes",
        "<tool_call>{ \"arguments\": {\"a\": [1]}, \"id\": 3, \"name\": \"get\"}</tool_call>",
        &["0 get {\"a\": [1]}"],
    );
    check(
        "hermes",
        "<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": tru, \"b\"",
        &["0 get {\"a\": tru", "c:, \"b\"", "!0 get"],
    );
    check("hermes", "<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": ", &["0 get {\"a\": ", "!0 get"]);
    check(
        "hermes",
        "<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_",
        &["0 get {\"a\": \"</tool_call>\"}"],
    );
    check("json", "{\"name\": \"Bob\", \"age\": 3}", &["c:{\"name\": \"Bob\", \"age\": 3}"]);
    check("json", "Use {\"name\": \"get\", \"arguments\": {}}", &["c:Use {\"name\": \"get\", \"arguments\": {}}"]);
    check("json", "{\"name\": \"get\", \"parameters\": {\"x\": 1}}", &["0 get {\"x\": 1}"]);
    check("llama3", "<|python_tag|>{\"name\": \"get\", \"parameters\": {}}", &["0 get {}"]);
    check("llama3", "<|python_tag|>print(1)", &["c:<|python_tag|>print(1)"]);
    check(
        "mistral",
        "[TOOL_CALLS] [ {\"name\":\"get\",\"arguments\":{\"q\":\"[TOOL_CALLS]\"},\"id\":\"abcdefghi\"} ]",
        &["0 get {\"q\":\"[TOOL_CALLS]\"}"],
    );
    check(
        "harmony",
        "<|start|>assistant to=functions.get<|channel|>commentary json<|message|>{}",
        &["c:<|start|>assistant", "0 get {}"],
    );
    check(
        "qwen3-coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</tool",
        &["0 get_weather {\"city\": \"Rome\"", "c:</tool", "!0 get_weather"],
    );
    check(
        "qwen3-coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRo",
        &["0 get_weather {\"city\": \"Ro", "!0 get_weather"],
    );
}

#[test]
fn calls_in_python_are_read() {
    let check = |name: &str, text: &str, expected: &[&str]| {
        assert_eq!(check_cuts(Some(&format(name, Specials::None)), None, text), expected, "{name} {text:?}");
    };
    check("pythonic", "[get(a=[1, {'b': None}], c='x',)]", &["0 get {\"a\": [1, {\"b\": null}], \"c\": \"x\"}"]);
    check("pythonic", "[get(a=1)\n, get ( b = True ) ] ", &["0 get {\"a\": 1}", "1 get {\"b\": true}"]);
    check("pythonic", "[get (it) is a name]", &["c:[get (it) is a name]"]);
    check("pythonic", "[rm(a=1)]", &["c:[rm(a=1)]"]);
    check("pythonic", "[get(a=1), rm()]", &["0 get {\"a\": 1}", "c:, rm()]"]);
    check("pythonic", "[1, 2]", &["c:[1, 2]"]);
    check("pythonic", "Call [get()]", &["c:Call [get()]"]);
    check("pythonic", "[get(a=\"x", &["0 get {\"a\": \"x", "!0 get"]);
    check("pythonic", "[get(a=b)]", &["0 get {\"a\": ", "c:)]", "!0 get"]);
    check("lfm2", "I look. <|tool_call_start|>[get()]<|tool_call_end|>Wait.", &["c:I look.", "0 get {}", "c:Wait."]);
    check(
        "olmo3",
        "<function_calls>\nget(a=1)\nget(b=2)\n</function_calls>",
        &["0 get {\"a\": 1}", "1 get {\"b\": 2}"],
    );
    check("olmo3", "<function_calls>get(a=1)\n", &["0 get {\"a\": 1}"]);
    check("olmo3", "<function_calls>get(a=1)\nDone.", &["0 get {\"a\": 1}", "c:Done."]);
}

#[test]
fn the_mask_writes_literals_of_python() {
    let mask = Mask::new(Specials::None);
    let pythonic = format("pythonic", Specials::None);
    let parameters = json!({"type": "object", "required": ["s"], "$defs": {"i": {"type": "integer"}}, "properties": {
        "o": {"type": "boolean", "description": "d"},
        "s": {"type": "string"},
        "e": {"type": "string", "enum": ["a'b", "c"]},
        "l": {"type": "array", "items": {"type": "boolean"}},
        "d": {"type": "object", "properties": {"x": {"type": ["integer", "null"]}, "y": {"type": "string"}},
            "required": ["y"], "additionalProperties": false},
        "n": {"anyOf": [{"$ref": "#/$defs/i"}, {"type": "null"}]},
        "p": {"type": "string", "pattern": "^[0-9]{2}$"},
        "a": {}}});
    let tool = Tool {
        name: "f".to_owned(),
        description: None,
        parameters: Arc::new(parameters),
        original: Arc::new(Value::Null),
    };
    let spec = pythonic.grammar(&[tool], &ToolChoice::Auto, true, None).unwrap();
    for (arguments, refused_after) in [
        ("s=''", None),
        ("o=True, s=\"it's\"", None),
        ("o=true, s='', n=null", None),
        ("o=False,s='a \\'b\\' \\u00e9'", None),
        ("s='', e=\"a'b\"", None),
        ("s='', e='c'", None),
        ("s='', l=[True, False], d={\"x\": None, \"y\": 'z'}, n=None, p=\"12\", a={\"b\": [1]}", None),
        ("s='', l=[], d={\"y\":\"z\"}, n=7, a='x'", None),
        ("s='', a=None", None),
        ("", Some("")),
        ("o=1", Some("o=")),
        ("o=True)", Some("o=True")),
        ("s='\n'", Some("s='")),
        ("s='', e='d'", Some("s='', e='")),
        ("s='', l=[1]", Some("s='', l=[")),
        ("s='', d={}", Some("s='', d={")),
        ("s='', n='x'", Some("s='', n=")),
        ("s='', p=\"1a", Some("s='', p=\"1")),
        ("s='', z=1", Some("s='', ")),
        ("s='', o=True", Some("s='', ")),
    ] {
        let expected = refused_after.map_or("ok".to_owned(), |text| format!("[f({text}"));
        assert_eq!(mask.walk(&spec, &format!("[f({arguments})]")), expected, "{arguments}\n{spec:?}");
    }
    assert_eq!(mask.walk(&spec, "[f (x) or [g(1)]"), "[f ", "what begins as a call is one");
    assert_eq!(mask.walk(&spec, "[1, g(1)]"), "ok");
}

#[test]
fn plain_text_passes_unchanged() {
    for text in [" hi\n\n", "a < b", "<", "x\n", "  \n", "", "<think>a</think>b", "{\"name\": \"get\"}"] {
        let expected: Vec<String> = (!text.is_empty()).then(|| format!("c:{text}")).into_iter().collect();
        assert_eq!(check_cuts(None, None, text), expected);
    }
}

#[test]
fn thoughts_are_split_off() {
    let (think, hermes) = (think("<think>", Specials::None), format("hermes", Specials::None));
    let check = |start, text: &str, expected: &[&str]| {
        assert_eq!(check_cuts(Some(&hermes), Some((&think, start)), text), expected, "{text:?}");
    };
    use ReplyStart::{Content, Reasoning};
    check(Content, "<think>\nHm < 3.\n</think>\n\nYes. ", &["r:Hm < 3.", "c:Yes. "]);
    check(Content, "\n<think>\n\n</think>\n\nYes", &["c:Yes"]);
    check(Content, "Say <think> and </think>.", &["c:Say <think> and </think>."]);
    check(Reasoning, "Hm\n\n</think>\n<tool_call>{\"name\": \"get\"}</tool_call>", &["r:Hm", "0 get {}"]);
    check(Reasoning, "a </thin", &["r:a </thin"]);
    check(
        Reasoning,
        "Hm <tool_call> is\n<tool_call>{\"name\": \"get\"}</tool_call>",
        &["r:Hm <tool_call> is", "0 get {}"],
    );
    check(Reasoning, "Hm <tool_call>{\"name\": \"get\"}</tool_call></think>Done", &["r:Hm", "0 get {}", "c:Done"]);
    let harmony = super::tests::think("<|channel|>analysis", Specials::None);
    let calls = format("harmony", Specials::None);
    let text = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Yes";
    assert_eq!(check_cuts(Some(&calls), Some((&harmony, Content)), text), ["r:Hm", "c:Yes"]);
    let text = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=functions.get <|constrain|>json<|message|>{\"a\":1}";
    assert_eq!(check_cuts(Some(&calls), Some((&harmony, Content)), text), ["r:Hm", "0 get {\"a\":1}"]);
}

#[test]
fn an_answer_under_a_grammar_holds_no_marks() {
    let check = |template: &str, start, answer, text: &str, expected: &[&str]| {
        let format = think(template, Specials::None);
        let parts = check_parts(text, || ReplyParser::of_answer((&format, start), answer));
        assert_eq!(parts, expected, "{text:?}");
    };
    use ReplyStart::{Content, Reasoning};
    let json = r#"{"a": "<think>1</think>"}"#;
    let content = format!("c:{json}");
    check("<think>", Content, Answer::Json, json, &[&content]);
    let thought = format!("<think>\nMaybe {{\"a\": 1}}?\n</think>\n\n{json}");
    check("<think>", Content, Answer::Json, &thought, &["r:Maybe {\"a\": 1}?", &content]);
    check("<think>", Reasoning, Answer::Json, &format!("{{}} </think> {json}"), &["r:{}", &content]);
    check("<think>", Reasoning, Answer::Text, "Hm</think> Yes ", &["r:Hm", "c: Yes "]);
    check("<think>", Reasoning, Answer::Text, "Hm</think><think>b</think>", &["r:Hm", "c:<think>b</think>"]);
    check("<think>", Content, Answer::Text, " <b>", &["c: <b>"]);
    check("<think>", Content, Answer::Text, "<thin", &["c:<thin"]);
    check("<think>", Reasoning, Answer::Json, "{\"a\": 1", &["r:{\"a\": 1"]);
    let harmony =
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{\"a\": \"<|end|>\"}";
    check("<|channel|>analysis", Content, Answer::Json, harmony, &["r:{}", "c:{\"a\": \"<|end|>\"}"]);
    let cohere = "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|> x<|END_RESPONSE|>";
    check("<|START_THINKING|>", Content, Answer::Text, cohere, &["r:{}", "c: x<|END_RESPONSE|>"]);
}

#[test]
fn prompts_that_open_a_thought_are_known() {
    let think = think("<think>", Specials::None);
    assert_eq!(think.start("<|im_start|>assistant\n<think>\n"), ReplyStart::Reasoning);
    assert_eq!(think.start("<|im_start|>assistant\n<think>\n\n</think>\n\n"), ReplyStart::Content);
    assert_eq!(think.start("<|im_start|>assistant\n"), ReplyStart::Content);
    assert!(think.is_over("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    assert!(!think.is_over("<think></think><|im_start|>assistant\n"));
    let cohere = super::tests::think("<|START_THINKING|>", Specials::None);
    assert!(cohere.is_over("<|CHATBOT_TOKEN|><|START_RESPONSE|>"));
}

/// A vocabulary of all bytes, the formats' special tokens and an end-of-sequence token.
fn token_env() -> TokEnv {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend(special_literals().iter().map(|literal| [b"\xFF", literal.as_bytes()].concat()));
    words.push(b"\xFF<|eos|>".to_vec());
    let last = u32::try_from(words.len() - 1).unwrap();
    let info = TokRxInfo::new(last + 1, last);
    Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)))
}

struct Mask {
    factory: ParserFactory,
    specials: Specials,
}

impl Mask {
    fn new(specials: Specials) -> Self {
        Self { factory: ParserFactory::new_simple(&token_env()).unwrap(), specials }
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut rest = text;
        let literals = special_literals();
        while let Some(first) = rest.chars().next() {
            let special = literals.iter().find(|literal| self.specials == Specials::All && rest.starts_with(**literal));
            let length = special.map_or(first.len_utf8(), |literal| literal.len());
            match special {
                Some(literal) => tokens.extend(special_id(literal, Specials::All)),
                None => tokens.extend(rest.as_bytes()[..length].iter().map(|byte| u32::from(*byte))),
            }
            rest = &rest[length..];
        }
        tokens
    }

    /// `ok`, `open` if the text may not end yet, or the text up to what is refused.
    fn walk(&self, spec: &GrammarSpec, text: &str) -> String {
        let GrammarSpec::ToolCalls { lark, .. } = spec else { panic!("calls have a grammar of their own: {spec:?}") };
        let parser = self.factory.create_parser(TopLevelGrammar::from_lark(lark.to_string()));
        let mut matcher = Matcher::new(parser);
        assert!(matcher.get_error().is_none(), "{}\n{lark}", matcher.get_error().unwrap());
        let tokens = self.tokens(text);
        for (at, token) in tokens.iter().enumerate() {
            let is_over = matcher.is_stopped();
            if is_over || !matcher.compute_mask().unwrap_or_else(|error| panic!("{error}\n{lark}")).is_allowed(*token) {
                let bytes: Vec<u8> = tokens[..at].iter().filter_map(|token| u8::try_from(*token).ok()).collect();
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            matcher.consume_token(*token).unwrap();
        }
        if matcher.is_accepting().unwrap() { "ok".to_owned() } else { "open".to_owned() }
    }
}

#[test]
fn the_mask_of_every_family_accepts_its_sample() {
    for specials in [Specials::None, Specials::All] {
        let mask = Mask::new(specials);
        for (name, template) in SAMPLES {
            let format = format(name, specials);
            let text = sample(template);
            for choice in [ToolChoice::Required, ToolChoice::Auto] {
                let spec = format.grammar(&tools(), &choice, true, None).unwrap();
                assert_eq!(mask.walk(&spec, &text), "ok", "{name} {specials:?} {choice:?}\n{spec:?}");
                // A function that is not there.
                let unknown = text.replacen("get_weather", "get_whether", 1);
                let walked = mask.walk(&spec, &unknown);
                // A text with a name at its begin is a call from the parenthesis on.
                let is_refused = ["get_w", "get_", "[get_whether"].iter().any(|end| walked.ends_with(end));
                assert!(is_refused, "{name} {specials:?} {choice:?}: {walked}");
                // Arguments that the schema refuses.
                if text.contains("days=2") {
                    let walked = mask.walk(&spec, &text.replacen("days=2", "days=True", 1));
                    assert!(walked.ends_with("days="), "{name} {specials:?}: {walked}");
                }
                if text.contains("\"days\": 2") {
                    let walked = mask.walk(&spec, &text.replacen("\"days\": 2", "\"days\": true", 1));
                    assert!(
                        walked.ends_with("\"days\": ") || walked.ends_with("\"days\":"),
                        "{name} {specials:?}: {walked}"
                    );
                }
                let once = format.grammar(&tools(), &choice, false, None).unwrap();
                let is_single = *name == "harmony";
                assert_eq!(mask.walk(&once, &text) == "ok", is_single, "{name} {specials:?} {choice:?}: one call only");
            }
            let named = format.grammar(&tools(), &ToolChoice::Named("get".to_owned()), true, None).unwrap();
            assert_ne!(mask.walk(&named, &text), "ok", "{name}");
        }
    }
}

#[test]
fn required_means_a_call_and_auto_allows_text() {
    for specials in [Specials::None, Specials::All] {
        let mask = Mask::new(specials);
        for (name, _) in SAMPLES {
            let format = format(name, specials);
            let auto = format.grammar(&tools(), &ToolChoice::Auto, true, None).unwrap();
            for text in ["", "Hello, world.\nA < b {x} [y]"] {
                assert_eq!(mask.walk(&auto, text), "ok", "{name} {specials:?} {text:?}\n{auto:?}");
            }
            let required = format.grammar(&tools(), &ToolChoice::Required, true, None).unwrap();
            assert_eq!(mask.walk(&required, ""), "open", "{name}");
            assert_eq!(mask.walk(&required, "Hello"), "", "{name} {specials:?}");
        }
    }
    assert_eq!(format("json", Specials::None).grammar(&tools(), &ToolChoice::None, true, None), None);
    assert_eq!(format("json", Specials::None).grammar(&[], &ToolChoice::Auto, true, None), None);
}

#[test]
fn what_the_mask_lets_begin_is_a_call() {
    let mask = Mask::new(Specials::None);
    let hermes = format("hermes", Specials::None).grammar(&tools(), &ToolChoice::Auto, true, None).unwrap();
    let call = "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>";
    assert_eq!(mask.walk(&hermes, "A <tool_ call"), "ok");
    assert_eq!(mask.walk(&hermes, "A <tool_call>\nx"), "A <tool_call>\n");
    assert_eq!(mask.walk(&hermes, &format!("A {call} b {call}\nc")), "ok");
    assert_eq!(mask.walk(&hermes, "A <tool_call>\n{\"name\":\"get\",\"arguments\":{}}\n</tool_call>"), "ok");
    let json = format("json", Specials::None).grammar(&tools(), &ToolChoice::Auto, true, None).unwrap();
    assert_eq!(mask.walk(&json, "{\"x\": 1} is JSON"), "ok");
    assert_eq!(mask.walk(&json, "\n{\"name\": \"get\", \"arguments\": {}}"), "ok");
    assert_eq!(mask.walk(&json, "{\"name\": \"Bob\"}"), "{\"name\": \"");
}

#[test]
fn the_mask_knows_thoughts() {
    let call = "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>";
    for specials in [Specials::None, Specials::All] {
        let mask = Mask::new(specials);
        let (think, hermes) = (think("<think>", specials), format("hermes", specials));
        let check = |choice: ToolChoice, start, text: &str, expected: &str| {
            let spec = hermes.grammar(&tools(), &choice, true, Some((&think, start))).unwrap();
            assert_eq!(mask.walk(&spec, text), expected, "{specials:?} {choice:?} {start:?} {text:?}\n{spec:?}");
        };
        use ReplyStart::{Content, Reasoning};
        use ToolChoice::{Auto, Required};
        check(Required, Content, call, "ok");
        check(Required, Content, &format!("<think>\nHm <b> 3\n</think>\n\n{call}"), "ok");
        check(Required, Reasoning, &format!("Hm\n</think>\n\n{call}"), "ok");
        check(Required, Reasoning, "Hm", "open");
        check(
            Required,
            Reasoning,
            "Hm</think>\n\nNo",
            if specials == Specials::All { "Hm\n\n" } else { "Hm</think>\n\n" },
        );
        check(Auto, Content, &format!("<think>\nHm\n</think>\n\nYes {call}"), "ok");
        check(Auto, Content, "Yes", "ok");
        check(Auto, Content, "<think>Hm", "ok");
        check(Auto, Reasoning, "Hm", "ok");
        check(Auto, Reasoning, "Hm</think>\nYes", "ok");
        check(Auto, Reasoning, &format!("Hm</think>{call}"), "ok");
        if specials == Specials::None {
            check(Auto, Reasoning, "Hm <tool_call> x</think>Yes", "ok");
            check(Auto, Reasoning, "Hm</think>Yes <tool_call>x", "Hm</think>Yes <tool_call>");
        }
    }
    let mask = Mask::new(Specials::All);
    let (think, harmony) = (think("<|channel|>analysis", Specials::All), format("harmony", Specials::All));
    let spec = harmony.grammar(&tools(), &ToolChoice::Auto, true, Some((&think, ReplyStart::Content))).unwrap();
    let thought = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant";
    assert_eq!(mask.walk(&spec, &format!("{thought}<|channel|>final<|message|>Yes")), "ok");
    assert_eq!(
        mask.walk(&spec, &format!("{thought}<|channel|>commentary to=functions.get <|constrain|>json<|message|>{{}}")),
        "ok"
    );
}

/// Marks, names and JSON in any order: whatever the text, its parts do not depend on the cuts and nothing panics.
#[test]
fn any_text_gives_the_same_parts_for_every_cut() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for (name, template) in SAMPLES {
        let (format, think) = (format(name, Specials::None), think("<think>", Specials::None));
        let text = sample(template);
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        for _ in 0..300 {
            let mut soup = String::new();
            for _ in 0..random.random_range(1..6) {
                let (from, to) = (random.random_range(0..ends.len()), random.random_range(0..ends.len()));
                match random.random_range(0..6) {
                    0 => soup.push_str(
                        ["<think>", "</think>", " ", "\n", "<", "{", "}", ";", "x"][random.random_range(0..9)],
                    ),
                    1 => soup.push_str(&text[..ends[from]]),
                    2 => soup.push_str(&text),
                    _ => soup.push_str(&text[ends[from.min(to)]..ends[from.max(to)]]),
                }
            }
            if soup.is_empty() {
                continue;
            }
            let start = if random.random() { ReplyStart::Reasoning } else { ReplyStart::Content };
            let reasoning = random.random::<bool>().then_some((&think, start));
            let whole = parse(Some(&format), reasoning, [soup.as_str()]);
            let single = soup.char_indices().map(|(at, c)| &soup[at..at + c.len_utf8()]);
            assert_eq!(parse(Some(&format), reasoning, single), whole, "{name} {soup:?}");
            let cut = soup.char_indices().map(|(at, _)| at).nth(random.random_range(0..soup.chars().count())).unwrap();
            assert_eq!(parse(Some(&format), reasoning, [&soup[..cut], &soup[cut..]]), whole, "{name} {cut} {soup:?}");
        }
    }
}

/// Random replies that obey the mask of required calls: the parser finds calls, and nothing else.
#[test]
fn what_the_mask_lets_end_the_parser_reads() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mask = Mask::new(Specials::None);
    let mut ended = 0;
    for (name, _) in SAMPLES {
        let format = format(name, Specials::None);
        let spec = format.grammar(&tools(), &ToolChoice::Required, true, None).unwrap();
        let GrammarSpec::ToolCalls { lark, .. } = spec else { panic!("calls have a grammar of their own: {spec:?}") };
        let parser = mask.factory.create_parser(TopLevelGrammar::from_lark(lark.to_string()));
        let fresh = Matcher::new(parser);
        for _ in 0..6 {
            let (mut matcher, mut bytes) = (fresh.deep_clone(), Vec::new());
            while bytes.len() < 600 && !matcher.is_stopped() {
                if matcher.is_accepting().unwrap() && random.random_bool(0.3) {
                    break;
                }
                let allowed = matcher.compute_mask().unwrap();
                let closing: Vec<u32> =
                    b"\"}]<".iter().map(|byte| u32::from(*byte)).filter(|id| allowed.is_allowed(*id)).collect();
                let any: Vec<u32> = (0..256).filter(|id| allowed.is_allowed(*id)).collect();
                let from = if !closing.is_empty() && random.random_bool(0.5) { closing } else { any };
                let Some(token) = (!from.is_empty()).then(|| from[random.random_range(0..from.len())]) else { break };
                matcher.consume_token(token).unwrap();
                bytes.push(u8::try_from(token).unwrap());
            }
            if !matcher.is_stopped() && !matcher.is_accepting().unwrap() {
                continue;
            }
            ended += 1;
            let text = String::from_utf8(bytes).unwrap();
            let parts = parse(Some(&format), None, [text.as_str()]);
            assert!(!parts.is_empty(), "{name} {text:?}");
            for (at, part) in parts.iter().enumerate() {
                let json =
                    part.strip_prefix(&format!("{at} get_weather ")).or(part.strip_prefix(&format!("{at} get ")));
                let arguments =
                    json.map(serde_json::from_str::<Value>).unwrap_or_else(|| panic!("{name} {text:?}: {part}"));
                let arguments = arguments.unwrap_or_else(|error| panic!("{name} {text:?}: {part}: {error}"));
                assert_eq!(arguments.get("city").is_some(), part.contains("get_weather "), "{name} {text:?}");
            }
        }
    }
    println!("{ended} replies ended");
    assert!(ended > SAMPLES.len(), "{ended}");
}

/// Which format each published template gets. Templates without the word `tools` cannot show any: for them the fallback
/// is right.
#[test]
fn published_templates_are_recognised() {
    let folder =
        std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/chat_templates/templates"));
    let Ok(entries) = std::fs::read_dir(folder) else {
        println!("skipped: {} is not there", folder.display());
        return;
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let (mut with_tools, mut known) = (0, 0);
    for path in &paths {
        let template = std::fs::read_to_string(path).unwrap();
        let format = ToolFormat::detect(Some(&template), |_| None);
        let reasoning = ReasoningFormat::detect(Some(&template), |_| None);
        let shows_tools = template.contains("tools") || !format.is_fallback();
        with_tools += usize::from(shows_tools);
        known += usize::from(!format.is_fallback());
        println!(
            "{:60} {:16} {:12} {}",
            path.file_stem().unwrap().to_string_lossy(),
            format.name(),
            reasoning.as_ref().map_or("-", |reasoning| reasoning.name()),
            if shows_tools { "" } else { "(shows no tools)" }
        );
    }
    println!("{} templates, {with_tools} show tools or calls, {known} of them in a format of the table", paths.len());
    assert!(known * 100 >= with_tools * KNOWN_PERCENT, "{known} of {with_tools}");
}

/// What the table reaches; raise it with the table.
const KNOWN_PERCENT: usize = 95;

/// Prints what plain content costs per token; run with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_plain_content() {
    let (think, hermes) = (think("<think>", Specials::None), format("hermes", Specials::None));
    let mut parser = ReplyParser::new(Some(&hermes), Some((&think, ReplyStart::Content)), tools(), &ToolChoice::Auto);
    let mut parts = Vec::new();
    let began = std::time::Instant::now();
    let count = 1_000_000u32;
    for at in 0..count {
        parser.push(if at % 20 == 0 { " a<b" } else { " token" }, &mut parts);
        parts.clear();
    }
    println!("{:?} per token", began.elapsed() / count);
}
