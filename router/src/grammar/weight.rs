//! A lower bound of the tokens that a shortest text needs, without enumerating texts.
//!
//! Every byte value weighs one over the length of the longest vocabulary token that contains it. A token of n bytes then
//! weighs at most n · 1/n = 1, because each of its bytes weighs at most 1/n. So a text that weighs w takes at least w
//! tokens, however it is cut; and the lightest text of a grammar bounds all its texts.

use regex_syntax::hir::{Class, Hir, HirKind};

/// The weight of a text, in millionths of a token, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Weight(u64);

impl Weight {
    pub(super) const ZERO: Self = Self(0);
    const TOKEN: u64 = 1_000_000;

    pub(super) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub(super) fn times(self, count: usize) -> Self {
        Self(self.0.saturating_mul(count as u64))
    }

    /// Tokens that a text of this weight needs at least.
    pub(super) fn tokens(self) -> u32 {
        u32::try_from(self.0.div_ceil(Self::TOKEN)).unwrap_or(u32::MAX)
    }
}

/// What each byte weighs.
#[derive(Clone, Debug)]
pub(super) struct ByteWeights([u64; 256]);

impl ByteWeights {
    /// From the bytes of every token that text can be made of.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut longest = [1u64; 256];
        for token in tokens {
            for &byte in token {
                let slot = &mut longest[usize::from(byte)];
                *slot = (*slot).max(token.len() as u64);
            }
        }
        Self(longest.map(|length| Weight::TOKEN / length))
    }

    /// The same for the content of a JSON string, where some bytes are spelled with others: those weigh nothing.
    pub(super) fn inside_json_string(&self) -> Self {
        let mut weights = self.0;
        weights[..0x20].fill(0);
        for byte in [b'"', b'\\', 0x7f] {
            weights[usize::from(byte)] = 0;
        }
        Self(weights)
    }

    pub(super) fn text(&self, text: &[u8]) -> Weight {
        Weight(text.iter().map(|&byte| self.0[usize::from(byte)]).sum())
    }

    /// The lightest byte of `from`.
    pub(super) fn lightest(&self, from: impl Iterator<Item = u8>) -> Weight {
        Weight(from.map(|byte| self.0[usize::from(byte)]).min().unwrap_or(0))
    }

    pub(super) fn lightest_byte(&self) -> Weight {
        self.lightest(0..=255)
    }

    /// The lightest text that an expression matches.
    pub(super) fn expression(&self, hir: &Hir) -> Weight {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => Weight::ZERO,
            HirKind::Literal(literal) => self.text(&literal.0),
            HirKind::Class(Class::Bytes(class)) => {
                self.lightest(class.ranges().iter().flat_map(|range| range.start()..=range.end()))
            }
            HirKind::Class(Class::Unicode(class)) => {
                let ascii = class
                    .ranges()
                    .iter()
                    .filter(|range| range.start().is_ascii())
                    .flat_map(|range| range.start() as u8..=(range.end() as u32).min(0x7f) as u8);
                let beyond = class.ranges().iter().any(|range| !range.end().is_ascii());
                let lightest = self.lightest(ascii.chain(beyond.then_some(0x80..=0xff).into_iter().flatten()));
                if class.ranges().is_empty() { Weight::ZERO } else { lightest }
            }
            HirKind::Repetition(repetition) => self.expression(&repetition.sub).times(repetition.min as usize),
            HirKind::Capture(capture) => self.expression(&capture.sub),
            HirKind::Concat(parts) => parts.iter().fold(Weight::ZERO, |sum, part| sum.plus(self.expression(part))),
            HirKind::Alternation(options) => {
                options.iter().map(|option| self.expression(option)).min().unwrap_or(Weight::ZERO)
            }
        }
    }

    /// [`ByteWeights::expression`] of a text; what does not parse weighs nothing.
    pub(super) fn pattern(&self, pattern: &str) -> Weight {
        regex_syntax::parse(pattern).map_or(Weight::ZERO, |hir| self.expression(&hir))
    }
}
