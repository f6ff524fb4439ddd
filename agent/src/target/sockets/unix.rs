//! Which Unix sockets are connected with each other, by inode: the kernel's socket diagnosis (`unix_diag`, in `sock_diag(7)`), which needs no
//! privilege. It tells of the sockets that were made in the agent's own network namespace, and of what they are connected to.

use std::collections::BTreeMap;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use crate::limits::SOCKETS_MAX;

/// From `linux/netlink.h`, `linux/sock_diag.h` and `linux/unix_diag.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const AF_UNIX: u8 = 1;
const ESTABLISHED: u32 = 1 << 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;

/// Of `struct nlmsghdr`, `struct unix_diag_msg` and `struct rtattr`; where the second has the inode.
const MESSAGE_HEAD: usize = 16;
const SOCKET_HEAD: usize = 16;
const ATTRIBUTE_HEAD: usize = 4;
const SOCKET_INODE: usize = 4;

/// What the kernel puts into one answer: at most 32 KiB (`netlink_dump`).
const ANSWER_BYTES: usize = 32 << 10;

/// Answers that are read: some five hundred sockets each.
const ANSWERS_MAX: usize = 256;

/// Pairs of connected sockets by inode, each way that the kernel tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers(BTreeMap<u64, u64>);

impl Peers {
    /// As they are now; none where the kernel does not say.
    #[must_use]
    pub fn read() -> Self {
        let mut peers = Self::default();
        if let Err(error) = peers.ask() {
            log::debug!("Unix sockets: {error}");
        }
        peers
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Pairs, each once or twice.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(one, other)| (*one, *other))
    }

    fn ask(&mut self) -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
        // Nobody else is asked than who an unconnected socket of this kind leads to: the kernel.
        send(&socket, &request(), SendFlags::empty())?;
        let mut answer = vec![0; ANSWER_BYTES];
        for _ in 0..ANSWERS_MAX {
            // An answer is there by the time that the one before was taken: nothing is waited for.
            let (bytes, _) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)?;
            let part = answer.get(..bytes).unwrap_or_default();
            if !self.take(part) {
                break;
            }
        }
        Ok(())
    }

    /// Takes one answer in; false at the end of them.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((kind, body, rest)) = message(bytes) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return false,
                SOCK_DIAG_BY_FAMILY if self.0.len() < SOCKETS_MAX => self.0.extend(pair(body)),
                _ => {}
            }
            bytes = rest;
        }
        // What is no message ends it, too.
        bytes.is_empty()
    }
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    bytes.extend(40u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence, port.
    bytes.extend([0; 8]);
    // `struct unix_diag_req`: family, protocol, padding, states, inode, what to show, cookie.
    bytes.extend([AF_UNIX, 0, 0, 0]);
    bytes.extend(ESTABLISHED.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(UDIAG_SHOW_PEER.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// The first message of some: its type, what is in it, and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::try_from(word(bytes, 0)?).ok()?;
    let body = bytes.get(MESSAGE_HEAD..len)?;
    Some((half(bytes, 4)?, body, bytes.get(aligned(len)..).unwrap_or_default()))
}

/// The inodes of a socket and of its peer.
fn pair(body: &[u8]) -> Option<(u64, u64)> {
    let inode = word(body, SOCKET_INODE)?;
    let mut attributes = body.get(SOCKET_HEAD..)?;
    loop {
        let len = usize::from(half(attributes, 0)?);
        if len < ATTRIBUTE_HEAD {
            return None;
        }
        if half(attributes, 2)? == UNIX_DIAG_PEER {
            let peer = word(attributes.get(..len)?, ATTRIBUTE_HEAD)?;
            return (inode != 0 && peer != 0).then_some((inode.into(), peer.into()));
        }
        attributes = attributes.get(aligned(len)..)?;
    }
}

/// Messages and attributes begin at words.
const fn aligned(len: usize) -> usize {
    len.saturating_add(3) & !3
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pair_is_found_from_both_ends() {
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |end: &UnixStream| rustix::fs::fstat(end).unwrap().st_ino;
        let pairs: Vec<_> = Peers::read().iter().collect();
        assert!(pairs.contains(&(inode(&one), inode(&other))), "{pairs:?}");
        assert!(pairs.contains(&(inode(&other), inode(&one))), "{pairs:?}");
    }

    fn answer(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(MESSAGE_HEAD + body.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn socket(inode: u32, attributes: &[(u16, u32)]) -> Vec<u8> {
        let mut body = vec![AF_UNIX, 1, 1, 0];
        body.extend(inode.to_ne_bytes());
        body.extend([0; 8]);
        for (kind, value) in attributes {
            body.extend(8u16.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value.to_ne_bytes());
        }
        answer(SOCK_DIAG_BY_FAMILY, &body)
    }

    #[test]
    fn answers_end_where_they_say_so() {
        let mut peers = Peers::default();
        let mut bytes = socket(7, &[(6, 99), (UNIX_DIAG_PEER, 8)]);
        bytes.extend(socket(9, &[(6, 99)]));
        assert!(peers.take(&bytes), "there may be more");
        assert!(!peers.take(&answer(NLMSG_DONE, &[0; 4])));
        assert_eq!(peers.iter().collect::<Vec<_>>(), [(7, 8)]);
        assert!(!peers.take(&[1, 2, 3]));
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Peers::default().take(&bytes);
            let _ = Peers::default().take(&answer(SOCK_DIAG_BY_FAMILY, &bytes));
        }
    }
}
