//! Stop strings, found wherever they stand in the text: inside a token, across tokens, at once or piece by piece.
//!
//! Each string is a Knuth-Morris-Pratt automaton fed byte by byte, so the result cannot depend on how the text was cut
//! into tokens: the stop that ends first wins, and of those that end together the longest.

/// How far each stop string has been matched.
pub(crate) struct StopMatcher {
    stops: Vec<Automaton>,
}

struct Automaton {
    pattern: Box<[u8]>,
    /// `failure[n]`: length of the longest proper prefix of the pattern that is a suffix of its first `n + 1` bytes.
    failure: Box<[usize]>,
    /// Bytes of the pattern that the text's end matches.
    matched: usize,
}

/// What a piece of text did to the matcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// No stop string ended. The last `hold` bytes of all text so far may be the beginning of one.
    Clear { hold: usize },
    /// A stop string of `length` bytes ended after `end` bytes of the piece.
    Found { end: usize, length: usize },
}

impl StopMatcher {
    /// A matcher for non-empty `stops`.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().map(|stop| Automaton::new(stop)).collect() }
    }

    /// Whether there is anything to look for.
    pub(crate) fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Advances over `piece`, up to the first stop string that ends in it.
    pub(crate) fn scan(&mut self, piece: &str) -> Scan {
        for (at, byte) in piece.bytes().enumerate() {
            let found = self.stops.iter_mut().filter_map(|stop| stop.step(byte)).max();
            if let Some(length) = found {
                return Scan::Found { end: at + 1, length };
            }
        }
        Scan::Clear { hold: self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0) }
    }
}

impl Automaton {
    fn new(pattern: &str) -> Self {
        let pattern: Box<[u8]> = pattern.as_bytes().into();
        let mut failure = vec![0; pattern.len()];
        let mut matched = 0;
        for at in 1..pattern.len() {
            while matched > 0 && pattern[at] != pattern[matched] {
                matched = failure[matched - 1];
            }
            matched += usize::from(pattern[at] == pattern[matched]);
            failure[at] = matched;
        }
        Self { pattern, failure: failure.into(), matched: 0 }
    }

    /// Feeds one byte; the pattern's length if it ends here.
    fn step(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.failure[self.matched - 1];
        }
        self.matched += usize::from(self.pattern[self.matched] == byte);
        if self.matched < self.pattern.len() {
            return None;
        }
        self.matched = self.failure[self.matched - 1];
        Some(self.pattern.len())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Where the first stop ends in the text and how long it is, by plain search: the definition.
    fn definition(text: &str, stops: &[String]) -> Option<(usize, usize)> {
        (1..=text.len()).find_map(|end| {
            let ended = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            ended.map(String::len).max().map(|length| (end, length))
        })
    }

    #[test]
    fn any_cut_gives_the_same_stop_and_holds_enough() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..5_000 {
            let word = |rng: &mut StdRng, most| -> String {
                (0..rng.random_range(1..=most)).map(|_| ['a', 'b', 'é'][rng.random_range(0..3)]).collect()
            };
            let stops: Vec<String> = (0..rng.random_range(1..4)).map(|_| word(&mut rng, 4)).collect();
            let text = word(&mut rng, 24);
            let expected = definition(&text, &stops);

            let mut matcher = StopMatcher::new(&stops);
            let (mut found, mut released, mut from) = (None, 0, 0);
            while from < text.len() && found.is_none() {
                let mut to = rng.random_range(from + 1..=text.len());
                while !text.is_char_boundary(to) {
                    to += 1;
                }
                match matcher.scan(&text[from..to]) {
                    Scan::Clear { hold } => {
                        assert!(text.is_char_boundary(to - hold), "text is held back in whole characters");
                        released = to - hold;
                    }
                    Scan::Found { end, length } => found = Some((from + end, length)),
                }
                from = to;
            }
            assert_eq!(found, expected, "{stops:?} in {text:?}");
            if let Some((end, length)) = found {
                assert!(released <= end - length, "text of a stop string was released: {stops:?} in {text:?}");
            }
        }
    }

    #[test]
    fn nothing_is_held_that_no_stop_can_claim() {
        let mut matcher = StopMatcher::new(&["STOP".into()]);
        assert_eq!(matcher.scan("text S"), Scan::Clear { hold: 1 });
        assert_eq!(matcher.scan("TO"), Scan::Clear { hold: 3 });
        assert_eq!(matcher.scan("x"), Scan::Clear { hold: 0 });
    }

    #[test]
    fn a_stop_inside_and_across_tokens_is_found() {
        let mut matcher = StopMatcher::new(&["e w".into()]);
        assert_eq!(matcher.scan(" there"), Scan::Clear { hold: 1 });
        assert_eq!(matcher.scan(" was"), Scan::Found { end: 2, length: 3 });
    }
}
