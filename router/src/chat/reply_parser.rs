//! Splits the text of a reply into content, reasoning and tool calls while it comes.
//!
//! The parts do not depend on how the text was cut: joined they are the same as for the whole text at once.

use std::sync::Arc;

use super::format::{Begin, ToolFormat};
use super::reasoning::{ReasoningFormat, ReplyStart};
use super::section::{Progress, Section};
use super::{ReplyPart, Tool, ToolChoice};

/// A call that a reply began and did not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the arguments of the call {index} of `{name}` are no complete JSON object")]
pub(crate) struct BrokenCall {
    pub(crate) index: usize,
    pub(crate) name: String,
}

/// The parser of one reply.
///
/// Text that might begin a mark or a call waits until it is clear; a call that is none is content. White space next to a
/// call or a thought belongs to nobody. Once a call's name and the begin of its arguments are read, the arguments are
/// given out as they come.
pub(crate) struct ReplyParser {
    tools: Arc<[Tool]>,
    /// `None` if the reply cannot hold calls.
    format: Option<ToolFormat>,
    reasoning: Option<ReasoningFormat>,
    answer: Option<Answer>,
    /// What counts inside content and inside a thought.
    in_content: Marks,
    in_reasoning: Marks,
    /// Text that is not given out yet.
    buffer: String,
    mode: Mode,
    section: Option<Section>,
    flow: Flow,
    /// The number of the next call.
    calls: usize,
    broken: Option<BrokenCall>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Content,
    Reasoning,
}

/// Content that matches a grammar: from its first character on, no mark means anything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// White space before it belongs to nobody.
    Json,
    /// White space may be the begin of it.
    Text,
}

/// The texts that mean something, and the bytes they begin with.
struct Marks {
    list: Vec<(&'static str, Mark)>,
    first_bytes: [bool; 256],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Call,
    Open,
    Close,
    Frame,
}

enum Found {
    /// The mark lies there and is that long.
    Mark(usize, usize, Mark),
    /// From there on the text may become a mark.
    Maybe(usize),
    Nothing,
}

/// The text that is given out, with the white space that may turn out to belong to nobody.
struct Flow {
    /// White space at the end of what came; given out when text follows.
    space: String,
    /// Directly behind a call or a mark: white space is dropped.
    is_behind_mark: bool,
    has_content: bool,
}

impl ReplyParser {
    /// The parser of a reply that begins at `start`. Without `format`, without tools, or if the client wants no calls,
    /// calls are plain text.
    pub(crate) fn new(
        format: Option<&ToolFormat>,
        reasoning: Option<(&ReasoningFormat, ReplyStart)>,
        tools: Arc<[Tool]>,
        choice: &ToolChoice,
    ) -> Self {
        let format = format.filter(|_| !tools.is_empty() && *choice != ToolChoice::None).cloned();
        let (mut in_content, mut in_reasoning) = (Vec::new(), Vec::new());
        if let Some(format) = &format {
            let begin = match format.description.begin {
                Begin::Marker(text) => Some(text),
                Begin::Start => None,
            };
            let calls = begin.into_iter().chain(format.description.also.iter().copied());
            in_content.extend(calls.map(|text| (text, Mark::Call)));
            in_reasoning.clone_from(&in_content);
        }
        let mut is_reasoning = false;
        if let Some((reasoning, start)) = reasoning {
            is_reasoning = start == ReplyStart::Reasoning;
            in_content.push((reasoning.marks.open, Mark::Open));
            in_content.extend(reasoning.marks.frames.iter().map(|text| (*text, Mark::Frame)));
            in_reasoning.push((reasoning.marks.close, Mark::Close));
        }
        Self {
            tools,
            format,
            reasoning: reasoning.map(|(reasoning, _)| reasoning.clone()),
            answer: None,
            in_content: Marks::new(in_content),
            in_reasoning: Marks::new(in_reasoning),
            buffer: String::new(),
            mode: if is_reasoning { Mode::Reasoning } else { Mode::Content },
            section: None,
            flow: Flow { space: String::new(), is_behind_mark: is_reasoning, has_content: false },
            calls: 0,
            broken: None,
        }
    }

    /// The parser of a reply that begins at `start` and is an answer under a grammar, perhaps after a thought.
    pub(crate) fn of_answer(reasoning: (&ReasoningFormat, ReplyStart), answer: Answer) -> Self {
        let parser = Self::new(None, Some(reasoning), Arc::new([]), &ToolChoice::None);
        Self { answer: Some(answer), ..parser }
    }

    /// How many calls the reply has so far; more than none makes its finish reason `tool_calls`.
    pub(crate) fn calls(&self) -> usize {
        self.section.as_ref().map_or(self.calls, Section::next_index)
    }

    /// Takes more text and appends what it makes clear.
    pub(crate) fn push(&mut self, delta: &str, out: &mut Vec<ReplyPart>) {
        if self.buffer.is_empty() && self.section.is_none() && !self.may_matter(delta) {
            self.flow.push(self.mode, delta, out);
            return;
        }
        self.buffer.push_str(delta);
        self.read(End::Open, out);
    }

    /// The reply is over: what still waited is given out.
    ///
    /// # Errors
    /// [`BrokenCall`] if a call's arguments, of which a part has been given out, are no JSON object: the reply was cut, or
    /// the model wrote something else. All parts are there nevertheless.
    pub(crate) fn finish(&mut self, out: &mut Vec<ReplyPart>) -> Result<(), BrokenCall> {
        self.read(End::Reached, out);
        self.flow.finish(self.mode, out);
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Whether a text without anything before it can be more than plain text.
    fn may_matter(&self, delta: &str) -> bool {
        let marks = self.marks();
        delta.bytes().any(|byte| marks.first_bytes[usize::from(byte)])
            || (self.call_may_start() && delta.trim_start().starts_with(self.start_character()))
    }

    fn marks(&self) -> &Marks {
        match self.mode {
            Mode::Content => &self.in_content,
            Mode::Reasoning => &self.in_reasoning,
        }
    }

    /// A call of a format without begin mark may begin here.
    fn call_may_start(&self) -> bool {
        self.mode == Mode::Content
            && !self.flow.has_content
            && self.format.as_ref().is_some_and(|format| format.description.begin == Begin::Start)
    }

    fn start_character(&self) -> char {
        let open = self.format.as_ref().and_then(|format| format.description.open.first());
        open.and_then(|text| text.trim_start().chars().next()).unwrap_or('{')
    }

    fn read(&mut self, end: End, out: &mut Vec<ReplyPart>) {
        loop {
            let is_going_on =
                if self.section.is_some() { self.read_section(end, out) } else { self.read_text(end, out) };
            if !is_going_on {
                return;
            }
        }
    }

    /// Reads text up to the next mark; false if more must come.
    fn read_text(&mut self, end: End, out: &mut Vec<ReplyPart>) -> bool {
        if self.buffer.is_empty() {
            return false;
        }
        if self.answer.is_some() && self.mode == Mode::Content && !self.mark_may_come(end) {
            self.in_content = Marks::new(Vec::new());
        }
        if self.call_may_start() {
            let spaces = self.buffer.len() - self.buffer.trim_start().len();
            if self.buffer[spaces..].starts_with(self.start_character()) {
                let text: String = self.buffer.drain(..spaces).collect();
                self.flow.push(self.mode, &text, out);
                self.begin_section(0, 0);
                return true;
            }
        }
        match self.marks().find(&self.buffer, end) {
            Found::Nothing => {
                let text = std::mem::take(&mut self.buffer);
                self.flow.push(self.mode, &text, out);
                false
            }
            Found::Maybe(at) => {
                let text: String = self.buffer.drain(..at).collect();
                self.flow.push(self.mode, &text, out);
                false
            }
            Found::Mark(at, length, mark) => {
                let text: String = self.buffer.drain(..at).collect();
                self.flow.push(self.mode, &text, out);
                if mark == Mark::Call {
                    self.begin_section(0, length);
                    return true;
                }
                if mark == Mark::Open && !self.thought_may_open() {
                    let text: String = self.buffer.drain(..length).collect();
                    self.flow.push(self.mode, &text, out);
                    return true;
                }
                self.buffer.drain(..length);
                self.flow.mark();
                match mark {
                    Mark::Open => self.mode = Mode::Reasoning,
                    Mark::Close => self.mode = Mode::Content,
                    Mark::Call | Mark::Frame => {}
                }
                if self.answer.is_some() && mark == Mark::Close {
                    // There is one thought.
                    self.in_content.list.retain(|(_, mark)| *mark == Mark::Frame);
                }
                if self.answer == Some(Answer::Text) && self.mode == Mode::Content {
                    self.flow.is_behind_mark = false;
                }
                true
            }
        }
    }

    /// The text of an answer has not begun: all there is may still be white space and a mark.
    fn mark_may_come(&self, end: End) -> bool {
        let text = self.buffer.trim_start();
        !self.flow.has_content
            && (text.is_empty() || matches!(self.in_content.find(text, end), Found::Mark(0, ..) | Found::Maybe(0)))
    }

    /// Before content only, unless every part of a reply has its frame: an answer may speak of the marks.
    fn thought_may_open(&self) -> bool {
        !self.flow.has_content || self.reasoning.as_ref().is_some_and(|reasoning| !reasoning.marks.between.is_empty())
    }

    fn begin_section(&mut self, start: usize, at: usize) {
        let format = self.format.as_ref().expect("only a format has marks of calls");
        self.section = Some(Section::new(format.description, start, at, self.calls));
    }

    /// Reads on in a section of calls; false if more must come.
    fn read_section(&mut self, end: End, out: &mut Vec<ReplyPart>) -> bool {
        let mut section = self.section.take().expect("a section is being read");
        let parts = out.len();
        let mut progress = section.run(&self.buffer, &self.tools, out);
        if out.len() > parts || section.done > 0 {
            self.flow.mark();
        }
        self.buffer.drain(..section.done);
        section.forget(section.done);
        self.calls = section.next_index();
        if progress == Progress::More {
            if end == End::Open {
                self.section = Some(section);
                return false;
            }
            progress = section.finish();
            if progress == Progress::Over {
                // The rest is the begin of a closing mark.
                self.buffer.clear();
            }
        }
        match progress {
            Progress::More => unreachable!("a finished section does not wait"),
            Progress::Over => {}
            Progress::Broken(name) => {
                self.broken.get_or_insert(BrokenCall { index: self.calls.saturating_sub(1), name });
            }
            Progress::NoCall => {
                // What began the section is text; a call may begin behind its first character.
                let length = self.buffer.chars().next().map_or(0, char::len_utf8);
                let text: String = self.buffer.drain(..length).collect();
                self.flow.push(self.mode, &text, out);
            }
        }
        true
    }
}

/// Whether more text can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Reached,
}

impl Marks {
    fn new(list: Vec<(&'static str, Mark)>) -> Self {
        let mut first_bytes = [false; 256];
        for (text, _) in &list {
            first_bytes[usize::from(text.as_bytes()[0])] = true;
        }
        Self { list, first_bytes }
    }

    /// The first mark in `text`, or where one may begin.
    fn find(&self, text: &str, end: End) -> Found {
        for (at, byte) in text.bytes().enumerate() {
            if !self.first_bytes[usize::from(byte)] {
                continue;
            }
            let rest = &text[at..];
            if end == End::Open && self.list.iter().any(|(mark, _)| mark.len() > rest.len() && mark.starts_with(rest)) {
                return Found::Maybe(at);
            }
            let longest =
                self.list.iter().filter(|(mark, _)| rest.starts_with(mark)).max_by_key(|(mark, _)| mark.len());
            if let Some((mark, kind)) = longest {
                return Found::Mark(at, mark.len(), *kind);
            }
        }
        Found::Nothing
    }
}

impl Flow {
    /// Gives out a piece of text.
    fn push(&mut self, mode: Mode, text: &str, out: &mut Vec<ReplyPart>) {
        let text = if self.is_behind_mark { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.is_behind_mark = false;
        let body = text.trim_end();
        if !body.is_empty() {
            let mut given = std::mem::take(&mut self.space);
            given.push_str(body);
            self.has_content |= mode == Mode::Content;
            give(mode, given, out);
        }
        self.space.push_str(&text[body.len()..]);
    }

    /// A call or a mark: white space before and behind it belongs to nobody.
    fn mark(&mut self) {
        self.space.clear();
        self.is_behind_mark = true;
    }

    fn finish(&mut self, mode: Mode, out: &mut Vec<ReplyPart>) {
        let space = std::mem::take(&mut self.space);
        if !space.is_empty() {
            give(mode, space, out);
        }
    }
}

/// Appends a text part, to the one before if that is of the same kind.
fn give(mode: Mode, text: String, out: &mut Vec<ReplyPart>) {
    match (mode, out.last_mut()) {
        (Mode::Content, Some(ReplyPart::Content(last))) | (Mode::Reasoning, Some(ReplyPart::Reasoning(last))) => {
            last.push_str(&text);
        }
        (Mode::Content, _) => out.push(ReplyPart::Content(text)),
        (Mode::Reasoning, _) => out.push(ReplyPart::Reasoning(text)),
    }
}
