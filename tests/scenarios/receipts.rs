//! Receipts over the life of a source: sealed every hour, through restarts, kills and outages; sent to who gets them.

use jiff::SignedDuration;
use m365_audit::checkpoint::format::Keys;
use m365_audit::clock::Clock;
use m365_audit::host::StateStore;
use m365_audit::receipts::statement::Hour;
use m365_audit::receipts::store::{self, ReceiptKeys};
use m365_audit::receipts::verify::Verification;
use m365_audit::receipts::{Class, OpenReceipts};

use crate::world::{World, hours, keeping, mins};

impl World {
    fn receipt_keys(&self) -> ReceiptKeys {
        ReceiptKeys::below(Keys::of(&self.tenant).receipts())
    }

    /// What is sealed, verified with nothing but the public key; no fault may be found.
    async fn verified(&self) -> Verification {
        let key = keeping().signer.key().clone();
        let verdict = store::verify(&*self.store, &self.receipt_keys(), self.tenant.clone(), &[key], &[]).await;
        let verdict = verdict.unwrap().expect("something is sealed");
        assert!(verdict.is_good(), "{verdict:#?}");
        verdict
    }

    /// Every published event that has a key, with what sealed and open receipts say of it.
    async fn said_at_the_end(&self) -> Vec<(String, Option<Class>)> {
        let keys = self.receipt_keys();
        let mut open = OpenReceipts::default();
        for (key, _) in self.store.list(&keys.open()).await.unwrap() {
            let (page, _) = self.store.load(&key).await.unwrap().unwrap();
            open.append(OpenReceipts::decode(&key, &page).unwrap().1);
        }
        let mut said = std::collections::HashMap::new();
        let open: Vec<_> = open.receipts().collect();
        store::for_each_entry(&*self.store, &keys, None, open, &mut |found| {
            let class = Class::Delivered;
            if format!("{:?}", found.outcome).contains("Delivered") {
                said.insert(found.key, class);
            }
        })
        .await
        .unwrap();
        let events = self.sim.truth().events;
        let key = |raw: &[u8]| m365_audit::normalise::canonical_key(&m365_audit::normalise::Event::parse(raw).ok()?);
        events
            .iter()
            .filter_map(|event| Some((event.id.clone()?.to_string(), said.get(&key(&event.raw)?).cloned())))
            .collect()
    }

    async fn assert_all_said(&self) {
        let unsaid: Vec<_> = self.said_at_the_end().await.into_iter().filter(|(_, class)| class.is_none()).collect();
        assert!(unsaid.is_empty(), "no receipt says that these were delivered: {unsaid:?}");
    }
}

#[tokio::test]
async fn each_hour_is_sealed_one_without_events_too() {
    let mut w = World::new().await;
    w.add_aged(7, mins(20));
    let running = w.start();
    w.pass(mins(30)).await;
    w.pass(hours(2)).await;
    w.add_now(5);
    w.pass(hours(2)).await;
    w.stop(running).await;
    let verdict = w.verified().await;
    assert_eq!(verdict.parts, 4, "12 to 16 h: {verdict:#?}");
    let first: Hour = "2026-05-10T12:00:00Z".parse().unwrap();
    assert_eq!(verdict.hours.map(|(from, _)| from), Some(first));
    assert_eq!(verdict.begins, [], "the state is new: nothing was delivered before");
    assert_eq!(verdict.counts.delivered, 12);
    w.assert_all_said().await;
    w.assert_clean();
}

#[tokio::test]
async fn hours_in_which_no_process_ran_are_sealed_by_the_next() {
    let mut w = World::new().await;
    w.add_aged(3, mins(20));
    w.run_for(mins(10)).await;
    w.clock.advance(hours(9));
    w.add_now(2);
    w.run_for(mins(30)).await;
    let verdict = w.verified().await;
    assert_eq!((verdict.parts, verdict.counts.delivered), (9, 3), "the hour of the second run is not over");
    assert_eq!(verdict.begins, [], "the same source went on");
    w.assert_all_said().await;
}

#[tokio::test]
async fn a_process_that_keeps_none_in_between_shows() {
    let mut w = World::new().await;
    w.add_aged(3, mins(20));
    w.run_for(mins(10)).await;
    w.clock.advance(hours(3));
    w.receipts = None;
    w.add_now(2);
    w.run_for(mins(30)).await;
    w.receipts = Some(keeping());
    w.clock.advance(hours(3));
    w.add_now(4);
    w.run_for(mins(110)).await;
    let verdict = w.verified().await;
    // From the hour of the first run, which was open, to that in which receipts were kept again.
    assert_eq!(verdict.begins.len(), 7, "{:?}", verdict.begins);
    assert_eq!(verdict.begins.last().map(|(seq, _)| *seq), Some(6));
    assert_eq!(verdict.parts, 7 + 1, "the hour after it is as usual");
    assert_eq!(verdict.counts.delivered, 3 + 4, "nothing is claimed of the run that kept none");
    // The watch asks for a receipt of each event, and of two there is none.
    assert!(w.compare().is_clean(), "{}", w.compare());
}

#[tokio::test]
async fn receipts_leave_when_they_are_older_than_their_days() {
    let mut w = World::new().await;
    w.receipts = Some(m365_audit::checkpoint::journal::Keeping { days: 1, ..keeping() });
    w.add_aged(3, mins(20));
    let running = w.start();
    w.leap(hours(60), mins(30)).await;
    w.stop(running).await;
    let verdict = w.verified().await;
    let (from, to) = verdict.hours.unwrap();
    assert_eq!(to.start().duration_since(from.start()).as_hours(), 23, "a day of hours: {from} to {to}");
    assert!(verdict.pruned() > 30, "{}", verdict.pruned());
}

#[tokio::test]
async fn a_kill_around_the_end_of_an_hour_neither_loses_nor_makes_up_a_receipt() {
    for commits in 0..12 {
        let mut w = World::new().await;
        w.add_aged(4, mins(20));
        let running = w.start();
        w.pass(mins(58)).await;
        w.add_now(3);
        let begun = w.commits.load(std::sync::atomic::Ordering::SeqCst);
        w.until_within(mins(20), || w.commits.load(std::sync::atomic::Ordering::SeqCst) >= begun + commits).await;
        running.store.kill();
        w.kill(running).await;
        w.add_now(2);
        w.run_for(hours(2)).await;
        let verdict = w.verified().await;
        assert_eq!(verdict.begins, [], "after {commits} commits");
        w.assert_all_said().await;
        w.assert_nothing_lost();
    }
}

#[tokio::test]
async fn every_signed_checkpoint_reaches_whoever_gets_them_also_after_a_kill() {
    let mut w = World::new().await;
    w.receipts = Some(m365_audit::checkpoint::journal::Keeping { sends: true, ..keeping() });
    w.add_aged(4, mins(20));
    let running = w.start();
    w.pass(hours(3)).await;
    w.kill(running).await;
    w.clock.advance(hours(2));
    w.run_for(mins(30)).await;
    let verdict = w.verified().await;
    let sent = w.host.notices("m365_audit.receipt");
    let mut parts: Vec<u64> = sent.iter().filter_map(|notice| notice["receipt_part"].as_u64()).collect();
    parts.sort_unstable();
    parts.dedup();
    assert_eq!(parts, (0..verdict.parts).collect::<Vec<_>>(), "{sent:#?}");
    for notice in &sent {
        let note = notice["checkpoint"].as_str().unwrap();
        let statement = m365_audit::receipts::statement::Statement::open(note, keeping().signer.key()).unwrap();
        assert_eq!(Some(statement.seq), notice["receipt_part"].as_u64());
        assert_eq!(Some(statement.hour.start().to_string().as_str()), notice["receipt_hour"].as_str());
    }
}

/// The clock of this machine stands a month ahead for a while: hours end by Microsoft's, so nothing is sealed ahead of
/// time and nothing that is kept leaves.
#[tokio::test]
async fn a_clock_that_is_a_month_ahead_ends_no_hour_and_removes_nothing() {
    let mut w = World::new().await;
    w.clock_jumps = true;
    w.add_aged(4, mins(20));
    let running = w.start();
    w.pass(hours(2)).await;
    let month = SignedDuration::from_hours(24 * 40);
    w.clock.set_wall(w.clock.now() + month);
    w.sim.set_clock_offset(-month.as_secs());
    w.add_now(3);
    w.pass(hours(1)).await;
    w.clock.set_wall(w.clock.now() - month);
    w.sim.set_clock_offset(0);
    w.pass(hours(1)).await;
    w.stop(running).await;
    let verdict = w.verified().await;
    let (from, to) = verdict.hours.unwrap();
    assert_eq!(verdict.pruned(), 0);
    assert!(to.start().duration_since(from.start()).as_hours() <= 4, "{from} to {to}");
    w.assert_all_said().await;
}

#[tokio::test]
async fn receipts_that_cannot_be_read_for_a_while_hold_nothing_back_for_good() {
    let mut w = World::new().await;
    w.add_aged(4, mins(20));
    let running = w.start();
    w.pass(mins(50)).await;
    *running.store.unreadable.lock().unwrap() = Some("/receipts/");
    w.add_now(3);
    w.pass(mins(30)).await;
    *running.store.unreadable.lock().unwrap() = None;
    w.pass(hours(1)).await;
    w.stop(running).await;
    w.verified().await;
    w.assert_all_said().await;
    w.assert_clean();
}

#[tokio::test]
async fn damaged_receipts_keep_no_event_from_being_collected() {
    for part in ["open/", "sealed/0000000000000000/checkpoint", "head"] {
        let mut w = World::new().await;
        w.receipts = Some(m365_audit::checkpoint::journal::Keeping { days: 1, ..keeping() });
        w.add_aged(4, mins(20));
        w.run_for(mins(90)).await;
        let prefix = format!("{}{part}", Keys::of(&w.tenant).receipts());
        w.add_now(2);
        w.run_for(mins(5)).await;
        let damaged: Vec<String> = w.store.entries().into_keys().filter(|key| key.starts_with(&prefix)).collect();
        assert!(!damaged.is_empty(), "{prefix}");
        for key in damaged {
            w.store.overwrite(&key, Some(bytes::Bytes::from_static(b"{\"format\":")));
        }
        w.add_now(3);
        w.run_for(hours(30)).await;
        assert!(w.compare().is_clean(), "{part}: {}", w.compare());
        if part == "open/" {
            // Found when the hour ended, in the middle of a run: whoever reads the state knows that this run kept none.
            let text = |name: String| String::from_utf8(w.store.entries()[&name].to_vec()).unwrap();
            let owner: serde_json::Value = serde_json::from_str(&text(Keys::of(&w.tenant).owner())).unwrap();
            let head: serde_json::Value = serde_json::from_str(&text(w.receipt_keys().head())).unwrap();
            assert_ne!(owner["writer"], head["writer"]);
        }
    }
}
