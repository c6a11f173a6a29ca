//! What becomes of a tenant whose source ended by a fault of its own: it begins again here after a pause that doubles. After
//! [`TRIES`] failures another member tries, since what is wrong may be this machine's alone. Where nobody can read it, it
//! goes round the members once and then stays with the one that should have it: a member passes a tenant on at most once
//! within [`STANDS_BACK`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::model::TenantId;

/// Failures in a row, and another member is to try.
const TRIES: u32 = 3;
/// Before the source begins again.
const AGAIN: Backoff = Backoff::between(Duration::from_secs(4), Duration::from_secs(300));
/// A source that ran for so long has not failed before.
const CALM: Duration = Duration::from_secs(600);
/// So long a member does not ask for a tenant that it passed on, and passes it on no second time.
const STANDS_BACK: Duration = Duration::from_secs(3600);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It begins here again, after so long.
    Again(Duration),
    /// Another member is to try.
    PassOn,
}

/// The tenants that failed here.
#[derive(Debug, Default)]
pub struct Failures {
    failing: BTreeMap<TenantId, Failing>,
    passed_on: BTreeMap<TenantId, Duration>,
}

#[derive(Debug)]
struct Failing {
    count: u32,
    /// When it begins again.
    again: Duration,
}

impl Failures {
    /// A source of the tenant failed at `now`. `others`: there are members who could try.
    pub fn failed(&mut self, tenant: &TenantId, now: Duration, others: bool) -> Next {
        let may_pass_on = others && !self.stands_back(tenant, now);
        let failing = self.failing.entry(tenant.clone()).or_insert(Failing { count: 0, again: now });
        if now.saturating_sub(failing.again) >= CALM {
            failing.count = 0;
        }
        failing.count = failing.count.saturating_add(1);
        if may_pass_on && failing.count >= TRIES {
            self.failing.remove(tenant);
            self.passed_on.insert(tenant.clone(), now);
            return Next::PassOn;
        }
        let pause = AGAIN.after(failing.count);
        failing.again = now + pause;
        Next::Again(pause)
    }

    /// Whether this member passed the tenant on, not long ago.
    pub fn stands_back(&self, tenant: &TenantId, now: Duration) -> bool {
        self.passed_on.get(tenant).is_some_and(|at| now.saturating_sub(*at) < STANDS_BACK)
    }

    /// Forgets what is over.
    pub fn tidy(&mut self, now: Duration) {
        self.failing.retain(|_, failing| now.saturating_sub(failing.again) < CALM);
        self.passed_on.retain(|_, at| now.saturating_sub(*at) < STANDS_BACK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> TenantId {
        "7f3c0000-0000-0000-0000-000000000001".parse().unwrap()
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn pause(next: Next) -> Duration {
        match next {
            Next::Again(pause) => pause,
            Next::PassOn => panic!("passed on"),
        }
    }

    #[test]
    fn a_tenant_that_fails_begins_again_and_is_passed_on_once_an_hour_at_most() {
        let (mut failures, tenant) = (Failures::default(), tenant());
        assert!(pause(failures.failed(&tenant, secs(0), true)) <= secs(4));
        assert!(pause(failures.failed(&tenant, secs(10), true)) <= secs(8));
        assert_eq!(failures.failed(&tenant, secs(20), true), Next::PassOn);
        assert!(failures.stands_back(&tenant, secs(21)));
        // It came back, since no other could read it, and stays.
        let mut now = secs(60);
        let mut longest = Duration::ZERO;
        while now < secs(20 + 3600) {
            let wait = pause(failures.failed(&tenant, now, true));
            longest = longest.max(wait);
            now += wait;
        }
        assert!((secs(150)..=secs(300)).contains(&longest), "{longest:?}");
        assert_eq!(failures.failed(&tenant, now, true), Next::PassOn);
    }

    #[test]
    fn who_is_alone_tries_for_ever_and_what_ran_well_begins_soon() {
        let (mut failures, tenant) = (Failures::default(), tenant());
        let mut now = Duration::ZERO;
        for _ in 0..20 {
            now += pause(failures.failed(&tenant, now, false));
        }
        assert!(pause(failures.failed(&tenant, now, false)) >= secs(150));
        assert!(pause(failures.failed(&tenant, now + secs(1000), true)) <= secs(4));
        failures.tidy(now + secs(3000));
        assert!(failures.failing.is_empty() && failures.passed_on.is_empty());
    }
}
