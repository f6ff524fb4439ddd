//! Which process is at the other end of a connection, where both ends are on this host: over loopback, between containers, or over a
//! Unix socket.
//!
//! `/proc/PID/net/tcp` has the connections of a network namespace, each with its inode; the descriptors of a process name theirs. The
//! other end has the same two addresses, swapped, in whatever namespace it lies. Of Unix sockets the kernel tells which belong together.

mod unix;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

pub use unix::Peers;

use super::procfs;
use crate::{
    limits::{PROC_FDS_MAX, SOCKETS_MAX},
    units::Pid,
};

/// An established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub inode: u64,
}

/// A connection between two processes, as the first one sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub fd: u32,
    /// Its addresses, of TCP: own and remote.
    pub tcp: Option<(SocketAddr, SocketAddr)>,
    pub peer: Pid,
}

/// The connections of `client` to those of `servers`; `unix` are those over Unix sockets.
#[must_use]
pub fn links(client: Pid, servers: &[Pid], unix: &Peers) -> Vec<Link> {
    let own = procfs::net_tcp(client);
    let own = connections(&own);
    let descriptors = sockets(client);
    let mut ends = BTreeMap::new();
    let mut served = BTreeMap::new();
    let mut namespaces = BTreeMap::<u64, BTreeMap<u64, (SocketAddr, SocketAddr)>>::new();
    for server in servers {
        let Some(namespace) = procfs::net_namespace(*server) else { continue };
        let of_namespace = namespaces.entry(namespace).or_insert_with(|| {
            let table = procfs::net_tcp(*server);
            connections(&table).into_iter().map(|end| (end.inode, (end.local, end.remote))).collect()
        });
        for inode in sockets(*server).into_keys() {
            if let Some((local, remote)) = of_namespace.get(&inode) {
                ends.insert((*remote, *local), *server);
            }
            served.insert(inode, *server);
        }
    }
    let link = |connection: &Connection| {
        let fd = *descriptors.get(&connection.inode)?;
        let peer = *ends.get(&(connection.local, connection.remote))?;
        Some(Link { fd, tcp: Some((connection.local, connection.remote)), peer })
    };
    let of_tcp = own.iter().filter_map(link);
    // By the client's end: a pair may be told from both.
    let pairs = unix.iter().flat_map(|(one, other)| [(one, other), (other, one)]);
    let of_unix: BTreeMap<u32, Pid> =
        pairs.filter_map(|(own, other)| Some((*descriptors.get(&own)?, *served.get(&other)?))).collect();
    of_tcp.chain(of_unix.into_iter().map(|(fd, peer)| Link { fd, tcp: None, peer })).collect()
}

/// Descriptors of a process that are sockets, by inode.
fn sockets(pid: Pid) -> BTreeMap<u64, u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(PROC_FDS_MAX);
    let socket = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((inode, entry.file_name().to_str()?.parse().ok()?))
    };
    entries.filter_map(socket).collect()
}

/// Established ones of `/proc/PID/net/tcp` and `tcp6` (`proc_net_tcp.txt` of the kernel's documentation), one after the other; other
/// lines are left out. IPv4 in IPv6 is IPv4.
#[must_use]
pub fn connections(tables: &[u8]) -> Vec<Connection> {
    const ESTABLISHED: &str = "01";
    let text = String::from_utf8_lossy(tables);
    let mut seen = BTreeSet::new();
    let connection = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (local, remote) = (address(fields.nth(1)?)?, address(fields.next()?)?);
        (fields.next()? == ESTABLISHED).then_some(())?;
        let inode = fields.nth(5)?.parse().ok().filter(|inode| *inode != 0)?;
        Some(Connection { local, remote, inode })
    };
    let all = text.lines().filter_map(connection);
    all.filter(|connection| seen.insert(connection.inode)).take(SOCKETS_MAX).collect()
}

/// `0100007F:1538`: the address in words as they lie in memory, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_le_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let bytes = [word(0)?, word(1)?, word(2)?, word(3)?];
            let mut flat = [0; 16];
            for (to, from) in flat.iter_mut().zip(bytes.iter().flatten()) {
                *to = *from;
            }
            let address = Ipv6Addr::from(flat);
            address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::{
            fd::AsRawFd,
            unix::net::{UnixListener, UnixStream},
        },
    };

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn established_connections_are_read() {
        let table =
            b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 111 1 x\n\
            1: 0100007F:1538 0100007F:D431 01 00000000:00000000 00:00000000 00000000   101        0 222 1 x\n\
            2: 0000000000000000FFFF00000100007F:D431 0000000000000000FFFF00000100007F:1538 01 0:0 0:0 0 0 0 333 1\n\
            3: 00000000000000000000000001000000:0001 00000000000000000000000001000000:0002 01 0:0 0:0 0 0 0 444 1\n";
        let read: Vec<_> =
            connections(table).iter().map(|end| format!("{} {} {}", end.local, end.remote, end.inode)).collect();
        assert_eq!(
            read,
            ["127.0.0.1:5432 127.0.0.1:54321 222", "127.0.0.1:54321 127.0.0.1:5432 333", "[::1]:1 [::1]:2 444"]
        );
    }

    #[test]
    fn both_ends_of_a_connection_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let own = Pid(std::process::id());
        let found = links(own, &[own], &Peers::default());
        let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert_eq!(found.iter().find(|link| link.tcp == Some(ends)).unwrap().peer, own);
    }

    #[test]
    fn both_ends_of_a_unix_socket_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let client = UnixStream::connect(dir.path().join("s")).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let own = Pid(std::process::id());
        let fd = u32::try_from(client.as_raw_fd()).unwrap();
        let found = links(own, &[own], &Peers::read());
        assert!(found.contains(&Link { fd, tcp: None, peer: own }), "{found:?}");
    }

    proptest! {
        #[test]
        fn any_table_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = connections(&bytes);
        }
    }
}
