//! `grammar` (OpenAI: `response_format`): what the reply must match.
//!
//! Here are TGI's rules about its shape. Whether it can be enforced, its compiler knows (`grammar/`).

use std::sync::Arc;

use serde_json::Value;

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;
use crate::grammar::GrammarSpec;

pub(super) const PARAMETER: Parameter = Parameter {
    name: "grammar",
    range: "a schema, a regex, choices or a grammar; not with --disable-grammar-support",
    enter,
};

fn enter(asked: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let Some(grammar) = &asked.grammar else { return Ok(()) };
    if !limits.has_grammars {
        return Err(ValidationError::NoGrammar);
    }
    checked.grammar = Some(read(grammar)?);
    Ok(())
}

fn read(grammar: &GrammarSpec) -> Result<GrammarSpec, ValidationError> {
    Ok(match grammar {
        GrammarSpec::JsonSchema(schema) => GrammarSpec::JsonSchema(read_schema(schema)?),
        GrammarSpec::AfterThought { thought, answer } => {
            GrammarSpec::AfterThought { thought: thought.clone(), answer: Arc::new(read(answer)?) }
        }
        other => other.clone(),
    })
}

/// A schema is an object, a boolean (both by JSON Schema), or a string that contains one of them (by TGI).
fn read_schema(schema: &Arc<Value>) -> Result<Arc<Value>, ValidationError> {
    match schema.as_ref() {
        Value::Object(_) | Value::Bool(_) => Ok(schema.clone()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Arc::new(schema)),
            Ok(_) => Err(ValidationError::Grammar { reason: "a JSON schema is an object or a boolean".to_owned() }),
            Err(error) => Err(ValidationError::Grammar { reason: error.to_string() }),
        },
        Value::Null | Value::Number(_) | Value::Array(_) => Err(ValidationError::NoGrammar),
    }
}
