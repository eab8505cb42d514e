//! What the prompt says about tools when the chat template does not teach them, as TGI says it.

use serde_json::Value;

use super::Tool;

/// TGI's default `tool_prompt`: part of its public API.
pub(crate) const DEFAULT_TOOL_PROMPT: &str = "\nGiven the functions available, please respond with a JSON for a function call with its proper arguments that best answers the given prompt. Respond in the format {name: function name, parameters: dictionary of argument name and its value}.Do not use variables.\n";

/// What is appended to the last message's content: the tools, unless the template shows them, and what to do with them.
/// An empty `tool_prompt` is the default one.
pub(crate) fn instruction(tools: &[Tool], template_shows_tools: bool, tool_prompt: Option<&str>) -> String {
    let tool_prompt = tool_prompt.filter(|prompt| !prompt.is_empty()).unwrap_or(DEFAULT_TOOL_PROMPT);
    if template_shows_tools {
        return format!("\n---\n{tool_prompt}");
    }
    let list: Vec<&Value> = tools.iter().map(|tool| &*tool.original).collect();
    let list = serde_json::to_string(&list).expect("JSON values can be written");
    format!("\n---\n{list}\n{tool_prompt}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn tools_are_shown_once() {
        let original = Arc::new(json!({"type": "function", "function": {"name": "f"}}));
        let tool = Tool { name: "f".to_owned(), description: None, parameters: Arc::new(json!({})), original };
        let tools = [tool];
        assert_eq!(
            instruction(&tools, false, Some("Call!")),
            "\n---\n[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]\nCall!"
        );
        assert_eq!(instruction(&tools, true, Some("Call!")), "\n---\nCall!");
        assert_eq!(instruction(&tools, true, Some("")), format!("\n---\n{DEFAULT_TOOL_PROMPT}"));
    }
}
