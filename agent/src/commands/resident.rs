//! What a daemon knows beside a trace: its configuration, which may change, and who comes.
//!
//! A process that begins a program is announced by the kernel half and looked at a moment later: whatever its loader maps is mapped
//! then, and what has gone by then costs one look. All of `/proc` is looked through at the start, now and then, and after announcements
//! were lost.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use log::{info, warn};

use super::{discover::Discovery, driver::say, pods::Pods, subject::Subject};
use crate::{
    config::{Candidate, Config, ProcessSettings},
    core::TargetFacts,
    diagnose::Diagnosis,
    limits::{ANNOUNCED_MAX, CONTAINED_MAX},
    report::{Body, Record},
    target::procfs::{self, Process},
    units::{Pid, nanoseconds},
};

/// From a program's first instruction to the first look at it.
const SETTLED: Duration = Duration::from_millis(150);

/// Between two looks through all of `/proc`, which find what nothing announced; and at least, where announcements are lost.
const SCAN_EVERY: Duration = Duration::from_mins(1);
const SCAN_LEAST: Duration = Duration::from_secs(5);

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
    /// Announcements that were lost by the last look at their count.
    lost: u64,
    scanned: Option<Instant>,
    scan_due: Instant,
    traced: BTreeMap<Pid, Traced>,
    /// What those are to the rules whom none of them wants, but whose pods may change.
    passed_over: BTreeMap<Pid, Candidate>,
}

/// One who is traced: what it is to the rules, and what they say of it.
struct Traced {
    candidate: Candidate,
    how: ProcessSettings,
    facts: Option<TargetFacts>,
}

/// What the rules say now of one who is traced.
pub enum Verdict {
    /// It is traced no more.
    Leave(Pid),
    /// Something else is known of it, or it is traced otherwise, from here on.
    Change { facts: Box<TargetFacts>, memory: bool, had_memory: bool },
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
            lost: 0,
            scanned: None,
            scan_due: now,
            traced: BTreeMap::new(),
            passed_over: BTreeMap::new(),
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

    /// So many announcements of beginnings and ends were lost since it all began. Whoever was among them is found by a look at all.
    pub fn count_lost(&mut self, lost: u64) {
        if lost <= std::mem::replace(&mut self.lost, lost) {
            return;
        }
        info!("{lost} announcements of processes were lost by now: all of /proc is looked through");
        let now = Instant::now();
        let soonest = self.scanned.map_or(now, |at| now.max(at + SCAN_LEAST));
        self.scan_due = self.scan_due.min(soonest);
    }

    /// Those who are traced and have become another program, or another process, which nobody has told. Looked for as often as at all.
    #[must_use]
    pub fn replaced(&self) -> Vec<Pid> {
        if Instant::now() < self.scan_due {
            return Vec::new();
        }
        self.traced.keys().copied().filter(|pid| self.discovery.is_other(*pid)).collect()
    }

    /// A process that was met is met again.
    pub fn look_again(&mut self, pid: Pid) {
        self.discovery.forget(pid);
        self.announce(pid);
    }

    /// Who has come, with how they are to be traced; `is_known` are left alone.
    pub fn newcomers(&mut self, is_known: impl Fn(Pid) -> bool) -> Vec<(Subject, ProcessSettings)> {
        let now = Instant::now();
        let mut subjects = Vec::new();
        if now >= self.scan_due {
            self.scan_due = now + SCAN_EVERY;
            self.scanned = Some(now);
            subjects = self.scan(now);
            self.forget_dead();
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
            if let Some(how) = self.judge(&mut subject) {
                wanted.push((subject, how));
            }
        }
        wanted
    }

    /// Looks at all of whom it is time to look: a program whose loader has not mapped its libraries yet would be taken for something else.
    fn scan(&mut self, now: Instant) -> Vec<Subject> {
        self.announced.retain(|(_, at)| now.saturating_duration_since(*at) < SETTLED);
        let unsettled: BTreeSet<Pid> = self.announced.iter().map(|(pid, _)| *pid).collect();
        let mut young = Vec::new();
        let is_time = |pid| {
            if unsettled.contains(&pid) {
                return false;
            }
            let is_young = procfs::age(pid).is_some_and(|age| age < SETTLED);
            if is_young {
                young.push(pid);
            }
            !is_young
        };
        let subjects = self.discovery.newcomers_among(is_time);
        for pid in young {
            self.announce(pid);
        }
        subjects
    }

    /// How a process is traced that has come, or has become another program; `None` if it is not.
    pub fn judge(&mut self, subject: &mut Subject) -> Option<ProcessSettings> {
        let pid = subject.pid;
        self.discovery.note(pid);
        self.traced.remove(&pid);
        if let Some(pods) = &mut self.pods {
            pods.identify(subject);
        }
        let candidate = candidate(pid, &subject.facts.resource)?;
        let how = self.config.settings_of(&candidate);
        if let Some(how) = how {
            self.passed_over.remove(&pid);
            self.traced.insert(pid, Traced { candidate, how, facts: None });
        } else if self.pods.is_some() && subject.identity.container.is_some() && self.passed_over.len() < CONTAINED_MAX
        {
            self.passed_over.insert(pid, candidate);
        }
        how
    }

    /// A process is traced from here on.
    pub fn traced(&mut self, facts: &TargetFacts) {
        if let Some(traced) = self.traced.get_mut(&facts.pid) {
            traced.facts = Some(facts.clone());
        }
    }

    /// Of whom the rules say something else than before, as they have changed.
    pub fn review(&mut self) -> Vec<Verdict> {
        let all: Vec<Pid> = self.traced.keys().copied().collect();
        all.into_iter().filter_map(|pid| self.verdict(pid)).collect()
    }

    fn verdict(&mut self, pid: Pid) -> Option<Verdict> {
        let Traced { candidate, how, facts } = self.traced.get_mut(&pid)?;
        let Some(now) = self.config.settings_of(candidate) else { return Some(Verdict::Leave(pid)) };
        let before = std::mem::replace(how, now);
        let facts = facts.as_mut()?;
        if now == before && facts.resource == candidate.resource {
            return None;
        }
        facts.resource.clone_from(&candidate.resource);
        facts.config.slow_turn_ns = nanoseconds(now.slow_turn);
        Some(Verdict::Change { facts: Box::new(facts.clone()), memory: now.memory, had_memory: before.memory })
    }

    /// Asks the rules again about those of whose pods something else is known than before.
    pub fn rematch(&mut self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (pid, resource) in self.pods.as_mut().map(Pods::news).unwrap_or_default() {
            if let Some(Traced { candidate, .. }) = self.traced.get_mut(&pid) {
                candidate.resource = resource;
                verdicts.extend(self.verdict(pid));
            } else if let Some(candidate) = self.passed_over.get_mut(&pid) {
                candidate.resource = resource;
                if self.config.settings_of(candidate).is_some() {
                    self.look_again(pid);
                }
            }
        }
        verdicts
    }

    /// Ends of those who are not traced are not announced.
    fn forget_dead(&mut self) {
        let dead = self.passed_over.extract_if(.., |pid, _| !procfs::is_alive(*pid));
        for (pid, _) in dead.collect::<Vec<_>>() {
            if let Some(pods) = &mut self.pods {
                pods.forget(pid);
            }
        }
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
                self.passed_over.clear();
                self.scan_due = Instant::now();
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
