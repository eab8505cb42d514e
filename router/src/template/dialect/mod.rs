//! Jinja2 as transformers sets it up, on minijinja: what differs between the two is made equal here.
//!
//! transformers renders chat templates with Jinja2's immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop controls,
//! `{% generation %}` blocks and a `tojson` of its own, over Python's values. minijinja follows Jinja2 closely; what is
//! left is Python's printing, its methods, generators, a few filters, and the lexer's treatment of `\r` and `raw`.
//!
//! Known to differ: `~` and `str.format` print floats beyond 1e16 or below 1e-4 without an exponent; values of different
//! types can be ordered; the default of a macro's argument cannot name an earlier argument; there are no `varargs`, and no
//! `%` on strings (the filter `format` does the same).

mod arguments;
mod expression;
mod filters;
mod functions;
mod json;
mod methods;
mod python;
mod rewrite;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error};

#[cfg(test)]
pub(super) use functions::tests::noon as tests_clock;
pub(super) use python::from_json;
pub(super) use rewrite::rewrite;

/// An environment for chat templates, without fuel yet. Give it only texts that went through [`rewrite`].
pub(super) fn environment(now: fn() -> jiff::Zoned, recursion_limit: usize) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_recursion_limit(recursion_limit);
    // Errors then name the variable that is undefined.
    environment.set_debug(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, state, value| match (state.auto_escape(), value.kind(), value.as_str()) {
        (AutoEscape::None, ValueKind::Undefined, _) => Ok(()),
        (AutoEscape::None, _, Some(text)) => out.write_str(text).map_err(Error::from),
        (AutoEscape::None, kind, None) if kind != ValueKind::Invalid => {
            out.write_str(&python::to_str(value)).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    filters::register(&mut environment);
    functions::register(&mut environment, now);
    Ok(environment)
}
