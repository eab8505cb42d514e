//! Text on this side, token ids on the other: tokenizer, worker threads, incremental detokenizer, stop strings.

mod detokenizer;
mod encoder;
mod plain_texts;
mod pool;
mod reply;
mod stop;
mod token_bytes;
mod tokenizer;

pub(crate) use pool::{Pool, PoolError};
pub(crate) use reply::{Position, ReplyText, StopText, TokenText};
#[cfg(test)]
pub(crate) use tokenizer::tests as test_tokenizers;
pub(crate) use tokenizer::{Span, TextTokenizer};
