//! What the sinks that send requests have in common: which records go into which request, the same bytes when one is
//! sent again, and what that means for the batches the records came from.
//!
//! A request carries several whole batches or a part of one, so that what happens to it can be told of its batches.
//! Knows no protocol.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::host::{Batch, Record};
use crate::hosts::embedded::sink::Written;

/// Longest wait a receiver may ask for; it is asked again then.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Consecutive records of one batch.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub batch: Batch,
    records: Range<usize>,
    bytes: Range<usize>,
}

impl Part {
    /// All records of a batch.
    pub(crate) fn whole(batch: &Batch) -> Self {
        Self { batch: batch.clone(), records: 0..batch.len(), bytes: 0..batch.ndjson().len() }
    }

    /// The records.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.batch.records().skip(self.records.start).take(self.records.len())
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The records as newline-delimited JSON, each followed by `\n`.
    pub(crate) fn ndjson(&self) -> Bytes {
        self.batch.ndjson().slice(self.bytes.clone())
    }
}

/// What became of an [`Item`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The receiver has it.
    Taken,
    /// Not now.
    Later {
        /// What went wrong.
        why: String,
        /// When to try again, if the receiver said so.
        retry_after: Option<Duration>,
    },
    /// Never as it is.
    Never(String),
}

impl Answer {
    pub(crate) fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), retry_after: None }
    }
}

/// One request, made or to be made.
#[derive(Debug)]
pub(crate) struct Item {
    pub parts: Vec<Part>,
    /// What is sent; `None` before it was made, and when it is no longer needed.
    pub body: Option<Bytes>,
    pub answer: Answer,
}

impl Item {
    fn new(parts: Vec<Part>) -> Self {
        Self { parts, body: None, answer: Answer::later("it was not sent") }
    }

    fn batch_ids(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().map(|part| part.batch.id)
    }

    /// How many records it carries.
    pub(crate) fn records(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// In smaller ones: one for each batch, or two halves of a part of one; `None` for a single record.
    pub(crate) fn split(&self) -> Option<Vec<Item>> {
        match self.parts.as_slice() {
            [] => None,
            [part] => {
                if part.len() < 2 {
                    return None;
                }
                let middle = part.records.start + part.len() / 2;
                let bytes: usize =
                    part.records().take(middle - part.records.start).map(|record| record.json.len() + 1).sum();
                let cut = part.bytes.start + bytes;
                let half = |records, bytes| Item::new(vec![Part { batch: part.batch.clone(), records, bytes }]);
                let first = half(part.records.start..middle, part.bytes.start..cut);
                Some(vec![first, half(middle..part.records.end, cut..part.bytes.end)])
            }
            parts => Some(parts.iter().map(|part| Item::new(vec![part.clone()])).collect()),
        }
    }
}

/// The requests of the batches that were refused, so that they are sent again as they were.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    kept: Vec<Item>,
}

impl Outbox {
    /// The requests for a group: those made for its batches before, and new ones for the others.
    pub(crate) fn open(&mut self, batches: &[Batch], bytes_max: usize, records_max: usize) -> Vec<Item> {
        let given: HashSet<u64> = batches.iter().map(|batch| batch.id).collect();
        let mut items = std::mem::take(&mut self.kept);
        if !items.iter().flat_map(Item::batch_ids).all(|id| given.contains(&id)) {
            // Some of them went elsewhere; the worker never does that, and planning anew is always right.
            items.clear();
        }
        let known: HashSet<u64> = items.iter().flat_map(Item::batch_ids).collect();
        items.extend(plan(batches.iter().filter(|batch| !known.contains(&batch.id)), bytes_max, records_max));
        items
    }

    /// What the answers mean for the batches; keeps what has to be sent again.
    pub(crate) fn close(&mut self, batches: &[Batch], items: Vec<Item>) -> Vec<Written> {
        let mut by_batch: HashMap<u64, Written> = HashMap::new();
        for item in &items {
            for id in item.batch_ids() {
                let written = match &item.answer {
                    Answer::Taken => Written::Delivered,
                    Answer::Later { why, retry_after } => {
                        let retry_after = retry_after.map(|after| after.min(RETRY_AFTER_MAX));
                        Written::Refused { why: why.clone(), retry_after }
                    }
                    Answer::Never(why) => Written::Rejected(why.clone()),
                };
                let worst = by_batch.entry(id).or_insert(Written::Delivered);
                if rank(&written) > rank(worst) {
                    *worst = written;
                }
            }
        }
        let refused = |id: u64| matches!(by_batch.get(&id), Some(Written::Refused { .. }));
        self.kept = items.into_iter().filter(|item| item.batch_ids().all(refused)).collect();
        for item in &mut self.kept {
            if item.answer == Answer::Taken {
                item.body = None;
            }
        }
        batches
            .iter()
            .map(|batch| by_batch.remove(&batch.id).unwrap_or_else(|| Written::refused("it was in no request")))
            .collect()
    }
}

fn rank(written: &Written) -> u8 {
    match written {
        Written::Delivered => 0,
        Written::Refused { .. } => 1,
        Written::Rejected(_) => 2,
        Written::Closed(_) => 3,
    }
}

/// Requests within the bounds; a single record may exceed them.
fn plan<'a>(batches: impl Iterator<Item = &'a Batch>, bytes_max: usize, records_max: usize) -> Vec<Item> {
    let mut items = Vec::new();
    let mut group: Vec<Part> = Vec::new();
    let (mut bytes, mut records) = (0, 0);
    let mut close = |group: &mut Vec<Part>| {
        if !group.is_empty() {
            items.push(Item::new(std::mem::take(group)));
        }
    };
    for batch in batches {
        let part = Part::whole(batch);
        if !group.is_empty() && (bytes + part.bytes.len() > bytes_max || records + part.len() > records_max) {
            close(&mut group);
            (bytes, records) = (0, 0);
        }
        if part.bytes.len() <= bytes_max && part.len() <= records_max {
            (bytes, records) = (bytes + part.bytes.len(), records + part.len());
            group.push(part);
            continue;
        }
        for part in cut(&part, bytes_max, records_max) {
            close(&mut vec![part]);
        }
    }
    close(&mut group);
    items
}

/// A batch in parts within the bounds.
fn cut(whole: &Part, bytes_max: usize, records_max: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut part = Part { batch: whole.batch.clone(), records: 0..0, bytes: 0..0 };
    for record in whole.batch.records() {
        let length = record.json.len() + 1;
        if part.len() > 0 && (part.bytes.len() + length > bytes_max || part.len() >= records_max) {
            let (records, bytes) = (part.records.end..part.records.end, part.bytes.end..part.bytes.end);
            parts.push(std::mem::replace(&mut part, Part { batch: whole.batch.clone(), records, bytes }));
        }
        part.records.end += 1;
        part.bytes.end += length;
    }
    parts.push(part);
    parts
}

/// A way to make requests and to send them, one independent of the other.
#[async_trait]
pub(crate) trait Exchange: Send + Sync + 'static {
    /// What is to be sent. Runs where it may take its time.
    ///
    /// # Errors
    /// The records can never be sent, and why.
    fn pack(&self, parts: &[Part]) -> Result<Bytes, String>;

    /// Sends it once.
    async fn send(&self, body: Bytes) -> Answer;
}

/// Sends groups through an [`Exchange`], one request after the other; [`Requests::beside`] makes others that send theirs
/// at the same time.
pub(crate) struct Requests<E> {
    exchange: Arc<E>,
    outbox: Outbox,
    bytes_max: usize,
    records_max: usize,
    /// How many send at the same time.
    in_flight_max: u32,
    /// A request takes one turn, one that has to be alone takes all.
    turns: Arc<Semaphore>,
    /// How many took their turns.
    begun: Arc<AtomicU64>,
}

impl<E: Exchange> Requests<E> {
    pub(crate) fn new(exchange: E, bytes_max: usize, records_max: usize, in_flight_max: usize) -> Self {
        let in_flight_max = u32::try_from(in_flight_max).unwrap_or(u32::MAX).max(1);
        let turns = Arc::new(Semaphore::new(in_flight_max as usize));
        let (exchange, outbox, begun) = (Arc::new(exchange), Outbox::default(), Arc::default());
        Self { exchange, outbox, bytes_max, records_max, in_flight_max, turns, begun }
    }

    /// The others, so that as many requests as may be are under way.
    pub(crate) fn beside(&self) -> impl Iterator<Item = Self> {
        (1..self.in_flight_max).map(|_| Self {
            exchange: self.exchange.clone(),
            outbox: Outbox::default(),
            turns: self.turns.clone(),
            begun: self.begun.clone(),
            ..*self
        })
    }

    /// As [`crate::hosts::embedded::sink::Sink::write`]. A request of several batches that is rejected is sent again
    /// as one for each; these, and single records, go alone: a receiver that hands on what it gets of several requests
    /// in one (Vector) rejects all of them for one record.
    pub(crate) async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        let mut todo = self.outbox.open(batches, self.bytes_max, self.records_max);
        let mut done = Vec::with_capacity(todo.len());
        // The first answer that asks to wait: nothing further is sent then.
        let mut trouble = None;
        let mut turns = 1;
        while !todo.is_empty() {
            for item in std::mem::take(&mut todo) {
                let (item, was_beside) = self.send(item, turns, &mut trouble).await;
                match (&item.answer, item.parts.len()) {
                    (Answer::Never(_), 2..) => todo.extend(item.split().unwrap_or_default()),
                    (Answer::Never(_), _) if was_beside && item.records() == 1 => todo.push(Item::new(item.parts)),
                    _ => done.push(item),
                }
            }
            turns = self.in_flight_max;
        }
        self.outbox.close(batches, done)
    }

    /// Sends one, and whether another was under way meanwhile.
    async fn send(&self, mut item: Item, turns: u32, trouble: &mut Option<Answer>) -> (Item, bool) {
        if item.answer == Answer::Taken {
            return (item, false);
        }
        if let Some(answer) = trouble {
            item.answer = answer.clone();
            return (item, false);
        }
        let body = match item.body.take() {
            Some(body) => body,
            None => {
                let (exchange, parts) = (self.exchange.clone(), item.parts.clone());
                match tokio::task::spawn_blocking(move || exchange.pack(&parts)).await {
                    Ok(Ok(body)) => body,
                    Ok(Err(why)) => {
                        item.answer = Answer::Never(why);
                        return (item, false);
                    }
                    Err(_) => {
                        item.answer = Answer::later("the request could not be made");
                        return (item, false);
                    }
                }
            }
        };
        // An error would say that the semaphore is closed, which it never is.
        let turn = self.turns.acquire_many(turns).await;
        // Whoever takes a turn after this look begins after it, too.
        let begun = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let others = self.turns.available_permits() + (turns as usize) < self.in_flight_max as usize;
        item.answer = self.exchange.send(body.clone()).await;
        let was_beside = others || self.begun.load(Ordering::SeqCst) != begun;
        drop(turn);
        if matches!(item.answer, Answer::Later { .. }) {
            trouble.get_or_insert_with(|| item.answer.clone());
            item.body = Some(body);
        }
        (item, was_beside)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::host::BatchBuilder;
    use crate::model::{ContentType, Timestamp};
    use crate::severity::Severity;

    pub(crate) fn batch(lines: &[&str]) -> Batch {
        let mut builder = BatchBuilder::default();
        for line in lines {
            builder.push_with(|out| {
                out.extend_from_slice(line.as_bytes());
                Some((Timestamp::UNIX_EPOCH, Severity::Info))
            });
        }
        builder.finish("s".into(), "00000000-0000-0000-0000-000000000000".parse().unwrap(), ContentType::General)
    }

    /// Answers by a script that knows the body; remembers what was sent.
    struct Script {
        sent: Mutex<Vec<String>>,
        answer: fn(&str, usize) -> Answer,
    }

    #[async_trait]
    impl Exchange for Arc<Script> {
        fn pack(&self, parts: &[Part]) -> Result<Bytes, String> {
            Ok(parts.iter().flat_map(|part| part.ndjson()).collect())
        }

        async fn send(&self, body: Bytes) -> Answer {
            let text = String::from_utf8(body.to_vec()).unwrap().replace('\n', " ").trim_end().to_owned();
            let mut sent = self.sent.lock().unwrap();
            let answer = (self.answer)(&text, sent.len());
            sent.push(text);
            answer
        }
    }

    fn requests(answer: fn(&str, usize) -> Answer, bytes_max: usize) -> (Arc<Script>, Requests<Arc<Script>>) {
        let script = Arc::new(Script { sent: Mutex::default(), answer });
        (script.clone(), Requests::new(script, bytes_max, 1_000, 1))
    }

    fn sent(script: &Script) -> Vec<String> {
        std::mem::take(&mut script.sent.lock().unwrap())
    }

    #[tokio::test]
    async fn batches_share_requests_and_a_large_one_is_cut_at_its_records() {
        let (script, mut requests) = requests(|_, _| Answer::Taken, 6);
        let group = [batch(&["1", "2"]), batch(&["3"]), batch(&["44444"]), batch(&["5", "6", "7", "8888888888", "9"])];
        assert_eq!(requests.write(&group).await, vec![Written::Delivered; 4]);
        assert_eq!(sent(&script), ["1 2 3", "44444", "5 6 7", "8888888888", "9"]);
    }

    #[tokio::test]
    async fn what_is_sent_again_is_what_was_sent_and_not_what_was_taken() {
        let answer = |text: &str, n| if text.contains('b') && n < 4 { Answer::later("busy") } else { Answer::Taken };
        let (script, mut requests) = requests(answer, 4);
        let group = [batch(&["a"]), batch(&["1", "2", "b", "3"]), batch(&["4"])];
        let written = requests.write(&group).await;
        assert_eq!(written[0], Written::Delivered);
        assert!(matches!(written[1..], [Written::Refused { .. }, Written::Refused { .. }]));
        assert_eq!(sent(&script), ["a", "1 2", "b 3"]);
        // The refused come first and in order, new ones follow.
        let again = [group[1].clone(), group[2].clone(), batch(&["5"])];
        assert_eq!(requests.write(&again).await.iter().filter(|w| **w == Written::Delivered).count(), 0);
        assert_eq!(sent(&script), ["b 3"]);
        let answer = |_: &str, _| Answer::Taken;
        requests.exchange = Arc::new(Arc::new(Script { sent: Mutex::default(), answer }));
        assert_eq!(requests.write(&again).await, vec![Written::Delivered; 3]);
        assert_eq!(sent(&requests.exchange), ["b 3", "4", "5"]);
    }

    #[tokio::test]
    async fn of_a_rejected_request_only_the_batch_to_blame_is_rejected() {
        let answer = |text: &str, _| if text.contains('x') { Answer::Never("x".into()) } else { Answer::Taken };
        let (script, mut requests) = requests(answer, 100);
        let group = [batch(&["1"]), batch(&["x"]), batch(&["3"])];
        assert_eq!(
            requests.write(&group).await,
            [Written::Delivered, Written::Rejected("x".into()), Written::Delivered]
        );
        assert_eq!(sent(&script), ["1 x 3", "1", "x", "3"]);
    }

    #[tokio::test]
    async fn a_record_rejected_with_nothing_beside_it_is_believed() {
        let answer = |text: &str, _| if text == "x" { Answer::Never("x".into()) } else { Answer::Taken };
        let script = Arc::new(Script { sent: Mutex::default(), answer });
        let mut requests = Requests::new(script.clone(), 1, 1_000, 2);
        let group = [batch(&["1"]), batch(&["x"]), batch(&["3"])];
        assert_eq!(
            requests.write(&group).await,
            [Written::Delivered, Written::Rejected("x".into()), Written::Delivered]
        );
        assert_eq!(sent(&script), ["1", "x", "3"]);
    }

    /// Takes everything but `x`, which it rejects: at first while others are under way, then looking whether any is.
    #[derive(Default)]
    struct Crowd {
        under_way: AtomicU64,
        most: AtomicU64,
        rejected: AtomicU64,
        beside_the_second: AtomicU64,
    }

    #[async_trait]
    impl Exchange for Arc<Crowd> {
        fn pack(&self, parts: &[Part]) -> Result<Bytes, String> {
            Ok(parts.iter().flat_map(|part| part.ndjson()).collect())
        }

        async fn send(&self, body: Bytes) -> Answer {
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let is_first = self.rejected.load(Ordering::SeqCst) == 0;
            let answer = if body.as_ref() == b"x\n" {
                while is_first && self.most.load(Ordering::SeqCst) < 3 {
                    tokio::task::yield_now().await;
                }
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                    let others = self.under_way.load(Ordering::SeqCst) - 1;
                    self.beside_the_second.fetch_add(if is_first { 0 } else { others }, Ordering::SeqCst);
                }
                self.rejected.fetch_add(1, Ordering::SeqCst);
                Answer::Never("bad".into())
            } else {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                Answer::Taken
            };
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            answer
        }
    }

    #[tokio::test]
    async fn as_many_requests_as_allowed_are_under_way_and_none_beside_a_record_that_was_rejected_beside_others() {
        let crowd = Arc::new(Crowd::default());
        let mut first = Requests::new(crowd.clone(), 100, 1_000, 3);
        let mut writing = tokio::task::JoinSet::new();
        for mut requests in first.beside() {
            let crowd = crowd.clone();
            writing.spawn(async move {
                while crowd.rejected.load(Ordering::SeqCst) < 2 {
                    assert_eq!(requests.write(&[batch(&["1"])]).await, [Written::Delivered]);
                }
            });
        }
        assert_eq!(writing.len(), 2);
        assert_eq!(first.write(&[batch(&["x"])]).await, [Written::Rejected("bad".into())]);
        writing.join_all().await;
        assert_eq!(crowd.most.load(Ordering::SeqCst), 3);
        assert_eq!(crowd.rejected.load(Ordering::SeqCst), 2);
        assert_eq!(crowd.beside_the_second.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn halves_hold_every_record_once() {
        let item = Item::new(vec![Part::whole(&batch(&["1", "22", "333"]))]);
        let halves = item.split().unwrap();
        let text = |item: &Item| String::from_utf8(item.parts[0].ndjson().to_vec()).unwrap();
        assert_eq!((text(&halves[0]), text(&halves[1])), ("1\n".into(), "22\n333\n".into()));
        let quarters = halves[1].split().unwrap();
        assert_eq!((text(&quarters[0]), text(&quarters[1])), ("22\n".into(), "333\n".into()));
        assert!(halves[0].split().is_none());
    }
}
