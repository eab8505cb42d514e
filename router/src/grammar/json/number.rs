//! Numbers: constraints on their value as expressions over their decimal spelling.
//!
//! Spellings are plain decimals of bounded length, so that every reader of JSON can hold the value (CPython refuses
//! integers of more than 4300 digits). Negative zero is not spelled: it compares equal to zero and prints otherwise.
//! An unconstrained number may also have an exponent, within what a double holds.

use llguidance::derivre::RegexAst;
use serde_json::Number;

use super::predicate::Predicate;
use crate::limits::MAX_NUMBER_DIGITS;

pub(super) type NumberPredicate = Predicate<NumberAtom>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum NumberAtom {
    /// Without a fraction; 1.0 counts as an integer and is not generated.
    Integer,
    AtLeast(Decimal),
    Above(Decimal),
    Equal(Decimal),
    /// A multiple of `coefficient * 10^-scale`.
    MultipleOf {
        coefficient: u32,
        scale: u32,
    },
}

/// A decimal number: digits without leading zeros in `integer` (but "0"), without trailing ones in `fraction`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Decimal {
    negative: bool,
    integer: String,
    fraction: String,
}

impl Decimal {
    /// `None` if the number has more than [`MAX_NUMBER_DIGITS`] digits on a side of the point.
    pub(super) fn new(number: &Number) -> Option<Self> {
        let text = number.to_string();
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i32 = exponent.parse().ok()?;
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits = format!("{integer}{fraction}");
        let mut point = i32::try_from(integer.len()).ok()? + exponent;
        if point.unsigned_abs() as usize > 2 * MAX_NUMBER_DIGITS {
            return None;
        }
        while point < 0 {
            digits.insert(0, '0');
            point += 1;
        }
        let point = usize::try_from(point).ok()?;
        while digits.len() < point {
            digits.push('0');
        }
        let (integer, fraction) = digits.split_at(point);
        let integer = match integer.trim_start_matches('0') {
            "" => "0",
            trimmed => trimmed,
        };
        let fraction = fraction.trim_end_matches('0');
        if integer.len() > MAX_NUMBER_DIGITS || fraction.len() > MAX_NUMBER_DIGITS {
            return None;
        }
        let zero = integer == "0" && fraction.is_empty();
        Some(Self { negative: negative && !zero, integer: integer.to_owned(), fraction: fraction.to_owned() })
    }

    /// The number as `(coefficient, scale)`: `coefficient * 10^-scale`, without its sign.
    pub(super) fn scaled(&self) -> Option<(u32, u32)> {
        let coefficient = format!("{}{}", self.integer, self.fraction).parse().ok()?;
        Some((coefficient, u32::try_from(self.fraction.len()).ok()?))
    }

    /// How it is generated.
    pub(super) fn text(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        let point = if self.fraction.is_empty() { "" } else { "." };
        format!("{sign}{}{point}{}", self.integer, self.fraction)
    }
}

/// The spellings of the numbers that satisfy `predicate`.
///
/// Readers hold numbers as doubles and check constraints on those, so a constrained number is generated with at most 15
/// significant digits, which every double keeps; an integer without other constraints with 18, which 64 bits hold. Only a
/// schema that itself names longer numbers gets them.
///
/// # Errors
/// The reason, if a part of it has no exact expression.
pub(super) fn spellings(predicate: &NumberPredicate) -> Result<RegexAst, &'static str> {
    if *predicate == Predicate::True {
        let exponent = r"-?[0-9](\.[0-9]{1,16})?[eE][+-]?([0-9]{1,2}|[12][0-9]{2}|30[0-7])";
        return Ok(RegexAst::Or(vec![plain(), RegexAst::Regex(exponent.to_owned())]));
    }
    let mut sizes = Vec::new();
    decimal_sizes(predicate, &mut sizes);
    let all = match predicate {
        Predicate::Atom(NumberAtom::Integer) => regex("-?[0-9]{1,18}"),
        _ if sizes.iter().any(|size| *size > 15) => plain(),
        _ => regex(concat!(
            r"-?([0-9]{1,15}|[0-9]{1,12}\.[0-9]{1,3}|[0-9]{1,9}\.[0-9]{1,6}|[0-9]{1,5}\.[0-9]{1,10}|",
            r"0\.[0-9]{1,15})"
        )),
    };
    Ok(RegexAst::And(vec![plain(), all, compile(predicate)?]))
}

/// The number of digits of every number in a predicate.
fn decimal_sizes(predicate: &NumberPredicate, sizes: &mut Vec<usize>) {
    match predicate {
        Predicate::True | Predicate::False => {}
        Predicate::Atom(atom) | Predicate::NotAtom(atom) => match atom {
            NumberAtom::Integer | NumberAtom::MultipleOf { .. } => {}
            NumberAtom::AtLeast(value) | NumberAtom::Above(value) | NumberAtom::Equal(value) => {
                sizes.push(value.integer.len() + value.fraction.len());
            }
        },
        Predicate::And(parts) | Predicate::Or(parts) => parts.iter().for_each(|part| decimal_sizes(part, sizes)),
    }
}

fn compile(predicate: &NumberPredicate) -> Result<RegexAst, &'static str> {
    Ok(match predicate {
        Predicate::True => plain(),
        Predicate::False => RegexAst::NoMatch,
        Predicate::And(parts) => RegexAst::And(parts.iter().map(compile).collect::<Result<_, _>>()?),
        Predicate::Or(parts) => RegexAst::Or(parts.iter().map(compile).collect::<Result<_, _>>()?),
        Predicate::Atom(atom) => match atom {
            NumberAtom::Integer => regex("-?[0-9]+"),
            NumberAtom::Equal(value) => RegexAst::Literal(value.text()),
            NumberAtom::MultipleOf { coefficient, scale } => multiple_of(*coefficient, *scale),
            NumberAtom::AtLeast(_) | NumberAtom::Above(_) => exactly(atom),
        },
        // What is excluded is excluded in every spelling of its value.
        Predicate::NotAtom(atom) => not(match atom {
            NumberAtom::Integer => regex(r"-?[0-9]+(\.0+)?"),
            NumberAtom::Equal(value) => equal(value),
            NumberAtom::MultipleOf { coefficient, scale: 0 } => {
                RegexAst::Concat(vec![multiple_of(*coefficient, 0), regex(r"(\.0+)?")])
            }
            NumberAtom::MultipleOf { .. } => return Err("the negation of a fractional `multipleOf`"),
            NumberAtom::AtLeast(_) | NumberAtom::Above(_) => exactly(atom),
        }),
    })
}

/// The spellings at or above a bound.
fn exactly(atom: &NumberAtom) -> RegexAst {
    match atom {
        NumberAtom::AtLeast(bound) if !bound.negative => RegexAst::Or(vec![magnitude_above(bound), equal(bound)]),
        NumberAtom::Above(bound) if !bound.negative => magnitude_above(bound),
        // A negative bound: everything but what lies below it.
        NumberAtom::AtLeast(bound) => not(negative(magnitude_above(bound))),
        NumberAtom::Above(bound) => not(RegexAst::Or(vec![negative(magnitude_above(bound)), equal(bound)])),
        NumberAtom::Integer | NumberAtom::Equal(_) | NumberAtom::MultipleOf { .. } => {
            unreachable!("only bounds come here")
        }
    }
}

fn plain() -> RegexAst {
    RegexAst::And(vec![
        regex(&format!(r"-?(0|[1-9][0-9]{{0,{}}})(\.[0-9]{{1,{MAX_NUMBER_DIGITS}}})?", MAX_NUMBER_DIGITS - 1)),
        not(regex(r"-0(\.0+)?")),
    ])
}

fn equal(value: &Decimal) -> RegexAst {
    let sign = if value.negative { "-" } else { "" };
    let fraction = if value.fraction.is_empty() { r"(\.0+)?".to_owned() } else { format!(r"\.{}0*", value.fraction) };
    regex(&format!("{sign}{}{fraction}", value.integer))
}

/// Unsigned spellings of the numbers greater than `|bound|`.
fn magnitude_above(bound: &Decimal) -> RegexAst {
    let mut options = vec![format!(r"[1-9][0-9]{{{},}}(\.[0-9]+)?", bound.integer.len())];
    for (prefix, digit, rest) in larger_digits(&bound.integer) {
        options.push(format!(r"{prefix}{digit}[0-9]{{{rest}}}(\.[0-9]+)?"));
    }
    for (prefix, digit, _) in larger_digits(&bound.fraction) {
        options.push(format!(r"{}\.{prefix}{digit}[0-9]*", bound.integer));
    }
    options.push(format!(r"{}\.{}[0-9]*[1-9][0-9]*", bound.integer, bound.fraction));
    RegexAst::Or(options.iter().map(|option| regex(option)).collect())
}

/// For each digit of `digits` that can grow: what stands before it, the larger digits, how many follow it.
fn larger_digits(digits: &str) -> impl Iterator<Item = (&str, String, usize)> {
    digits.char_indices().filter(|&(_, digit)| digit < '9').map(|(at, digit)| {
        let next = char::from(digit as u8 + 1);
        (&digits[..at], format!("[{next}-9]"), digits.len() - at - 1)
    })
}

fn multiple_of(coefficient: u32, scale: u32) -> RegexAst {
    RegexAst::Concat(vec![regex("-?"), RegexAst::MultipleOf(coefficient, scale)])
}

fn negative(magnitude: RegexAst) -> RegexAst {
    RegexAst::Concat(vec![RegexAst::Literal("-".to_owned()), magnitude])
}

fn regex(pattern: &str) -> RegexAst {
    RegexAst::Regex(pattern.to_owned())
}

fn not(ast: RegexAst) -> RegexAst {
    RegexAst::Not(Box::new(ast))
}
