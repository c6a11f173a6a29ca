//! `m365-audit health`: asks a running process how it fares, for images without a shell and for scripts.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Failure;
use super::exit::Exit;
use crate::config::Config;

/// Most bytes read of an answer; one of a hundred tenants in trouble has some 30 kB.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// Arguments of `health`.
#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// The configuration file of the running process; `[metrics] listen` is asked
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

/// Prints the answer of `/health` (or `/live`). Done when no source has failed, else the exit code of an unavailable
/// service.
///
/// # Errors
/// The configuration has problems or no `[metrics]`, or nobody answers.
pub async fn health(args: HealthArgs, out: &mut impl Write) -> Result<Exit, Failure> {
    let listen = match (args.listen, &args.config) {
        (Some(listen), _) => listen,
        (None, Some(path)) => {
            let config = Config::load(path)?;
            let metrics = config.metrics.ok_or_else(|| Failure {
                message: format!(
                    "config-invalid: `{}` has no `[metrics]`, so nobody can be asked\n  hint: add `[metrics]` with \
                     `listen = \"127.0.0.1:9598\"` and restart",
                    path.display()
                ),
                exit: Exit::Config,
            })?;
            metrics.listen
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
