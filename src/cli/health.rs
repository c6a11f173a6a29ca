//! `m365-audit health`: requests the health of a running process, for images without a shell and for scripts.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::exit::Exit;
use super::{Failure, asking, status};
use crate::config::Config;

/// The maximum number of bytes read from an answer; one with a hundred faulty tenants has some 30 kB.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// Arguments of `health`.
#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// The configuration file of the running process; `[metrics] listen` is asked, without it the control socket
    #[arg(short, long, value_name = "FILE", required_unless_present = "listen", conflicts_with = "listen")]
    pub config: Option<PathBuf>,
    /// The address of its metrics listener
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Ask only whether the process answers, not how its sources fare
    #[arg(long)]
    pub live: bool,
    /// Longest wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub timeout_secs: u64,
}

/// Prints the answer of `/health` (or `/live`). `Done` when no source has failed, else the exit code of an unavailable
/// service.
///
/// # Errors
/// The configuration has problems, or no process answers.
pub async fn health(args: HealthArgs, out: &mut impl Write) -> Result<Exit, Failure> {
    let listen = match (args.listen, &args.config) {
        (Some(listen), _) => listen,
        (None, Some(path)) => {
            let (config, _) = Config::load_to_run(path)?;
            match &config.metrics {
                Some(metrics) => metrics.listen,
                None => return over_the_socket(&args, path, &config, out).await,
            }
        }
        (None, None) => return Err(Failure::internal("clap let neither a file nor an address through")),
    };
    let address = SocketAddr::new(reachable(listen.ip()), listen.port());
    let path = if args.live { "live" } else { "health" };
    let unreachable = |why: String| Failure {
        message: format!(
            "health-unreachable: nothing answers at `http://{address}/{path}`: {why}\n  hint: check that `m365-audit \
             run` is running and that `[metrics] listen` is this address"
        ),
        exit: Exit::Network,
    };
    let answer = tokio::time::timeout(Duration::from_secs(args.timeout_secs), ask(address, path)).await;
    let answer = answer
        .map_err(|_| unreachable(format!("no answer within {} s", args.timeout_secs)))?
        .map_err(|error| unreachable(error.to_string()))?;
    let (status, body) = parse(&answer).ok_or_else(|| unreachable("the answer is not HTTP".to_owned()))?;
    out.write_all(body).map_err(Failure::io)?;
    Ok(if status == 200 { Exit::Done } else { Exit::Network })
}

/// The same of a process without `[metrics]`: its control socket is always there.
async fn over_the_socket(
    args: &HealthArgs,
    path: &Path,
    config: &Config,
    out: &mut impl Write,
) -> Result<Exit, Failure> {
    let socket = config.control_socket();
    let asked = tokio::time::timeout(Duration::from_secs(args.timeout_secs), asking::ask(&socket)).await;
    let asked = asked.map_err(|_| Failure {
        message: format!("health-unreachable: no answer within {} s\n  hint: look at its log", args.timeout_secs),
        exit: Exit::Network,
    })?;
    let status = asked?.ok_or_else(|| status::none_runs(config, path))?;
    if args.live {
        writeln!(out, "live").map_err(Failure::io)?;
        return Ok(Exit::Done);
    }
    let entry = |state: &str, reason: &Option<String>| match reason {
        Some(reason) => serde_json::json!({"state": state, "reason": reason}),
        None => serde_json::json!({"state": state}),
    };
    let sources: serde_json::Map<_, _> =
        status.sources.iter().map(|source| (source.name.clone(), entry(&source.state, &source.reason))).collect();
    let sinks: serde_json::Map<_, _> =
        status.sinks.iter().map(|sink| (sink.name.clone(), entry(&sink.state, &sink.reason))).collect();
    let mut page = serde_json::json!({"state": status.state, "sources": sources, "sinks": sinks});
    if status.store.is_some() {
        page["store"] = entry("degraded", &status.store);
    }
    writeln!(out, "{}", serde_json::to_string_pretty(&page).map_err(Failure::internal)?).map_err(Failure::io)?;
    Ok(if status.state == "failed" { Exit::Network } else { Exit::Done })
}

/// One request in HTTP/1.0, so that the answer is whole when the connection ends.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The status and the body of an answer.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(end)?;
    let status = std::str::from_utf8(head).ok()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.get(4..)?))
}

/// Where a listener on any address can be reached.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart_and_what_is_none_is_told() {
        assert_eq!(parse(b"HTTP/1.0 503 x\r\na: b\r\n\r\n{}\n"), Some((503, &b"{}\n"[..])));
        for bad in [&b""[..], b"\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 20", b"HTTP/1.1\r\n\r\n"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn a_listener_on_every_address_is_asked_on_the_loopback() {
        let ask = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!([ask("0.0.0.0"), ask("::"), ask("192.0.2.7")], ["127.0.0.1", "::1", "192.0.2.7"]);
    }
}
