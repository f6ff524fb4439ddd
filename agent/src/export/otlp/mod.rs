//! OTLP: records as metrics, logs and profiles of OpenTelemetry, each with the resource that it is about.
//!
//! Everything is about one window and says so (delta temporality). For metrics and logs a record becomes a request of its own, in
//! protobuf: requests in a row are one request, as their fields repeat, and JSON is written from the whole of it when it is sent.
//! Profiles are requests of several records, and each is sent alone.

mod logs;
mod metrics;
mod points;
pub mod profiles;
pub mod proto;

use std::{collections::BTreeMap, path::Path};

use prost::Message as _;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use self::{
    points::Window,
    profiles::{Profiles, proto::ProfilesRequest},
    proto::{
        KeyValue, LogsRequest, MetricsRequest, Resource, ResourceLogs, ResourceMetrics, Scope, ScopeLogs, ScopeMetrics,
        attribute,
    },
};
use super::{
    bunyan::host_name,
    stream::{Item, OtlpSignal, Signal},
};
use crate::report::{
    Body, Record,
    model::{PgCluster, Process, Target},
};

/// Processes whose resources are kept; they go with the process.
const RESOURCES_MAX: usize = 4096;

/// Turns records into requests.
#[derive(Debug)]
pub struct Encoder {
    signals: Vec<OtlpSignal>,
    /// Attributes for every resource: `OTEL_RESOURCE_ATTRIBUTES`.
    shared: BTreeMap<String, String>,
    resources: BTreeMap<u32, Resource>,
    profiles: Profiles,
    /// Processes that are gone, and whose last window is still to come.
    gone: Vec<u32>,
}

impl Encoder {
    #[must_use]
    pub fn new(signals: &[OtlpSignal], shared: BTreeMap<String, String>) -> Self {
        Self {
            signals: signals.to_owned(),
            shared,
            resources: BTreeMap::new(),
            profiles: Profiles::default(),
            gone: Vec::new(),
        }
    }

    /// What is to be sent now that there is this record.
    pub fn encode(&mut self, record: &Record) -> Vec<Item> {
        let known = match &record.body {
            Body::Target(target) => Some(self.of_target(record.pid, target)),
            Body::PgCluster(cluster) => Some(self.of_cluster(record.pid, cluster)),
            _ => None,
        };
        if let Some(resource) = known
            && (self.resources.len() < RESOURCES_MAX || self.resources.contains_key(&record.pid))
        {
            self.resources.insert(record.pid, resource);
            self.gone.retain(|pid| *pid != record.pid);
        }
        let mut items = Vec::from_iter(self.encode_body(record));
        if self.signals.contains(&OtlpSignal::Profiles) {
            items.extend(self.encode_profiles(record));
        }
        match record.body {
            Body::Process(Process::Exit { .. } | Process::Gone) => self.gone.push(record.pid),
            // It ends a window of all processes, also of those that are gone.
            Body::Agent(_) => {
                for pid in std::mem::take(&mut self.gone) {
                    self.resources.remove(&pid);
                    self.profiles.forget(pid);
                }
            }
            _ => {}
        }
        items
    }

    /// What waited for more: nothing more comes.
    pub fn finish(&mut self) -> Vec<Item> {
        self.profiles.rest().iter().map(item).collect()
    }

    fn encode_profiles(&mut self, record: &Record) -> Vec<Item> {
        // It looks at the resource while what waits is changed.
        let mut profiles = std::mem::take(&mut self.profiles);
        profiles.add(record, unix_ns(&record.time), || self.resource(record));
        let ready = if matches!(record.body, Body::Agent(_)) { profiles.ready() } else { Vec::new() };
        self.profiles = profiles;
        ready.iter().map(item).collect()
    }

    fn encode_body(&self, record: &Record) -> Option<Item> {
        let time_ns = unix_ns(&record.time);
        let resource = || Some(self.resource(record));
        if let Some(duration_ns) = metrics::duration_ns(&record.body) {
            if !self.signals.contains(&OtlpSignal::Metrics) {
                return None;
            }
            let start_ns = time_ns.saturating_sub(duration_ns);
            let mut window = Window { start_ns, end_ns: time_ns, metrics: Vec::new() };
            metrics::put(&record.body, &mut window);
            let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics: window.metrics }];
            let request =
                MetricsRequest { resource_metrics: vec![ResourceMetrics { resource: resource(), scope_metrics }] };
            return Some(Item { signal: Signal::Metrics, bytes: request.encode_to_vec() });
        }
        if !self.signals.contains(&OtlpSignal::Logs) {
            return None;
        }
        let log = logs::of(&record.body, time_ns)?;
        let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records: vec![log] }];
        let request = LogsRequest { resource_logs: vec![ResourceLogs { resource: resource(), scope_logs }] };
        Some(Item { signal: Signal::Logs, bytes: request.encode_to_vec() })
    }

    fn resource(&self, record: &Record) -> Resource {
        if let Some(resource) = self.resources.get(&record.pid).filter(|_| !matches!(record.body, Body::Agent(_))) {
            return resource.clone();
        }
        let mut known =
            vec![("service.name", "agent".to_owned()), ("service.version", env!("CARGO_PKG_VERSION").to_owned())];
        if record.pid != 0 && !matches!(record.body, Body::Agent(_)) {
            known = vec![("service.name", "unknown_service".to_owned())];
        }
        self.of(record.pid, known, &BTreeMap::new())
    }

    fn of_target(&self, pid: u32, target: &Target) -> Resource {
        let script = target.command.get(1).or(target.command.first());
        let name = script.and_then(|script| Path::new(script).file_stem()).map(|name| name.to_string_lossy());
        let mut known = vec![
            ("service.name", name.map_or_else(|| "unknown_service:node".into(), std::borrow::Cow::into_owned)),
            ("process.executable.path", target.exe.clone()),
            ("process.runtime.name", "nodejs".into()),
        ];
        known.extend(target.node_version.clone().map(|version| ("process.runtime.version", version)));
        self.of(pid, known, &target.resource)
    }

    fn of_cluster(&self, pid: u32, cluster: &PgCluster) -> Resource {
        let mut known =
            vec![("service.name", "postgresql".to_owned()), ("process.executable.path", cluster.exe.clone())];
        known.extend(cluster.server_version.clone().map(|version| ("service.version", version)));
        self.of(pid, known, &cluster.resource)
    }

    /// What is known of a process goes over what is said for all.
    fn of(&self, pid: u32, known: Vec<(&str, String)>, measured: &BTreeMap<String, String>) -> Resource {
        let mut attributes = self.shared.clone();
        attributes.insert("host.name".into(), host_name().to_owned());
        attributes.extend(known.into_iter().map(|(key, value)| (key.to_owned(), value)));
        attributes.extend(measured.iter().map(|(key, value)| (key.clone(), value.clone())));
        // A number, which it is not there.
        attributes.remove("process.pid");
        // The one name that is meant to be set from outside.
        if let Some(name) = self.shared.get("service.name") {
            attributes.insert("service.name".into(), name.clone());
        }
        let mut attributes: Vec<KeyValue> = attributes.into_iter().map(|(key, value)| attribute(key, value)).collect();
        if pid != 0 {
            attributes.push(attribute("process.pid", pid));
        }
        Resource { attributes }
    }
}

fn item(request: &ProfilesRequest) -> Item {
    Item { signal: Signal::Profiles, bytes: request.encode_to_vec() }
}

fn scope() -> Scope {
    Scope { name: "agent".into(), version: env!("CARGO_PKG_VERSION").into() }
}

/// 0 for what is no time, which OTLP takes for unknown.
fn unix_ns(time: &str) -> u64 {
    let time = OffsetDateTime::parse(time, &Rfc3339).ok();
    time.and_then(|time| u64::try_from(time.unix_timestamp_nanos()).ok()).unwrap_or(0)
}

/// Several requests of one signal, in a row, as one in JSON; of profiles, one.
pub fn json(signal: Signal, bytes: &[u8]) -> Result<Vec<u8>, String> {
    match signal {
        Signal::Metrics => json_of::<MetricsRequest>(bytes),
        Signal::Logs => json_of::<LogsRequest>(bytes),
        Signal::Profiles => json_of::<ProfilesRequest>(bytes),
        Signal::Line => Err("a line is no request".into()),
    }
}

fn json_of<T: prost::Message + Default + serde::Serialize>(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let request = T::decode(bytes).map_err(|error| error.to_string())?;
    serde_json::to_vec(&request).map_err(|error| error.to_string())
}

/// What the collector says of data points, logs or profiles that it left out of a request that it took.
#[must_use]
pub fn complaint(is_json: bool, answer: &[u8]) -> Option<String> {
    const REJECTED: [&str; 3] = ["rejectedDataPoints", "rejectedLogRecords", "rejectedProfiles"];
    let (rejected, message) = if is_json {
        let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
        let partial = answer.get("partialSuccess")?;
        let rejected = REJECTED.iter().find_map(|key| partial.get(key));
        let rejected = rejected.and_then(|n| n.as_i64().or_else(|| n.as_str()?.parse().ok())).unwrap_or(0);
        (rejected, partial.get("errorMessage").and_then(|text| text.as_str()).unwrap_or_default().to_owned())
    } else {
        let partial = proto::Answer::decode(answer).ok()?.partial_success?;
        (partial.rejected, partial.error_message)
    };
    (rejected != 0 || !message.is_empty()).then(|| format!("{rejected} left out: {message}"))
}
