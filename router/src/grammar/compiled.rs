//! The compiler: a specification to a grammar that matchers start from.

use std::sync::Arc;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Logger, ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::automaton::{Automaton, Pool};
use super::error::{GrammarError, MatcherError};
use super::matcher::Matcher;
use super::spec::GrammarSpec;
use super::vocabulary::{Vocabulary, token_bytes};
use super::weight::ByteWeights;
use super::{json, lark, regex, tool_schema};
use crate::limits::{GRAMMAR_LEXER_STATES, GRAMMAR_MASK_FUEL, GRAMMAR_MASK_ITEMS, GRAMMAR_PARKED_BYTES};

/// A grammar, ready for any number of replies.
pub(crate) struct CompiledGrammar {
    answer: Arc<Automaton>,
    /// What comes before it: a thought.
    thought: Option<Arc<Automaton>>,
    min_tokens: u32,
    bytes: usize,
    end_ids: Arc<[u32]>,
    vocab_size: usize,
}

impl CompiledGrammar {
    /// No valid text has fewer tokens than this, however it is cut, not counting the end of the sequence.
    pub(crate) fn min_tokens(&self) -> u32 {
        self.min_tokens
    }

    /// A matcher before its first token.
    pub(crate) fn matcher(&self) -> Matcher {
        Matcher::new(self.thought.as_ref(), &self.answer, self.end_ids.clone(), self.vocab_size)
    }

    /// Approximate bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
impl CompiledGrammar {
    /// The same grammar, to which no reply teaches anything.
    pub(super) fn untaught(&self) -> Self {
        let (answer, thought) = (self.answer.untaught(), self.thought.as_ref().map(|thought| thought.untaught()));
        Self { answer, thought, end_ids: self.end_ids.clone(), ..*self }
    }
}

/// What every compilation shares: the vocabulary of the model, and what replies have taught the automata.
pub(super) struct Compiler {
    factory: ParserFactory,
    weights: ByteWeights,
    /// Bytes of each token, for the fewest tokens that spell a text.
    vocabulary: Arc<Vocabulary>,
    end_ids: Arc<[u32]>,
    vocab_size: usize,
    pool: Arc<Pool>,
}

impl Compiler {
    /// Reads the vocabulary: about half a second for 128 thousand tokens.
    ///
    /// # Errors
    /// The reason, if this tokenizer cannot be constrained.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer, vocab_size: usize, end_ids: &[u32]) -> Result<Self, String> {
        let tokens = token_bytes(tokenizer, vocab_size)?;
        let (vocabulary, weights) = Vocabulary::new(&tokens, end_ids);
        let vocabulary = Arc::new(vocabulary);
        let env: TokEnv = vocabulary.clone();
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(|error| error.to_string())?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            step_lexer_fuel: GRAMMAR_MASK_FUEL,
            step_max_items: GRAMMAR_MASK_ITEMS,
            max_lexer_states: GRAMMAR_LEXER_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self {
            factory,
            weights,
            vocabulary,
            end_ids: end_ids.into(),
            vocab_size,
            pool: Pool::new(GRAMMAR_PARKED_BYTES),
        })
    }

    /// Compiles. Needs a stack of [`crate::limits::GRAMMAR_STACK_BYTES`].
    pub(super) fn compile(&self, spec: &GrammarSpec, source_bytes: usize) -> Result<CompiledGrammar, GrammarError> {
        let (init, min_tokens) = match spec {
            GrammarSpec::AfterThought { thought, answer } => {
                let answer = self.compile(answer, source_bytes)?;
                return self.after_thought(thought, answer);
            }
            GrammarSpec::JsonSchema(schema) => {
                let (init, weight) = json::compile(schema, &self.weights)?;
                (init, weight.tokens())
            }
            GrammarSpec::JsonObject => {
                let (init, weight) = json::compile(&json!({"type": "object"}), &self.weights)?;
                (init, weight.tokens())
            }
            GrammarSpec::Regex(pattern) => {
                let (init, weight) = regex::compile(pattern, &self.weights)?;
                (init, weight.tokens())
            }
            GrammarSpec::Choice(choices) => {
                let fewest = choices.iter().map(|choice| self.fewest_tokens(choice.as_bytes())).min();
                (regex::choice(choices)?, fewest.unwrap_or(0))
            }
            GrammarSpec::Lark(text) => (lark::compile(text)?, 0),
            GrammarSpec::ToolCalls { lark, schemas } => {
                schemas.iter().try_for_each(|(tool, schema)| tool_schema::check(tool, schema))?;
                (lark::of_server(lark)?, 0)
            }
        };
        let start = self.start(init).map_err(|reason| self.refused(spec, reason))?;
        let compiled = CompiledGrammar {
            bytes: grammar_bytes(source_bytes, &start),
            answer: Automaton::new(start, &self.pool),
            thought: None,
            min_tokens,
            end_ids: self.end_ids.clone(),
            vocab_size: self.vocab_size,
        };
        // A grammar whose first mask is beyond the limits is refused now, not after the prompt was computed.
        compiled.matcher().mask().map_err(|error| match error {
            MatcherError::TooComplex { reason } => GrammarError::TooComplex { reason },
            MatcherError::Stuck { .. } | MatcherError::NotAllowed { .. } => nothing_matches(spec),
        })?;
        Ok(compiled)
    }

    /// `answer`, behind what `thought` says. They stay two automata: what is thought costs an answer's grammar nothing, and
    /// no token is half a thought.
    fn after_thought(&self, thought: &str, answer: CompiledGrammar) -> Result<CompiledGrammar, GrammarError> {
        let mut start = self.start(lark::of_server(thought)?).map_err(|reason| GrammarError::Internal { reason })?;
        // The end of a thought takes a token at least.
        let needed = u32::from(!start.is_accepting());
        Ok(CompiledGrammar {
            bytes: answer.bytes + grammar_bytes(thought.len(), &start),
            thought: Some(Automaton::new(start, &self.pool)),
            min_tokens: answer.min_tokens + needed,
            ..answer
        })
    }

    fn start(&self, init: GrammarInit) -> Result<TokenParser, String> {
        let limits = self.factory.limits().clone();
        let capabilities = InferenceCapabilities::default();
        let start = self.factory.create_parser_from_init_ext(init, Logger::new(0, 0), capabilities, limits);
        start.map_err(|error| error.to_string())
    }

    /// What llguidance refuses for `reason`, in the client's terms.
    fn refused(&self, spec: &GrammarSpec, reason: String) -> GrammarError {
        match spec {
            GrammarSpec::Lark(_) => GrammarError::InvalidGrammar { reason },
            GrammarSpec::Regex(_) => GrammarError::InvalidRegex { reason },
            GrammarSpec::ToolCalls { schemas, .. } => {
                // It does not say in which of the tools.
                let alone = |schema: &Value| {
                    self.start(GrammarInit::Serialized(TopLevelGrammar::from_json_schema(schema.clone())))
                };
                let culprit = schemas.iter().find_map(|(tool, schema)| Some((tool, alone(schema).err()?)));
                GrammarError::InvalidTools {
                    reason: culprit.map_or(reason, |(tool, reason)| format!("the parameters of `{tool}`: {reason}")),
                }
            }
            _ => GrammarError::TooComplex { reason },
        }
    }

    /// The fewest tokens that spell `text`: the shortest path over all cuts.
    fn fewest_tokens(&self, text: &[u8]) -> u32 {
        let trie = self.vocabulary.trie();
        let mut fewest = vec![u32::MAX; text.len() + 1];
        fewest[0] = 0;
        for start in 0..text.len() {
            if fewest[start] == u32::MAX {
                continue;
            }
            let mut node = trie.root();
            for (stop, &byte) in text.iter().enumerate().skip(start) {
                let Some(child) = trie.child_at_byte(node, byte) else { break };
                node = child;
                if node.token_id().is_some() {
                    fewest[stop + 1] = fewest[stop + 1].min(fewest[start] + 1);
                }
            }
        }
        // A text that no tokens spell: the grammar finds that out; here it only must not count as longer than it is.
        if fewest[text.len()] == u32::MAX { 0 } else { fewest[text.len()] }
    }
}

/// Of the automata as they count themselves, twice for what they leave out; of symbols and rules by rule of thumb: some
/// hundred bytes for every few bytes of text. What replies add is counted where it is kept, in the [`Pool`].
fn grammar_bytes(source_bytes: usize, start: &TokenParser) -> usize {
    size_of::<CompiledGrammar>() + 64 * source_bytes + 2 * start.parser.lexer_stats().num_bytes
}

fn nothing_matches(spec: &GrammarSpec) -> GrammarError {
    let reason = "no text of this model's tokens matches it".to_owned();
    match spec {
        GrammarSpec::JsonSchema(_) | GrammarSpec::JsonObject => GrammarError::Unsatisfiable,
        GrammarSpec::Regex(_) => GrammarError::InvalidRegex { reason },
        GrammarSpec::Choice(_) => GrammarError::InvalidChoice { reason },
        GrammarSpec::Lark(_) => GrammarError::InvalidGrammar { reason },
        GrammarSpec::ToolCalls { .. } => GrammarError::InvalidTools { reason },
        GrammarSpec::AfterThought { answer, .. } => nothing_matches(answer),
    }
}
