//! The faults and their times: faults by rate and faults by script.
//!
//! A fault is chosen before the request is answered and independently of the answer. Rates are decided from the seed,
//! the call and the number of its attempt, never from the order in which requests happen to arrive, so a scenario is
//! repeatable for any parallelism of the client.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::model::{ContentType, TenantId};

/// The number of different calls whose attempts are counted; above it counting starts again.
const ATTEMPTS_MAX: usize = 1_000_000;

/// The kinds of call a client makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    /// A token endpoint, either version.
    Token,
    /// A managed identity's end point on the machine itself.
    Identity,
    /// `GET /subscriptions/list`
    List,
    /// `POST /subscriptions/start`
    Start,
    /// `POST /subscriptions/stop`
    Stop,
    /// `GET /subscriptions/content`, first page of a window.
    Content,
    /// `GET /subscriptions/content` with `nextPage`.
    NextPage,
    /// A content blob.
    Blob,
    /// `GET /subscriptions/notifications`
    Notifications,
    /// `GET /resources/dlpSensitiveTypes`
    SensitiveTypes,
    /// `POST /security/auditLog/queries` of Graph
    GraphSubmit,
    /// `GET` of a query of Graph
    GraphQuery,
    /// A page of the records of a query of Graph
    GraphRecords,
    /// A path the API does not have.
    Unknown,
}

impl CallKind {
    /// Whether the call is not one of the feed.
    pub const fn is_beside_the_feed(self) -> bool {
        matches!(self, Self::Token | Self::Identity | Self::GraphSubmit | Self::GraphQuery | Self::GraphRecords)
    }
}

/// A fault.
#[derive(Debug, Clone, PartialEq)]
pub enum SimFault {
    /// AF429: `status` 403 (as documented) or 429; `single_quoted` sends the body as the troubleshooting page
    /// prints it, which is not JSON.
    Throttled {
        /// 403 or 429.
        status: u16,
        /// Seconds in `Retry-After`, when the header is to be sent.
        retry_after_secs: Option<u64>,
        /// Single quotes instead of double quotes in the body.
        single_quoted: bool,
    },
    /// AF50000 with 500.
    InternalError,
    /// AF50005 with 500.
    InternalErrorUndocumented,
    /// A proxy's HTML page with this status (502, 503, 504).
    Gateway(u16),
    /// 408 without a body.
    RequestTimeout,
    /// The connection is reset (TCP RST on HTTP/1.1, stream reset on HTTP/2) before any answer.
    Reset,
    /// AF20050 with 404.
    ContentMissing,
    /// AF20051 with 400.
    ContentExpired,
    /// AF20052 with 400.
    ContentIdInvalid,
    /// 404 with an HTML page.
    NotFound,
    /// The front end's 401: `{"Message":"Authorization has been denied for this request."}`.
    Unauthorized,
    /// AF10001 with 401.
    PermissionMissing,
    /// AF20031 with 400.
    NextPageInvalid,
    /// AF20022 with 400.
    NotSubscribed,
    /// AF20023 with 400.
    SubscriptionDisabled,
    /// AF20055 with 400.
    WindowRefused,
    /// A refusal of the token endpoint with this AADSTS code.
    Aadsts(u32),
    /// 302 to this address.
    Redirect(String),
    /// Any other answer, body as given.
    Answer {
        /// HTTP status.
        status: u16,
        /// `Content-Type`.
        content_type: String,
        /// Body.
        body: Vec<u8>,
    },
    /// 200 with a proxy's HTML page.
    HtmlPage,
    /// 200 with an empty body.
    EmptyBody,
    /// The connection is closed after this many bytes of the body (at most one less than it has).
    CutBody(u64),
    /// `Content-Length` wrong by this many bytes: above zero the body ends early, below zero it is cut to fit and
    /// looks whole to HTTP.
    WrongLength(i64),
    /// `Content-Encoding: gzip` over a damaged stream.
    DamagedGzip,
    /// The answer waits this long, by the simulator's clock.
    Slow(Duration),
    /// Every 64 KiB of the body waits this long, by the simulator's clock.
    SlowBody(Duration),
    /// The `Date` header of this one answer is wrong by this many seconds.
    WrongDate(i64),
}

impl SimFault {
    /// A stable name, by which [`Faults::served`] counts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Throttled { .. } => "throttled",
            Self::InternalError => "internal-error",
            Self::InternalErrorUndocumented => "internal-error-undocumented",
            Self::Gateway(_) => "gateway",
            Self::RequestTimeout => "request-timeout",
            Self::Reset => "reset",
            Self::ContentMissing => "content-missing",
            Self::ContentExpired => "content-expired",
            Self::ContentIdInvalid => "content-id-invalid",
            Self::NotFound => "not-found",
            Self::Unauthorized => "unauthorized",
            Self::PermissionMissing => "permission-missing",
            Self::NextPageInvalid => "next-page-invalid",
            Self::NotSubscribed => "not-subscribed",
            Self::SubscriptionDisabled => "subscription-disabled",
            Self::WindowRefused => "window-refused",
            Self::Aadsts(_) => "aadsts",
            Self::Redirect(_) => "redirect",
            Self::Answer { .. } => "answer",
            Self::HtmlPage => "html-page",
            Self::EmptyBody => "empty-body",
            Self::CutBody(_) => "cut-body",
            Self::WrongLength(_) => "wrong-length",
            Self::DamagedGzip => "damaged-gzip",
            Self::Slow(_) => "slow",
            Self::SlowBody(_) => "slow-body",
            Self::WrongDate(_) => "wrong-date",
        }
    }
}

/// A fault for some coming calls. `None` in a selector matches every call of the kind.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultScript {
    /// Which kind of call.
    pub kind: CallKind,
    /// Only calls of this tenant.
    pub tenant: Option<TenantId>,
    /// Only calls that name this content type (a blob call names its blob's).
    pub content_type: Option<ContentType>,
    /// Only calls for this blob.
    pub blob_id: Option<String>,
    /// How many matching calls are let through first.
    pub skip: u32,
    /// How many matching calls then fail.
    pub times: u32,
    /// How.
    pub fault: SimFault,
}

impl FaultScript {
    /// The next `times` calls of `kind`, with any names.
    pub fn next(kind: CallKind, times: u32, fault: SimFault) -> Self {
        Self { kind, tenant: None, content_type: None, blob_id: None, skip: 0, times, fault }
    }
}

/// A fault that strikes a share of the calls of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Rate {
    /// Which kind of call.
    pub kind: CallKind,
    /// Share of the calls, 0 to 1.
    pub share: f64,
    /// How they fail.
    pub fault: SimFault,
}

/// All faults to come: scripts come first, in order, then the rates.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultPlan {
    /// Faults by script.
    pub scripts: Vec<FaultScript>,
    /// Faults by rate.
    pub rates: Vec<Rate>,
}

impl FaultPlan {
    /// Temporary faults on every kind of call, each call failing with probability `share`: throttling, server errors,
    /// proxies, resets, cut and non-JSON bodies.
    pub fn bad_weather(share: f64) -> Self {
        let everywhere =
            [CallKind::Token, CallKind::List, CallKind::Start, CallKind::Content, CallKind::NextPage, CallKind::Blob];
        let any =
            [SimFault::Gateway(502), SimFault::Gateway(503), SimFault::Reset, SimFault::HtmlPage, SimFault::EmptyBody];
        let feed = [
            SimFault::Throttled { status: 403, retry_after_secs: None, single_quoted: false },
            SimFault::Throttled { status: 429, retry_after_secs: Some(1), single_quoted: false },
            SimFault::InternalError,
            SimFault::CutBody(200),
        ];
        let mut rates = Vec::new();
        for kind in everywhere {
            let feed = if kind == CallKind::Token { &[][..] } else { &feed[..] };
            let faults: Vec<&SimFault> = any.iter().chain(feed).collect();
            let each = share / faults.len() as f64;
            rates.extend(faults.into_iter().map(|fault| Rate { kind, share: each, fault: fault.clone() }));
        }
        Self { scripts: Vec::new(), rates }
    }
}

/// The names in a call, by which a fault selects it.
pub(super) struct CallNames<'a> {
    pub kind: CallKind,
    pub tenant: Option<&'a TenantId>,
    pub content_type: Option<ContentType>,
    pub blob_id: Option<&'a str>,
    /// The query, which distinguishes this call from others.
    pub query: &'a str,
}

/// The faults of one simulator; changed at any time, from any thread.
pub struct Faults {
    seed: u64,
    inner: Mutex<FaultState>,
}

#[derive(Default)]
struct FaultState {
    plan: FaultPlan,
    attempts: HashMap<[u8; 16], u64>,
    served: BTreeMap<&'static str, u64>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, inner: Mutex::default() }
    }

    /// Replaces the whole plan.
    pub fn set(&self, plan: FaultPlan) {
        self.lock().plan = plan;
    }

    /// Forgets every fault that has not struck yet.
    pub fn clear(&self) {
        self.set(FaultPlan::default());
    }

    /// The next `times` calls of `kind` fail with `fault`, after the scripts already there.
    pub fn next(&self, kind: CallKind, times: u32, fault: SimFault) {
        self.script(FaultScript::next(kind, times, fault));
    }

    /// The next `times` fetches of the blob fail with `fault`.
    pub fn next_for_blob(&self, blob_id: &str, times: u32, fault: SimFault) {
        self.script(FaultScript {
            blob_id: Some(blob_id.to_owned()),
            ..FaultScript::next(CallKind::Blob, times, fault)
        });
    }

    /// The next `times` calls of `kind` that name the content type fail with `fault`.
    pub fn next_for_type(&self, kind: CallKind, content_type: ContentType, times: u32, fault: SimFault) {
        self.script(FaultScript { content_type: Some(content_type), ..FaultScript::next(kind, times, fault) });
    }

    /// Adds a script after those already there.
    pub fn script(&self, script: FaultScript) {
        self.lock().plan.scripts.push(script);
    }

    /// A share of the calls of `kind` fail with `fault` from now on.
    pub fn rate(&self, kind: CallKind, share: f64, fault: SimFault) {
        self.lock().plan.rates.push(Rate { kind, share, fault });
    }

    /// How often each fault has struck, by [`SimFault::name`].
    pub fn served(&self) -> BTreeMap<&'static str, u64> {
        self.lock().served.clone()
    }

    /// How many scripted faults are still to strike.
    pub fn pending(&self) -> u64 {
        self.lock().plan.scripts.iter().map(|script| u64::from(script.times)).sum()
    }

    /// Removes and returns the fault that strikes this call, if any.
    pub(super) fn strike(&self, call: &CallNames<'_>) -> Option<SimFault> {
        let mut inner = self.lock();
        let fault = inner.scripted(call).or_else(|| inner.by_rate(self.seed, call))?;
        *inner.served.entry(fault.name()).or_default() += 1;
        Some(fault)
    }

    fn lock(&self) -> MutexGuard<'_, FaultState> {
        self.inner.lock()
    }
}

impl FaultState {
    fn scripted(&mut self, call: &CallNames<'_>) -> Option<SimFault> {
        let script = self.plan.scripts.iter_mut().find(|script| {
            script.times > 0
                && script.kind == call.kind
                && script.tenant.as_ref().is_none_or(|tenant| Some(tenant) == call.tenant)
                && script.content_type.is_none_or(|t| Some(t) == call.content_type)
                && script.blob_id.as_deref().is_none_or(|id| Some(id) == call.blob_id)
        })?;
        if script.skip > 0 {
            script.skip -= 1;
            return None;
        }
        script.times -= 1;
        let fault = script.fault.clone();
        self.plan.scripts.retain(|script| script.times > 0);
        Some(fault)
    }

    fn by_rate(&mut self, seed: u64, call: &CallNames<'_>) -> Option<SimFault> {
        if !self.plan.rates.iter().any(|rate| rate.kind == call.kind) {
            return None;
        }
        let mut name = blake3::Hasher::new();
        name.update(
            format!("{:?}|{:?}|{:?}|{:?}|{}", call.kind, call.tenant, call.content_type, call.blob_id, call.query)
                .as_bytes(),
        );
        let mut key = [0; 16];
        key.copy_from_slice(&name.finalize().as_bytes()[..16]);
        if self.attempts.len() >= ATTEMPTS_MAX {
            self.attempts.clear();
        }
        let attempt = self.attempts.entry(key).or_default();
        *attempt += 1;
        let mix = u64::from_le_bytes([key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7]]);
        let mut draw = fastrand::Rng::with_seed(seed ^ mix ^ attempt.wrapping_mul(0x9e37_79b9_7f4a_7c15)).f64();
        for rate in self.plan.rates.iter().filter(|rate| rate.kind == call.kind) {
            if draw < rate.share {
                return Some(rate.fault.clone());
            }
            draw -= rate.share;
        }
        None
    }
}
