//! Connections of the endpoint: as many and for as long as is good for those who ask.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{service_fn, Service};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many connections are held at once. One more costs the one whose time would be over first.
const CONNECTIONS_MAX: usize = 64;
/// How long a new connection may take until its first request is there.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long after a request the next one is waited for: longer than scrapers are apart. Reading the answer counts.
const NEXT_REQUEST: Duration = Duration::from_secs(75);
/// How long a connection whose time is over may take to end what it has begun.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// How long a failed accept is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// When a connection's time is over, unless it asks again.
type Until = Arc<Mutex<Instant>>;

struct Open {
    until: Until,
    task: AbortHandle,
}

/// Answers until stopped, and then ends what is being answered.
pub async fn serve(listener: TcpListener, app: Router, stopped: CancellationToken) {
    let app = TowerToHyperService::new(app);
    let mut tasks = JoinSet::new();
    let mut open: Vec<Open> = Vec::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped.cancelled() => break,
        };
        while tasks.try_join_next().is_some() {}
        open.retain(|connection| !connection.task.is_finished());
        match accepted {
            Ok((stream, _)) => {
                if open.len() >= CONNECTIONS_MAX {
                    end_one(&mut open);
                }
                let until: Until = Arc::new(Mutex::new(Instant::now() + FIRST_REQUEST));
                let task = tasks.spawn(connection(stream, app.clone(), until.clone(), stopped.clone()));
                open.push(Open { until, task });
            }
            Err(error) => {
                // No descriptor is left, most likely: who waits to be accepted is worth more than who does not ask.
                // The system says so also where nobody waits; then whoever was accepted last is not ended for it.
                if someone_waits(&listener) {
                    tracing::debug!(%error, "the HTTP endpoint cannot accept a connection");
                    end_one(&mut open);
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

fn someone_waits(listener: &TcpListener) -> bool {
    let mut asked = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Ends the connection whose time would be over first: one that never asked rather than one that asks now and then.
fn end_one(open: &mut Vec<Open>) {
    let first = (0..open.len()).min_by_key(|&place| *open[place].until.lock());
    if let Some(place) = first {
        open.swap_remove(place).task.abort();
    }
}

async fn connection(stream: TcpStream, app: TowerToHyperService<Router>, until: Until, stopped: CancellationToken) {
    let asked = Arc::clone(&until);
    let service = service_fn(move |request: Request<Incoming>| {
        *asked.lock() = Instant::now() + NEXT_REQUEST;
        answer(app.clone(), request)
    });
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // Who goes away in the midst of something has no answer to get.
        _ = connection.as_mut() => return,
        () = passed(&until) => {}
        () = stopped.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(tokio::time::timeout(LAST_ANSWER, connection).await);
}

async fn answer(app: TowerToHyperService<Router>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    app.call(request).await
}

async fn passed(until: &Mutex<Instant>) {
    loop {
        let deadline = *until.lock();
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}
