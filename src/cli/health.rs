//! `health`: asks a running process whether it is at work, for healthchecks of containers without a shell.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{anyhow, Context};
use clap::Args;

use super::output::write_out;
use super::{Environment, Result};
use crate::http;

/// Shorter than what orchestrators allow a healthcheck.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sweepstream health                             is the process on port 9464 at work?
  sweepstream --set http.address=10.0.0.7:9464 health
  sweepstream health --live                      does it answer at all?

Asks `http.address`, on loopback where that says all interfaces. Ends with code 0 for yes, 1 for no.")]
pub struct Arguments {
    /// Ask only whether it answers, not whether it has its assignment and a broker
    #[arg(long)]
    live: bool,
}

pub fn run(environment: &Environment, arguments: &Arguments) -> Result {
    let address = environment.settings.http.address.as_deref();
    let address = address.map_or_else(|| Ok(http::DEFAULT_ADDRESS), resolve)?;
    let url = format!("http://{}/health/{}", reachable(address), if arguments.live { "live" } else { "ready" });
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build().into();
    let mut answer = agent.get(&url).call().with_context(|| format!("{url} does not answer"))?;
    let text = answer.body_mut().read_to_string().with_context(|| format!("{url} does not answer"))?;
    if !answer.status().is_success() {
        return Err(anyhow!("{url}: {}: {}", answer.status(), text.trim()).into());
    }
    Ok(write_out(text.trim())?)
}

fn resolve(address: &str) -> anyhow::Result<SocketAddr> {
    let mut all = address.to_socket_addrs().with_context(|| format!("setting `http.address`: {address}"))?;
    all.next().with_context(|| format!("setting `http.address`: {address} has no address"))
}

/// What listens on all interfaces answers on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip([127, 0, 0, 1].into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(std::net::Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_interfaces_are_asked_on_loopback() {
        for (set, asked) in
            [("0.0.0.0:9464", "127.0.0.1:9464"), ("[::]:80", "[::1]:80"), ("127.0.0.2:9000", "127.0.0.2:9000")]
        {
            assert_eq!(reachable(resolve(set).unwrap()).to_string(), asked);
        }
    }
}
