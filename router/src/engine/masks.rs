//! Grammar masks: which plan waits for which, and what has to be computed next. Pure: the clock is an argument, and the
//! computing is somebody else's (`mask_workers.rs`).
//!
//! A plan is sent without the masks of its rows, because a mask exists only when the token before it is known; the shards
//! compute the forward meanwhile and wait with the sampler. So what was sent must be followed by *some* mask: a row whose
//! token nobody wants any more (its reply has ended, was cancelled, preempted or has failed) gets one that allows
//! everything, at once. A mask belongs to a reply and its length, not to a slot or an epoch: whatever happens to the
//! shards, the matcher has read exactly the tokens that were emitted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::pack_u32;
use proto::v1;

use crate::constraint::{Matcher, SharedConstraint};
use crate::limits;
use crate::request::GenerateRequest;
use crate::scheduler::{MaskedRow, Output, OutputEvent, RequestId, Scheduler};

/// The masks of all replies under a grammar, and the plans that wait for them.
pub(crate) struct Masks {
    replies: HashMap<RequestId, Reply>,
    /// Plans that were sent without their masks, oldest first.
    owed: VecDeque<Owed>,
    /// Replies whose matcher may have something to do.
    touched: Vec<RequestId>,
    eos_token_ids: Arc<[u32]>,
    /// The mask that allows every token.
    everything: Bytes,
}

/// One reply under a grammar.
struct Reply {
    reader: Reader,
    /// Tokens that were emitted and that the matcher has not read. One at most, unless a shard does not wait for masks.
    unread: Vec<u32>,
    /// Tokens of the reply.
    len: u32,
    /// The tokens that may follow them, when they are known.
    mask: Option<Bytes>,
    /// No end of the sequence before the reply has this many tokens.
    min_tokens: u32,
    /// What its last mask took.
    pace: Duration,
}

/// Where the matcher is.
enum Reader {
    /// Nobody has asked for the first mask yet.
    New(SharedConstraint),
    Here(Box<dyn Matcher>),
    /// With a worker, since then.
    Away(Instant),
}

/// The masks that a plan waits for.
struct Owed {
    seq: u64,
    rows: Vec<MaskedRow>,
    /// Of the first rows.
    masks: Vec<v1::Mask>,
}

/// Tokens to read and a mask to compute.
pub(crate) struct Job {
    request: RequestId,
    source: Source,
    tokens: Vec<u32>,
    /// Tokens that end the sequence, while it must not end.
    forbidden: Arc<[u32]>,
    /// What the mask before took: a grammar is about as difficult as it was.
    pub(super) expected: Duration,
}

enum Source {
    Constraint(SharedConstraint),
    Matcher(Box<dyn Matcher>),
}

/// What became of a [`Job`].
pub(crate) struct Computed {
    pub(super) request: RequestId,
    /// The mask, or why there is none.
    pub(super) outcome: Result<(Box<dyn Matcher>, Bytes), String>,
    pub(super) took: Duration,
}

impl Masks {
    pub(crate) fn new(vocab_size: u32, eos_token_ids: &[u32]) -> Self {
        Self {
            replies: HashMap::new(),
            owed: VecDeque::new(),
            touched: Vec::new(),
            eos_token_ids: eos_token_ids.into(),
            everything: pack_u32((0..vocab_size.div_ceil(u32::BITS)).map(|_| u32::MAX)),
        }
    }

    /// A request was queued: its first mask can be computed while it waits.
    pub(crate) fn begin(&mut self, id: RequestId, request: &GenerateRequest) {
        let parts = request.parts();
        if let Some(constraint) = &parts.constraint {
            let reader = Reader::New(constraint.clone());
            let (min_tokens, pace) = (parts.sampling.min_tokens(), limits::FIRST_MASK_TIME);
            self.replies.insert(id, Reply { reader, unread: Vec::new(), len: 0, mask: None, min_tokens, pace });
            self.touched.push(id);
        }
    }

    /// Reads what the scheduler has to say, before it is taken away. Call it once per output.
    pub(crate) fn hear(&mut self, outputs: &[Output]) {
        if self.replies.is_empty() {
            return;
        }
        for Output { request, event } in outputs {
            match event {
                OutputEvent::Token { id, .. } => {
                    if let Some(reply) = self.replies.get_mut(request) {
                        reply.unread.push(*id);
                        reply.len += 1;
                        reply.mask = None;
                        self.touched.push(*request);
                    }
                }
                OutputEvent::Finished(_) | OutputEvent::Failed(_) => self.forget(*request),
                OutputEvent::Scheduled { .. } | OutputEvent::Prompt { .. } => {}
            }
        }
    }

    /// A request is over.
    pub(crate) fn forget(&mut self, id: RequestId) {
        self.replies.remove(&id);
    }

    /// What has to be computed now: at most one job per reply at a time.
    pub(crate) fn take_jobs(&mut self, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        for request in self.touched.drain(..) {
            let Some(reply) = self.replies.get_mut(&request) else { continue };
            let source = match std::mem::replace(&mut reply.reader, Reader::Away(now)) {
                Reader::New(constraint) => Source::Constraint(constraint),
                Reader::Here(matcher) if !reply.unread.is_empty() => Source::Matcher(matcher),
                reader => {
                    reply.reader = reader;
                    continue;
                }
            };
            let must_go_on = reply.len < reply.min_tokens;
            let forbidden = if must_go_on { self.eos_token_ids.clone() } else { Arc::default() };
            let (tokens, expected) = (std::mem::take(&mut reply.unread), reply.pace);
            jobs.push(Job { request, source, tokens, forbidden, expected });
        }
        jobs
    }

    /// A job is done. Returns the request that must fail, and why.
    pub(crate) fn computed(&mut self, Computed { request, outcome, took }: Computed) -> Option<(RequestId, String)> {
        // Whoever is gone needs no mask.
        let reply = self.replies.get_mut(&request)?;
        reply.pace = took;
        match outcome {
            Ok((matcher, mask)) => {
                reply.reader = Reader::Here(matcher);
                match reply.unread.is_empty() {
                    true => reply.mask = Some(mask),
                    false => self.touched.push(request),
                }
                None
            }
            Err(reason) => Some((request, reason)),
        }
    }

    /// A plan was sent whose `rows` wait for masks.
    pub(crate) fn owe(&mut self, seq: u64, rows: &[MaskedRow]) {
        if !rows.is_empty() {
            self.owed.push_back(Owed { seq, rows: rows.to_vec(), masks: Vec::with_capacity(rows.len()) });
        }
    }

    /// A plan was answered: if it has not got all of its masks, its rows had no use for them.
    pub(crate) fn answered(&mut self, seq: u64) {
        while self.owed.pop_front_if(|owed| owed.seq <= seq).is_some() {}
    }

    /// The shards have forgotten all plans.
    pub(crate) fn end_epoch(&mut self) {
        self.owed.clear();
    }

    /// The masks of the oldest plan that waits, once they are all known: one message per plan, in order.
    pub(crate) fn next(&mut self, scheduler: &Scheduler) -> Option<v1::Masks> {
        let owed = self.owed.front_mut()?;
        while let Some(row) = owed.rows.get(owed.masks.len()) {
            let allowed = match self.replies.get(&row.request) {
                Some(reply) if scheduler.is_awaited(row) => {
                    reply.mask.clone().filter(|_| reply.len == row.reply_len)?
                }
                _ => self.everything.clone(),
            };
            owed.masks.push(v1::Mask { slot: row.slot.0, allowed });
        }
        self.owed.pop_front().map(|Owed { seq, masks, .. }| v1::Masks { seq, masks })
    }

    /// The request whose mask the shards wait for and whose matcher takes too long, and for how long.
    pub(crate) fn overdue(&self, now: Instant) -> Option<(RequestId, Duration)> {
        let owed = self.owed.front()?;
        let row = owed.rows.get(owed.masks.len())?;
        match self.replies.get(&row.request)?.reader {
            Reader::Away(since) if now.duration_since(since) >= limits::MASK_PATIENCE => {
                Some((row.request, now.duration_since(since)))
            }
            _ => None,
        }
    }
}

impl Job {
    /// Reads the tokens and computes the mask that follows them. Takes microseconds to milliseconds.
    pub(crate) fn run(self) -> Computed {
        let Job { request, source, tokens, forbidden, expected: _ } = self;
        let started = Instant::now();
        let outcome = advance(source, &tokens, &forbidden);
        Computed { request, outcome, took: started.elapsed() }
    }

    pub(super) fn request(&self) -> RequestId {
        self.request
    }
}

fn advance(source: Source, tokens: &[u32], forbidden: &[u32]) -> Result<(Box<dyn Matcher>, Bytes), String> {
    let mut matcher = match source {
        Source::Constraint(constraint) => constraint.0.matcher(),
        Source::Matcher(matcher) => matcher,
    };
    tokens.iter().try_for_each(|token| matcher.accept(*token))?;
    let mut mask = matcher.mask()?;
    if mask.iter().all(|word| *word == 0) {
        return Err("it allows no token here".to_owned());
    }
    for id in forbidden {
        if let Some(word) = mask.get_mut((id / u32::BITS) as usize) {
            *word &= !(1 << (id % u32::BITS));
        }
    }
    match mask.iter().all(|word| *word == 0) {
        true => Err("it ends before `min_tokens`".to_owned()),
        false => Ok((matcher, pack_u32(mask))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::PrefixKey;
    use crate::request::{RequestLimits, RequestParts};
    use crate::scheduler::tiny_shard::{EOS, TinyGrammar, VOCAB_SIZE};
    use crate::scheduler::{Capacity, SchedulerConfig};

    const ID: RequestId = RequestId(1);

    fn request(min_tokens: u32) -> GenerateRequest {
        let parts = RequestParts {
            input_ids: [1, 2].into(),
            sampling: proto::v1::SamplingParams { min_tokens: Some(min_tokens), ..Default::default() },
            max_new_tokens: 9,
            ignore_eos: false,
            cache_prompt: true,
            salt: None,
            constraint: Some(SharedConstraint(Arc::new(TinyGrammar { seed: 3, fails_after: None }))),
        };
        let limits = RequestLimits { max_total_tokens: 16, vocab_size: VOCAB_SIZE, max_top_n_tokens: 0 };
        GenerateRequest::new(parts, &limits).unwrap()
    }

    /// One request whose prompt is with the shards, and the masks that its plan waits for.
    fn stage(now: Instant) -> (Scheduler, Masks, Vec<Job>) {
        let config = SchedulerConfig {
            block_size: 16,
            vocab_size: VOCAB_SIZE,
            eos_token_ids: vec![EOS],
            run_ahead: 2,
            max_draft_tokens: 0,
            prefix_key: PrefixKey::from_bytes([0; 32]),
        };
        let capacity = Capacity { num_blocks: 4, max_slots: 2, max_step_tokens: 8, max_logit_rows: 2 };
        let (mut scheduler, mut masks) = (Scheduler::new(config, capacity), Masks::new(VOCAB_SIZE, &[EOS]));
        masks.begin(ID, &request(0));
        scheduler.submit(ID, request(0)).unwrap();
        let step = scheduler.plan().unwrap();
        masks.owe(step.seq, &step.masked);
        let jobs = masks.take_jobs(now);
        (scheduler, masks, jobs)
    }

    #[test]
    fn a_matcher_that_takes_too_long_is_named_once_the_shards_wait_for_it() {
        let now = Instant::now();
        let (scheduler, mut masks, jobs) = stage(now);
        assert_eq!(jobs.len(), 1);
        assert_eq!(masks.next(&scheduler), None);
        assert_eq!(masks.overdue(now + limits::MASK_PATIENCE / 2), None);
        assert_eq!(masks.overdue(now + limits::MASK_PATIENCE), Some((ID, limits::MASK_PATIENCE)));
    }

    #[test]
    fn a_row_that_nobody_waits_for_may_say_anything() {
        let (mut scheduler, mut masks, jobs) = stage(Instant::now());
        assert!(scheduler.cancel(ID));
        masks.forget(ID);
        let sent = masks.next(&scheduler).unwrap();
        assert_eq!((sent.seq, sent.masks[0].allowed.as_ref()), (1, [0xFF; 8].as_slice()));
        let late = jobs.into_iter().next().unwrap().run();
        assert_eq!(masks.computed(late), None, "its mask comes too late for anybody");
        assert_eq!(masks.next(&scheduler), None);
    }

    #[test]
    fn a_mask_lacks_the_end_while_the_reply_is_too_short() {
        // The grammar allows the end at some place; there the mask of a reply with `min_tokens` differs by that bit.
        let mask = |min_tokens: u32| {
            let mut masks = Masks::new(VOCAB_SIZE, &[EOS, 5, 6, 7, 8, 9]);
            masks.begin(ID, &request(min_tokens));
            let job = masks.take_jobs(Instant::now()).pop().unwrap();
            let (_, mask) = job.run().outcome.unwrap_or_else(|reason| panic!("{reason}"));
            u32::from_le_bytes(mask[..4].try_into().unwrap())
        };
        let ends = 1 << EOS | 0b11_1110_0000;
        assert_ne!(mask(0) & ends, 0, "the grammar allows one of them");
        assert_eq!(mask(1), mask(0) & !ends);
    }
}
