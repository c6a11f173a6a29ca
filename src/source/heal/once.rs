//! Gaps filled at the end of a single pass (`run --once`): for as long as one search may take; gaps that stay open are
//! reported. The searches are in the state, so that the next pass continues them.

use super::super::report::{Left, LeftKind};
use super::requests::HealError;
use super::work::{HealStop, JobKind, StepResult};
use super::{Healer, known};
use crate::api::{GraphError, GraphFault};
use crate::host::StateError;
use crate::model::{Actionable, ContentType, Window, counted};

impl Healer {
    /// Fills every gap that can be filled now; returns those that stay open, and why.
    pub(super) async fn fill_once(mut self: Box<Self>) -> Vec<Left> {
        if let Some(cloud) = &self.settings.without_search {
            let error = HealError::Cloud(cloud.clone());
            let why = format!("{}: {error} (hint: {})", error.slug(), error.hint());
            return vec![Left { why, kind: LeftKind::Optional }];
        }
        self.working.is_waited_for = true;
        let filled = match self.fill_gaps_once().await {
            Ok(denied) => self.still_open(denied.as_ref()).await.map_err(HealStop::State),
            Err(stop) => Err(stop),
        };
        match filled {
            Ok(left) => left,
            // The requester stopped it and needs no report.
            Err(HealStop::Asked) => Vec::new(),
            Err(HealStop::State(error)) => {
                let tenant = &self.context.tenant;
                let why = format!("gaps of tenant `{tenant}` could not be filled through Microsoft Graph: {error}");
                vec![Left { why, kind: LeftKind::Passing }]
            }
        }
    }

    /// Works until nothing can be done now; returns the error with which Graph refused, if it did.
    async fn fill_gaps_once(&mut self) -> Result<Option<GraphError>, HealStop> {
        let (clock, stop) = (self.context.clock.clone(), self.context.stop.clone());
        let until = clock.monotonic() + self.settings.query_wait;
        while self.stored.gaps.is_some() || self.plan_gaps().await? {
            if stop.is_cancelled() {
                return Err(HealStop::Asked);
            }
            let pause = match self.step(JobKind::Gaps, &stop).await? {
                StepResult::Again => continue,
                StepResult::Pause(pause) => pause,
                StepResult::DayIsOver(_) => return Ok(None),
                StepResult::Denied(error) => return Ok(Some(error)),
                StepResult::Finished => {
                    self.finish_gaps().await?;
                    continue;
                }
            };
            if clock.monotonic() + pause > until {
                return Ok(None);
            }
            tokio::select! {
                () = clock.sleep(pause) => {}
                () = stop.cancelled() => return Err(HealStop::Asked),
            }
        }
        Ok(None)
    }

    /// The gaps that stay open, and how they affect the outcome of the run.
    async fn still_open(&self, denied: Option<&GraphError>) -> Result<Vec<Left>, StateError> {
        let streams = known::streams(&*self.context.store, &self.keys(), &self.content_types).await?;
        let tenant = &self.context.tenant;
        let mut left = Vec::new();
        for stream in streams {
            let content_type = stream.content_type;
            let gaps = stream.position.iter().flat_map(|position| &position.gaps);
            let parts =
                gaps.flat_map(|gap| self.stored.fillable_parts(content_type, Window { start: gap.from, end: gap.to }));
            let parts: Vec<Window> = parts.collect();
            if let Some(what) = describe(content_type, &parts) {
                let (why, kind) = match denied {
                    Some(error) => (format!("{}: {error} (hint: {})", error.slug(), error.hint()), kind_of(error)),
                    None => ("the next run goes on".to_owned(), LeftKind::Passing),
                };
                let why = format!("heal-incomplete: {what} of tenant `{tenant}` stay to be filled: {why}");
                left.push(Left { why, kind });
            }
            let parts = self.stored.not_known_of(content_type).iter();
            let parts: Vec<Window> = parts.map(|part| Window { start: part.from, end: part.to }).collect();
            if let Some(what) = describe(content_type, &parts) {
                let why = format!(
                    "heal-not-known: {what} of tenant `{tenant}` stay: nobody knows whether events of before were \
                     delivered; `m365-audit heal --again` from three days before fills them"
                );
                left.push(Left { why, kind: LeftKind::Optional });
            }
        }
        Ok(left)
    }
}

/// How many gaps, of what, from when to when.
fn describe(content_type: ContentType, parts: &[Window]) -> Option<String> {
    let (from, to) = (parts.iter().map(|part| part.start).min()?, parts.iter().map(|part| part.end).max()?);
    Some(format!("{} of `{content_type}` from {from} to {to}", counted(parts.len() as u64, "gap")))
}

fn kind_of(error: &GraphError) -> LeftKind {
    match error.fault() {
        GraphFault::Denied if error.is_sign_in() => LeftKind::Authentication,
        GraphFault::Denied => LeftKind::Permission,
        _ => LeftKind::Network,
    }
}
