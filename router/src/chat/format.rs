//! How a model family writes tool calls, as data. One description drives the mask, the stream parser and the
//! whole-answer parser.

use std::sync::Arc;

use super::families::{FALLBACK, FAMILIES};

/// The calls of one reply, in the words of one model family.
///
/// A reply is content with sections of calls in it: `begin`, `open`, one call after the other, `close`. White space
/// around every literal is canonical for the mask and free for the parser.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) name: &'static str,
    /// A chat template that holds all texts of one of these groups belongs to the family.
    pub(super) signs: &'static [&'static [&'static str]],
    /// How a section begins.
    pub(super) begin: Begin,
    /// Further beginnings that models of the family write; understood, but no mask asks for them.
    pub(super) also: &'static [&'static str],
    pub(super) open: &'static [&'static str],
    pub(super) call: &'static [Piece],
    pub(super) more: More,
    /// Each may be missing at the end of a reply.
    pub(super) close: &'static [&'static str],
    /// Texts in the literals above that some tokenizers hold as special tokens.
    pub(super) tokens: &'static [&'static str],
}

/// How a section of calls begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// With this text, wherever it stands.
    Marker(&'static str),
    /// Without a sign of its own: a reply whose first text has the form of a call is a call.
    Start,
}

/// A part of one call, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(&'static str),
    /// The function's name; the next piece's text ends it. From `tail` on it is decoration.
    Name {
        tail: Option<Tail>,
    },
    /// The arguments, a JSON object.
    Arguments,
    /// A JSON object with the name and the arguments as members.
    Object {
        name: &'static str,
        arguments: &'static str,
    },
    /// The arguments one by one as text between marks; they are translated into a JSON object by the tool's schema.
    Parameters {
        open: &'static str,
        key_end: &'static [&'static str],
        close: &'static str,
    },
    /// The arguments as keywords with Python's literals, between parentheses.
    Keywords,
}

/// What may stand between a name and its end: a call's number, the format of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// Its possible beginnings; the mask asks for the first.
    pub(super) texts: &'static [&'static str],
    /// A regular expression of what follows; empty if nothing does.
    pub(super) pattern: &'static str,
    pub(super) is_required: bool,
}

/// Where a second call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    /// In a section of its own.
    Section,
    /// In the same section, after this text. If that is white space, whatever does not close the section is a call.
    Separated(&'static str),
    /// In the same section; the text is only layout.
    Following(&'static str),
}

/// The format of the served model: a family's description and the ids of its special tokens.
#[derive(Clone, Debug)]
pub(crate) struct ToolFormat {
    pub(super) description: &'static Description,
    /// The literals of the format that are special tokens of this tokenizer.
    pub(super) special_tokens: Arc<[(&'static str, u32)]>,
}

impl ToolFormat {
    /// The format whose signs stand in the chat template; the fallback if there are none. `special_id` is the id of a
    /// special token by its literal text.
    pub(crate) fn detect(template_source: Option<&str>, special_id: impl Fn(&str) -> Option<u32>) -> Self {
        let template = template_source.unwrap_or("");
        let has_signs = |group: &&[&str]| group.iter().all(|sign| template.contains(sign));
        let description = FAMILIES.iter().find(|family| family.signs.iter().any(has_signs)).unwrap_or(&FALLBACK);
        Self { description, special_tokens: resolve(description.tokens, special_id) }
    }

    /// The family's name, for the log.
    pub(crate) fn name(&self) -> &'static str {
        self.description.name
    }

    /// The template does not teach the model a format that we know: the prompt has to ([`super::instruction`]).
    pub(crate) fn is_fallback(&self) -> bool {
        std::ptr::eq(self.description, &FALLBACK)
    }

    /// The special tokens that the parser needs to see as text.
    pub(crate) fn visible_tokens(&self) -> impl Iterator<Item = u32> {
        self.special_tokens.iter().map(|(_, id)| *id)
    }
}

/// Those of `literals` that are special tokens, with their ids.
pub(super) fn resolve(
    literals: &'static [&'static str],
    special_id: impl Fn(&str) -> Option<u32>,
) -> Arc<[(&'static str, u32)]> {
    literals.iter().filter_map(|literal| Some((*literal, special_id(literal)?))).collect()
}
