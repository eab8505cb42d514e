//! Structured output: from what a client asks (a schema, a regex, a list of choices, a grammar) to the token masks that
//! the sampler obeys.

mod spec;

pub(crate) use spec::GrammarSpec;
