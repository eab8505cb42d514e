//! What a template is like: which variables it reads, and in which form it shows messages fully.
//!
//! The forms are found by trying: small conversations are rendered once when the template is loaded, and the form is
//! chosen whose text comes out whole. Reading the template instead would need to follow its macros and assignments.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

/// What a template is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TemplateFacts {
    /// The variables it reads and does not set itself.
    pub(crate) variables: HashSet<String>,
    /// Whether it shows `content` as text or as a list of parts.
    pub(crate) content: ContentFormat,
    /// What it expects as the content of a message that only calls tools.
    pub(crate) empty_content: EmptyContent,
    /// How it expects the arguments of earlier tool calls.
    pub(crate) arguments: ArgumentsFormat,
    /// The marks around the model's reasoning, if the template names them.
    pub(crate) reasoning: Option<ReasoningMarks>,
    /// Whether a prompt without further variables ends inside open reasoning, so that the reply begins with it.
    pub(crate) opens_reasoning: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ContentFormat {
    /// Text only: parts are joined without separator, as in TGI.
    #[default]
    Text,
    /// A list of parts only: text becomes a list of one part.
    Parts,
    /// Both: content stays as the client wrote it.
    Either,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EmptyContent {
    #[default]
    Null,
    Text,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ArgumentsFormat {
    /// A JSON object.
    #[default]
    Object,
    /// The text of a JSON object.
    Text,
}

/// The texts that begin and end the model's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReasoningMarks {
    pub(crate) open: &'static str,
    pub(crate) close: &'static str,
}

/// Marks in use, by the families that use them.
const REASONING_MARKS: [ReasoningMarks; 5] = [
    // DeepSeek, Qwen, GLM, Nemotron, Kimi, SmolLM, MiniMax
    ReasoningMarks { open: "<think>", close: "</think>" },
    // Seed-OSS
    ReasoningMarks { open: "<seed:think>", close: "</seed:think>" },
    // Command A
    ReasoningMarks { open: "<|START_THINKING|>", close: "<|END_THINKING|>" },
    // Magistral
    ReasoningMarks { open: "[THINK]", close: "[/THINK]" },
    // gpt-oss
    ReasoningMarks { open: "<|channel|>analysis<|message|>", close: "<|end|>" },
];

/// Variables by which templates turn reasoning on and off.
const REASONING_SWITCHES: [&str; 3] = ["enable_thinking", "thinking", "thinking_budget"];

impl TemplateFacts {
    /// Finds the facts of a template: its text, the variables it reads, and a function that renders a context.
    pub(super) fn find(
        text: &str,
        variables: HashSet<String>,
        render: &dyn Fn(&Map<String, Json>) -> Option<String>,
    ) -> Self {
        let reasoning = ReasoningMarks::named_in(text);
        let probe = |messages: Json, tools: Json| {
            let mut context = Map::new();
            context.insert("messages".to_owned(), messages);
            context.insert("tools".to_owned(), tools);
            context.insert("documents".to_owned(), Json::Null);
            context.insert("add_generation_prompt".to_owned(), Json::Bool(true));
            render(&context)
        };
        let (empty_content, arguments) = tool_call_form(&probe);
        let prompt = probe(json!([{"role": "user", "content": "Hello"}]), Json::Null);
        let opens_reasoning = reasoning.zip(prompt).is_some_and(|(marks, prompt)| marks.is_open_in(&prompt));
        Self { variables, content: content_format(&probe), empty_content, arguments, reasoning, opens_reasoning }
    }

    /// Whether tools given to the template can have an effect.
    pub(crate) fn reads_tools(&self) -> bool {
        self.variables.contains("tools")
    }

    /// The variable by which a request turns reasoning on and off.
    pub(crate) fn reasoning_switch(&self) -> Option<&'static str> {
        REASONING_SWITCHES.into_iter().find(|name| self.variables.contains(*name))
    }
}

impl ReasoningMarks {
    /// The marks that a template names; some name only the one at which they cut earlier replies.
    fn named_in(text: &str) -> Option<Self> {
        let named = REASONING_MARKS.into_iter().find(|marks| text.contains(marks.open));
        named.or_else(|| text.contains(REASONING_MARKS[0].close).then_some(REASONING_MARKS[0]))
    }

    /// Whether `prompt` ends inside reasoning: what the model writes first is then reasoning too.
    pub(crate) fn is_open_in(&self, prompt: &str) -> bool {
        prompt.rfind(self.open).is_some_and(|open| !prompt[open + self.open.len()..].contains(self.close))
    }
}

type Probe<'a> = &'a dyn Fn(Json, Json) -> Option<String>;

fn content_format(probe: Probe<'_>) -> ContentFormat {
    let text = probe(json!([{"role": "user", "content": "needle in text"}]), Json::Null);
    let parts = [json!({"type": "text", "text": "needle in "}), json!({"type": "text", "text": "parts"})];
    let parts = probe(json!([{"role": "user", "content": parts}]), Json::Null);
    let shows_text = text.is_some_and(|prompt| prompt.contains("needle in text"));
    // A template that prints the list as it is shows the keys too.
    let shows_parts = parts.is_some_and(|prompt| {
        prompt.contains("needle in ")
            && prompt.contains("parts")
            && !prompt.contains("'type'")
            && !prompt.contains("\"type\"")
    });
    match (shows_text, shows_parts) {
        (_, false) => ContentFormat::Text,
        (false, true) => ContentFormat::Parts,
        (true, true) => ContentFormat::Either,
    }
}

/// The form of a tool call of which most comes out; of equals, the first.
fn tool_call_form(probe: Probe<'_>) -> (EmptyContent, ArgumentsFormat) {
    let arguments_text = r#"{"needle_key": "needle_value"}"#;
    let tools = json!([{"type": "function", "function": {"name": "needle_tool", "description": "A tool",
        "parameters": {"type": "object", "properties": {"other_key": {"type": "string", "description": "A key"}},
        "required": []}}}]);
    let forms = [
        (EmptyContent::Null, ArgumentsFormat::Object),
        (EmptyContent::Text, ArgumentsFormat::Object),
        (EmptyContent::Null, ArgumentsFormat::Text),
        (EmptyContent::Text, ArgumentsFormat::Text),
    ];
    let mut best = ((0, false), forms[0]);
    for form in forms {
        let content = if form.0 == EmptyContent::Null { Json::Null } else { Json::from("") };
        let arguments = match form.1 {
            ArgumentsFormat::Object => json!({"needle_key": "needle_value"}),
            ArgumentsFormat::Text => Json::from(arguments_text),
        };
        let call = json!({"id": "call00001", "type": "function",
            "function": {"name": "needle_tool", "arguments": arguments}});
        let messages = json!([
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "name": "needle_tool", "tool_call_id": "call00001", "content": "done"},
        ]);
        let rate = |prompt: &str| match form.1 {
            _ if !prompt.contains("needle_value") => 1,
            ArgumentsFormat::Object if !prompt.contains("{'needle_key'") => 3,
            ArgumentsFormat::Text if prompt.contains(arguments_text) => 3,
            _ => 2,
        };
        // A template that writes down whatever content is writes `None`.
        let score =
            probe(messages, tools.clone()).map_or((0, false), |prompt| (rate(&prompt), !prompt.contains("None")));
        if score > best.0 {
            best = (score, form);
        }
    }
    best.1
}
