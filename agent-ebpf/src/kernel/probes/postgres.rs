//! Waits for locks in PostgreSQL, told apart by the attach cookie.
//!
//! Entry into a wait and its end are hit with the lock's partition locked, so that others wait for as long as a probe takes: where the
//! scheduler's switches tell of both (see [`super::waits`]), only what gives a wait up is probed, which is rare.
//!
//! A lock's lists are read as `storage/lock.h` has them since version 10, and nothing of them is believed that the structures do
//! not say of each other: the lock bears the tag that the backend asked for, and each entry points back to the lock.

use agent_ebpf::{
    abi::{
        family, kind,
        postgres::{LockEnd, LockTag, LockWait, PARTIES_MAX, Party, outcome, wait_flag},
    },
    spec::id,
    state::{Cluster, LockWaitState, PgBackend, PgLockWait, counter},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_probe_read_user,
        generated::{self, bpf_get_attach_cookie, bpf_get_current_task},
    },
    macros::uprobe,
    programs::ProbeContext,
};

use super::sched::read_u32;
use crate::kernel::{
    emit::{self, count, current, header, now_ns, send},
    globals, maps,
};

/// The beginning of a `LOCALLOCK`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct LocalLock {
    tag: [u32; 4],
    mode: u32,
    hash: u32,
    lock: u64,
    proclock: u64,
}

/// The beginning of a `LOCK`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Lock {
    tag: [u32; 4],
    granted_modes: u32,
    waited_modes: u32,
    procs_prev: u64,
    procs_next: u64,
    queue_prev: u64,
    queue_next: u64,
    queue_len: u32,
    reserved: u32,
}

/// The beginning of a `PROCLOCK`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProcLock {
    lock: u64,
    proc: u64,
    group_leader: u64,
    held_modes: u32,
    release_modes: u32,
    prev: u64,
    next: u64,
}

/// Where in a `LOCK` the heads of its lists are, and in a `PROCLOCK` the link of the first one.
const LOCK_PROCS: u64 = 24;
const LOCK_QUEUE: u64 = 40;
const PROCLOCK_LINK: u64 = 32;
/// From `PGPROC::waitLock` to `PGPROC::waitLockMode`.
const WAIT_MODE: u64 = 16;

/// What a `PGPROC` says of the lock that its process waits for, from `waitLock` on, of version 14 and newer.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct OwnWait {
    pub lock: u64,
    pub proclock: u64,
    pub mode: u32,
    pub held_modes: u32,
    /// `waitStart`.
    pub server_start: u64,
}

/// A wait that begins, or is given up.
struct Wait {
    postmaster: u32,
    cluster: Cluster,
    wanted: LocalLock,
    since_ns: u64,
    /// Of [`wait_flag`].
    flags: u32,
}

impl Wait {
    const NONE: Self = Self {
        postmaster: 0,
        cluster: Cluster { proc_pid: 0, proc_wait_lock: 0, wait_pointer: 0, my_proc: 0 },
        wanted: LocalLock { tag: [0; 4], mode: 0, hash: 0, lock: 0, proclock: 0 },
        since_ns: 0,
        flags: 0,
    };
}

/// Attached over `uprobe_multi` links (6.6 and newer).
#[uprobe(multi)]
pub fn postgres_multi(ctx: ProbeContext) -> u32 {
    probe(&ctx)
}

/// The same, attached probe by probe through perf events.
#[uprobe]
pub fn postgres_single(ctx: ProbeContext) -> u32 {
    probe(&ctx)
}

#[inline(always)]
fn probe(ctx: &ProbeContext) -> u32 {
    // SAFETY: the context is the one that the kernel passed in.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    emit::count_hit(cookie as u32);
    match cookie {
        id::LOCK_WAIT | id::LOCK_GIVEN_UP => {
            let gives_up = cookie == id::LOCK_GIVEN_UP;
            let mut wait = Wait::NONE;
            let is_told =
                if gives_up { given_up(&mut wait) } else { asked_for(ctx.arg::<u64>(0).unwrap_or(0), &mut wait) };
            if is_told.is_some() {
                announce(&wait);
            }
            if gives_up {
                end(outcome::CANCELLED);
            }
        }
        id::LOCK_GRANTED => end(outcome::GRANTED),
        id::LOCK_DEADLOCK => end(outcome::DEADLOCK),
        _ => {}
    }
    0
}

/// The cluster that the running process is a backend of, if it is a traced one: its key, and what is known of it.
#[inline(always)]
fn cluster() -> Option<(u32, Cluster)> {
    // SAFETY: the helper takes nothing; the pointer is only read through checked reads.
    let task = unsafe { bpf_get_current_task() };
    let parent_at = (task + u64::from(globals::TASK_REAL_PARENT.load())) as *const u64;
    // SAFETY: the helper checks the address itself.
    let parent = unsafe { aya_ebpf::helpers::bpf_probe_read_kernel(parent_at) }.ok()?;
    let postmaster = read_u32(parent, globals::TASK_TGID.load());
    let cluster = maps::CLUSTERS.get_ptr(&postmaster)?;
    // SAFETY: the value lives in a preallocated map; a copy of 16 bytes torn by a removal is harmless.
    Some((postmaster, unsafe { *cluster }))
}

#[inline(always)]
pub fn read<T: Copy + Default>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails on a bad one.
    unsafe { bpf_probe_read_user(at as *const T) }.ok()
}

/// What the running backend says of the lock that it waits for.
#[inline(always)]
fn own_wait(cluster: &Cluster) -> Option<OwnWait> {
    if cluster.my_proc == 0 || cluster.proc_wait_lock == 0 {
        return None;
    }
    read::<OwnWait>(read::<u64>(cluster.my_proc)? + u64::from(cluster.proc_wait_lock))
}

/// The tag of a lock, its first field.
#[inline(always)]
pub fn tag_at(lock: u64) -> Option<LockTag> {
    read::<[u32; 4]>(lock).map(tag_of)
}

#[inline(always)]
fn tag_of(words: [u32; 4]) -> LockTag {
    let last = words[3];
    LockTag {
        field1: words[0],
        field2: words[1],
        field3: words[2],
        field4: last as u16,
        kind: (last >> 16) as u8,
        method: (last >> 24) as u8,
    }
}

/// The running backend enters a wait.
#[inline(always)]
fn asked_for(locallock: u64, wait: &mut Wait) -> Option<()> {
    (wait.postmaster, wait.cluster) = cluster()?;
    // In place: of a copy there would be two on the stack.
    let (into, bytes) = ((&raw mut wait.wanted).cast(), size_of::<LocalLock>() as u32);
    // SAFETY: as many bytes as `wanted` has, any of which make one; the helper checks the address itself.
    if unsafe { generated::bpf_probe_read_user(into, bytes, locallock as *const _) } != 0 {
        return None;
    }
    wait.since_ns = now_ns();
    Some(())
}

/// The running backend leaves a lock's queue without the lock. `None` where it is known since when it was in there, or cannot be.
///
/// A function of its own in the object, too: with all of its variables beside those of its caller, the stack is too small before Linux
/// 6.13.
#[inline(never)]
fn given_up(wait: &mut Wait) -> Option<()> {
    let (tgid, tid) = current();
    (wait.postmaster, wait.cluster) = cluster()?;
    let own = own_wait(&wait.cluster)?;
    let backend: *mut PgBackend = maps::PG_BACKENDS.get_ptr_mut(&tid)?;
    // SAFETY: a value of a preallocated map, which only programs that run on behalf of the backend itself write.
    let before = unsafe { (*backend).lock };
    // SAFETY: the same.
    unsafe { (&raw mut (*backend).lock.since_ns).write_volatile(0) };
    // What an earlier one left.
    let _ = maps::LOCK_WAITS.remove(&tgid);
    let is_it = before.since_ns != 0 && before.lock == own.lock && before.server_start == own.server_start;
    if before.since_ns != 0 && !is_it {
        granted(wait.postmaster, &before);
    }
    if is_it && before.since_ns == PgLockWait::BEFORE {
        return None;
    }
    let tag = read::<[u32; 4]>(own.lock)?;
    wait.wanted = LocalLock { tag, mode: own.mode, hash: 0, lock: own.lock, proclock: own.proclock };
    // It may know that it would wait in vain before it does.
    wait.since_ns = if is_it { before.since_ns } else { now_ns() };
    wait.flags = wait_flag::GIVES_UP;
    Some(())
}

/// A function of its own in the object, too, as [`given_up`] is.
#[inline(never)]
fn announce(wait: &Wait) {
    let Wait { postmaster, cluster, wanted, since_ns, flags } = wait;
    let (postmaster, since_ns) = (*postmaster, *since_ns);
    let Some(own) = read::<ProcLock>(wanted.proclock) else { return };
    let (tgid, _) = current();
    let state = LockWaitState {
        started_ns: since_ns,
        lock: wanted.lock,
        tag: tag_of(wanted.tag),
        cluster: postmaster,
        pid: pid_of(cluster, own.proc),
        mode: wanted.mode,
        ended: 0,
        reserved: 0,
    };
    if maps::LOCK_WAITS.insert(&tgid, &state, 0).is_err() {
        count(counter::LOCK_WAITS_FULL);
    }
    send::<LockWait>(family::POSTGRES, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        let record = unsafe { &mut *record };
        record.header = header(kind::LOCK_WAIT, *flags, since_ns);
        record.cluster = postmaster;
        record.pid = state.pid;
        record.lock = wanted.lock;
        record.proclock = wanted.proclock;
        record.proc = own.proc;
        record.tag = state.tag;
        record.mode = wanted.mode;
        record.granted_modes = 0;
        record.waited_modes = 0;
        record.queue_len = 0;
        record.holders_listed = 0;
        record.queue_listed = 0;
        record.holders = [Party { pid: 0, modes: 0 }; PARTIES_MAX];
        record.queue = [Party { pid: 0, modes: 0 }; PARTIES_MAX];
        if own.lock == wanted.lock
            && let Some(lock) = read::<Lock>(wanted.lock)
            && lock.tag == wanted.tag
        {
            record.granted_modes = lock.granted_modes;
            record.waited_modes = lock.waited_modes;
            record.queue_len = lock.queue_len;
            let mut flags = *flags | wait_flag::LISTS;
            flags |= holders(record, cluster, wanted.lock, lock.procs_next);
            flags |= queue(record, cluster, wanted.lock, lock.queue_next);
            record.header.flags = flags;
        }
    });
}

/// The process id in a `PGPROC`; 0 where it cannot be read.
#[inline(always)]
pub fn pid_of(cluster: &Cluster, proc: u64) -> u32 {
    if cluster.proc_pid == 0 || proc == 0 {
        return 0;
    }
    read::<u32>(proc + u64::from(cluster.proc_pid)).unwrap_or(0)
}

/// Lists who holds the lock. Waiters are in the same list, with no mode held.
#[inline(always)]
fn holders(record: &mut LockWait, cluster: &Cluster, lock: u64, first: u64) -> u32 {
    /// Entries that are looked at: old ones come first, and waiters after those that they wait for.
    const LOOKED_AT: u32 = 24;
    let mut node = first;
    let mut i = 0;
    while i < LOOKED_AT {
        if node == lock + LOCK_PROCS {
            return 0;
        }
        let Some(entry) = read::<ProcLock>(node - PROCLOCK_LINK) else { return wait_flag::HOLDERS_CUT };
        if entry.lock != lock {
            return wait_flag::HOLDERS_CUT;
        }
        if entry.held_modes != 0 {
            // SAFETY: a field of the record. Read back, it is any number to the verifier, which would otherwise follow each way to
            // come to each number: that takes it a second.
            let listed = unsafe { (&raw const record.holders_listed).read_volatile() };
            if listed >= PARTIES_MAX as u32 {
                return wait_flag::HOLDERS_CUT;
            }
            let leader = if entry.group_leader == 0 { entry.proc } else { entry.group_leader };
            record.holders[listed as usize & (PARTIES_MAX - 1)] =
                Party { pid: pid_of(cluster, leader), modes: entry.held_modes };
            record.holders_listed = listed + 1;
        }
        node = entry.next;
        i += 1;
    }
    wait_flag::HOLDERS_CUT
}

/// Lists who waits already. A waiter's link is the first thing in its `PGPROC`.
#[inline(always)]
fn queue(record: &mut LockWait, cluster: &Cluster, lock: u64, first: u64) -> u32 {
    let mut proc = first;
    let mut i = 0u32;
    while i < PARTIES_MAX as u32 {
        // An empty queue's head leads to itself; one that was never used leads nowhere.
        if proc == lock + LOCK_QUEUE || proc == 0 {
            return 0;
        }
        let Some(links) = read::<[u64; 2]>(proc) else { return wait_flag::QUEUE_CUT };
        let mode = match cluster.proc_wait_lock {
            0 => 0,
            at => read::<u32>(proc + u64::from(at) + WAIT_MODE).unwrap_or(0),
        };
        record.queue[i as usize & (PARTIES_MAX - 1)] = Party { pid: pid_of(cluster, proc), modes: mode };
        proc = links[1];
        i += 1;
        record.queue_listed = i;
    }
    if proc == lock + LOCK_QUEUE { 0 } else { wait_flag::QUEUE_CUT }
}

/// Tells that a wait is over. Field by field: a record that is put together first is put together on the stack, of which there is little.
#[inline(always)]
fn tell_end(cluster: u32, ended_ns: u64, how: u32, wait: &LockWaitState) {
    send::<LockEnd>(family::POSTGRES, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        let record = unsafe { &mut *record };
        record.header = header(kind::LOCK_END, 0, ended_ns);
        record.cluster = cluster;
        record.pid = wait.pid;
        record.lock = wait.lock;
        record.started_ns = wait.started_ns;
        record.tag = wait.tag;
        record.mode = wait.mode;
        record.outcome = how;
        record.reserved = 0;
    });
}

/// A wait that began before the probes were attached: user space may have found it in the lock table.
const UNSEEN: LockWaitState = LockWaitState {
    started_ns: 0,
    lock: 0,
    tag: LockTag { field1: 0, field2: 0, field3: 0, field4: 0, kind: 0, method: 0 },
    cluster: 0,
    pid: 0,
    mode: 0,
    ended: 0,
    reserved: 0,
};

/// A wait that the scheduler's switches told of is over. It was not given up: the backend has the lock.
#[inline(always)]
pub fn granted(cluster: u32, wait: &PgLockWait) {
    let PgLockWait { since_ns, back_ns, lock, server_start: _, tag, mode, pid } = *wait;
    // It was off CPU for it, and came back.
    let ended_ns = if back_ns == 0 { now_ns() } else { back_ns };
    if since_ns == PgLockWait::BEFORE {
        return tell_end(cluster, ended_ns, outcome::GRANTED, &UNSEEN);
    }
    let known = LockWaitState { started_ns: since_ns, lock, tag, cluster, pid, mode, ended: 0, reserved: 0 };
    tell_end(cluster, ended_ns, outcome::GRANTED, &known);
}

/// The running backend's wait is over.
#[inline(always)]
fn end(how: u32) {
    let (tgid, _) = current();
    let Some(wait) = maps::LOCK_WAITS.get_ptr_mut(&tgid) else {
        if let Some((postmaster, _)) = cluster() {
            tell_end(postmaster, now_ns(), how, &UNSEEN);
        }
        return;
    };
    // SAFETY: a value of a preallocated map, which only the backend itself writes.
    let wait = unsafe { &mut *wait };
    // Only a deadlock is said of a wait that is over.
    if wait.ended != 0 && how != outcome::DEADLOCK {
        return;
    }
    wait.ended = 1;
    tell_end(wait.cluster, now_ns(), how, wait);
    // What was given up is kept until the backend's next wait: it may turn out to have been a deadlock.
    if how != outcome::CANCELLED {
        let _ = maps::LOCK_WAITS.remove(&tgid);
    }
}
