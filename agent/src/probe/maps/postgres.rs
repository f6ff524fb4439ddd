//! Server processes of PostgreSQL, and what they wait for.

use agent_ebpf::state::{Cluster, PgBackend, PgWaitKey, PgWaitSum, PgWaitWindow};
use zerocopy::{FromBytes, IntoBytes};

use super::{BPF_NOEXIST, CLUSTER, Maps, MapsError, PG_BACKEND, PG_WAIT_KEY, PG_WAIT_WINDOW, Raw};
use crate::units::MonoNs;

/// Waits of PostgreSQL's backends.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    pub ended: Vec<(PgWaitKey, PgWaitSum)>,
    pub backends: Vec<(u32, PgBackend)>,
}

impl Maps {
    /// Backends of this postmaster are traced from now on, those that it has and those to come; or their layout is known better.
    pub fn add_cluster(&mut self, postmaster: u32, cluster: Cluster) -> Result<(), MapsError> {
        let mut value = [0; CLUSTER];
        value.copy_from_slice(cluster.as_bytes());
        self.clusters.insert(&postmaster, &value, 0).map_err(|source| MapsError::Access { name: "CLUSTERS", source })
    }

    /// The waits of a server process are followed from now on, unless they are already.
    pub fn add_backend(&mut self, pid: u32, backend: PgBackend) {
        let mut value = [0; PG_BACKEND];
        value.copy_from_slice(backend.as_bytes());
        // One that the kernel half has added meanwhile is the better one.
        let _ = self.pg_backends.insert(&pid, &value, BPF_NOEXIST);
    }

    pub fn remove_backend(&mut self, pid: u32) {
        let _ = self.pg_backends.remove(&pid);
    }

    /// What is known of all server processes just now.
    pub fn backends(&self) -> impl Iterator<Item = (u32, PgBackend)> + '_ {
        let backend = |(pid, value): (u32, Raw<PG_BACKEND>)| Some((pid, PgBackend::read_from_bytes(&value).ok()?));
        self.pg_backends.iter().flatten().filter_map(backend)
    }

    /// What is known of a server process just now.
    #[must_use]
    pub fn backend(&self, pid: u32) -> Option<PgBackend> {
        PgBackend::read_from_bytes(&self.pg_backends.get(&pid, 0).ok()?).ok()
    }

    /// Begins a window of waits, and takes those that ended in the last one out of the kernel. The second list is of all server
    /// processes as they are then. What is still being added to the old window comes with the next.
    pub fn take_waits(&mut self, now: MonoNs) -> Result<Waits, MapsError> {
        let access = |source| MapsError::Access { name: "PG_WAIT_WINDOW", source };
        let before = self.pg_wait_window.get(&0, 0).map_err(access)?;
        let before = PgWaitWindow::read_from_bytes(&before).map_or(0, |window| window.epoch);
        let window = PgWaitWindow { began_ns: now.0, epoch: before.wrapping_add(1), reserved: 0 };
        let mut value = [0; PG_WAIT_WINDOW];
        value.copy_from_slice(window.as_bytes());
        self.pg_wait_window.set(0, &value, 0).map_err(access)?;
        let backends = self.backends().collect();
        let is_old = |key: &PgWaitKey| u32::from(key.epoch) != window.epoch & 0xffff;
        let keys: Vec<Raw<PG_WAIT_KEY>> = self.pg_waits.keys().flatten().collect();
        let mut ended = Vec::new();
        for raw in keys {
            let Ok(key) = PgWaitKey::read_from_bytes(&raw) else { continue };
            if is_old(&key)
                && let Ok(sum) = self.pg_waits.get(&raw, 0)
                && let Ok(sum) = PgWaitSum::read_from_bytes(&sum)
            {
                let _ = self.pg_waits.remove(&raw);
                ended.push((key, sum));
            }
        }
        Ok(Waits { ended, backends })
    }

    /// What those waits that go on have taken of the window by now, as if by waits that never end.
    #[must_use]
    pub fn open_waits(&self, now: MonoNs) -> Vec<(PgWaitKey, PgWaitSum)> {
        let window = self.pg_wait_window.get(&0, 0).ok().and_then(|raw| PgWaitWindow::read_from_bytes(&raw).ok());
        let began_ns = window.map_or(0, |window| window.began_ns);
        let open = self.backends().filter(|(_, backend)| backend.event != 0);
        let sum = |(_, PgBackend { cluster, event, out_ns, .. }): (u32, PgBackend)| {
            let time_ns = now.0.saturating_sub(out_ns.max(began_ns));
            (PgWaitKey { cluster, event, bucket: 0, epoch: 0 }, PgWaitSum { count: 0, time_ns })
        };
        open.map(sum).collect()
    }

    /// From now on, no wait of this cluster's backends is recorded.
    pub fn quiet_cluster(&mut self, postmaster: u32) {
        let _ = self.clusters.remove(&postmaster);
    }
}
