//! How many tokens rows may draft: never so many that a batch becomes slower for it.
//!
//! Drafts are free where a step waits for memory (few rows: the weights are read once anyway) and cost their share where
//! it computes, and how many of them are right depends on the text. So everything is measured: what a step takes by its
//! number of rows ([`StepTimes`]), how often each row's drafts are right ([`Acceptance`]). Of all numbers of draft tokens
//! the one that promises the most tokens per second is taken.
//!
//! A promise can fail, and a text is not known before it is tried. What trying costs is bounded by an account in units of
//! plain steps: a step with drafts that took longer than the tokens it yielded would have taken without is paid from it, one that
//! took less pays in, and beside that it grows by [`ALLOWANCE`] per step. Nothing is drafted that could overdraw it.
//! What is drafted can be seen in the time of a reply only, never in its tokens, so measurements may decide here.

use std::time::Duration;

use super::SlotId;

/// Plain steps' worth of time that trying may cost per step: 0.7 %, so that the promise of 3 % holds with room for the account's start
/// and for measurements that are off. (With 1.5 %, eight rows of 135 million weights ran at 0.93 to 0.99 of the speed without, where two
/// servers without drafts differed by 0.98 to 1.05: a hint, no proof.)
const ALLOWANCE: f64 = 0.007;
/// What the account holds at most when new rows come: what others have earned is not spent on them. Half a step is 0.4 % of a
/// reply of 128 tokens, and enough for a draft of several tokens where one is cheap.
const START_CREDIT: f64 = 0.5;
/// What it holds at most: rows that have earned it go on through a passage that is new.
const MAX_CREDIT: f64 = 4.0;
/// How likely the first draft token of a row is right that has not tried.
const FIRST_GUESS: f64 = 0.5;
/// Weight of the past at each trial: about seven trials count.
const MEMORY: f64 = 0.85;
/// Weight of the past at each step without a draft, by which a row that failed forgets it: half after 50 steps.
const FORGETTING: f64 = 0.986;
/// Draft tokens that one step may have. 64: beyond that many rows every step computes more than it reads.
const MAX_STEP_DRAFTS: usize = 64;
/// Gains of less than this many tokens are not worth a row anywhere.
const LEAST_GAIN: f64 = 0.02;
/// Rows up to which times are kept. 512: a step with more gains nothing by drafts.
const MAX_TIMED_ROWS: usize = 512;
/// What promises less is not tried: measurements are off by as much, and of several numbers the one that is off most looks best.
const LEAST_SPEED_UP: f64 = 1.03;
/// Steps after which a measurement no longer counts: sequences have grown by then, and one that was off is tried again.
const FRESH_STEPS: u64 = 128;
/// Weight of a new measurement.
const NEW_WEIGHT: f64 = 0.25;
/// A measurement counts as at most this many times what is known: whatever disturbs a step makes it longer, and a plain step that
/// seems longer than it is makes drafts seem to pay.
const LARGEST_RISE: f64 = 1.1;
/// A step that took this many times what was feared was interrupted; more than that says nothing about its rows.
const LONGEST_STEP: f64 = 2.0;
/// So many rows more than there are share the time of a step, where nothing was measured: the arithmetic of about 16 rows hides behind
/// the reading of the weights. Only what is tried first depends on it.
const HIDDEN_ROWS: f64 = 15.0;

/// How often a row's drafts have been right lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acceptance {
    right: f64,
    tested: f64,
}

impl Acceptance {
    /// Nothing is known.
    pub(super) fn unknown() -> Self {
        Self { right: FIRST_GUESS, tested: 1.0 }
    }

    /// Of a draft of `drafted` tokens the first `right` were sampled. Those after the first wrong one were not tested.
    pub(super) fn observe(&mut self, drafted: u8, right: u8) {
        if drafted > 0 {
            self.fade(MEMORY);
            self.right += f64::from(right);
            self.tested += f64::from(right) + f64::from(u8::from(right < drafted));
        }
    }

    /// A step without a draft.
    fn forget(&mut self) {
        self.fade(FORGETTING);
    }

    /// Moves what was observed, not the guess under it.
    fn fade(&mut self, weight: f64) {
        self.right = FIRST_GUESS + (self.right - FIRST_GUESS) * weight;
        self.tested = 1.0 + (self.tested - 1.0) * weight;
    }

    /// That the next token of a draft is right, if those before it are.
    fn probability(&self) -> f64 {
        (self.right / self.tested).clamp(0.0, 0.99)
    }
}

/// A row that could draft in the step being planned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its place among the rows that continue.
    pub(super) index: usize,
    /// Its slot.
    pub(super) slot: SlotId,
    /// Draft tokens that it has room for.
    pub(super) room: u8,
    /// Draft tokens it gets.
    pub(super) granted: u8,
    /// What a further one is expected to yield, in tokens.
    gain: f64,
    probability: f64,
}

/// What a step with drafts may take longer, until it is known what it did: kept with the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stake(Option<f64>);

/// What a step without prompts did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoded {
    /// Rows that continued.
    pub(super) rows: usize,
    /// Draft tokens beside them.
    pub(super) drafted: usize,
    /// Draft tokens that became tokens of a reply.
    pub(super) accepted: usize,
    /// Its time on the shards.
    pub(super) took: Duration,
    /// What was staked on it.
    pub(super) stake: Stake,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Speculation {
    /// `--speculate`: the longest draft; 0 if there are none.
    max_draft_tokens: u8,
    times: StepTimes,
    /// In plain steps.
    credit: f64,
    /// Stakes of plans in flight.
    staked: f64,
    /// Plans in flight that have one.
    in_flight: usize,
    /// Those of the step at hand, kept for its memory.
    candidates: Vec<Candidate>,
    /// Who got each draft token, in order.
    grants: Vec<usize>,
}

impl Speculation {
    /// Drafts of at most `max_draft_tokens` tokens.
    pub(super) fn new(max_draft_tokens: u8) -> Self {
        Self {
            max_draft_tokens,
            times: StepTimes::default(),
            credit: START_CREDIT,
            staked: 0.0,
            in_flight: 0,
            candidates: Vec::new(),
            grants: Vec::new(),
        }
    }

    /// Whether rows may draft at all.
    pub(super) fn is_on(&self) -> bool {
        self.max_draft_tokens > 0
    }

    /// The longest draft.
    pub(super) fn max_draft_tokens(&self) -> u8 {
        self.max_draft_tokens
    }

    /// Rows have come that have earned nothing yet.
    pub(super) fn rows_entered(&mut self) {
        self.credit = self.credit.min(START_CREDIT);
    }

    /// The plans in flight are lost.
    pub(super) fn reset(&mut self) {
        (self.credit, self.staked, self.in_flight) = (self.credit.min(START_CREDIT), 0.0, 0);
    }

    /// An empty list for [`Speculation::choose`], which takes it back.
    pub(super) fn candidates(&mut self) -> Vec<Candidate> {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        candidates
    }

    /// Takes a list back for the next step.
    pub(super) fn recycle(&mut self, candidates: Vec<Candidate>) {
        self.candidates = candidates;
    }

    /// Grants draft tokens, at most `budget` in all, to `candidates` of a step in which `rows` rows continue.
    pub(super) fn choose(&mut self, rows: usize, budget: usize, candidates: &mut [Candidate]) -> Stake {
        let Some(plain) = self.times.plain(rows) else { return Stake::default() };
        let available = (self.credit - self.staked) * plain;
        self.grants.clear();
        let (mut gains, mut longest, mut best) = (0.0, plain, (LEAST_SPEED_UP * rows as f64 / plain, 0, plain));
        // With one row nothing could ever be tried otherwise: at worst, two rows take twice as long.
        let may_overdraw = self.in_flight == 0 && self.credit >= START_CREDIT;
        for drafted in 1..=budget.min(MAX_STEP_DRAFTS) {
            let open = candidates.iter_mut().enumerate().filter(|(_, row)| row.granted < row.room);
            let Some((index, row)) = open.max_by(|(_, one), (_, other)| one.gain.total_cmp(&other.gain)) else { break };
            let took = self.times.predict(rows, plain, drafted);
            let is_affordable = took.at_worst - plain <= available || (drafted == 1 && may_overdraw);
            if row.gain < LEAST_GAIN || !is_affordable {
                break;
            }
            gains += row.gain;
            row.gain *= row.probability;
            row.granted += 1;
            self.grants.push(index);
            // Where more rows seem to take less, two measurements differ by noise.
            longest = took.likely.max(longest);
            let rate = (rows as f64 + gains) / longest;
            if rate > best.0 {
                best = (rate, drafted, took.at_worst);
            }
        }
        for index in self.grants.drain(best.1..) {
            candidates[index].granted -= 1;
        }
        if best.1 == 0 {
            return Stake::default();
        }
        let stake = (best.2 - plain) / plain;
        self.staked += stake;
        self.in_flight += 1;
        Stake(Some(stake))
    }

    /// A step without prompts is over.
    pub(super) fn observe(&mut self, step: Decoded) {
        let Decoded { rows, drafted, accepted, took, stake } = step;
        self.forget(stake);
        let Some(took) = self.times.observe(rows, drafted, took) else { return };
        let Some(plain) = self.times.plain(rows) else { return };
        let yielded = (rows + accepted) as f64 / rows as f64;
        let earned = if drafted > 0 { yielded - took / plain } else { 0.0 };
        self.credit = (self.credit + earned + ALLOWANCE).min(MAX_CREDIT);
    }

    /// A plan is answered, or was no step of this kind after all.
    pub(super) fn forget(&mut self, stake: Stake) {
        let Stake(Some(stake)) = stake else { return };
        self.in_flight -= 1;
        // Rounding leaves a little when nothing is staked any more.
        self.staked = if self.in_flight == 0 { 0.0 } else { self.staked - stake };
    }
}

impl Candidate {
    /// A row with room for `room` draft tokens, or none: such a row only forgets.
    pub(super) fn new(index: usize, slot: SlotId, room: u8, acceptance: &mut Acceptance) -> Self {
        acceptance.forget();
        let probability = acceptance.probability();
        Self { index, slot, room, granted: 0, gain: probability, probability }
    }
}

/// What decode steps take, by their number of token rows.
#[derive(Debug, Default)]
struct StepTimes {
    /// Steps measured.
    steps: u64,
    by_rows: Vec<Measured>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    seconds: f64,
    /// The step in which it was measured last; 0 is never.
    step: u64,
    /// The same for steps without drafts.
    plain_step: u64,
}

impl StepTimes {
    /// Notes a step. Returns its time in seconds as it counts, if it does.
    fn observe(&mut self, rows: usize, drafted: usize, took: Duration) -> Option<f64> {
        let took = took.as_secs_f64();
        // A clock that stands still, or a step that is beyond speculation.
        if took <= 0.0 || rows + drafted > MAX_TIMED_ROWS {
            return None;
        }
        self.steps += 1;
        let steps = self.steps;
        if self.by_rows.len() <= rows + drafted {
            self.by_rows.resize(rows + drafted + 1, Measured::default());
        }
        let feared = self.plain(rows).map(|plain| self.predict(rows, plain, drafted).at_worst);
        let took = feared.map_or(took, |feared| took.min(LONGEST_STEP * feared));
        let measured = &mut self.by_rows[rows + drafted];
        measured.seconds = match is_fresh(measured.step, steps) {
            true => {
                let counted = took.min(LARGEST_RISE * measured.seconds);
                measured.seconds + NEW_WEIGHT * (counted - measured.seconds)
            }
            false => took,
        };
        measured.step = steps;
        if drafted == 0 {
            measured.plain_step = steps;
        }
        Some(took)
    }

    /// Seconds of a step of `rows` rows without drafts, if one was measured lately.
    fn plain(&self, rows: usize) -> Option<f64> {
        let measured = self.by_rows.get(rows)?;
        is_fresh(measured.plain_step, self.steps).then_some(measured.seconds)
    }

    /// What a step takes with `drafted` rows more than one that takes `plain`.
    fn predict(&self, rows: usize, plain: f64, drafted: usize) -> Prediction {
        let known = |rows: &usize| self.by_rows.get(*rows).filter(|known| is_fresh(known.step, self.steps));
        let total = rows + drafted;
        let below = (rows + 1..=total).rev().find_map(|rows| Some((rows, known(&rows)?.seconds)));
        let (below, seconds) = below.unwrap_or((rows, plain));
        let above = (total..self.by_rows.len()).find_map(|rows| Some((rows, known(&rows)?.seconds)));
        let guess = plain / (rows as f64 + HIDDEN_ROWS);
        let (likely, at_worst) = match above {
            Some((above, later)) if above > below => {
                let slope = (later - seconds) / (above - below) as f64;
                (slope, slope)
            }
            // Beyond what was tried, rows cost at worst what they did so far; before anything was tried, their full share.
            _ if below > rows => (guess, guess.max((seconds - plain) / (below - rows) as f64)),
            _ => (guess, plain / rows as f64),
        };
        let at = |slope: f64| (seconds + slope.max(0.0) * (total - below) as f64).max(plain);
        Prediction { likely: at(likely), at_worst: at(at_worst) }
    }
}

/// Seconds of a step.
struct Prediction {
    likely: f64,
    at_worst: f64,
}

fn is_fresh(step: u64, now: u64) -> bool {
    step > 0 && now - step < FRESH_STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch on a machine where a step takes `step_ms` by its rows, whose drafts are right with the probability `text`.
    struct Machine {
        speculation: Speculation,
        step_ms: fn(usize) -> f64,
        rows: Vec<Acceptance>,
        random: u64,
        /// Milliseconds, and tokens.
        elapsed: f64,
        tokens: usize,
    }

    impl Machine {
        fn new(rows: usize, step_ms: fn(usize) -> f64) -> Self {
            let rows = vec![Acceptance::unknown(); rows];
            Self { speculation: Speculation::new(8), step_ms, rows, random: 1, elapsed: 0.0, tokens: 0 }
        }

        fn chance(&mut self) -> f64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn plan(&mut self) -> (Vec<u8>, Stake) {
            let mut candidates = self.speculation.candidates();
            candidates.extend(
                (0..).zip(&mut self.rows).map(|(index, row)| Candidate::new(index, SlotId(index as u32), 8, row)),
            );
            let stake = self.speculation.choose(self.rows.len(), 64, &mut candidates);
            let granted = candidates.iter().map(|row| row.granted).collect();
            self.speculation.recycle(candidates);
            (granted, stake)
        }

        /// `steps` steps, two of them in flight as with the router. `text` says how likely a draft token is right.
        fn run(&mut self, steps: usize, text: f64) {
            let mut in_flight = std::collections::VecDeque::from([self.plan()]);
            for _ in 0..steps {
                in_flight.push_back(self.plan());
                let (granted, stake) = in_flight.pop_front().unwrap();
                let (mut drafted, mut accepted) = (0, 0);
                for (row, &limit) in granted.iter().enumerate() {
                    let right = (0..limit).take_while(|_| self.chance() < text).count();
                    self.rows[row].observe(limit, right as u8);
                    (drafted, accepted) = (drafted + usize::from(limit), accepted + right);
                }
                // A tenth of noise, and an interruption now and then.
                let noise = 0.95 + 0.1 * self.chance() + if self.chance() < 0.01 { 3.0 } else { 0.0 };
                let took = (self.step_ms)(granted.len() + drafted);
                (self.elapsed, self.tokens) = (self.elapsed + took, self.tokens + granted.len() + accepted);
                let took = Duration::from_secs_f64(took * noise / 1e3);
                self.speculation.observe(Decoded { rows: granted.len(), drafted, accepted, took, stake });
            }
        }

        /// How many times as many tokens per second as without drafts.
        fn speed_up(&self) -> f64 {
            let plain = self.rows.len() as f64 / (self.step_ms)(self.rows.len());
            self.tokens as f64 / self.elapsed / plain
        }
    }

    /// 80 ms to read the weights; the arithmetic of 16 rows hides behind it.
    fn memory_bound(rows: usize) -> f64 {
        80.0_f64.max(5.0 * rows as f64) + rows as f64
    }

    /// A small model in the caches.
    fn compute_bound(rows: usize) -> f64 {
        0.2 + rows as f64
    }

    /// Kernels for one row and for several differ.
    fn a_step_at_two_rows(rows: usize) -> f64 {
        if rows == 1 { 1.0 } else { 2.5 + 0.1 * rows as f64 }
    }

    const MACHINES: [fn(usize) -> f64; 3] = [memory_bound, compute_bound, a_step_at_two_rows];

    #[test]
    fn no_text_on_no_machine_becomes_slower_by_more_than_the_promise() {
        for (machine, step_ms) in MACHINES.into_iter().enumerate() {
            for rows in [1, 2, 8, 32, 64] {
                for text in [0.0, 0.05, 0.2, 0.5, 0.8] {
                    for (seed, steps) in (1..).zip([64, 128, 1024, 64, 128, 1024, 64, 128, 1024]) {
                        let mut batch = Machine { random: seed, ..Machine::new(rows, step_ms) };
                        batch.run(steps, text);
                        let speed_up = batch.speed_up();
                        let context = format!("machine {machine}, {rows} rows, {text}, {steps} steps: {speed_up:.3}");
                        assert!(speed_up > 0.97, "{context}, seed {seed}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_text_that_repeats_itself_becomes_faster_where_rows_are_cheap() {
        for (rows, least) in [(1, 4.0), (4, 2.0)] {
            let mut machine = Machine::new(rows, memory_bound);
            machine.run(128, 0.95);
            assert!(machine.speed_up() > least, "{rows} rows: {:.3}", machine.speed_up());
        }
    }

    #[test]
    fn a_text_that_begins_to_repeat_itself_is_noticed() {
        let mut machine = Machine::new(1, memory_bound);
        machine.run(300, 0.0);
        (machine.elapsed, machine.tokens) = (0.0, 0);
        machine.run(300, 0.95);
        assert!(machine.speed_up() > 2.5, "{:.3}", machine.speed_up());
    }

    #[test]
    fn what_some_rows_have_earned_is_not_spent_on_others() {
        let mut machine = Machine::new(1, memory_bound);
        machine.run(200, 0.95);
        assert!(machine.speculation.credit > 3.0);
        machine.speculation.rows_entered();
        assert_eq!(machine.speculation.credit, START_CREDIT);
    }

    #[test]
    fn without_a_measurement_nothing_is_drafted() {
        let mut machine = Machine::new(1, memory_bound);
        let (granted, stake) = machine.plan();
        assert_eq!((granted, stake), (vec![0], Stake::default()));
        machine.run(2, 0.5);
        assert!(machine.speculation.times.plain(1).is_some());
    }
}
