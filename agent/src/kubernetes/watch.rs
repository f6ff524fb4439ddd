//! Keeps up with the API server: a list of the node's pods, then what changes, as long as it goes; a new list where the server has
//! forgotten how far we were (410 Gone); pauses that grow where it is away. What was known stays known meanwhile.

use std::{
    collections::hash_map::RandomState,
    fmt::Write,
    hash::{BuildHasher, Hasher},
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use log::{debug, info, warn};
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{Api, ApiError},
    lock,
    objects::{Change, Partial, PodList, Refusal},
    store::{ObjectKey, Store},
};
use crate::{limits::KUBERNETES_LINE_BYTES_MAX, printable::is_printable};

/// What went well and what did not, since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub lists: u64,
    pub changes: u64,
    /// Watches that the server could not go on with.
    pub expired: u64,
    pub failures: u64,
    /// Lines that were not understood.
    pub malformed: u64,
    /// Pods beyond the most that are kept.
    pub left_out: u64,
}

/// How long the server is asked to go on with one watch; it may end it sooner.
const WATCH_SECONDS: u64 = 290;

/// A watch in which nothing comes for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 30);

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

const JSON: &str = "application/json";
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// Objects that are asked about between two changes.
const QUESTIONS_MAX: usize = 64;

/// From where to go on.
#[derive(Debug)]
enum Place {
    /// Whatever the server has at hand: cheap for it.
    Anew,
    /// What is true now: the server forgot where we were, and what it has at hand may be older still.
    Lost,
    After(String),
}

enum End {
    Closed,
    Expired,
}

/// Never ends.
pub async fn run(api: Api, node: String, store: Arc<Mutex<Store>>) {
    let mut watch = Watch { api, node: encoded(&node), store, place: Place::Anew };
    let mut pause = Pause::new();
    let mut is_away = false;
    loop {
        let begin = Instant::now();
        let end = watch.go_on().await;
        if let Err(error) = &end {
            lock(&watch.store).counts.failures += 1;
            if !is_away {
                warn!("kubernetes: {error}; what is known stays, and it is tried again");
            }
        } else if is_away {
            info!("kubernetes: the API server answers again");
        }
        is_away = end.is_err();
        if let Ok(End::Expired) = end {
            lock(&watch.store).counts.expired += 1;
            watch.place = Place::Lost;
        }
        if begin.elapsed() >= PAUSE_MAX {
            pause = Pause::new();
        }
        // Also after a watch that was ended: one that breaks off at once may do so the next time.
        sleep(pause.next()).await;
    }
}

struct Watch {
    api: Api,
    node: String,
    store: Arc<Mutex<Store>>,
    place: Place,
}

impl Watch {
    /// Until the server ends it.
    async fn go_on(&mut self) -> Result<End, ApiError> {
        let version = match &self.place {
            Place::After(version) => version.clone(),
            Place::Anew => self.list("&resourceVersion=0").await?,
            Place::Lost => self.list("").await?,
        };
        self.place = Place::After(version.clone());
        self.ask_for_owners().await;
        let path = format!(
            "{}&watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}",
            self.pods(),
            encoded(&version)
        );
        let response = match self.api.open(&path, JSON).await {
            Err(ApiError::Refused { code: 410, .. }) => return Ok(End::Expired),
            answer => answer?,
        };
        self.follow(response.into_body()).await
    }

    fn pods(&self) -> String {
        format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node)
    }

    /// All pods; the version of that list.
    async fn list(&mut self, from: &str) -> Result<String, ApiError> {
        let mut pods = Vec::new();
        let mut more = String::new();
        loop {
            let from = if more.is_empty() { from.to_owned() } else { format!("&continue={}", encoded(&more)) };
            let list: PodList = self.api.get(&format!("{}&limit=500{from}", self.pods()), JSON).await?;
            pods.extend(list.items);
            more = list.metadata.more.unwrap_or_default();
            if more.is_empty() || pods.len() >= crate::limits::KUBERNETES_PODS_MAX {
                info!("kubernetes: {} pods on this node", pods.len());
                let mut store = lock(&self.store);
                store.replace(pods);
                store.counts.lists += 1;
                return Ok(list.metadata.resource_version);
            }
        }
    }

    async fn follow<B>(&mut self, mut body: B) -> Result<End, ApiError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let mut lines = Lines::default();
        loop {
            // A connection that is silent or broken is closed like any other: the next watch goes on from here.
            let Ok(Some(Ok(frame))) = timeout(SILENCE, body.frame()).await else { return Ok(End::Closed) };
            let Ok(bytes) = frame.into_data() else { continue };
            for line in lines.add(&bytes) {
                let Some(line) = line else {
                    lock(&self.store).counts.malformed += 1;
                    // What it said is lost: everything anew.
                    return Ok(End::Expired);
                };
                if let Some(end) = self.line(&line)? {
                    return Ok(end);
                }
            }
            self.ask_for_owners().await;
        }
    }

    /// Takes in one line.
    fn line(&mut self, line: &[u8]) -> Result<Option<End>, ApiError> {
        let mut store = lock(&self.store);
        match Change::parse(line) {
            Some(Change::Put(pod)) => {
                self.place = Place::After(pod.metadata.resource_version.clone());
                store.put(*pod);
                store.counts.changes += 1;
            }
            Some(Change::Deleted(metadata)) => {
                self.place = Place::After(metadata.resource_version);
                store.remove(&metadata.uid);
                store.counts.changes += 1;
            }
            Some(Change::Bookmark(version)) => self.place = Place::After(version),
            Some(Change::Refused(Refusal { code: 410, .. })) => return Ok(Some(End::Expired)),
            Some(Change::Refused(Refusal { code, message })) => {
                let server = "the API server, within a watch,".to_owned();
                let message = message.chars().filter(|c| is_printable(*c)).take(300).collect();
                return Err(ApiError::Refused { server, code, message });
            }
            None => store.counts.malformed += 1,
        }
        Ok(None)
    }

    /// From a `ReplicaSet` to its `Deployment`, from a `Job` to its `CronJob`.
    async fn ask_for_owners(&mut self) {
        let strangers = lock(&self.store).strangers();
        for key in strangers.into_iter().take(QUESTIONS_MAX) {
            let path = path_of(&key);
            let owner = match self.api.get::<Partial>(&path, METADATA_ONLY).await {
                Ok(object) => object.metadata.controller().cloned(),
                // Gone, or not ours to know: it will not be known later.
                Err(ApiError::Refused { code: 403 | 404, .. }) => None,
                Err(error) => {
                    debug!("kubernetes: {path}: {error}");
                    return;
                }
            };
            lock(&self.store).own(key, owner);
        }
    }
}

fn path_of((namespace, kind, name): &ObjectKey) -> String {
    let resource = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    let plural = if kind == "Job" { "jobs" } else { "replicasets" };
    format!("/apis/{resource}/namespaces/{}/{plural}/{}", encoded(namespace), encoded(name))
}

/// Fit for any part of a URL.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Lines of a body that comes in pieces.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Those that are whole now; `None` for one that is too long, after which nothing more is to be had.
    fn add(&mut self, bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.rest.len() + piece.len() > KUBERNETES_LINE_BYTES_MAX {
                lines.push(None);
                return lines;
            }
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                lines.push(Some(std::mem::take(&mut self.rest)));
            }
        }
        lines
    }
}

/// Pauses between tries: each up to twice as long as the one before, and by chance, so that a cluster's nodes do not all come at once.
#[derive(Debug)]
struct Pause {
    tries: u32,
}

impl Pause {
    fn new() -> Self {
        Self { tries: 0 }
    }

    fn next(&mut self) -> Duration {
        let most = PAUSE_MIN.saturating_mul(1 << self.tries.min(16)).min(PAUSE_MAX);
        self.tries += 1;
        // The standard library's hashers begin at a random place.
        let chance = RandomState::new().build_hasher().finish() % 1024;
        let half = most / 2;
        half + half.saturating_mul(u32::try_from(chance).unwrap_or(0)) / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        assert!(lines.add(b"{\"a\"").is_empty());
        let whole = lines.add(b":1}\n{}\n{\"b");
        assert_eq!(whole, [Some(b"{\"a\":1}\n".to_vec()), Some(b"{}\n".to_vec())]);
        assert_eq!(lines.rest, b"{\"b");
        assert_eq!(Lines::default().add(&vec![b'x'; KUBERNETES_LINE_BYTES_MAX + 1]), [None]);
    }

    #[test]
    fn pauses_grow_and_stay_within_bounds() {
        let mut pause = Pause::new();
        for most in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let took = pause.next().as_millis();
            assert!((most / 2..=most).contains(&took), "{took} of {most}");
        }
    }

    #[test]
    fn names_do_not_change_what_is_asked() {
        let key = ("a/b".into(), "ReplicaSet".into(), "x?y=z".into());
        assert_eq!(path_of(&key), "/apis/apps/v1/namespaces/a%2Fb/replicasets/x%3Fy%3Dz");
    }
}
