//! Code shared by the sinks that send requests: one request for each group, made once and retried with the same bytes,
//! with several in flight. Knows no protocol, and leaves the judgement of an answer to `delivery`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::config::sinks::RequestBounds;
use crate::delivery::{Sink, Written};
use crate::host::Batch;

use super::embedded::sink::GroupBounds;

/// The longest wait that a receiver may request.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Requests that were refused, by the first batch in each, for all the lanes of a sink.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bodies(Arc<Mutex<HashMap<u64, (usize, Bytes)>>>);

impl Bodies {
    /// The request of just these batches, if it is kept.
    pub(crate) fn take(&self, batches: &[Batch]) -> Option<Bytes> {
        let first = batches.first()?.id;
        let (count, body) = self.0.lock().remove(&first)?;
        // Batches of one request are retried together, or each with an id of its own.
        (count == batches.len()).then_some(body)
    }

    /// Keeps it for the next time.
    pub(crate) fn keep(&self, batches: &[Batch], body: Bytes) {
        if let Some(first) = batches.first() {
            self.0.lock().insert(first.id, (batches.len(), body));
        }
    }

    /// Keeps it if, after this answer, the same request will be retried.
    pub(crate) fn keep_after(&self, written: &Written, batches: &[Batch], body: Bytes) {
        if matches!(written, Written::Refused { .. } | Written::Unclear(_) | Written::Misconfigured(_)) {
            self.keep(batches, body);
        }
    }
}

/// A way to make requests and to send them, one independent of the other.
#[async_trait]
pub(crate) trait Exchange: Send + Sync + 'static {
    /// The bytes to send. Runs on a thread for long work.
    ///
    /// # Errors
    /// The records can never be sent together, and why.
    fn pack(&self, batches: &[Batch]) -> Result<Bytes, String>;

    /// Sends it once; it holds so many records.
    async fn send(&self, body: Bytes, records: usize) -> Written;
}

/// Sends groups through an [`Exchange`], one request after the other; [`Sink::beside`] makes others that send theirs at
/// the same time.
pub(crate) struct Requests<E> {
    exchange: Arc<E>,
    bounds: GroupBounds,
    in_flight_max: usize,
    bodies: Bodies,
}

impl<E: Exchange> Requests<E> {
    pub(crate) fn new(exchange: E, batch_bytes_max: usize, requests: &RequestBounds) -> Self {
        let bounds = GroupBounds {
            bytes: batch_bytes_max,
            records: requests.batch_records_max,
            age: Duration::from_secs(requests.batch_age_secs),
            ..GroupBounds::default()
        };
        let in_flight_max = requests.requests_in_flight_max;
        Self { exchange: Arc::new(exchange), bounds, in_flight_max, bodies: Bodies::default() }
    }

    async fn write_once(&self, batches: &[Batch]) -> Written {
        let body = match self.bodies.take(batches) {
            Some(body) => body,
            None => {
                let (exchange, batches) = (self.exchange.clone(), batches.to_vec());
                match tokio::task::spawn_blocking(move || exchange.pack(&batches)).await {
                    Ok(Ok(body)) => body,
                    Ok(Err(why)) => return Written::Rejected(why),
                    Err(_) => return Written::refused("the request could not be made"),
                }
            }
        };
        let records = batches.iter().map(Batch::len).sum();
        let mut written = self.exchange.send(body.clone(), records).await;
        if let Written::Refused { retry_after: Some(after), .. } = &mut written {
            *after = (*after).min(RETRY_AFTER_MAX);
        }
        self.bodies.keep_after(&written, batches, body);
        written
    }
}

#[async_trait]
impl<E: Exchange> Sink for Requests<E> {
    fn bounds(&self) -> GroupBounds {
        self.bounds
    }

    fn beside(&self) -> Vec<Box<dyn Sink>> {
        let another = |_| Self { exchange: self.exchange.clone(), bodies: self.bodies.clone(), ..*self };
        (1..self.in_flight_max).map(another).map(|another| Box::new(another) as Box<dyn Sink>).collect()
    }

    async fn write(&mut self, batches: &[Batch]) -> Vec<Written> {
        vec![self.write_once(batches).await; batches.len()]
    }

    fn forget(&mut self, batches: &[Batch]) {
        self.bodies.take(batches);
    }
}

#[cfg(test)]
pub(crate) mod tests {
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

    /// Scripted answers to the first requests; records how often one was made, and the bytes sent.
    struct ScriptedExchange {
        answers: Mutex<Vec<Written>>,
        packed: Mutex<usize>,
        sent: Mutex<Vec<Bytes>>,
    }

    #[async_trait]
    impl Exchange for Arc<ScriptedExchange> {
        fn pack(&self, batches: &[Batch]) -> Result<Bytes, String> {
            let mut packed = self.packed.lock();
            *packed += 1;
            Ok(format!("{packed}:{}", batches.len()).into())
        }

        async fn send(&self, body: Bytes, _records: usize) -> Written {
            self.sent.lock().push(body);
            self.answers.lock().pop().unwrap_or(Written::Delivered)
        }
    }

    #[tokio::test]
    async fn what_is_sent_again_is_what_was_sent_whichever_lane_sends_it() {
        for refused in [Written::refused("busy"), Written::Unclear("?".into()), Written::Misconfigured("who?".into())] {
            let script = Arc::new(ScriptedExchange {
                answers: Mutex::new(vec![refused.clone()]),
                packed: Mutex::default(),
                sent: Mutex::default(),
            });
            let mut requests = Requests::new(
                script.clone(),
                1024,
                &RequestBounds { requests_in_flight_max: 2, ..RequestBounds::default() },
            );
            let mut other = requests.beside().remove(0);
            let group = [batch(&["1"]), batch(&["2"])];
            assert_eq!(requests.write(&group).await, vec![refused; 2]);
            assert_eq!(other.write(&group).await, vec![Written::Delivered; 2]);
            assert_eq!(*script.sent.lock(), ["1:2", "1:2"]);
            assert!(requests.bodies.0.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn a_request_that_does_not_come_again_is_forgotten() {
        let answers = vec![Written::Rejected("no".into()), Written::refused("busy")];
        let script = Arc::new(ScriptedExchange {
            answers: Mutex::new(answers),
            packed: Mutex::default(),
            sent: Mutex::default(),
        });
        let mut requests = Requests::new(
            script.clone(),
            1024,
            &RequestBounds { requests_in_flight_max: 1, ..RequestBounds::default() },
        );
        let group = [batch(&["1"])];
        requests.write(&group).await;
        requests.forget(&group);
        assert!(requests.bodies.0.lock().is_empty());
        requests.write(&group).await;
        assert_eq!(*script.sent.lock(), ["1:1", "2:1"]);
        assert!(requests.bodies.0.lock().is_empty(), "what is rejected comes again in parts");
    }
}
