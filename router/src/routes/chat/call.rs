//! What is asked of a chat, and its way into the queue.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};

use super::format::ChatFormat;
use super::steps::{Chat, Choice, Speaker};
use crate::chat::{Answer, ReasoningFormat, ReplyParser, ReplyStart, Tool, ToolChoice, instruction};
use crate::error::{Error, ToolError, ValidationError};
use crate::grammar::GrammarSpec;
use crate::limits::{MAX_DOCUMENTS, MAX_MESSAGES, MAX_NAME_BYTES, MAX_TOOLS};
use crate::params::{Asked, at_most};
use crate::server::Server;
use crate::template::{Ending, RenderRequest};
use crate::text::StopText;
use crate::validation::SpecialTokens;

/// A chat request in the terms of every protocol.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChatCall {
    /// The conversation as the template sees it: objects with `role` and `content`.
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
    /// The only tools that may be called; the template sees all.
    pub(crate) allowed_tools: Option<Vec<String>>,
    /// At most one call if set.
    pub(crate) is_single_call: bool,
    /// Further variables of the template.
    pub(crate) template_kwargs: Map<String, Value>,
    /// Whether the model thinks first, if its template can switch that.
    pub(crate) thinks: Option<bool>,
    pub(crate) documents: Option<Vec<Value>>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: Option<bool>,
    /// TGI's sentence after the tools; it goes to the end of the last message.
    pub(crate) tool_prompt: Option<String>,
    /// The reply begins with the message it continues.
    pub(crate) echo: bool,
    pub(crate) reasoning: Reasoning,
    /// How many alternatives per token the answer shows; `None` without log-probabilities.
    pub(crate) logprobs: Option<usize>,
    /// Everything else. Its prompt is still empty; its grammar is the response format.
    pub(crate) asked: Asked,
}

/// What becomes of the text that a model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reasoning {
    /// It comes apart from the content.
    #[default]
    Separate,
    /// It does not come.
    Omitted,
}

impl ChatCall {
    /// The prompt that the chat template makes of this call.
    ///
    /// # Errors
    /// [`ValidationError`] and [`ToolError`] if the call contradicts itself, [`Error::Template`] if the template refuses.
    pub(crate) async fn prompt(&mut self, server: &Server) -> Result<String, Error> {
        self.check()?;
        let request = self.render_request(server)?;
        server.render_prompt(request).await
    }

    /// Renders, validates and queues the call, once per choice.
    ///
    /// # Errors
    /// As [`ChatCall::prompt`], and whatever validation or the queue refuses.
    pub(crate) async fn start(mut self, server: &Server, arrived: Instant) -> Result<Chat, Error> {
        let inputs = self.prompt(server).await?;
        if let Some(allowed) = &self.allowed_tools {
            self.tools.retain(|tool| allowed.contains(&tool.name));
        }
        let format = &server.chat_format;
        let reasoning = format.reasoning(&inputs);
        let (grammar, speaker) = self.grammar(format, reasoning, &inputs)?;
        let tools: Arc<[Tool]> = self.tools.clone().into();
        let echo = self.echoed();
        let asked = Asked { inputs, grammar, ..self.asked };
        let valid = server.validation.validate(asked, SpecialTokens::Present).await?;
        let mut choices = Vec::with_capacity(valid.n);
        for mut generation in server.submit_siblings(&valid, valid.n, StopText::Remove, arrived)? {
            let parser = match (speaker, reasoning) {
                (Speaker::Grammar, _) | (Speaker::Thinker(_), None) => None,
                (Speaker::Model, _) => {
                    Some(ReplyParser::new(Some(&format.tools), reasoning, tools.clone(), &self.tool_choice))
                }
                (Speaker::Thinker(answer), Some(reasoning)) => Some(ReplyParser::of_answer(reasoning, answer)),
            };
            if parser.is_some() {
                generation.show(format.marker_ids.clone());
            }
            choices.push(Choice::new(generation, parser, self.reasoning, echo.clone(), self.logprobs));
        }
        Ok(Chat::new(choices, &valid, self.logprobs))
    }

    fn check(&mut self) -> Result<(), Error> {
        at_most("messages", "messages", MAX_MESSAGES, self.messages.len())?;
        at_most("tools", "tools", MAX_TOOLS, self.tools.len())?;
        at_most("documents", "documents", MAX_DOCUMENTS, self.documents.as_ref().map_or(0, Vec::len))?;
        for tool in &self.tools {
            at_most("tools[].name", "bytes", MAX_NAME_BYTES, tool.name.len())?;
        }
        // A name is the client's text: enough of it to recognise, and no more.
        let not_found = |name: &str| ToolError::NotFound { name: name.chars().take(MAX_NAME_BYTES).collect() };
        let is_known = |name: &&String| self.tools.iter().any(|tool| tool.name == **name);
        if let Some(name) = self.allowed_tools.iter().flatten().find(|name| !is_known(name)) {
            return Err(not_found(name).into());
        }
        let is_none_allowed = self.allowed_tools.as_ref().is_some_and(Vec::is_empty);
        match &self.tool_choice {
            ToolChoice::None => self.tools.clear(),
            ToolChoice::Required if self.tools.is_empty() || is_none_allowed => return Err(ToolError::NoTools.into()),
            ToolChoice::Named(name) => {
                self.tools.retain(|tool| tool.name == *name);
                if self.tools.is_empty() {
                    return Err(not_found(name).into());
                }
            }
            ToolChoice::Auto | ToolChoice::Required => {}
        }
        Ok(())
    }

    /// What the reply must match and whose form it has.
    fn grammar(
        &mut self,
        format: &ChatFormat,
        reasoning: Option<(&ReasoningFormat, ReplyStart)>,
        prompt: &str,
    ) -> Result<(Option<GrammarSpec>, Speaker), ToolError> {
        match self.asked.grammar.take() {
            Some(_) if !self.tools.is_empty() => Err(ToolError::GrammarAndTools),
            Some(grammar) => match reasoning.filter(|reasoning| self.may_think(format, *reasoning, prompt)) {
                Some(reasoning) => {
                    let answer = if grammar.is_json() { Answer::Json } else { Answer::Text };
                    Ok((Some(format.tools.after_thought(grammar, reasoning)), Speaker::Thinker(answer)))
                }
                None => Ok((Some(grammar), Speaker::Grammar)),
            },
            None if self.tools.is_empty() => Ok((None, Speaker::Model)),
            None => {
                let grammar = format.tools.grammar(&self.tools, &self.tool_choice, !self.is_single_call, reasoning);
                Ok((grammar, Speaker::Model))
            }
        }
    }

    /// Whether a thought can come before an answer to `prompt`.
    fn may_think(&self, format: &ChatFormat, (reasoning, start): (&ReasoningFormat, ReplyStart), prompt: &str) -> bool {
        let is_off = || format.is_switched_off(&self.variables(format));
        start == ReplyStart::Reasoning || !(reasoning.is_over(prompt) || self.continues() || is_off())
    }

    fn render_request(&mut self, server: &Server) -> Result<RenderRequest, ValidationError> {
        let ending = self.ending()?;
        let mut messages = self.messages.clone();
        for message in &mut messages {
            // OpenAI renamed the role; most templates know only the old name.
            if message["role"] == "developer" && !server.chat_format.knows_developer {
                message["role"] = Value::from("system");
            }
        }
        if let Some(text) = self.tool_text(&server.chat_format)
            && let Some(Value::String(content)) = messages.last_mut().and_then(|last| last.get_mut("content"))
        {
            content.push_str(&text);
        }
        Ok(RenderRequest {
            messages,
            tools: self.tools.iter().map(|tool| Value::clone(&tool.original)).collect(),
            documents: self.documents.clone(),
            variables: self.variables(&server.chat_format),
            ending,
        })
    }

    /// The variables of the template, with the one that turns thinking on and off.
    fn variables(&self, format: &ChatFormat) -> Map<String, Value> {
        let mut variables = self.template_kwargs.clone();
        if let Some(thinks) = self.thinks
            && let Some((switch, value)) = format.reasoning_switch(thinks)
        {
            variables.entry(switch).or_insert(value);
        }
        variables
    }

    /// How the prompt ends. Without a word about it a last message of the assistant is continued, as in TGI.
    fn ending(&self) -> Result<Ending, ValidationError> {
        match (self.continue_final_message, self.add_generation_prompt) {
            (Some(true), Some(true)) => {
                Err(ValidationError::Conflict { field: "continue_final_message", other: "add_generation_prompt" })
            }
            (Some(true), _) => Ok(Ending::ContinueFinalMessage),
            (None, None) => Ok(Ending::Automatic),
            (_, Some(false)) => Ok(Ending::Closed),
            (_, Some(true) | None) => Ok(Ending::GenerationPrompt),
        }
    }

    /// Whether the reply goes on with the last message.
    fn continues(&self) -> bool {
        match self.ending() {
            Ok(Ending::ContinueFinalMessage) => true,
            Ok(Ending::Automatic) => self.messages.last().is_some_and(|last| last["role"] == "assistant"),
            _ => false,
        }
    }

    fn echoed(&self) -> Option<String> {
        let last = self.messages.last().filter(|_| self.echo && self.continues())?;
        Some(last["content"].as_str().unwrap_or_default().to_owned())
    }

    /// What goes to the end of the last message if there are tools: the tools themselves if the template does not print
    /// them, how to call if it does not say it, and the client's own sentence.
    fn tool_text(&self, format: &ChatFormat) -> Option<String> {
        let sentence = self.tool_prompt.as_deref().filter(|text| !text.is_empty());
        let is_taught = format.prints_tools && !format.tools.is_fallback();
        if self.tools.is_empty() || (is_taught && sentence.is_none()) {
            return None;
        }
        Some(instruction(&self.tools, format.prints_tools, sentence))
    }
}
