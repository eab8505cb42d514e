//! Stand-ins for the tool-call formats and the reply parser, only so that the routes compile and can be tested alone.
//! To be dropped when the real ones are merged.

use serde_json::Value;

use super::{ReplyPart, Tool, ToolChoice};
use crate::grammar::GrammarSpec;

#[derive(Clone, Debug)]
pub(crate) struct ToolFormat {
    ids: std::sync::Arc<[u32]>,
    is_fallback: bool,
}

impl ToolFormat {
    pub(crate) fn detect(template: Option<&str>, special_id: impl Fn(&str) -> Option<u32>) -> Self {
        let is_fallback = !template.is_some_and(|template| template.contains("<tool_call>"));
        let markers = ["<tool_call>", "</tool_call>"];
        Self { ids: markers.into_iter().filter_map(special_id).collect(), is_fallback }
    }

    pub(crate) fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    pub(crate) fn grammar(
        &self,
        tools: &[Tool],
        choice: &ToolChoice,
        _parallel: bool,
        _reasoning: Option<(&ReasoningFormat, ReplyStart)>,
    ) -> Option<GrammarSpec> {
        let names: Vec<&str> = match choice {
            ToolChoice::Auto | ToolChoice::None => return None,
            ToolChoice::Required => tools.iter().map(|tool| tool.name.as_str()).collect(),
            ToolChoice::Named(name) => vec![name],
        };
        Some(GrammarSpec::Regex(format!("<tool_call>({}).*</tool_call>", names.join("|")).into()))
    }

    pub(crate) fn visible_tokens(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().copied()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct ReasoningFormat {
    ids: std::sync::Arc<[u32]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyStart {
    Content,
    Reasoning,
}

impl ReasoningFormat {
    pub(crate) fn detect(_template: Option<&str>, special_id: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        Some(Self { ids: ["<think>", "</think>"].into_iter().filter_map(special_id).collect() })
    }

    pub(crate) fn start(&self, prompt: &str) -> ReplyStart {
        if prompt.trim_end().ends_with("<think>") { ReplyStart::Reasoning } else { ReplyStart::Content }
    }

    pub(crate) fn visible_tokens(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().copied()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the arguments of the call {index} of `{name}` are no complete JSON object")]
pub(crate) struct BrokenCall {
    pub(crate) index: usize,
    pub(crate) name: String,
}

/// `<think>..</think>` and `<tool_call>{"name", "arguments"}</tool_call>`.
pub(crate) struct ReplyParser {
    held: String,
    section: Section,
    calls: usize,
    has_tools: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Section {
    Content,
    Reasoning,
    Call,
}

impl ReplyParser {
    pub(crate) fn new(
        _format: Option<&ToolFormat>,
        reasoning: Option<(&ReasoningFormat, ReplyStart)>,
        tools: std::sync::Arc<[Tool]>,
        choice: &ToolChoice,
    ) -> Self {
        let is_reasoning = reasoning.is_some_and(|(_, start)| start == ReplyStart::Reasoning);
        let section = if is_reasoning { Section::Reasoning } else { Section::Content };
        let has_tools = !tools.is_empty() && *choice != ToolChoice::None;
        Self { held: String::new(), section, calls: 0, has_tools }
    }

    pub(crate) fn push(&mut self, text: &str, out: &mut Vec<ReplyPart>) {
        self.held.push_str(text);
        loop {
            let markers: &[(&str, Section)] = match self.section {
                Section::Content if self.has_tools => {
                    &[("<think>", Section::Reasoning), ("<tool_call>", Section::Call)]
                }
                Section::Content => &[("<think>", Section::Reasoning)],
                Section::Reasoning => &[("</think>", Section::Content)],
                Section::Call => &[("</tool_call>", Section::Content)],
            };
            let first = markers
                .iter()
                .filter_map(|(text, next)| Some((self.held.find(text)?, text.len(), *next)))
                .min_by_key(|found| found.0);
            if let Some((at, length, next)) = first {
                let rest = self.held.split_off(at + length);
                self.held.truncate(at);
                self.release(out);
                self.held = rest;
                self.section = next;
                continue;
            }
            if self.section != Section::Call {
                let keep = (0..=self.held.len())
                    .find(|at| {
                        self.held.is_char_boundary(*at)
                            && markers.iter().any(|(text, _)| text.starts_with(&self.held[*at..]))
                    })
                    .unwrap_or(self.held.len());
                let rest = self.held.split_off(keep);
                self.release(out);
                self.held = rest;
            }
            return;
        }
    }

    pub(crate) fn finish(&mut self, out: &mut Vec<ReplyPart>) -> Result<(), BrokenCall> {
        self.release(out);
        Ok(())
    }

    fn release(&mut self, out: &mut Vec<ReplyPart>) {
        let text = std::mem::take(&mut self.held);
        match self.section {
            _ if text.is_empty() => {}
            Section::Content => out.push(ReplyPart::Content(text)),
            Section::Reasoning => out.push(ReplyPart::Reasoning(text)),
            Section::Call => {
                let call: Value = serde_json::from_str(&text).unwrap_or_default();
                let index = self.calls;
                self.calls += 1;
                out.push(ReplyPart::ToolCall { index, name: call["name"].as_str().unwrap_or_default().to_owned() });
                out.push(ReplyPart::Arguments { index, fragment: call["arguments"].to_string() });
            }
        }
    }
}

pub(crate) fn instruction(tools: &[Tool], template_shows_tools: bool, tool_prompt: Option<&str>) -> String {
    let tool_prompt = tool_prompt.unwrap_or("Call.");
    let list: Vec<&Value> = tools.iter().map(|tool| &*tool.original).collect();
    let list = serde_json::to_string(&list).expect("JSON values can be written");
    if template_shows_tools { format!("\n---\n{tool_prompt}") } else { format!("\n---\n{list}\n{tool_prompt}") }
}
