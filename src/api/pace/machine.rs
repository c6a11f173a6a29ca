//! When a call may be sent: a state machine without its own clock, sockets or randomness. The documentation of
//! [`super`] has its rules and their reasons; `model.rs` tests it against services that count in several ways.

use std::collections::VecDeque;
use std::time::Duration;

/// The share of the allowance that is used at most, in percent; the rest covers calls that bunch up in the network.
const SHARE_PERCENT: u64 = 98;
/// The share of a measured quota that is used, for the same reason.
const MEASURED_SHARE: f64 = 0.97;
/// The part of the allowance that one who takes a tenant over from another has in the first minute, one in so many: enough to
/// list what there is, and with all that the former one may just have used no more than Microsoft's quota and a tenth,
/// even if that happens twice within the minute.
const PART_OF_HEIR: u32 = 20;
/// Microsoft counts by the minute.
pub const MINUTE: Duration = Duration::from_secs(60);
/// The width of the buckets in which calls are counted. A call leaves the minute at most this much late, which costs
/// half a percent.
const BUCKET_MS: u64 = 250;
const BUCKETS: u64 = 60_000 / BUCKET_MS;
/// First pause after a refusal.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause that the machine chooses itself.
pub const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The lowest rate that the machine chooses itself: a call in five seconds.
const LIMIT_MIN: f64 = 12.0;
/// This long after a call last waited for the ceiling, calls may be sent at once again.
const CROWDED: Duration = Duration::from_secs(10);
/// The part of a minute's calls that may be caught up there, after a pause.
const CREDIT: f64 = 0.25;
/// Calls that may be sent at once at a lowered rate, to catch up after a late timer.
const BURST_MAX: f64 = 10.0;
/// This many refusals without a grant between them mean that the quota is used up. Where strays are common, it is the
/// number that occurs by chance in one of a million cases.
const RUN_OF_QUOTA: f64 = 4.0;
const RUN_BY_CHANCE: f64 = 1e-6;
/// After so many refusals without a grant between them the first pause is four times as long.
const RUN_LONG: u32 = 8;
const STEP_OF_LONG_RUN: u32 = 2;
/// The quota is used up as well if so large a share of the last answers were refusals: a bucket refills meanwhile and
/// grants some of the calls under way, so that no run of refusals is long.
struct Flood {
    span: Duration,
    refused_min: u32,
    share: f64,
    /// Only with fewer than [`SLOW_FLOOD`] grants in the last minute, and while no share of strays is known. Few calls at
    /// a time, of which a bucket grants the first, are never five refusals in five seconds.
    slow_only: bool,
}
const FLOODS: [Flood; 4] = [
    Flood { span: Duration::from_secs(5), refused_min: 5, share: 0.501, slow_only: false },
    Flood { span: Duration::from_secs(10), refused_min: 7, share: 0.501, slow_only: true },
    Flood { span: Duration::from_secs(15), refused_min: 7, share: 0.4, slow_only: true },
    Flood { span: MINUTE, refused_min: 14, share: 0.25, slow_only: true },
];
/// Grants in a minute.
const SLOW_FLOOD: u32 = 100;
/// With this many grants in the last minute, a refusal may be a stray.
const GRANTS_OF_STRAY: f64 = 8.0;
/// At a lowered rate of at most this many calls a minute, a pause costs nothing. With fewer grants in the minute
/// before a refusal, those after it alone count as quota: a bucket may have saved up the ones before.
const SLOW: f64 = 300.0;
/// This many grants in a row halve the next pause.
const GRANTS_TO_CALM: u32 = 2;
/// The share of refusals in a minute that starts a trial: at the full rate the expected share of strays, with two
/// standard deviations of 5 % added, and less at a lowered rate.
const REFUSED_SHARE: f64 = 0.08;
const REFUSED_SHARE_LOWERED: f64 = 0.06;
/// Fewer refusals in a minute prove nothing.
const REFUSED_MIN: f64 = 3.0;
/// A guessed rate is doubled this often; and this often if there was no grant to guess from.
const DOUBLE_EVERY: Duration = Duration::from_secs(30);
const DOUBLE_BLIND_EVERY: Duration = Duration::from_secs(10);
/// The factor of the first trial with a higher rate; its excess doubles after each success.
const FASTER: f64 = 1.05;
const FASTER_MAX: f64 = 2.0;
/// Minutes until a trial with a higher rate; doubled after each failure.
const TRIAL_EVERY: u32 = 4;
const TRIAL_EVERY_MAX: u32 = 8;
/// After this long without a refusal the rate grows even if it is not used; strays are remembered for as long.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// A lane with this many refusals in a row, while as many calls of others were granted, waits by itself.
const LANE_RUN: u32 = 5;
const LANE_OTHERS: u32 = 10;
/// One lane for each content type, and one for calls without one.
pub const LANES: usize = 6;
/// Blobs that were refused and are remembered.
const CALLS_MAX: usize = 64;

/// The subject of a call: its lane, and its blob (0: none).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallSubject {
    pub lane: usize,
    pub blob: u64,
}

/// A permit to send one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallPermit {
    seq: u64,
    about: CallSubject,
}

/// Why a call may not be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// For this long; an answer may end it early.
    For(Duration),
    /// For the answer to the call that tries whether calls are granted again.
    Answer,
    /// For this long, since calls of its lane are refused; other lanes may continue.
    Lane(Duration),
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    index: u64,
    sent: u32,
    granted: u32,
    refused: u32,
    /// The length of the pauses that ended in it.
    paused_ms: u32,
}

impl Bucket {
    fn index_at(now: Duration) -> u64 {
        now.as_millis() as u64 / BUCKET_MS
    }

    fn start(&self) -> Duration {
        Duration::from_millis(self.index * BUCKET_MS)
    }
}

/// The counts of the last minute. Only non-empty buckets are kept: an idle tenant has a handful.
#[derive(Debug, Default)]
struct RateWindow {
    buckets: VecDeque<Bucket>,
    /// The sum of all buckets.
    all: Bucket,
}

impl RateWindow {
    fn forget(&mut self, now: Duration) {
        let oldest = Bucket::index_at(now).saturating_sub(BUCKETS);
        while let Some(gone) = self.buckets.pop_front_if(|bucket| bucket.index < oldest) {
            self.all.sent -= gone.sent;
            self.all.granted -= gone.granted;
            self.all.refused -= gone.refused;
            self.all.paused_ms -= gone.paused_ms;
        }
        if self.buckets.len() < 16 && self.buckets.capacity() > 64 {
            self.buckets.shrink_to(16);
        }
    }

    fn count(&mut self, now: Duration, count: impl Fn(&mut Bucket)) {
        self.forget(now);
        let index = Bucket::index_at(now);
        if self.buckets.back().is_none_or(|last| last.index < index) {
            self.buckets.push_back(Bucket { index, ..Bucket::default() });
        }
        if let Some(last) = self.buckets.back_mut() {
            count(last);
            count(&mut self.all);
        }
    }

    /// Calls sent in the last minute; never too few.
    fn sent(&mut self, now: Duration) -> u32 {
        self.forget(now);
        self.all.sent
    }

    /// Approximately how many of a kind the last minute had: the oldest bucket counts in proportion.
    fn about(&mut self, now: Duration, of: impl Fn(&Bucket) -> u32) -> f64 {
        self.forget(now);
        let oldest = self.buckets.front().filter(|bucket| bucket.index + BUCKETS == Bucket::index_at(now));
        let gone = (now.as_millis() as u64 % BUCKET_MS) as f64 / BUCKET_MS as f64;
        f64::from(of(&self.all)) - oldest.map_or(0.0, |bucket| f64::from(of(bucket)) * gone)
    }

    fn granted(&mut self, now: Duration) -> f64 {
        self.about(now, |bucket| bucket.granted)
    }

    /// The share of the last minute that was spent in pauses.
    fn paused(&self) -> f64 {
        (f64::from(self.all.paused_ms) / MINUTE.as_millis() as f64).min(1.0)
    }

    /// Whether one of [`FLOODS`] is reached. `strays`: the share of refusals known not to be the quota's.
    fn is_flooded(&self, now: Duration, strays: f64) -> bool {
        let is_slow = self.all.granted < SLOW_FLOOD && strays == 0.0;
        FLOODS.iter().filter(|flood| is_slow || !flood.slow_only).any(|flood| {
            let since = Bucket::index_at(now.saturating_sub(flood.span));
            let last = self.buckets.iter().rev().take_while(|bucket| bucket.index >= since);
            let (granted, refused) = last.fold((0, 0), |sum, bucket| (sum.0 + bucket.granted, sum.1 + bucket.refused));
            refused >= flood.refused_min && f64::from(refused) >= f64::from(granted + refused) * flood.share
        })
    }

    fn first(&self, of: impl Fn(&Bucket) -> u32) -> Option<Duration> {
        self.buckets.iter().find(|bucket| of(bucket) > 0).map(Bucket::start)
    }

    /// The time until the oldest of them leaves the minute.
    fn frees_in(&self, now: Duration, of: impl Fn(&Bucket) -> u32) -> Duration {
        let bucket = Duration::from_millis(BUCKET_MS);
        let frees_at = self.first(of).map_or(now + bucket, |first| first + bucket + MINUTE);
        frees_at.saturating_sub(now).max(Duration::from_millis(1))
    }
}

/// A time without calls since a refusal; one call ends it.
#[derive(Debug, Clone, Copy)]
struct Pause {
    began: Duration,
    until: Duration,
    /// The newest call that was refused, and how many were.
    refused: u64,
    run: u32,
    /// The call that tries whether calls are granted again.
    probe: Option<u64>,
    /// The grants of the minute before, and when its first call was sent.
    granted: f64,
    first_sent: Duration,
    /// The share of its answers that were refusals.
    share: f64,
}

/// Calls of one content type.
#[derive(Debug, Clone, Copy, Default)]
struct PaceLane {
    /// Refusals since its last grant, and the grants of others meanwhile.
    run: u32,
    others: u32,
    /// Whether it waits by itself: until when, how often so far, and the call that tries again.
    held: bool,
    until: Duration,
    step: u32,
    probe: Option<u64>,
}

/// The limit is a guess.
#[derive(Debug, Clone, Copy)]
struct Guess {
    since: Duration,
    /// The grants up to then.
    granted: u64,
    double_every: Duration,
    /// The limit before it was doubled, at which nothing was refused.
    held: f64,
}

/// A change of the rate for a minute, which shows whether the grants follow the calls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trial {
    None,
    /// Faster: is more granted?
    Faster {
        limit: f64,
        granted: f64,
        before: (u64, u64),
        /// More refusals end it early.
        refused_most: f64,
    },
    /// Slower: is as much granted as before?
    Slower {
        limit: f64,
        granted: f64,
        share: f64,
    },
}

/// The pace of one tenant.
#[derive(Debug)]
pub struct Machine {
    /// Calls in any 60 s; 0 is no limit.
    ceiling: u32,
    /// The estimate of calls a minute that are granted; at most the ceiling.
    limit: f64,
    window: RateWindow,
    seq: u64,
    /// Calls in flight.
    open: u32,
    granted_ever: u64,
    refused_ever: u64,
    /// When the next call is due while calls are spaced evenly.
    due: Duration,
    /// While demand exceeds the ceiling: until when calls are spaced evenly, so that none waits for most of a minute.
    crowded_until: Option<Duration>,
    named_until: Duration,
    pause: Option<Pause>,
    /// How often the next pause is doubled.
    step: u32,
    calm: u32,
    refused_at: Option<Duration>,
    /// The limit is a guess until a whole minute was observed.
    guess: Option<Guess>,
    trial: Trial,
    look_at: Duration,
    trial_every: u32,
    minutes_to_trial: u32,
    faster: f64,
    /// A share of refusals that a lower rate did not reduce, and how long that is valid.
    strays: (f64, Duration),
    lanes: [PaceLane; LANES],
    /// Blobs that were refused, with the number of grants by then.
    blobs: VecDeque<(u64, u64)>,
}

impl Machine {
    /// `max_requests_per_minute` 0 is no limit. An allowance of 1 cannot be shared and is used whole.
    pub fn new(max_requests_per_minute: u32) -> Self {
        let ceiling = match u64::from(max_requests_per_minute) {
            0 => 0,
            max => u32::try_from((max * SHARE_PERCENT / 100).max(1)).unwrap_or(u32::MAX),
        };
        Self {
            ceiling,
            limit: f64::from(ceiling),
            window: RateWindow::default(),
            seq: 0,
            open: 0,
            granted_ever: 0,
            refused_ever: 0,
            due: Duration::ZERO,
            crowded_until: None,
            named_until: Duration::ZERO,
            pause: None,
            step: 0,
            calm: 0,
            refused_at: None,
            guess: None,
            trial: Trial::None,
            look_at: Duration::ZERO,
            trial_every: TRIAL_EVERY,
            minutes_to_trial: TRIAL_EVERY,
            faster: FASTER,
            strays: (0.0, Duration::ZERO),
            lanes: [PaceLane::default(); LANES],
            blobs: VecDeque::new(),
        }
    }

    /// Another may have asked for all there is in the minute before `now`: until that is over, a small part of it is left.
    pub fn succeed(&mut self, now: Duration) {
        let left = (self.ceiling / PART_OF_HEIR).max(1);
        let used = self.ceiling.saturating_sub(left);
        if used > 0 {
            self.window.count(now, |bucket| bucket.sent += used);
        }
    }

    /// The estimate of calls a minute that are granted; 0 means no limit.
    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// Adopts a limit that another machine learned, up to its own ceiling.
    pub fn follow(&mut self, limit: f64) {
        if self.ceiling > 0 {
            self.limit = limit.max(LIMIT_MIN / 2.0).min(f64::from(self.ceiling));
        }
    }

    fn is_lowered(&self) -> bool {
        self.limit < f64::from(self.ceiling)
    }

    /// Admits one call, or returns what it waits for.
    pub fn admit(&mut self, now: Duration, about: CallSubject) -> Result<CallPermit, Wait> {
        let lane = &self.lanes[about.lane];
        if lane.held && (now < lane.until || lane.probe.is_some()) {
            return Err(Wait::Lane(lane.until.saturating_sub(now).max(PAUSE_MIN)));
        }
        if now < self.named_until {
            return Err(Wait::For(self.named_until - now));
        }
        match &self.pause {
            Some(pause) if now < pause.until => return Err(Wait::For(pause.until - now)),
            Some(pause) if pause.probe.is_some() => return Err(Wait::Answer),
            _ => {}
        }
        if self.ceiling > 0 {
            self.look(now);
            let sent = self.window.sent(now);
            if sent >= self.ceiling {
                let wait = self.window.frees_in(now, |bucket| bucket.sent);
                self.crowded_until = Some(now + wait + CROWDED);
                // Calls that could not be sent in time are not caught up: that would cause the next burst.
                let (period, burst) = self.crowded();
                self.due = now + wait + period.mul_f64(burst - 1.0);
                return Err(Wait::For(wait));
            }
            self.crowded_until = self.crowded_until.filter(|until| now < *until);
            if self.pause.is_none() {
                self.space(now)?;
            }
        }
        self.window.count(now, |bucket| bucket.sent += 1);
        self.seq += 1;
        self.open += 1;
        if let Some(pause) = &mut self.pause {
            pause.probe = Some(self.seq);
        }
        let lane = &mut self.lanes[about.lane];
        if lane.held {
            lane.probe = Some(self.seq);
        }
        Ok(CallPermit { seq: self.seq, about })
    }

    /// Spaces calls while they are to be sent evenly.
    fn space(&mut self, now: Duration) -> Result<(), Wait> {
        let (period, burst) = match (self.is_lowered(), self.crowded_until.is_some()) {
            (true, _) => (period_of(self.limit), (self.limit / 40.0).clamp(1.0, BURST_MAX)),
            (false, true) => self.crowded(),
            (false, false) => {
                self.due = now;
                return Ok(());
            }
        };
        // A service that counts the last 60 seconds grants nothing now if no call was sent a minute ago, in a pause.
        let measured = self.limit / MEASURED_SHARE;
        if self.is_lowered() && self.guess.is_none() && self.window.granted(now) + f64::from(self.open) >= measured {
            return Err(Wait::For(self.window.frees_in(now, |bucket| bucket.granted).min(PAUSE_MIN)));
        }
        let earliest = self.due.saturating_sub(period.mul_f64(burst - 1.0));
        if now < earliest {
            let wait = (earliest - now).max(Duration::from_micros(100));
            self.crowded_until = self.crowded_until.map(|_| now + wait + CROWDED);
            return Err(Wait::For(wait));
        }
        self.due = self.due.max(now) + period;
        Ok(())
    }

    /// Between two calls at the ceiling, and how many may go at once: the window enforces the ceiling, and calls
    /// delayed by a pause are caught up.
    fn crowded(&self) -> (Duration, f64) {
        (period_of(self.limit * 1.05), (self.limit * CREDIT).max(1.0))
    }

    /// The call was answered, and not refused.
    pub fn granted(&mut self, now: Duration, slot: CallPermit) {
        self.window.count(now, |bucket| bucket.granted += 1);
        self.granted_ever += 1;
        self.blobs.retain(|(blob, _)| slot.about.blob == 0 || *blob != slot.about.blob);
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            if at == slot.about.lane {
                *lane = PaceLane::default();
            } else if lane.run > 0 {
                lane.others = lane.others.saturating_add(1);
            }
        }
        self.calm += 1;
        match self.pause {
            Some(pause) if slot.seq > pause.refused => self.go_on(now, pause, slot),
            // It was sent before the refused call, so it proves nothing about later ones.
            Some(_) => {}
            None => {
                if self.calm.is_multiple_of(GRANTS_TO_CALM) {
                    self.step = self.step.saturating_sub(1);
                }
                if self.is_lowered() && self.refused_at.is_none_or(|at| now >= at + MINUTE) {
                    let granted = self.window.granted(now) - 1.0;
                    self.limit = self.limit.max(granted).min(f64::from(self.ceiling));
                }
            }
        }
    }

    /// A call sent after the refused ones was granted.
    fn go_on(&mut self, now: Duration, pause: Pause, slot: CallPermit) {
        self.pause = None;
        self.calm = 0;
        self.step /= 2;
        if self.is_lowered() {
            // This call took what was saved up in the pause.
            self.due = now + period_of(self.limit);
            let paused = now.saturating_sub(pause.began).min(MINUTE).as_millis() as u32;
            self.window.count(now, |bucket| bucket.paused_ms += paused);
        }
        let by_chance = if pause.share > 0.0 { RUN_BY_CHANCE.ln() / pause.share.min(0.5).ln() } else { 0.0 };
        let was_used_up = f64::from(pause.run) >= by_chance.max(RUN_OF_QUOTA) && pause.probe == Some(slot.seq);
        if self.ceiling > 0
            && (was_used_up || self.window.is_flooded(now, self.strays_now(now)) || self.guess.is_some())
        {
            self.learn(now, pause);
        }
    }

    /// The call was refused. `named` is the wait that Microsoft named, `jitter` from 0 to 1. Returns how long such a
    /// call waits now.
    pub fn refused(&mut self, now: Duration, slot: CallPermit, named: Option<Duration>, jitter: f64) -> Duration {
        if let Some(wait) = self.refused_alone(now, slot, named, jitter) {
            return wait;
        }
        self.refused_at = Some(now);
        self.refused_ever += 1;
        self.window.count(now, |bucket| bucket.refused += 1);
        self.end_trial_early(now);
        if let Some(named) = named {
            self.named_until = self.named_until.max(now + named);
        }
        let until = match self.pause {
            Some(pause) => self.refused_again(now, pause, slot, jitter),
            None => self.pause(now, slot, jitter),
        };
        until.max(self.named_until).saturating_sub(now)
    }

    /// How long it waits, if it alone is refused: its lane, or this very blob, while others are granted.
    fn refused_alone(
        &mut self,
        now: Duration,
        slot: CallPermit,
        named: Option<Duration>,
        jitter: f64,
    ) -> Option<Duration> {
        let lane = &mut self.lanes[slot.about.lane];
        lane.run += 1;
        let (run, others) = if named.is_some() { (2, 1) } else { (LANE_RUN, LANE_OTHERS) };
        let lane_alone = lane.held || (lane.run >= run && lane.others >= others);
        if lane_alone {
            if !lane.held || lane.probe == Some(slot.seq) || named.is_some() {
                lane.until = lane.until.max(now + named.unwrap_or_default().max(delay(lane.step, jitter)));
                lane.step += 1;
            }
            lane.held = true;
            lane.probe = None;
        }
        let wait = if lane_alone { Some(lane.until.saturating_sub(now)) } else { self.blob_alone(slot, named, jitter) };
        if wait.is_some() {
            // It proves nothing about the others: another call tries.
            self.forget_probe(slot);
        }
        wait
    }

    fn blob_alone(&mut self, slot: CallPermit, named: Option<Duration>, jitter: f64) -> Option<Duration> {
        let blob = slot.about.blob;
        if blob == 0 {
            return None;
        }
        let known = self.blobs.iter_mut().find(|(known, _)| *known == blob);
        let alone = known.as_ref().is_some_and(|(_, granted)| *granted < self.granted_ever);
        match known {
            Some((_, granted)) => *granted = self.granted_ever,
            None => {
                if self.blobs.len() >= CALLS_MAX {
                    self.blobs.pop_front();
                }
                self.blobs.push_back((blob, self.granted_ever));
            }
        }
        alone.then(|| named.unwrap_or_else(|| delay(0, jitter)))
    }

    fn pause(&mut self, now: Duration, slot: CallPermit, jitter: f64) -> Duration {
        let granted = self.window.granted(now);
        let (refused, _) = self.refused_share(now);
        // One refusal among many grants may be a stray: the next call shows it.
        let may_be_stray = self.step == 0
            && granted >= GRANTS_OF_STRAY
            && refused <= granted / 3.0
            && (!self.is_lowered() || self.limit >= SLOW);
        let until = if may_be_stray { now } else { now + delay(self.step, jitter) };
        self.step += u32::from(!may_be_stray);
        self.pause = Some(Pause {
            began: now,
            until,
            refused: slot.seq,
            run: 1,
            probe: None,
            granted,
            first_sent: self.window.first(|bucket| bucket.sent).unwrap_or(now),
            share: (refused - 1.0).max(0.0) / (granted + refused).max(1.0),
        });
        until
    }

    fn refused_again(&mut self, now: Duration, mut pause: Pause, slot: CallPermit, jitter: f64) -> Duration {
        pause.run += 1;
        pause.refused = pause.refused.max(slot.seq);
        if pause.probe == Some(slot.seq) {
            if pause.run >= RUN_LONG {
                self.step = self.step.max(STEP_OF_LONG_RUN);
            }
            let mut wait = delay(self.step, jitter);
            // A service that counts by the minute starts again at the latest a minute after the first refusal.
            let minute_ends = (pause.began + MINUTE).saturating_sub(now);
            if !minute_ends.is_zero() {
                wait = wait.min(minute_ends.max(PAUSE_MIN));
            }
            pause.until = now + wait;
            pause.probe = None;
            self.step += 1;
        }
        self.pause = Some(pause);
        pause.until
    }

    /// The call is over, answered or not. Must be called once for each.
    pub fn ended(&mut self, slot: CallPermit) {
        self.open = self.open.saturating_sub(1);
        self.forget_probe(slot);
    }

    /// If it was the probe for new grants, another call must take its place.
    fn forget_probe(&mut self, slot: CallPermit) {
        for probe in self.pause.iter_mut().map(|pause| &mut pause.probe).chain([&mut self.lanes[slot.about.lane].probe])
        {
            if *probe == Some(slot.seq) {
                *probe = None;
            }
        }
    }

    /// Calls are granted again after the quota was used up: the grants before it are the quota.
    fn learn(&mut self, now: Duration, pause: Pause) {
        let second = Duration::from_secs(1);
        let covered = pause.began.saturating_sub(pause.first_sent) + 5 * second >= MINUTE;
        // Used up at once and free again a minute later.
        let refilled = now.saturating_sub(pause.first_sent) + 2 * second >= MINUTE
            && now.saturating_sub(pause.began) <= MINUTE + 6 * second;
        let is_slow = pause.granted < SLOW;
        let limit = if let Some(guess) = self.guess {
            let granted = (self.granted_ever - guess.granted) as f64;
            let guessing = now.saturating_sub(guess.since);
            // What was used up within a minute is the quota of a minute.
            let time = guessing.min(MINUTE).max(pause.began.saturating_sub(guess.since));
            let a_minute = (granted * 60.0 / time.as_secs_f64().max(1.0)).max(guess.held);
            if guessing >= MINUTE {
                self.guess = None;
                a_minute * MEASURED_SHARE
            } else {
                self.guess = Some(Guess { held: 0.0, ..guess });
                a_minute
            }
        } else if covered || refilled {
            // A rate that used the quota up is not below it, whatever savings granted.
            let most = if is_slow { self.limit } else { f64::INFINITY };
            pause.granted.min(most) * MEASURED_SHARE
        } else {
            let double_every = if pause.granted > 0.0 { DOUBLE_EVERY } else { DOUBLE_BLIND_EVERY };
            self.guess = Some(Guess { since: now, granted: self.granted_ever, double_every, held: 0.0 });
            pause.granted
        };
        if is_slow {
            self.set(limit);
        } else {
            self.lower(now, limit);
        }
        if matches!(self.trial, Trial::Faster { .. }) {
            self.trial_failed();
        }
        self.trial = Trial::None;
        self.minutes_to_trial = self.trial_every;
        self.look_at = now + self.guess.map_or(MINUTE, |guess| guess.double_every);
    }

    /// A trial with a higher rate ends before its minute when a tenth is refused.
    fn end_trial_early(&mut self, now: Duration) {
        let Trial::Faster { limit, before: (granted, refused), refused_most, .. } = self.trial else { return };
        let refused = (self.refused_ever - refused) as f64;
        let answered = (self.granted_ever - granted) as f64 + refused;
        if refused > refused_most && refused > answered * self.strays_now(now).max(0.1) {
            self.trial = Trial::None;
            self.back_to(limit, refused);
            // By then the savings of a bucket do not count any more.
            self.look_at = now + MINUTE;
        }
    }

    /// A share of refusals that strays are known to reach.
    fn strays_now(&self, now: Duration) -> f64 {
        let (share, until) = self.strays;
        if now < until { share * 1.3 } else { 0.0 }
    }

    /// After a trial with so many refusals. The trial before it may have succeeded by the savings of a bucket.
    fn back_to(&mut self, limit: f64, refused: f64) {
        self.set(if limit < SLOW && refused > 1.0 { limit * MEASURED_SHARE } else { limit });
        self.trial_failed();
    }

    fn trial_failed(&mut self) {
        self.trial_every = (self.trial_every * 2).min(TRIAL_EVERY_MAX);
        self.minutes_to_trial = self.trial_every;
        self.faster = FASTER;
    }

    /// Sets the limit, never below what the last minute granted (a measured quota's share of it) nor above the ceiling.
    fn lower(&mut self, now: Duration, limit: f64) {
        let granted = self.window.granted(now) * MEASURED_SHARE;
        self.set(limit.max(granted));
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.max(LIMIT_MIN).min(f64::from(self.ceiling));
    }

    /// Compares the rate with the grants, once a minute. A guess is checked more often.
    fn look(&mut self, now: Duration) {
        if now < self.look_at || self.pause.is_some() || self.granted_ever == 0 {
            return;
        }
        if let Some(guess) = self.guess {
            self.look_at = now + guess.double_every;
            self.guess = Some(Guess { held: self.limit, ..guess });
            self.lower(now, self.limit * 2.0);
            if !self.is_lowered() {
                self.guess = None;
            }
            return;
        }
        self.look_at = now + MINUTE;
        let granted = self.window.granted(now);
        let is_used = f64::from(self.window.sent(now)) >= self.limit * (0.85 - self.window.paused());
        let trial = if is_used { std::mem::replace(&mut self.trial, Trial::None) } else { self.trial };
        match trial {
            Trial::Faster { limit, granted: before, before: (_, refused), .. } if is_used => {
                if granted >= before + (self.limit - limit) / 2.0 {
                    self.faster = (2.0 * self.faster - 1.0).min(FASTER_MAX);
                    (self.trial_every, self.minutes_to_trial) = (TRIAL_EVERY, 1);
                } else {
                    self.back_to(limit, (self.refused_ever - refused) as f64);
                }
            }
            Trial::Slower { limit, granted: before, share } if is_used => {
                let (_, share_now) = self.refused_share(now);
                if granted < before * (1.0 - share / 2.0) && share_now > share / 2.0 {
                    // Fewer calls, with as many of them refused: the cause was not the quota.
                    self.lower(now, limit);
                    self.strays = (share, now + FORGET_AFTER);
                }
            }
            Trial::None => self.begin_trial(now, granted, is_used),
            _ => {}
        }
    }

    /// Refusals of the last minute, and their share of its answers.
    fn refused_share(&mut self, now: Duration) -> (f64, f64) {
        let refused = self.window.about(now, |bucket| bucket.refused);
        (refused, refused / (self.window.granted(now) + refused).max(1.0))
    }

    fn begin_trial(&mut self, now: Duration, granted: f64, is_used: bool) {
        let (refused, share) = self.refused_share(now);
        let answered = (granted + refused).max(1.0);
        let by_chance = 2.0 * (0.05 / answered).sqrt();
        let much = if self.is_lowered() { REFUSED_SHARE_LOWERED } else { REFUSED_SHARE + by_chance };
        let strays = self.strays_now(now);
        if is_used && refused >= REFUSED_MIN && granted > LIMIT_MIN && share > much.max(strays) {
            self.trial = Trial::Slower { limit: self.limit, granted, share };
            self.lower(now, granted * MEASURED_SHARE);
        } else if self.is_lowered() && is_used {
            self.minutes_to_trial = self.minutes_to_trial.saturating_sub(1);
            if self.minutes_to_trial == 0 {
                let before = (self.granted_ever, self.refused_ever);
                // Strays of the minute before are met in the trial as well.
                let refused_most = if self.limit < SLOW { 1.0 + refused.min(1.0) } else { REFUSED_MIN };
                self.trial = Trial::Faster { limit: self.limit, granted, before, refused_most };
                self.lower(now, self.limit * self.faster + 1.0);
            }
        } else if self.is_lowered() && self.refused_at.is_none_or(|at| now >= at + FORGET_AFTER) {
            self.lower(now, self.limit * 1.25);
        }
    }
}

/// The interval between two calls at a rate of `per_minute`.
fn period_of(per_minute: f64) -> Duration {
    Duration::from_secs_f64(60.0 / per_minute)
}

/// Doubles, and adds up to the same amount at random.
fn delay(step: u32, jitter: f64) -> Duration {
    let least = PAUSE_MIN * 2_u32.pow(step.min(6));
    least.min(PAUSE_MAX.mul_f64(0.75)).mul_f64(1.0 + jitter).min(PAUSE_MAX)
}
