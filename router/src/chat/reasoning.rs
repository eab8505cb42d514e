//! How a model family marks what it thinks before it answers.

use std::sync::Arc;

use super::format::resolve;

/// The marks of a thinking section.
#[derive(Debug)]
pub(super) struct Marks {
    pub(super) name: &'static str,
    /// A chat template that holds one of these belongs to the family.
    pub(super) signs: &'static [&'static str],
    pub(super) open: &'static str,
    pub(super) close: &'static str,
    /// Texts that frame content and are no part of it.
    pub(super) frames: &'static [&'static str],
    /// What stands between a thought and what follows it, and what opens content then. Both among `frames`, or empty.
    pub(super) between: &'static str,
    pub(super) content_open: &'static str,
    pub(super) content_close: &'static str,
    pub(super) tokens: &'static [&'static str],
}

/// The thinking section of the served model.
#[derive(Clone, Debug)]
pub(crate) struct ReasoningFormat {
    pub(super) marks: &'static Marks,
    pub(super) special_tokens: Arc<[(&'static str, u32)]>,
}

/// Where a reply begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyStart {
    /// In the answer; a thought has to be opened.
    Content,
    /// In a thought that the prompt opened.
    Reasoning,
}

const PLAIN: Marks = Marks {
    name: "",
    signs: &[],
    open: "",
    close: "",
    frames: &[],
    between: "",
    content_open: "",
    content_close: "",
    tokens: &[],
};

static FAMILIES: &[Marks] = &[
    Marks {
        name: "harmony",
        signs: &["<|channel|>analysis"],
        open: "<|channel|>analysis<|message|>",
        close: "<|end|>",
        frames: &["<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>", "<|end|>"],
        between: "<|start|>assistant",
        content_open: "<|channel|>final<|message|>",
        tokens: &["<|channel|>", "<|message|>", "<|start|>", "<|end|>"],
        ..PLAIN
    },
    Marks {
        name: "command-r7b",
        signs: &["<|START_THINKING|>"],
        open: "<|START_THINKING|>",
        close: "<|END_THINKING|>",
        frames: &["<|START_RESPONSE|>", "<|END_RESPONSE|>"],
        content_open: "<|START_RESPONSE|>",
        content_close: "<|END_RESPONSE|>",
        tokens: &["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
        ..PLAIN
    },
    Marks {
        name: "seed",
        signs: &["<seed:think>"],
        open: "<seed:think>",
        close: "</seed:think>",
        tokens: &["<seed:think>", "</seed:think>"],
        ..PLAIN
    },
    Marks {
        name: "mistral",
        signs: &["[THINK]"],
        open: "[THINK]",
        close: "[/THINK]",
        tokens: &["[THINK]", "[/THINK]"],
        ..PLAIN
    },
    Marks {
        name: "think",
        signs: &["<think>", "</think>"],
        open: "<think>",
        close: "</think>",
        tokens: &["<think>", "</think>"],
        ..PLAIN
    },
];

impl ReasoningFormat {
    /// The format whose marks stand in the chat template; `None` if there are none: then everything is content.
    /// `special_id` is the id of a special token by its literal text.
    pub(crate) fn detect(template_source: Option<&str>, special_id: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let template = template_source?;
        let marks = FAMILIES.iter().find(|family| family.signs.iter().any(|sign| template.contains(sign)))?;
        Some(Self { marks, special_tokens: resolve(marks.tokens, special_id) })
    }

    /// The family's name, for the log.
    pub(crate) fn name(&self) -> &'static str {
        self.marks.name
    }

    /// Whether a rendered prompt leaves the model inside a thought.
    pub(crate) fn start(&self, prompt: &str) -> ReplyStart {
        if prompt.trim_end().ends_with(self.marks.open) { ReplyStart::Reasoning } else { ReplyStart::Content }
    }

    /// Whether a rendered prompt has ended the thought, or begun the content: nothing is thought any more.
    pub(crate) fn is_over(&self, prompt: &str) -> bool {
        let ends = [self.marks.close, self.marks.content_open];
        ends.iter().any(|end| !end.is_empty() && prompt.trim_end().ends_with(end))
    }

    /// The special tokens that the parser needs to see as text.
    pub(crate) fn visible_tokens(&self) -> impl Iterator<Item = u32> {
        self.special_tokens.iter().map(|(_, id)| *id)
    }
}
