//! Ports of this machine for a broker: free ones that stay so, and who holds one that is taken.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{all_processes, FDTarget, Process};

/// What Linux gives to outgoing connections unless it was told otherwise.
const OUTGOING: RangeInclusive<u16> = 32_768..=60_999;

/// Below this, services that have a name are likely.
const LEAST: u16 = 10_000;

/// Free ports of the loopback interface, all different.
///
/// They lie outside the range from which the system takes ports for outgoing connections, as long as one is free there:
/// a connection of anybody's could otherwise take the port of a broker that is away for a moment. The search begins
/// anywhere, so processes that start together rarely choose the same.
///
/// # Errors
/// When no port is free, or nothing can be bound.
pub fn free<const N: usize>() -> Result<[u16; N]> {
    let outgoing = outgoing().unwrap_or(OUTGOING);
    let (mut outside, inside): (Vec<u16>, Vec<u16>) = (LEAST..=u16::MAX).partition(|port| !outgoing.contains(port));
    let anywhere = uuid::Uuid::new_v4().as_u128() % outside.len().max(1) as u128;
    outside.rotate_left(anywhere as usize);
    // All are held until the last is found, so that they differ.
    let mut held = Vec::with_capacity(N);
    for port in outside.into_iter().chain(inside) {
        match bind(port) {
            Ok(listener) => held.push((listener, port)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
        if held.len() == N {
            break;
        }
    }
    let ports: Vec<u16> = held.iter().map(|(_, port)| *port).collect();
    ports.try_into().map_err(|_| Error::new(ErrorKind::AddrInUse, format!("no port from {LEAST} on is free")))
}

/// Listens on a port of the loopback interface.
///
/// # Errors
/// When it is taken, or not for this user.
pub fn bind(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

/// The system's range for outgoing connections.
fn outgoing() -> Option<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = text.split_whitespace().map(str::parse);
    Some(bounds.next()?.ok()?..=bounds.next()?.ok()?)
}

/// A process that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub id: i32,
    /// The group that the process is in.
    pub group: i32,
    /// The name of its program, cut by the system at 15 bytes.
    pub name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.id, self.name)
    }
}

/// Who holds a port of the loopback interface, by listening or by a connection; nothing when that cannot be seen:
/// other users' processes, and what is outside of a container, are hidden.
pub fn holder(port: u16) -> Option<Holder> {
    let concerns = |entry: &TcpNetEntry| {
        let ip = match entry.local_address.ip() {
            IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
            ip => ip,
        };
        entry.local_address.port() == port && (ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::LOCALHOST))
    };
    let sockets = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    let mut sockets: Vec<TcpNetEntry> = sockets.filter(concerns).collect();
    sockets.sort_by_key(|socket| socket.state != TcpState::Listen);
    sockets.iter().find_map(|socket| owner(socket.inode))
}

fn owner(socket: u64) -> Option<Holder> {
    let holds = |process: &Process| {
        let mut descriptors = process.fd().into_iter().flatten().flatten();
        descriptors.any(|descriptor| matches!(descriptor.target, FDTarget::Socket(inode) if inode == socket))
    };
    let stat = all_processes().ok()?.flatten().find(holds)?.stat().ok()?;
    Some(Holder { id: stat.pid, group: stat.pgrp, name: stat.comm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_no_outgoing_connection_gets_one() {
        let ports: [u16; 50] = free().unwrap();
        let distinct: std::collections::BTreeSet<u16> = ports.into();
        assert_eq!(distinct.len(), 50);
        let outgoing = outgoing().unwrap();
        assert!(ports.iter().all(|port| !outgoing.contains(port)), "{ports:?} are outside of {outgoing:?}");
        // Two processes that start at once begin at different places.
        assert_ne!(ports, free().unwrap());
    }

    #[test]
    fn a_port_that_is_taken_is_passed_over_and_its_holder_named() {
        let [port] = free().unwrap();
        let listener = bind(port).unwrap();
        assert_eq!(bind(port).unwrap_err().kind(), ErrorKind::AddrInUse);
        let holder = holder(port).unwrap();
        assert_eq!(holder.id, i32::try_from(std::process::id()).unwrap());
        assert!(holder.to_string().contains(&format!("process {} (", holder.id)), "{holder}");
        drop(listener);
    }

    #[test]
    fn a_port_may_be_held_by_an_outgoing_connection() {
        let [port] = free().unwrap();
        let listener = bind(port).unwrap();
        let connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let taken = connection.local_addr().unwrap().port();
        assert_eq!(holder(taken).unwrap().id, i32::try_from(std::process::id()).unwrap());
        drop(listener);
    }
}
