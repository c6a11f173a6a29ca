//! The protocol of a cluster as a model, every order of its steps tried: members that pause, are cut off and begin anew,
//! leases that expire meanwhile, answers that are lost, and a store that fails over to a standby which lacks the last
//! commits.
//!
//! What is modelled: `hosts/postgres/members.rs` (join, heartbeat), `leases.rs` (take), `checkpoint/ledger.rs` (open, commit
//! against the owner's revision) and `schema.sql` (what a commit compares). Time is left out: a lease may expire between any
//! two steps, so whatever holds here holds for any clock. Two faults of an earlier design are in it, each of which the
//! model must find: a heartbeat that revives who has expired, and revisions that are counted.

use stateright::{Checker, Model, Property};

const MEMBERS: usize = 3;
const TENANTS: usize = 2;
/// Commits of a tenant, lives of a member and failovers that are tried.
const COMMITS_MAX: u8 = 3;
const LIVES_MAX: u8 = 2;

/// Which of the faults are in.
#[derive(Debug, Clone, Copy, Default)]
struct Protocol {
    heartbeat_revives: bool,
    revisions_are_counted: bool,
    failovers: u8,
}

/// What a tenant's state is: the revision that is compared, and which commit of all there ever were it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Version {
    revision: u8,
    commit: u8,
}

/// A lease: whose, in which life.
type Lease = Option<(u8, u8)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Store {
    versions: [Version; TENANTS],
    leases: [Lease; TENANTS],
    /// The life of each member, and whether it has not expired.
    members: [Option<(u8, bool)>; MEMBERS],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Worker {
    /// Its life; 0 before it joined.
    life: u8,
    /// Tenants it believes are its own, and the version it knows of each, once it is opened.
    holds: [bool; TENANTS],
    knows: [Option<Version>; TENANTS],
    /// Its last heartbeat was answered: it is alive.
    sure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct State {
    store: Store,
    /// What a standby has: the store as it was.
    standby: Option<Store>,
    workers: [Worker; MEMBERS],
    /// Commits that were ever taken, of each tenant.
    commits: [u8; TENANTS],
    failovers: u8,
    /// A commit was taken of a worker that did not know the tenant's last one.
    stale: bool,
    /// A worker is sure of a lease that another live member has.
    shared: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Join(usize),
    Heartbeat(usize),
    Expire(usize),
    Take(usize, usize),
    Open(usize, usize),
    Commit(usize, usize),
    /// The standby hears of everything up to now.
    Replicate,
    Failover,
}

impl Protocol {
    /// The commit of a worker that knows `known`; whether it was taken.
    fn commit(self, state: &mut State, tenant: usize, known: Version) -> bool {
        let now = state.store.versions[tenant];
        if now.revision != known.revision {
            return false;
        }
        // What the revision says and what is there are two things: that is the question.
        state.stale |= now.commit != known.commit;
        state.commits[tenant] += 1;
        let commit = state.commits[tenant];
        // One that is drawn was never given out before; each commit has a number of its own.
        let revision = if self.revisions_are_counted { now.revision + 1 } else { commit };
        state.store.versions[tenant] = Version { revision, commit };
        true
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for (member, worker) in state.workers.iter().enumerate() {
            if !worker.sure && worker.life < LIVES_MAX {
                steps.push(Step::Join(member));
            }
            if worker.sure {
                steps.push(Step::Heartbeat(member));
            }
            if matches!(state.store.members[member], Some((_, true))) {
                steps.push(Step::Expire(member));
            }
            for tenant in 0..TENANTS {
                if worker.sure && !worker.holds[tenant] {
                    steps.push(Step::Take(member, tenant));
                }
                if worker.holds[tenant] && state.commits[tenant] < COMMITS_MAX {
                    let step = if worker.knows[tenant].is_some() { Step::Commit } else { Step::Open };
                    steps.push(step(member, tenant));
                }
            }
        }
        if state.failovers < self.failovers {
            if state.standby.as_ref() != Some(&state.store) {
                steps.push(Step::Replicate);
            }
            if state.standby.is_some() {
                steps.push(Step::Failover);
            }
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Join(member) => {
                let worker = &mut state.workers[member];
                *worker = Worker { life: worker.life + 1, sure: true, ..Worker::default() };
                state.store.members[member] = Some((worker.life, true));
            }
            Step::Heartbeat(member) => {
                let worker = &mut state.workers[member];
                let alive = match &mut state.store.members[member] {
                    Some((life, alive)) if *life == worker.life => {
                        *alive |= self.heartbeat_revives;
                        *alive
                    }
                    _ => false,
                };
                if !alive {
                    // All is lost: it begins anew with nothing.
                    *worker = Worker { life: worker.life, ..Worker::default() };
                }
                // A heartbeat that was answered says that every lease it believes in is its own.
                for tenant in 0..TENANTS {
                    let own = Some((member as u8, worker.life));
                    state.shared |= alive && worker.holds[tenant] && state.store.leases[tenant] != own;
                }
            }
            Step::Expire(member) => {
                if let Some((_, alive)) = &mut state.store.members[member] {
                    *alive = false;
                }
            }
            Step::Take(member, tenant) => {
                let life = state.workers[member].life;
                if state.store.members[member] != Some((life, true)) {
                    return None;
                }
                let is_free = state.store.leases[tenant].is_none_or(|(holder, life)| {
                    let of_the_living = state.store.members[usize::from(holder)] == Some((life, true));
                    !of_the_living
                });
                if !is_free {
                    return None;
                }
                state.store.leases[tenant] = Some((member as u8, life));
                state.workers[member].holds[tenant] = true;
            }
            // Read, and compared by the first commit, which takes the tenant over.
            Step::Open(member, tenant) => {
                state.workers[member].knows[tenant] = Some(state.store.versions[tenant]);
            }
            Step::Commit(member, tenant) => {
                let known = state.workers[member].knows[tenant]?;
                // Refused, it gives the tenant up and opens it anew. Taken with its answer lost, it finds its own name in the
                // owner's entry, and knows what it would have been told.
                let taken = self.commit(&mut state, tenant, known);
                state.workers[member].knows[tenant] = taken.then(|| state.store.versions[tenant]);
            }
            Step::Replicate => state.standby = Some(state.store.clone()),
            Step::Failover => {
                state.store = state.standby.take()?;
                state.failovers += 1;
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a commit is taken only of who knows the last one", |_, state: &State| !state.stale),
            Property::always("a lease has one living holder", |_, state: &State| !state.shared),
            Property::sometimes("all tenants are committed to the end", |_, state: &State| {
                state.commits.iter().all(|commits| *commits == COMMITS_MAX)
            }),
        ]
    }
}

/// Every state within so many steps.
fn tried(protocol: Protocol, steps: usize) -> impl Checker<Protocol> {
    protocol.checker().threads(2).target_max_depth(steps).spawn_bfs().join()
}

#[test]
fn no_order_of_steps_has_two_commits_on_one_base_or_two_living_holders() {
    let checked = tried(Protocol::default(), 13);
    checked.assert_properties();
    println!("{} states", checked.unique_state_count());
}

#[test]
fn neither_does_a_failover_that_loses_commits() {
    let checked = tried(Protocol { failovers: 1, ..Protocol::default() }, 13);
    checked.assert_no_discovery("a commit is taken only of who knows the last one");
}

#[test]
fn the_model_finds_that_a_heartbeat_must_not_revive_who_has_expired() {
    let checked = tried(Protocol { heartbeat_revives: true, ..Protocol::default() }, 11);
    checked.assert_any_discovery("a lease has one living holder");
}

#[test]
fn the_model_finds_that_revisions_must_not_be_counted() {
    let protocol = Protocol { revisions_are_counted: true, failovers: 1, ..Protocol::default() };
    tried(protocol, 13).assert_any_discovery("a commit is taken only of who knows the last one");
}
