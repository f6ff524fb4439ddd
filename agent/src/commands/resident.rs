//! What a daemon knows beside a trace: its configuration, which may change, and who comes.
//!
//! A process that begins a program is announced by the kernel half and looked at a moment later: whatever its loader maps is mapped
//! then, and what has gone by then costs one look. All of `/proc` is looked through at the start, now and then, and after announcements
//! were lost.

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use log::{info, warn};

use super::{discover::Discovery, driver::say, pods::Pods, subject::Subject};
use crate::{
    config::{Candidate, Config, ProcessSettings},
    diagnose::Diagnosis,
    limits::ANNOUNCED_MAX,
    report::{Body, Record},
    target::procfs::{self, Process},
    units::Pid,
};

/// From a program's first instruction to the first look at it.
const SETTLED: Duration = Duration::from_millis(150);

/// Between two looks through all of `/proc`, which find what nothing announced.
const SCAN_EVERY: Duration = Duration::from_mins(1);

/// Between two looks at the configuration file.
const FILE_LOOK_EVERY: Duration = Duration::from_secs(2);

/// The configuration, and who comes.
pub struct Resident {
    config: Config,
    path: Option<PathBuf>,
    /// Of the file that was last read.
    version: Option<FileVersion>,
    looked_at_file: Instant,
    discovery: Discovery,
    /// Where the configuration asks for them.
    pub pods: Option<Pods>,
    announced: VecDeque<(Pid, Instant)>,
    scan_due: Instant,
    /// What those who are traced are to the rules.
    traced: BTreeMap<Pid, Candidate>,
}

/// Device, inode, size and time of the last change: a file that was replaced differs.
type FileVersion = (u64, u64, u64, i64, i64);

impl Resident {
    #[must_use]
    pub fn new(config: Config, path: Option<PathBuf>) -> Self {
        let now = Instant::now();
        let mut resident = Self {
            config,
            path,
            version: None,
            looked_at_file: now,
            discovery: Discovery::default(),
            pods: None,
            announced: VecDeque::new(),
            scan_due: now,
            traced: BTreeMap::new(),
        };
        resident.version = resident.file_version();
        resident
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A process has begun a program.
    pub fn announce(&mut self, pid: Pid) {
        if self.announced.len() >= ANNOUNCED_MAX {
            // Whoever is not among them is found by a look at all.
            self.announced.clear();
            self.scan_due = Instant::now() + SETTLED;
        }
        self.announced.push_back((pid, Instant::now()));
    }

    /// Announcements were lost.
    pub fn look_at_all(&mut self) {
        self.scan_due = Instant::now();
    }

    /// Who has come, with how they are to be traced; `is_known` are left alone.
    pub fn newcomers(&mut self, is_known: impl Fn(Pid) -> bool) -> Vec<(Subject, ProcessSettings)> {
        let now = Instant::now();
        let mut subjects = Vec::new();
        if now >= self.scan_due {
            self.scan_due = now + SCAN_EVERY;
            self.announced.clear();
            subjects = self.discovery.newcomers();
        }
        while let Some((pid, _)) = self.announced.pop_front_if(|(_, at)| now.saturating_duration_since(*at) >= SETTLED)
        {
            if !is_known(pid) {
                subjects.extend(self.discovery.look(pid));
            }
        }
        subjects.retain(|subject| !is_known(subject.pid));
        let mut wanted = Vec::new();
        for mut subject in subjects {
            if let Some(pods) = &self.pods {
                pods.identify(&mut subject);
            }
            let Some(candidate) = candidate(subject.pid, &subject.facts.resource) else { continue };
            if let Some(how) = self.config.settings_of(&candidate) {
                self.traced.insert(subject.pid, candidate);
                wanted.push((subject, how));
            }
        }
        wanted
    }

    /// Those who were met and are to be traced no more.
    #[must_use]
    pub fn left_out(&self) -> Vec<Pid> {
        let is_left_out = |candidate| self.config.settings_of(candidate).is_none();
        self.traced.iter().filter(|(_, candidate)| is_left_out(candidate)).map(|(pid, _)| *pid).collect()
    }

    /// A process is traced no more.
    pub fn forget(&mut self, pid: Pid) {
        self.traced.remove(&pid);
        if let Some(pods) = &mut self.pods {
            pods.forget(pid);
        }
    }

    /// Whether the file has changed since it was last read; looks every few seconds.
    pub fn is_file_changed(&mut self) -> bool {
        if self.looked_at_file.elapsed() < FILE_LOOK_EVERY {
            return false;
        }
        self.looked_at_file = Instant::now();
        let version = self.file_version();
        // A file that is being replaced is not there for a moment.
        version.is_some() && version != self.version
    }

    /// Reads the file again. A bad one is refused, and the old one stays. Whether anything is new.
    pub fn reload(&mut self) -> bool {
        let Some(path) = &self.path else {
            info!("there is no configuration file to read again");
            return false;
        };
        self.version = self.file_version();
        match Config::read(path) {
            Ok(config) => {
                let waiting = config.needs_restart(&self.config);
                if !waiting.is_empty() {
                    warn!("these wait for the next start: {}", waiting.join(", "));
                }
                say(&format!("agent: {} is in force", path.display()));
                self.config = config;
                self.discovery = Discovery::default();
                self.look_at_all();
                true
            }
            Err(error) => {
                say(&format!("agent: refused, the configuration stays as it was: {error}"));
                false
            }
        }
    }

    fn file_version(&self) -> Option<FileVersion> {
        let metadata = std::fs::metadata(self.path.as_ref()?).ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
    }
}

/// What was found wrong and told: a daemon says it when it begins, and now and then while it lasts.
#[derive(Debug, Default)]
pub struct Findings {
    /// By process and code: when it was told last.
    told: BTreeMap<(u32, String), Instant>,
    looked: Option<Instant>,
}

/// Between two looks at what is wrong, and two lines about the same.
const JUDGE_EVERY: Duration = Duration::from_mins(1);
const TELL_EVERY: Duration = Duration::from_hours(1);

impl Findings {
    /// What is wrong now and was not told in the last hour.
    pub fn news(&mut self, diagnosis: &Diagnosis, now: &str) -> Vec<Record> {
        if self.looked.is_some_and(|looked| looked.elapsed() < JUDGE_EVERY) {
            return Vec::new();
        }
        self.looked = Some(Instant::now());
        let mut news = diagnosis.findings(now);
        news.retain(|record| {
            let Body::Finding(finding) = &record.body else { return false };
            let key = (record.pid, finding.code.clone());
            let is_new = self.told.get(&key).is_none_or(|told| told.elapsed() >= TELL_EVERY);
            if is_new {
                self.told.insert(key, Instant::now());
            }
            is_new
        });
        news
    }

    /// A process has gone.
    pub fn forget(&mut self, pid: u32) {
        self.told.retain(|(known, _), _| *known != pid);
    }
}

fn candidate(pid: Pid, resource: &BTreeMap<String, String>) -> Option<Candidate> {
    let process = Process::read(pid).ok()?;
    let uid = process.status.uid.to_string();
    let users = user_name(&uid).into_iter().chain([uid.clone()]).collect();
    Some(Candidate {
        command: process.command.join(" "),
        exe: process.exe.display().to_string(),
        users,
        cgroups: procfs::cgroups(pid),
        resource: resource.clone(),
    })
}

/// The name of a user of this host.
fn user_name(uid: &str) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = users.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}
