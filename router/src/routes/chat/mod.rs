//! A chat in no protocol's words. Chat completions, responses and messages build a [`ChatCall`] from their wire types
//! and write their answers from the [`ChatStep`]s it gives, so that the protocols share everything but their JSON.
//!
//! An answer that is not streamed is [`Chat::collect`]ed from the same steps: both ways say the same by construction.

mod blocks;
mod call;
mod format;
mod reply;
mod steps;

pub(crate) use blocks::{BlockEvent, BlockKind, block_stream};
pub(crate) use call::{ChatCall, Reasoning};
pub(crate) use format::ChatFormat;
pub(crate) use reply::{Block, ChatReply};
pub(crate) use steps::{Chat, ChatEnd, ChatFinish, ChatStep, ScoredToken, TokenCounts};
