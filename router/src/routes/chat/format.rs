//! What the routes must know about the model's way to chat. Found once, from its template and tokenizer.

use std::sync::Arc;

use crate::chat::ToolFormat;
use crate::template::ChatTemplate;
use crate::text::TextTokenizer;

/// The model's chat format.
pub(crate) struct ChatFormat {
    /// How it writes calls and reasoning.
    pub(crate) tools: ToolFormat,
    /// Special tokens that are part of that form: the reply parser must see them.
    pub(crate) marker_ids: Arc<[u32]>,
    /// Whether the template knows OpenAI's new name of the role `system`.
    pub(crate) knows_developer: bool,
    /// Whether the template prints the tools.
    pub(crate) prints_tools: bool,
}

impl ChatFormat {
    /// The format of a model with `template`.
    pub(crate) fn new(template: Option<&ChatTemplate>, tokenizer: &TextTokenizer) -> Self {
        let source = template.map(ChatTemplate::source).unwrap_or_default();
        let tools = ToolFormat::detect(template.map(|_| source.as_str()), |text| tokenizer.special_id(text));
        Self {
            marker_ids: tools.visible_tokens().collect(),
            tools,
            knows_developer: source.contains("developer"),
            prints_tools: source.contains("tools"),
        }
    }

    /// Whether the reply to `prompt` begins inside the reasoning: some templates open it themselves.
    pub(crate) fn begins_in_reasoning(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with("<think>")
    }
}
