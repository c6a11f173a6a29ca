//! Fluent Bit's output `s3`, set as the recipe of `docs/hosts/recipes.md` has it, into moto, which plays S3: what a kill of
//! either costs. `MOTO_SERVER` names moto; `.ci/destinations s3 DIR` fetches it. moto keeps objects in its memory, so the
//! test keeps what moto has answered for, as a store does that is killed.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use m365_audit::sim::{Comparison, Sim};
use serde_json::Value;
use test_support::program;
use tokio::net::TcpListener;

use crate::agents::example;
use crate::destinations::{FluentBit, PATIENCE, Server, client};
use crate::recipes::blocks;
use crate::truth::{FastClock, assert_nothing_lost, compare, pass_in, tenant};

/// Between Fluent Bit and moto: hands on what comes, and keeps each object that moto has answered for.
#[derive(Clone)]
pub struct Store {
    moto: String,
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl Store {
    pub async fn listen(moto: &Server) -> (Self, u16) {
        let store = Self { moto: moto.url.clone(), objects: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(hand_on).with_state(store.clone());
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (store, port)
    }

    /// The records of all objects.
    pub fn records(&self) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();
        let mut records = Vec::new();
        for (key, body) in objects.iter() {
            let mut text = String::new();
            flate2::read::MultiGzDecoder::new(&body[..])
                .read_to_string(&mut text)
                .unwrap_or_else(|e| panic!("{key}: {e}"));
            records.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        records
    }

    pub fn count(&self) -> usize {
        self.objects.lock().unwrap().len()
    }
}

async fn hand_on(State(store): State<Store>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let url = format!("{}{}", store.moto, head.uri);
    let mut headers = head.headers.clone();
    headers.remove("host");
    headers.remove("expect");
    let sent = client().request(head.method.clone(), url).headers(headers).body(body.clone()).send().await;
    let Ok(answer) = sent else { return StatusCode::BAD_GATEWAY.into_response() };
    let status = answer.status();
    let text = answer.bytes().await.unwrap_or_default();
    if head.method == Method::PUT && status.is_success() {
        store.objects.lock().unwrap().insert(head.uri.path().to_owned(), body);
    }
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

pub async fn moto(program: &Path) -> Server {
    let program = program.to_owned();
    let server = Server::start(move |_, port| {
        let mut command = Command::new(&program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command
    })
    .await;
    make_bucket(&server).await;
    server
}

/// It has forgotten its buckets when it was killed.
pub async fn make_bucket(server: &Server) {
    server.ask(Method::PUT, "/audit-archive", "application/xml", "").await;
}

fn fluent_bit(program: PathBuf, port: u16) -> FluentBit {
    let base = example("opensearch/fluent-bit.yaml");
    let base = &base[..base.find("  outputs:\n").unwrap()];
    let (_, recipe) = blocks("yaml").into_iter().find(|(heading, _)| heading == "S3").expect("a recipe for S3");
    let recipe: String = recipe.lines().map(|line| format!("    {line}\n")).collect();
    // Objects come after seconds here, and to a store that is not Amazon's.
    let recipe = recipe
        .replace("upload_timeout: 5m", "upload_timeout: 4s")
        .replace("total_file_size: 50M", "total_file_size: 1M");
    FluentBit::start(program, &format!("{base}  outputs:\n{recipe}      endpoint: http://127.0.0.1:{port}\n"))
}

/// What is in the store when nothing is missing, or nothing more has come for long.
async fn settled(store: &Store, sim: &Sim) -> Comparison {
    let (mut begun, mut last) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let outcome = compare(sim, store.records());
        if store.count() > last {
            (begun, last) = (Instant::now(), store.count());
        }
        if outcome.lost.is_empty() || begun.elapsed() > PATIENCE {
            return outcome;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_store_has_every_event_through_kills_of_fluent_bit() {
    let (Some(moto_server), Some(program)) = (program("moto"), program("fluent-bit")) else { return };
    let server = moto(&moto_server).await;
    let (store, port) = Store::listen(&server).await;
    let mut fluent_bit = fluent_bit(program, port);
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 60, 60).await;
    let table = fluent_bit.table();
    let killer = async {
        for pause in [900, 1_700, 4_500, 300, 5_200] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            fluent_bit.kill_and_start_again();
        }
    };
    tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
    let outcome = settled(&store, &sim).await;
    println!(
        "Fluent Bit killed 5 times: {} events, {} lost, {} twice, {} objects",
        outcome.expected,
        outcome.lost.len(),
        outcome.duplicated.len(),
        store.count()
    );
    if !outcome.lost.is_empty() {
        println!("{}", fluent_bit.log());
    }
    assert_nothing_lost(&outcome);
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_store_has_every_event_through_its_own_kills() {
    let (Some(moto_server), Some(program)) = (program("moto"), program("fluent-bit")) else { return };
    let mut server = moto(&moto_server).await;
    let (store, port) = Store::listen(&server).await;
    let fluent_bit = fluent_bit(program, port);
    let clock = FastClock::start();
    let (sim, tenant) = tenant(clock.clone(), 60, 60).await;
    let table = fluent_bit.table();
    let killer = async {
        for (pause, away) in [(1_500, 6), (5_000, 20), (4_200, 1)] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            server.kill();
            tokio::time::sleep(Duration::from_secs(away)).await;
            server.start_again().await;
            make_bucket(&server).await;
        }
    };
    tokio::join!(killer, pass_in(&table, &sim, &tenant, clock.clone()));
    let outcome = settled(&store, &sim).await;
    println!(
        "moto killed 3 times, away 27 s: {} events, {} lost, {} twice, {} objects",
        outcome.expected,
        outcome.lost.len(),
        outcome.duplicated.len(),
        store.count()
    );
    if !outcome.lost.is_empty() {
        println!("{}", fluent_bit.log());
    }
    assert_nothing_lost(&outcome);
    sim.stop().await;
}
