//! The answer in one piece.

use axum::body::Body as HttpBody;
use axum::http::Response;
use futures::future::try_join_all;

use super::choice::Choice;
use super::logprobs::LegacyLogprobs;
use super::request::Plan;
use super::{Completion, CompletionChoice, Started};
use crate::error::Error;
use crate::generation::End;
use crate::routes::headers::Cost;
use crate::routes::openai::{Head, Usage};
use crate::routes::{json, to_json};
use crate::server::Server;

/// An answer that has ended.
struct Answer {
    text: String,
    logprobs: Option<LegacyLogprobs>,
    mean_logprob: f64,
    end: End,
}

/// Runs all prompts to their end.
///
/// # Errors
/// The first failure of any answer.
pub(super) async fn respond(
    server: &Server,
    started: Vec<Started>,
    plan: &Plan,
    head: &Head,
) -> Result<Response<HttpBody>, Error> {
    let prompts = started.into_iter().map(|started| async move {
        let answers = try_join_all(started.choices.into_iter().map(Answer::collect)).await?;
        Ok::<_, Error>((started.characters, best(answers, plan.n)))
    });
    let (mut cost, mut usage, mut choices) = (Cost::default(), Usage::default(), Vec::new());
    for (mut characters, answers) in try_join_all(prompts).await? {
        for answer in answers {
            let index = choices.len();
            // A prompt's characters count once.
            cost.add(&Cost::new(std::mem::take(&mut characters), &answer.end));
            usage.add(&plan.share(index, &answer.end));
            let finish_reason = Some(plan.finish_reason(&answer.end));
            choices.push(CompletionChoice { index, text: answer.text, logprobs: answer.logprobs, finish_reason });
        }
    }
    let mut response = json(to_json(&Completion::new(head, &choices, Some(usage))));
    cost.write(server, response.headers_mut());
    Ok(response)
}

/// The `n` answers of the highest mean log-probability, the best first; of equals the earlier. All, if there are no more.
fn best(mut answers: Vec<Answer>, n: usize) -> Vec<Answer> {
    if answers.len() > n {
        answers.sort_by(|a, b| b.mean_logprob.total_cmp(&a.mean_logprob));
        answers.truncate(n);
    }
    answers
}

impl Answer {
    async fn collect(mut choice: Choice) -> Result<Self, Error> {
        let (mut text, mut logprobs, mut sum): (_, Option<LegacyLogprobs>, _) = (String::new(), None, 0.0);
        while let Some(piece) = choice.next().await {
            let piece = piece?;
            text.push_str(&piece.text);
            sum += f64::from(piece.logprob);
            match (&mut logprobs, piece.logprobs) {
                (Some(all), Some(next)) => all.extend(next),
                (all, next) => *all = next,
            }
            if let Some(end) = piece.end {
                let mean_logprob = sum / f64::from(end.generated_tokens.max(1));
                return Ok(Self { text, logprobs, mean_logprob, end });
            }
        }
        Err(Error::Incomplete)
    }
}
