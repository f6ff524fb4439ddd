//! PostgreSQL servers: their locks as each window ends, and their waits set right.

use log::{info, warn};

use super::{Driver, DriverError, say};
use crate::{
    commands::postgres::Watch,
    core::{Input, Tick},
    limits::PG_LOCK_WAIT_MIN_NS,
    postgres::{OpenWait, Reading, WaitEvent},
    probe::maps::monotonic_ns,
    target::{postgres::PostgresError, sockets::Peers},
    units::{MonoNs, Pid},
};

/// Waits of PostgreSQL's backends that seem to go on for longer than this are looked at in the backend's memory.
const WAIT_DOUBTED_NS: u64 = 1_000_000_000;

impl Driver {
    /// Begins to trace a PostgreSQL cluster: its backends cost nothing until one of them waits for a lock.
    pub(super) fn add_cluster(&mut self, mut watch: Watch) -> Result<(), DriverError> {
        let (file, mut facts) = watch.prepare().map_err(PostgresError::from)?;
        let pid = watch.pid();
        let poorer = self.session.add_cluster(pid, file, watch.layout())?;
        facts.since = monotonic_ns();
        watch.look_again();
        self.session.follow_backends(pid, facts.since, &watch.processes());
        facts.degraded.extend(poorer);
        facts.degraded.extend(self.session.degraded.iter().cloned());
        if !self.mission.quiet {
            let (doing, version) = (self.mission.doing, watch.version().unwrap_or("of an unknown version"));
            say(&format!("agent: {doing} pid {pid} (PostgreSQL {version}); Ctrl-C ends it with a report"));
        }
        info!("pid={pid} attached by {}", self.session.way.name());
        self.feed(Input::Cluster(Box::new(facts)));
        // Who waits already began before any probe.
        let reading = watch.read();
        self.feed(Input::PgReading(Box::new(reading)));
        // Beside a process that is traced, it is watched for as long as that lives.
        if self.targets.is_empty() {
            self.targets.push(pid);
        }
        self.clusters.push(watch);
        Ok(())
    }

    /// One that was not asked for by name.
    pub(super) fn add_found_cluster(&mut self, watch: Watch) {
        let pid = watch.pid();
        if self.clusters.iter().any(|known| known.pid() == pid) {
            return;
        }
        if let Err(error) = self.add_cluster(watch) {
            warn!("pid={pid} is left out: {error}");
        }
    }

    pub(super) fn cluster_gone(&mut self, pid: Pid) {
        if self.clusters.iter().any(|watch| watch.pid() == pid) {
            self.clusters.retain(|watch| watch.pid() != pid);
            self.session.remove_cluster(pid);
            self.feed(Input::TargetGone { pid, now: monotonic_ns() });
        }
    }

    /// Reads the lock tables, after the records that came before.
    pub(super) fn read_clusters(&mut self) {
        let mut inputs = Vec::new();
        for watch in &mut self.clusters {
            let ends_told_since = self.session.ends_told_since(watch.pid());
            let reading = Reading { ends_told_since, ..watch.read() };
            if let Some(names) = &mut self.names {
                names.ask(&reading);
            }
            inputs.push(Input::PgReading(Box::new(reading)));
            self.session.follow_backends(watch.pid(), monotonic_ns(), &watch.pids());
            if let Some(layout) = watch.layout_found()
                && let Err(error) = self.session.set_cluster(watch.pid(), layout)
            {
                warn!("{error}");
            }
        }
        let is_beside = |client: &Pid| self.clusters.iter().any(|watch| watch.pid() != *client);
        let unix = if self.targets.iter().any(is_beside) { Peers::read() } else { Peers::default() };
        for watch in &self.clusters {
            let cluster = watch.pid();
            for client in self.targets.iter().copied().filter(|client| *client != cluster) {
                inputs.push(Input::PgClient { client, cluster, backends: watch.serving(client, &unix) });
            }
        }
        if let Some(names) = &mut self.names {
            let clusters = &self.clusters;
            let of = |backend| clusters.iter().find(|watch| watch.has(backend)).map(Watch::pid);
            inputs.extend(names.inputs(of));
        }
        for input in inputs {
            self.feed(input);
        }
    }

    /// Sets right what the kernel half could not see of PostgreSQL's waits, and asks for the names of new ones.
    pub(super) fn tell_waits(&mut self, tick: &mut Tick) {
        let Self { clusters, session, .. } = self;
        // Not every switch is told of: who waits for something else by now, and was not seen to come back, did.
        let is_over = |wait: &OpenWait| {
            let watch = clusters.iter().find(|watch| watch.pid() == wait.cluster);
            tick.now.since(wait.since).0 >= WAIT_DOUBTED_NS
                && watch.and_then(|watch| watch.waits_for(wait.pid)).is_some_and(|event| event != wait.event)
                && session.is_open(wait)
        };
        tick.pg_open_waits.retain(|wait| !is_over(wait));
        let mut inputs = Vec::new();
        for watch in clusters {
            let cluster = watch.pid();
            let ended = tick.pg_waits.iter().filter(|(key, _)| key.cluster == cluster.0);
            let open = tick.pg_open_waits.iter().filter(|wait| wait.cluster == cluster).map(|wait| wait.event);
            let names = watch.wait_event_names(ended.map(|(key, _)| WaitEvent(key.event)).chain(open));
            if !names.is_empty() {
                inputs.push(Input::PgWaitEvents { cluster, names });
            }
        }
        for input in inputs {
            self.feed(input);
        }
    }

    /// Tells the kernel half what backends wait for, where it follows that again.
    pub(super) fn follow_waits_again(&mut self) {
        if !self.session.are_waits_back() {
            return;
        }
        for watch in &mut self.clusters {
            watch.look_again();
            self.session.follow_backends(watch.pid(), monotonic_ns(), &watch.processes());
        }
    }

    /// Reads the lock tables in which somebody waits for so long that it will be told, and that was not read since.
    pub(super) fn glance_at_locks(&mut self) {
        let then = MonoNs(monotonic_ns().0.saturating_sub(PG_LOCK_WAIT_MIN_NS / 2));
        let waits = self.session.lock_waits_since(then);
        let is_told = self.session.follows_waits();
        let since =
            |watch: &Watch| if is_told { waits.get(&watch.pid()).copied() } else { watch.lock_wait_since(then) };
        let glance = |watch: &mut Watch| watch.glance(since(watch)?);
        let readings: Vec<Reading> = self.clusters.iter_mut().filter_map(glance).collect();
        for reading in readings {
            let ends_told_since = self.session.ends_told_since(reading.cluster);
            let reading = Reading { ends_told_since, ..reading };
            self.feed(Input::PgReading(Box::new(reading)));
        }
    }
}
