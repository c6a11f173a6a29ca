//! Which tenants this process reads: it joins the fleet, keeps its heartbeat, takes the tenants that are its own by
//! [`placement`](super::placement) and free, and gives back what others want.
//!
//! No lease of a living member is ever taken. Who should have it says so in `wanted_by`; the holder stops the tenant,
//! waits for what is under way, and only then gives it back. Nothing here touches the state of a tenant: whoever opens it
//! reads it and commits against what was read, so that a holder that is late is refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::types::{ToSql, Type};
use tokio_util::sync::CancellationToken;

use super::PostgresStore;
use super::failures::{Failures, Next};
use super::fence::Fence;
use super::members::{Beat, Member};
use super::placement::{Peer, next_after, owner_of};
use crate::clock::Clock;
use crate::host::StateError;
use crate::metrics;
use crate::model::TenantId;

/// Between two looks at the leases.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Heartbeats in the time that one lasts.
const BEATS_PER_LEASE: u32 = 4;
/// A member that has joined lets so long pass before it takes tenants: a fleet that starts at once is shared out among all
/// of it, in place of the first having everything and the others waiting for [`MOVES_ONE_IN`].
const SETTLES: Duration = Duration::from_secs(3);
/// Tenants taken at one look, at most: opening one reads its state.
const TAKEN_PER_LOOK_MAX: usize = 200;
/// A tenant that came from a living member stays at least so long.
const STAYS: Duration = Duration::from_secs(600);
/// Of the tenants it holds, a member gives at most one in so many away within [`MOVES_WITHIN`].
const MOVES_ONE_IN: usize = 20;
const MOVES_WITHIN: Duration = Duration::from_secs(60);
/// A tenant whose writer lost it although the lease says us is opened anew after this.
const OPENED_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// A tenant that was passed on waits so long for the member it was passed to, before the one that should have it takes it.
const PASSED_WAIT: Duration = Duration::from_secs(30);

/// What the process is to do.
#[derive(Debug)]
pub enum LeaseOrder {
    /// Read this tenant.
    Start(TenantId),
    /// Stop these, and answer when they have ended.
    Stop(Vec<TenantId>, oneshot::Sender<()>),
    /// The table of tenants changed: read the configuration again.
    Reload,
    /// Another process goes by this member's name: end.
    End,
}

/// Where the process and its leases talk.
#[derive(Debug)]
pub struct LeaseChannels {
    /// What the process is to do.
    pub orders: mpsc::UnboundedReceiver<LeaseOrder>,
    /// Tenants that the configuration has.
    pub tenants: watch::Sender<BTreeSet<TenantId>>,
    /// Tenants of which a source ended by itself.
    pub ended: mpsc::UnboundedSender<(TenantId, Ending)>,
}

/// Why a source ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Another writer changed the tenant's state.
    Conflict,
    /// It failed, of whatever.
    Failed,
}

/// The keeper of this process's leases.
pub struct LeaseKeeper {
    store: PostgresStore,
    member: Member,
    lease: Duration,
    fence: Arc<Fence>,
    clock: Arc<dyn Clock>,
    /// Without a bound: a process that is slow to follow must not keep the heartbeat waiting.
    orders: mpsc::UnboundedSender<LeaseOrder>,
    tenants: watch::Receiver<BTreeSet<TenantId>>,
    ended: mpsc::UnboundedReceiver<(TenantId, Ending)>,
    held: BTreeMap<TenantId, LeaseState>,
    leaving: Vec<(Vec<TenantId>, oneshot::Receiver<()>)>,
    reopening: BTreeMap<TenantId, Duration>,
    failures: Failures,
    /// Who is to try a tenant that is being given back because it failed here.
    passing: BTreeMap<TenantId, String>,
    /// Tenants that were passed to others and are this member's otherwise, since when that is seen.
    passed: BTreeMap<TenantId, Duration>,
    /// When tenants were given away, newest last.
    moves: Vec<Duration>,
    /// Tenants this member asked a living one for.
    asked: BTreeSet<TenantId>,
    /// Who should have what, by the members it was computed from.
    placed: Option<(Vec<Peer>, Arc<Placed>)>,
    joined: bool,
    beat_at: Option<Duration>,
    /// When it takes tenants, after it joined.
    takes_from: Duration,
    /// The table of tenants, as it was when it was last read.
    stored: Option<(i64, i64)>,
    troubled: bool,
    on_trouble: OnStoreTrouble,
}

/// Told, in words with the remedy, when the store does not answer, and with `None` when it does again.
pub type OnStoreTrouble = Box<dyn Fn(Option<String>) + Send + Sync>;

/// The member that should have each tenant.
type Placed = HashMap<TenantId, String>;

#[derive(Debug)]
struct LeaseState {
    /// Since when, where it came from a living member.
    came: Option<Duration>,
    leaving: bool,
}

/// What a member may take, and what it asks for.
#[derive(Default)]
struct Wishes<'p> {
    free: Vec<&'p str>,
    /// Held by living members.
    others: Vec<&'p str>,
    /// Those of the free that a member passed on to this one, as it could not read them.
    passed_to_me: BTreeSet<TenantId>,
    /// Those that were passed on to another and are this member's otherwise, since when that is seen.
    passed: BTreeMap<TenantId, Duration>,
}

/// A lease as it stands.
#[derive(Debug, Clone)]
struct LeaseRow {
    tenant: TenantId,
    member: Option<String>,
    incarnation: Option<i64>,
    /// Its holder lives.
    alive: bool,
    /// A living member wants it.
    wanted_by: Option<String>,
}

impl LeaseKeeper {
    /// A keeper that has not joined, and the process's end.
    pub fn new(
        store: PostgresStore,
        member: Member,
        lease: Duration,
        fence: Arc<Fence>,
        clock: Arc<dyn Clock>,
        on_trouble: OnStoreTrouble,
    ) -> (Self, LeaseChannels) {
        let (give, orders) = mpsc::unbounded_channel();
        let (tenants, wanted) = watch::channel(BTreeSet::new());
        let (ended, endings) = mpsc::unbounded_channel();
        let keeper = Self {
            store,
            member,
            lease,
            fence,
            clock,
            orders: give,
            tenants: wanted,
            ended: endings,
            held: BTreeMap::new(),
            leaving: Vec::new(),
            reopening: BTreeMap::new(),
            failures: Failures::default(),
            passing: BTreeMap::new(),
            passed: BTreeMap::new(),
            moves: Vec::new(),
            asked: BTreeSet::new(),
            placed: None,
            joined: false,
            beat_at: None,
            takes_from: Duration::ZERO,
            stored: None,
            troubled: false,
            on_trouble,
        };
        (keeper, LeaseChannels { orders, tenants, ended })
    }

    /// Keeps the leases until `stop`, then gives them back: the caller has stopped all tenants by then.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let result = tokio::select! {
                () = stop.cancelled() => break,
                result = self.look() => result,
            };
            match result {
                Ok(true) => self.report_trouble(None),
                Ok(false) => break,
                Err(error) => self.report_trouble(Some(&error)),
            }
            let pause = LOOK_EVERY.min(self.lease / BEATS_PER_LEASE);
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.clock.sleep(pause) => {}
            }
        }
        self.fence.shut();
        if self.joined
            && let Err(error) = self.member.leave().await
        {
            tracing::warn!("cluster-left-unsaid: the leases were not given back, they expire by themselves: {error}");
        }
        self.joined = false;
        self.count();
    }

    /// One look; `false` when this process is to end.
    async fn look(&mut self) -> Result<bool, StateError> {
        if !self.joined {
            self.join().await?;
        }
        match self.beat().await? {
            Beat::Alive => {}
            // Joins anew at the next look.
            Beat::Expired => return Ok(true),
            Beat::Replaced => return Ok(false),
        }
        self.released().await?;
        let stored = Some(self.store.tenants_version().await?);
        if self.stored.is_some() && self.stored != stored {
            let _ = self.orders.send(LeaseOrder::Reload);
        }
        self.stored = stored;
        let peers = self.store.peers().await?;
        ::metrics::gauge!(metrics::CLUSTER_MEMBERS).set(peers.len() as f64);
        let rows = self.rows().await?;
        self.drop_what_is_gone(&rows);
        while let Ok((tenant, ending)) = self.ended.try_recv() {
            self.ended_by_itself(tenant, ending, &peers);
        }
        self.reopen();
        let wanted = self.tenants.borrow_and_update().clone();
        self.disown(&peers, &rows, &wanted).await?;
        self.give(&peers, &rows, &wanted);
        self.take(&peers, &rows, &wanted).await?;
        self.count();
        Ok(true)
    }

    async fn join(&mut self) -> Result<(), StateError> {
        let sent = self.clock.since_boot();
        let was_in_use = self.member.join().await?;
        self.joined = true;
        let now = self.clock.monotonic();
        self.beat_at = Some(now);
        self.takes_from = now + SETTLES.min(self.lease / BEATS_PER_LEASE);
        self.fence.joined(self.member.incarnation());
        self.fence.answered(sent);
        let id = self.member.id();
        tracing::info!(member = id, lease_secs = self.lease.as_secs(), "joined the cluster");
        if was_in_use {
            tracing::warn!(
                "member-replaced: a member `{id}` was alive until now (hint: after a crash that is this process's former life; \
                 if two processes run under one name, give each its own `cluster.member`)"
            );
        }
        Ok(())
    }

    /// Heartbeat, when it is due. Where it is not alive any more all leases are lost, and everything was stopped.
    async fn beat(&mut self) -> Result<Beat, StateError> {
        let now = self.clock.monotonic();
        if self.beat_at.is_some_and(|at| now.saturating_sub(at) < self.lease / BEATS_PER_LEASE) {
            return Ok(Beat::Alive);
        }
        let sent = self.clock.since_boot();
        let beat = self.member.beat().await?;
        match beat {
            Beat::Alive => {
                self.fence.answered(sent);
                self.beat_at = Some(now);
            }
            Beat::Expired => {
                metrics::lease_lost("expired");
                tracing::warn!(
                    tenants = self.held.len(),
                    "lease-lost: this member was silent for longer than `cluster.lease_secs`, so others may have its tenants; it begins anew (hint: the process was paused, or the cluster's store was out of reach)"
                );
                self.stop_all().await;
            }
            Beat::Replaced => {
                metrics::lease_lost("replaced");
                tracing::error!(
                    "member-replaced: another process goes by the name `{}`; this one ends (hint: give each process its own `cluster.member`)",
                    self.member.id()
                );
                self.stop_all().await;
                let _ = self.orders.send(LeaseOrder::End);
            }
        }
        Ok(beat)
    }

    /// Everything is lost: it stops, and only then this member begins anew.
    async fn stop_all(&mut self) {
        self.fence.shut();
        let all: Vec<TenantId> = std::mem::take(&mut self.held).into_keys().collect();
        self.reopening.clear();
        self.leaving.clear();
        self.passing.clear();
        self.asked.clear();
        self.passing.clear();
        self.joined = false;
        if !all.is_empty() {
            let (answer, ended) = oneshot::channel();
            if self.orders.send(LeaseOrder::Stop(all, answer)).is_ok() {
                let _ = ended.await;
            }
        }
        self.count();
    }

    /// All leases, as they stand.
    async fn rows(&self) -> Result<Vec<LeaseRow>, StateError> {
        let rows = self
            .store
            .rows(
                "select l.tenant::text, l.member, l.incarnation, m.id is not null, w.id
                from lease l
                left join member m on m.id = l.member and m.incarnation = l.incarnation and m.expires > clock_timestamp()
                left join member w on w.id = l.wanted_by and w.expires > clock_timestamp()",
                &[],
            )
            .await?;
        let row = |row: &tokio_postgres::Row| {
            let tenant: String = row.get(0);
            Some(LeaseRow {
                tenant: tenant.parse().ok()?,
                member: row.get(1),
                incarnation: row.get(2),
                alive: row.get(3),
                wanted_by: row.get(4),
            })
        };
        Ok(rows.iter().filter_map(row).collect())
    }

    fn is_mine(&self, row: &LeaseRow) -> bool {
        row.member.as_deref() == Some(self.member.id()) && row.incarnation == Some(self.member.incarnation())
    }

    /// What this process holds and the store does not know as its: somebody took the row away by hand.
    fn drop_what_is_gone(&mut self, rows: &[LeaseRow]) {
        let mine: BTreeSet<&TenantId> = rows.iter().filter(|row| self.is_mine(row)).map(|row| &row.tenant).collect();
        let gone: Vec<TenantId> =
            self.held.iter().filter(|(t, held)| !held.leaving && !mine.contains(t)).map(|(t, _)| t.clone()).collect();
        if !gone.is_empty() {
            metrics::lease_lost("gone");
            gone.iter().for_each(|tenant| self.fence.release(tenant));
            self.stop(gone);
        }
    }

    /// Gives back what the store says is this member's, and is not: it was given back, and a store that failed over does not
    /// know. What should be this member's is taken like any other.
    async fn disown(
        &mut self,
        peers: &[Peer],
        rows: &[LeaseRow],
        wanted: &BTreeSet<TenantId>,
    ) -> Result<(), StateError> {
        let placed = self.placed(peers, wanted);
        let is_own = |tenant: &TenantId| placed.get(tenant).is_some_and(|owner| owner == self.member.id());
        let strange: Vec<TenantId> = rows
            .iter()
            .filter(|row| self.is_mine(row) && !self.held.contains_key(&row.tenant) && !is_own(&row.tenant))
            .map(|row| row.tenant.clone())
            .collect();
        if strange.is_empty() { Ok(()) } else { self.give_back(&strange).await }
    }

    /// A source of the tenant ended: it begins again, or another member is to try.
    fn ended_by_itself(&mut self, tenant: TenantId, ending: Ending, peers: &[Peer]) {
        let now = self.clock.monotonic();
        if self.held.get(&tenant).is_none_or(|held| held.leaving) {
            return;
        }
        let pause = match ending {
            Ending::Conflict => {
                metrics::lease_lost("conflict");
                OPENED_AGAIN_AFTER
            }
            Ending::Failed => {
                let other = next_after(self.member.id(), tenant.as_str(), peers);
                match (self.failures.failed(&tenant, now, other.is_some()), other) {
                    (Next::PassOn, Some(other)) => {
                        metrics::lease_lost("failed");
                        tracing::warn!(
                            %tenant, to = %other.id,
                            "tenant-passed-on: the tenant's source failed again and again, so another member is to try (hint: look at why it failed, in the lines above; what is wrong may be this machine's alone)"
                        );
                        self.passing.insert(tenant.clone(), other.id.clone());
                        return self.stop(vec![tenant]);
                    }
                    (Next::Again(pause), _) => pause,
                    (Next::PassOn, None) => OPENED_AGAIN_AFTER,
                }
            }
        };
        tracing::info!(%tenant, secs = pause.as_secs(), "the tenant's source ended by itself and begins again");
        self.reopening.insert(tenant, now + pause);
    }

    /// Opens what ended although its lease is held still.
    fn reopen(&mut self) {
        let now = self.clock.monotonic();
        self.failures.tidy(now);
        let due: Vec<TenantId> =
            self.reopening.iter().filter(|(_, at)| **at <= now).map(|(tenant, _)| tenant.clone()).collect();
        for tenant in due {
            self.reopening.remove(&tenant);
            if self.held.get(&tenant).is_some_and(|held| !held.leaving) {
                let _ = self.orders.send(LeaseOrder::Start(tenant));
            }
        }
    }

    /// Gives up what the configuration has no more, and what a living member wants, few at a time.
    fn give(&mut self, peers: &[Peer], rows: &[LeaseRow], wanted: &BTreeSet<TenantId>) {
        let placed = self.placed(peers, wanted);
        let now = self.clock.monotonic();
        self.moves.retain(|at| now.saturating_sub(*at) < MOVES_WITHIN);
        let mut room = (self.held.len() / MOVES_ONE_IN).max(1).saturating_sub(self.moves.len());
        let mut leaving = Vec::new();
        for row in rows {
            if !self.is_mine(row) {
                continue;
            }
            let Some(held) = self.held.get(&row.tenant).filter(|held| !held.leaving) else { continue };
            if !wanted.contains(&row.tenant) {
                leaving.push(row.tenant.clone());
                continue;
            }
            // Whoever asked may have left the fleet's plan since.
            let is_wanted =
                row.wanted_by.is_some() && placed.get(&row.tenant).is_some_and(|owner| owner != self.member.id());
            let may_go = held.came.is_none_or(|came| now.saturating_sub(came) >= STAYS);
            if is_wanted && may_go && room > 0 {
                room -= 1;
                self.moves.push(now);
                leaving.push(row.tenant.clone());
            }
        }
        if !leaving.is_empty() {
            self.stop(leaving);
        }
    }

    fn stop(&mut self, tenants: Vec<TenantId>) {
        for tenant in &tenants {
            self.reopening.remove(tenant);
            // Before the process hears of it: a reload in between must not begin the tenant again.
            self.fence.leaves(tenant.clone());
            if let Some(held) = self.held.get_mut(tenant) {
                held.leaving = true;
            }
        }
        let (answer, ended) = oneshot::channel();
        if self.orders.send(LeaseOrder::Stop(tenants.clone(), answer)).is_ok() {
            self.leaving.push((tenants, ended));
        }
    }

    /// Gives back the leases of tenants that have ended.
    async fn released(&mut self) -> Result<(), StateError> {
        let mut ended: Vec<TenantId> = Vec::new();
        self.leaving.retain_mut(|(tenants, end)| match end.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => true,
            _ => {
                ended.append(tenants);
                false
            }
        });
        if ended.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.give_back(&ended).await {
            // Asked again at the next look.
            let (answer, again) = oneshot::channel();
            drop(answer);
            self.leaving.push((ended, again));
            return Err(error);
        }
        for tenant in &ended {
            self.fence.release(tenant);
            self.held.remove(tenant);
            self.passing.remove(tenant);
        }
        Ok(())
    }

    async fn give_back(&self, tenants: &[TenantId]) -> Result<(), StateError> {
        let (id, incarnation) = (self.member.id(), self.member.incarnation());
        // A lease of nobody that somebody wants: whoever that is takes it.
        for (tenant, to) in tenants.iter().filter_map(|tenant| Some((tenant, self.passing.get(tenant)?))) {
            let sql = "update lease set member = null, incarnation = null, wanted_by = $4
                where tenant = $1::text::uuid and member = $2 and incarnation = $3";
            let params: &[(&(dyn ToSql + Sync), Type)] =
                &[(&tenant.as_str(), Type::TEXT), (&id, Type::TEXT), (&incarnation, Type::INT8), (to, Type::TEXT)];
            self.store.rows(sql, params).await?;
        }
        let names: Vec<&str> = tenants.iter().map(TenantId::as_str).collect();
        let sql = "delete from lease where tenant = any ($1::text[]::uuid[]) and member = $2 and incarnation = $3";
        let params: &[(&(dyn ToSql + Sync), Type)] =
            &[(&names, Type::TEXT_ARRAY), (&id, Type::TEXT), (&incarnation, Type::INT8)];
        self.store.rows(sql, params).await.map(drop)
    }

    /// What this member may take, and what it asks for.
    fn wishes<'p>(&self, placed: &'p Placed, known: &HashMap<&TenantId, &LeaseRow>) -> Wishes<'p> {
        let (me, now) = (self.member.id(), self.clock.monotonic());
        let mut wishes = Wishes::default();
        for (tenant, owner) in placed.iter().filter(|(tenant, _)| !self.held.contains_key(*tenant)) {
            let row = known.get(tenant);
            let passed_to = row.filter(|row| row.member.is_none()).and_then(|row| row.wanted_by.as_deref());
            match row {
                _ if passed_to == Some(me) => {
                    wishes.free.push(tenant.as_str());
                    wishes.passed_to_me.insert(tenant.clone());
                }
                _ if owner != me => {}
                Some(row) if row.alive && !self.is_mine(row) => {
                    if row.wanted_by.as_deref() != Some(me) && !self.failures.stands_back(tenant, now) {
                        wishes.others.push(tenant.as_str());
                    }
                }
                _ if passed_to.is_some() => {
                    let since = *self.passed.get(tenant).unwrap_or(&now);
                    wishes.passed.insert(tenant.clone(), since);
                    if now.saturating_sub(since) >= PASSED_WAIT {
                        wishes.free.push(tenant.as_str());
                    }
                }
                _ => wishes.free.push(tenant.as_str()),
            }
        }
        wishes
    }

    /// Takes what should be this member's and is free, and asks for what a living member holds.
    async fn take(&mut self, peers: &[Peer], rows: &[LeaseRow], wanted: &BTreeSet<TenantId>) -> Result<(), StateError> {
        let placed = self.placed(peers, wanted);
        let known: HashMap<&TenantId, &LeaseRow> = rows.iter().map(|row| (&row.tenant, row)).collect();
        let without = placed.keys().filter(|tenant| known.get(tenant).is_none_or(|row| !row.alive)).count();
        ::metrics::gauge!(metrics::TENANTS_WITHOUT_MEMBER).set(without as f64);
        let me = self.member.id().to_owned();
        let Wishes { mut free, others, passed_to_me, passed } = self.wishes(&placed, &known);
        self.passed = passed;
        free.truncate(if self.clock.monotonic() < self.takes_from { 0 } else { TAKEN_PER_LOOK_MAX });
        if !others.is_empty() {
            self.store
                .rows(
                    "update lease set wanted_by = $1 where tenant = any ($2::text[]::uuid[])",
                    &[(&me, Type::TEXT), (&others, Type::TEXT_ARRAY)],
                )
                .await?;
            self.asked.extend(others.iter().filter_map(|tenant| tenant.parse().ok()));
        }
        if free.is_empty() {
            return Ok(());
        }
        let began = self.clock.monotonic();
        let incarnation = self.member.incarnation();
        let taken = self
            .store
            .rows(
                "insert into lease (tenant, member, incarnation, since, wanted_by)
                select t::uuid, $1, $2, clock_timestamp(), null from unnest($3) as t
                    where exists (select 1 from member where id = $1 and incarnation = $2 and expires > clock_timestamp())
                on conflict (tenant) do update set member = excluded.member, incarnation = excluded.incarnation,
                    since = excluded.since, wanted_by = null
                    where not exists (select 1 from member m where m.id = lease.member
                        and m.incarnation = lease.incarnation and m.expires > clock_timestamp()
                        and not (m.id = $1 and m.incarnation = $2))
                returning tenant::text",
                &[(&me, Type::TEXT), (&incarnation, Type::INT8), (&free, Type::TEXT_ARRAY)],
            )
            .await?;
        for tenant in taken.iter().filter_map(|row| row.get::<_, String>(0).parse::<TenantId>().ok()) {
            let came = (self.asked.remove(&tenant) || passed_to_me.contains(&tenant)).then_some(began);
            self.held.insert(tenant.clone(), LeaseState { came, leaving: false });
            self.fence.hold(tenant.clone());
            metrics::taken_over(self.clock.monotonic().saturating_sub(began));
            let _ = self.orders.send(LeaseOrder::Start(tenant));
        }
        Ok(())
    }

    /// Who should have which tenant; computed when members or tenants change.
    fn placed(&mut self, peers: &[Peer], wanted: &BTreeSet<TenantId>) -> Arc<Placed> {
        let is_known = |(by, placed): &(Vec<Peer>, Arc<Placed>)| {
            by == peers && placed.len() == wanted.len() && wanted.iter().all(|tenant| placed.contains_key(tenant))
        };
        if let Some((_, placed)) = self.placed.as_ref().filter(|known| is_known(known)) {
            return placed.clone();
        }
        let owner = |tenant: &TenantId| Some((tenant.clone(), owner_of(tenant.as_str(), peers)?.id.clone()));
        let placed: Arc<Placed> = Arc::new(wanted.iter().filter_map(owner).collect());
        self.placed = Some((peers.to_vec(), placed.clone()));
        placed
    }

    fn count(&self) {
        ::metrics::gauge!(metrics::LEASES_HELD).set(self.held.len() as f64);
    }

    fn report_trouble(&mut self, error: Option<&StateError>) {
        match (error, self.troubled) {
            (Some(error), false) => {
                let lease = self.lease.as_secs();
                let told = format!(
                    "cluster-store-away: {error} (hint: nothing is lost; while the store is away nothing is handed over from {} s on, and after {lease} s other members may take the tenants)",
                    lease * 2 / 3
                );
                tracing::warn!("{told}");
                (self.on_trouble)(Some(told));
                self.troubled = true;
            }
            (None, true) => {
                tracing::info!("the cluster's store answers again");
                (self.on_trouble)(None);
                self.troubled = false;
            }
            _ => {}
        }
    }
}
