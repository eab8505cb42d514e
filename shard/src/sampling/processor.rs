//! What stands between a row's logits and the choice: one processor per parameter, each defined in its own file.

use kernels::Device;

use super::candidates::Candidates;
use super::{Params, Row};

/// One step of the pipeline, whose place is its line in the tables of `sampling/mod.rs`.
pub(super) struct Processor {
    /// Whether it does anything for the token at a position of the reply. If it does nothing for the first one it never
    /// does: so a slot knows once and for all whether its rows are plain.
    pub(super) is_active: fn(&Params, u32) -> bool,
    /// What it must know of the tokens before, if it is active.
    pub(super) needs: fn(&Params) -> Needs,
    /// Changes scores or removes tokens. Called only where it is active.
    pub(super) apply: fn(&mut Candidates, &Row<'_>, &Device),
}

/// What processors must know of the tokens before the one to sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// How often prompt and reply hold each token.
    pub(super) counts: bool,
    /// How often the reply alone does.
    pub(super) reply_counts: bool,
    /// So many of the last tokens, in order.
    pub(super) recent: usize,
}

impl Needs {
    /// The logits say it all.
    pub(super) fn nothing(_: &Params) -> Needs {
        Needs::default()
    }

    /// The counts of prompt and reply.
    pub(super) fn counts(_: &Params) -> Needs {
        Needs { counts: true, ..Needs::default() }
    }

    /// The counts of the reply.
    pub(super) fn reply_counts(_: &Params) -> Needs {
        Needs { reply_counts: true, ..Needs::default() }
    }

    /// What both need.
    pub(super) fn and(self, other: Needs) -> Needs {
        Needs {
            counts: self.counts || other.counts,
            reply_counts: self.reply_counts || other.reply_counts,
            recent: self.recent.max(other.recent),
        }
    }
}

#[cfg(test)]
impl Processor {
    /// Whether it does anything for the first token of a reply with these parameters alone.
    pub(super) fn is_on(&self, sampling: proto::v1::SamplingParams) -> bool {
        (self.is_active)(&Params::new(sampling, 0, false), 0)
    }
}
