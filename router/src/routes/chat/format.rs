//! What the routes must know about the model's way to chat. Found once, from its template and tokenizer.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::chat::{ReasoningFormat, ReplyStart, ToolFormat};
use crate::template::{ChatTemplate, TemplateFacts};
use crate::text::TextTokenizer;

/// The model's chat format.
pub(crate) struct ChatFormat {
    /// How it writes calls.
    pub(crate) tools: ToolFormat,
    /// How it marks what it thinks; `None` if it does not.
    pub(crate) reasoning: Option<ReasoningFormat>,
    /// Special tokens that are part of that form: the reply parser must see them.
    pub(crate) marker_ids: Arc<[u32]>,
    /// Whether the template knows OpenAI's new name of the role `system`.
    pub(crate) knows_developer: bool,
    /// Whether the template prints the tools.
    pub(crate) prints_tools: bool,
    /// The variable by which the template turns thinking on and off.
    switch: Option<&'static str>,
}

impl ChatFormat {
    /// The format of a model with `template`.
    pub(crate) fn new(template: Option<&ChatTemplate>, tokenizer: &TextTokenizer) -> Self {
        let source = template.map(ChatTemplate::source).unwrap_or_default();
        let special_id = |text: &str| tokenizer.special_id(text);
        let tools = ToolFormat::detect(template.map(ChatTemplate::source), special_id);
        let reasoning = ReasoningFormat::detect(template.map(ChatTemplate::source), special_id);
        if template.is_some() {
            let thoughts = reasoning.as_ref().map_or("none", ReasoningFormat::name);
            tracing::info!(tool_calls = tools.name(), thoughts, "chat format, by the chat template");
        }
        let facts = template.and_then(|template| template.facts(true).ok());
        let thoughts = reasoning.iter().flat_map(ReasoningFormat::visible_tokens);
        Self {
            marker_ids: tools.visible_tokens().chain(thoughts).collect(),
            reasoning,
            tools,
            knows_developer: source.contains("developer"),
            prints_tools: facts.is_some_and(TemplateFacts::reads_tools),
            switch: facts.and_then(TemplateFacts::reasoning_switch),
        }
    }

    /// The variable and its value that make the model think first, or not; `None` if its template asks for none.
    pub(crate) fn reasoning_switch(&self, thinks: bool) -> Option<(&'static str, Value)> {
        match self.switch? {
            // A number of tokens: no number is no bound.
            "thinking_budget" => (!thinks).then_some(("thinking_budget", Value::from(0))),
            switch => Some((switch, Value::Bool(thinks))),
        }
    }

    /// Whether `variables` of the template turn thinking off.
    pub(crate) fn is_switched_off(&self, variables: &Map<String, Value>) -> bool {
        self.reasoning_switch(false).is_some_and(|(switch, off)| variables.get(switch) == Some(&off))
    }

    /// The reasoning format, and whether the reply to `prompt` begins inside it: some templates open it themselves.
    pub(crate) fn reasoning(&self, prompt: &str) -> Option<(&ReasoningFormat, ReplyStart)> {
        self.reasoning.as_ref().map(|reasoning| (reasoning, reasoning.start(prompt)))
    }
}
