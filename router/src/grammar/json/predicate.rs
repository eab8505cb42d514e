//! Boolean expressions in negation normal form: of schemas, of numbers, of strings.
//!
//! Negation stands at atoms only, so that whoever compiles an atom knows its polarity.

/// A boolean expression over atoms. Build with [`Predicate::and`], [`Predicate::or`], [`Predicate::negate`]: they keep the
/// form flat, sorted and free of constants, so that equal expressions compare equal and recursion closes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Predicate<A> {
    True,
    False,
    Atom(A),
    NotAtom(A),
    And(Vec<Predicate<A>>),
    Or(Vec<Predicate<A>>),
}

impl<A: Clone + Ord> Predicate<A> {
    pub(super) fn and(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                Self::True => {}
                Self::False => return Self::False,
                Self::And(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        match tidy(&mut flat) {
            Tidy::Contradiction => Self::False,
            Tidy::Fine if flat.len() == 1 => flat.remove(0),
            Tidy::Fine if flat.is_empty() => Self::True,
            Tidy::Fine => Self::And(flat),
        }
    }

    pub(super) fn or(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                Self::False => {}
                Self::True => return Self::True,
                Self::Or(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        match tidy(&mut flat) {
            Tidy::Contradiction => Self::True,
            Tidy::Fine if flat.len() == 1 => flat.remove(0),
            Tidy::Fine if flat.is_empty() => Self::False,
            Tidy::Fine => Self::Or(flat),
        }
    }

    pub(super) fn negate(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::Atom(atom) => Self::NotAtom(atom),
            Self::NotAtom(atom) => Self::Atom(atom),
            Self::And(parts) => Self::or(parts.into_iter().map(Self::negate)),
            Self::Or(parts) => Self::and(parts.into_iter().map(Self::negate)),
        }
    }

    /// Atoms in the expression.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::True | Self::False => 0,
            Self::Atom(_) | Self::NotAtom(_) => 1,
            Self::And(parts) | Self::Or(parts) => parts.iter().map(Self::size).sum(),
        }
    }
}

enum Tidy {
    Fine,
    /// An atom beside its negation.
    Contradiction,
}

fn tidy<A: Clone + Ord>(parts: &mut Vec<Predicate<A>>) -> Tidy {
    parts.sort_unstable();
    parts.dedup();
    let contradiction = parts.iter().any(|part| match part {
        Predicate::Atom(atom) => parts.binary_search(&Predicate::NotAtom(atom.clone())).is_ok(),
        _ => false,
    });
    if contradiction { Tidy::Contradiction } else { Tidy::Fine }
}
