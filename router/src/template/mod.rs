//! Chat templates: the model's own Jinja template turns messages into the prompt it was trained on.
//!
//! The dialect is Jinja2's as transformers sets it up ([`dialect`]). Rendering has fuel, a recursion limit and an output
//! limit. A template that does not compile leaves the server without chat, not without service.

mod continuation;
mod dialect;
mod facts;
#[cfg(test)]
mod goldens;
mod request;
mod source;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::io;

use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

pub(crate) use facts::TemplateFacts;
pub(crate) use request::{Ending, RenderRequest};
pub(crate) use source::TemplateSource;

use crate::error::Error;
use crate::limits::{TEMPLATE_FUEL, TEMPLATE_OUTPUT_BYTES, TEMPLATE_PROBE_FUEL, TEMPLATE_RECURSION};

/// The name of the default template in error texts, as in TGI.
const DEFAULT_NAME: &str = "<string>";

/// The chat templates of a model with the special tokens they may print.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// By name: what a template is like, or why it does not compile.
    templates: BTreeMap<String, Result<TemplateFacts, TemplateError>>,
    special_tokens: Map<String, Json>,
    /// The text of all of them.
    source: String,
}

/// Why there is no prompt. Clients see the text behind `Template error: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// It does not compile, refuses the conversation (`raise_exception`), fails, or is over a limit: what and where.
    #[error("{reason}")]
    Template { reason: String },
    #[error("the model has several chat templates and none is named `default`: {names}")]
    NoDefault { names: String },
    #[error("`chat_template_kwargs` must not set `{name}`: it has a field of its own or belongs to the model")]
    Variable { name: String },
    #[error("`{field}` must have at most {limit} entries. Given: {given}")]
    TooMany { field: &'static str, limit: usize, given: usize },
    #[error("`messages[{index}]` must be an object")]
    Message { index: usize },
    #[error("`messages[{index}].content` has a part of type `{kind}`, but the chat template shows text only")]
    ContentPart { index: usize, kind: String },
    #[error("the final message cannot be continued: {reason}")]
    Continuation { reason: &'static str },
}

impl From<TemplateError> for Error {
    fn from(error: TemplateError) -> Self {
        Error::Template { reason: error.to_string() }
    }
}

impl From<minijinja::Error> for TemplateError {
    fn from(error: minijinja::Error) -> Self {
        // An error inside a macro call wraps the cause; the innermost one names the line that is at fault.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Self::Template { reason: cause.to_string() }
    }
}

impl ChatTemplate {
    /// Compiles the templates of a model. One that is broken is told in the log, and to those who ask for it.
    ///
    /// # Errors
    /// [`TemplateError::Template`] if minijinja refuses the dialect's syntax, whatever the template.
    pub(crate) fn new(source: TemplateSource) -> Result<Self, TemplateError> {
        Self::with_clock(source, jiff::Zoned::now)
    }

    fn with_clock(source: TemplateSource, now: fn() -> jiff::Zoned) -> Result<Self, TemplateError> {
        let mut template = Self {
            environment: dialect::environment(now, TEMPLATE_RECURSION)?,
            templates: BTreeMap::new(),
            special_tokens: source.special_tokens,
            source: source.templates.values().map(String::as_str).collect::<Vec<_>>().join("\n"),
        };
        template.environment.set_fuel(Some(TEMPLATE_PROBE_FUEL));
        for (name, text) in source.templates {
            let facts = template.compile(&name, &text);
            if let Err(error) = &facts {
                tracing::warn!("the chat template `{name}` cannot be used: {error}");
            }
            template.templates.insert(name, facts);
        }
        template.environment.set_fuel(Some(TEMPLATE_FUEL));
        Ok(template)
    }

    fn compile(&mut self, name: &str, text: &str) -> Result<TemplateFacts, TemplateError> {
        let text = dialect::rewrite(text);
        self.environment.add_template_owned(inner_name(name).to_owned(), text.clone())?;
        let variables = self.environment.get_template(inner_name(name))?.undeclared_variables(false);
        Ok(TemplateFacts::find(&text, variables, &|context| self.render_context(name, context).ok()))
    }

    /// The text of the model's templates, in which the marks of its tool calls and thoughts can be looked for.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// What the template is like that a request with or without tools is rendered by.
    ///
    /// # Errors
    /// The reason why there is no such template.
    pub(crate) fn facts(&self, has_tools: bool) -> Result<&TemplateFacts, TemplateError> {
        Ok(self.choose(has_tools)?.1)
    }

    /// The prompt.
    ///
    /// # Errors
    /// [`TemplateError`] with the template's own words or the fault and its line, or with the field that is wrong.
    pub(crate) fn render(&self, request: &RenderRequest) -> Result<String, TemplateError> {
        request.check(&self.special_tokens)?;
        let (name, facts) = self.choose(!request.tools.is_empty())?;
        let mut messages = request.adapted_messages(facts)?;
        let text = match request.ending {
            Ending::ContinueFinalMessage => Some(continuation::mark(&mut messages)?),
            _ => None,
        };
        let is_prompt = matches!(request.ending, Ending::Automatic | Ending::GenerationPrompt);
        let mut context = request.variables.clone();
        context.insert("messages".to_owned(), Json::Array(messages));
        // transformers passes both always; None says that there are none.
        let list = |items: &[Json]| if items.is_empty() { Json::Null } else { Json::from(items) };
        context.insert("tools".to_owned(), list(&request.tools));
        context.insert("documents".to_owned(), list(request.documents.as_deref().unwrap_or_default()));
        context.insert("add_generation_prompt".to_owned(), Json::Bool(is_prompt));
        let mut prompt = self.render_context(name, &context)?;
        match text {
            Some(text) => continuation::cut(&mut prompt, &text)?,
            None if request.ending == Ending::Automatic => cut_at_assistant(&mut prompt, request.messages.last()),
            None => {}
        }
        Ok(prompt)
    }

    /// transformers' choice among named templates: `tool_use` if there are tools and it exists, else `default`.
    fn choose(&self, has_tools: bool) -> Result<(&str, &TemplateFacts), TemplateError> {
        let tool_use = self.templates.get_key_value("tool_use").filter(|_| has_tools);
        match tool_use.or_else(|| self.templates.get_key_value("default")) {
            Some((name, Ok(facts))) => Ok((name, facts)),
            Some((_, Err(error))) => Err(error.clone()),
            None => {
                Err(TemplateError::NoDefault { names: self.templates.keys().cloned().collect::<Vec<_>>().join(", ") })
            }
        }
    }

    fn render_context(&self, name: &str, context: &Map<String, Json>) -> Result<String, TemplateError> {
        let template = self.environment.get_template(inner_name(name))?;
        let variables = self.special_tokens.iter().chain(context);
        let context = Value::from_pairs(variables.map(|(name, value)| (name.as_str(), dialect::from_json(value))));
        let mut output = Bounded { bytes: Vec::new() };
        template.render_captured_to(context, &mut output)?;
        String::from_utf8(output.bytes).map_err(|error| TemplateError::Template { reason: error.to_string() })
    }
}

fn inner_name(name: &str) -> &str {
    if name == "default" { DEFAULT_NAME } else { name }
}

/// TGI's rule: if the last message is the assistant's and the prompt shows its text, the prompt ends there, so that the
/// model goes on writing it.
fn cut_at_assistant(prompt: &mut String, last: Option<&Json>) {
    let last = last.filter(|message| message["role"] == "assistant");
    if let Some(text) = last.and_then(|message| message["content"].as_str())
        && let Some(start) = prompt.rfind(text)
    {
        prompt.truncate(start + text.len());
        prompt.truncate(prompt.trim_end().len());
    }
}

/// A buffer that refuses to grow beyond [`TEMPLATE_OUTPUT_BYTES`].
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > TEMPLATE_OUTPUT_BYTES {
            return Err(io::Error::other(format!("the template wrote more than {TEMPLATE_OUTPUT_BYTES} bytes")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
