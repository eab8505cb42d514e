//! The body of the chat routes.

use serde_json::{Map, Value};

use super::CallForm;
use crate::error::{Error, ValidationError};
use crate::params::unsupported::{CHAT, OPENAI, Unsupported, VLLM};
use crate::routes::body::Wire;
use crate::routes::chat::{ChatCall, Reasoning};
use crate::routes::openai::message::{Message, template_messages};
use crate::routes::openai::request::{forbid_words, request_body};
use crate::routes::openai::{StreamOptions, tools};
use crate::routes::openapi::{JsonObject, JsonObjectOrText, TemplateVariables};
use crate::server::Server;

request_body! {
    /// The body of the chat routes.
    pub(in crate::routes) struct ChatRequest {
        #[schema(max_items = 4096)]
        messages: Vec<Message>,
        /// OpenAI's newer name of `max_tokens`; it wins if both are given.
        #[schema(minimum = 0, maximum = 4294967295_u32)]
        max_completion_tokens: Option<u32>,
        logprobs: Option<bool>,
        /// Alternatives per token.
        #[schema(minimum = 0, maximum = 20)]
        top_logprobs: Option<u32>,
        #[schema(value_type = Option<Vec<tools::ToolObject>>, max_items = 128)]
        tools: Option<Vec<Value>>,
        /// `auto`, `none`, `required`, the function to call, or the functions that may be called.
        #[schema(value_type = Option<JsonObjectOrText>)]
        tool_choice: Option<Value>,
        parallel_tool_calls: Option<bool>,
        /// The older form of `tools`.
        #[schema(value_type = Option<Vec<tools::FunctionObject>>, max_items = 128)]
        functions: Option<Vec<Value>>,
        /// The older form of `tool_choice`.
        #[schema(value_type = Option<JsonObjectOrText>)]
        function_call: Option<Value>,
        /// What is written after the last message if there are tools (TGI).
        #[schema(extensions(("x-limit" = json!("payload_limit"))))]
        tool_prompt: Option<String>,
        /// Without it the thinking section comes as `reasoning_content`.
        include_reasoning: Option<bool>,
        /// For the template.
        #[schema(extensions(("x-limit" = json!("payload_limit"))))]
        reasoning_effort: Option<String>,
        /// Further variables of the template.
        #[schema(value_type = Option<TemplateVariables>)]
        chat_template_kwargs: Option<Map<String, Value>>,
        #[schema(value_type = Option<Vec<JsonObject>>, max_items = 1024)]
        documents: Option<Vec<Value>>,
        add_generation_prompt: Option<bool>,
        /// Whether the reply goes on with the last message; without it, it does if that is the assistant's.
        continue_final_message: Option<bool>,
        /// The reply begins with the message it continues.
        echo: Option<bool>,
    }
}

impl Wire for ChatRequest {
    const UNSUPPORTED: &'static [&'static [Unsupported]] = &[CHAT, OPENAI, VLLM];
}

impl ChatRequest {
    pub(super) fn take_model(&mut self) -> Option<String> {
        self.model.take()
    }

    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(super) fn stream_options(&self) -> StreamOptions {
        self.stream_options.unwrap_or_default()
    }

    pub(super) fn call_form(&self) -> CallForm {
        if self.functions.is_some() && self.tools.is_none() { CallForm::Function } else { CallForm::Tools }
    }

    /// The request in the terms of every protocol.
    ///
    /// # Errors
    /// [`ValidationError`] with the field that is at fault.
    pub(in crate::routes) async fn into_call(mut self, server: &Server) -> Result<ChatCall, Error> {
        let mut asked = self.take_asked()?;
        forbid_words(&mut asked, self.bad_words.take(), server).await?;
        asked.max_new_tokens = self.max_completion_tokens.or(asked.max_new_tokens);
        asked.top_logprobs = self.top_logprobs.map(|top| ("top_logprobs", top));
        let has_logprobs = self.logprobs.unwrap_or(false);
        let is_single_call = self.parallel_tool_calls == Some(false) || self.call_form() == CallForm::Function;
        let (tools, tools::Choice { choice: tool_choice, allowed: allowed_tools }) = self.take_tools()?;
        Ok(ChatCall {
            thinks: self.reasoning_effort.as_ref().map(|effort| effort != "none"),
            template_kwargs: self.take_template_kwargs(),
            messages: template_messages(self.messages)?,
            tools,
            tool_choice,
            allowed_tools,
            is_single_call,
            documents: self.documents,
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            tool_prompt: self.tool_prompt,
            echo: self.echo.unwrap_or(false),
            reasoning: if self.include_reasoning == Some(false) { Reasoning::Omitted } else { Reasoning::Separate },
            logprobs: has_logprobs.then_some(self.top_logprobs.unwrap_or(0) as usize),
            asked,
        })
    }

    fn take_tools(&mut self) -> Result<(Vec<crate::chat::Tool>, tools::Choice), ValidationError> {
        let choice = self.tool_choice.take().filter(|choice| !choice.is_null()).or(self.function_call.take());
        let choice = tools::tool_choice(choice.as_ref())?;
        match (self.tools.take(), self.functions.take()) {
            (Some(tools), Some(functions)) if !tools.is_empty() && !functions.is_empty() => {
                Err(ValidationError::Conflict { field: "functions", other: "tools" })
            }
            (tools, functions) => {
                let mut all = tools::tools("tools", tools.unwrap_or_default())?;
                all.extend(tools::functions(functions.unwrap_or_default())?);
                Ok((all, choice))
            }
        }
    }

    fn take_template_kwargs(&mut self) -> Map<String, Value> {
        let mut kwargs = self.chat_template_kwargs.take().unwrap_or_default();
        if let Some(effort) = self.reasoning_effort.take() {
            kwargs.entry("reasoning_effort").or_insert(Value::from(effort));
        }
        kwargs
    }
}
