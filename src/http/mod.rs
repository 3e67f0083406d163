//! `/metrics`, `/health/live`, `/health/ready` and `/api/trials`.

mod serve;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use axum::extract::State;
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::metrics::Metrics;
use crate::status::Status;

/// Where the endpoint is when nothing is set.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
/// How many ports after the default are tried.
const PORTS_TRIED: u16 = 100;

/// The endpoint cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address that was asked for is not to be had.
    #[error("setting `http.address`: cannot listen on {address}: {source}; choose another or unset it")]
    Listen { address: String, source: std::io::Error },
    /// A thread or the listener failed otherwise.
    #[error("the HTTP endpoint: {0}")]
    Io(#[from] std::io::Error),
}

/// The running endpoint, on a thread and a runtime of its own: stages never share threads with it.
pub struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

#[derive(Clone)]
struct Shown {
    metrics: Metrics,
    status: Status,
}

impl Server {
    /// Listens on the address set, or on the first free port from 9464 of the loopback interface.
    ///
    /// # Errors
    /// When an address that was set explicitly is taken.
    pub fn start(settings: &Settings, metrics: Metrics, status: Status) -> Result<Self, Error> {
        let listener = match &settings.http.address {
            Some(address) => {
                TcpListener::bind(address).map_err(|source| Error::Listen { address: address.clone(), source })?
            }
            None => first_free()?,
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let app = router(Shown { metrics, status });
        let stopped = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async move {
                match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => serve::serve(listener, app, stopped).await,
                    Err(error) => tracing::error!(%error, "the HTTP endpoint ended"),
                }
            });
        })?;
        tracing::info!(%address, "metrics, health and API are served");
        Ok(Self { address, stop, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it.
    pub fn stop(self) {
        self.stop.cancel();
        // A scrape that hangs must not hold up the exit of the process.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(1);
        while !self.thread.is_finished() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

fn first_free() -> Result<TcpListener, std::io::Error> {
    let mut last = None;
    let (ip, default_port) = (DEFAULT_ADDRESS.ip(), DEFAULT_ADDRESS.port());
    for port in default_port..=default_port + PORTS_TRIED {
        match TcpListener::bind((ip, port)) {
            Ok(listener) => {
                if port != default_port {
                    tracing::info!(port, "port {default_port} is taken, using the next free one");
                }
                return Ok(listener);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("no port tried")))
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/api/trials", get(trials))
        .with_state(shown)
}

async fn metrics(State(shown): State<Shown>) -> Response {
    for (stage, status) in shown.status.stages() {
        shown.metrics.stages.ready.with_label_values(&[stage]).set(status.ready().into());
    }
    match shown.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(shown): State<Shown>) -> Response {
    let hindrances = shown.status.hindrances();
    if hindrances.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", hindrances.join("; "))).into_response()
    }
}

async fn trials(State(shown): State<Shown>) -> Response {
    Json(shown.status.trials()).into_response()
}
