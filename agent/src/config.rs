//! The file that tells a daemon what to do.
//!
//! Everything has a default, so an empty file is a good one. What is not known is refused, with its line: a misspelt word that is
//! ignored is found when it is too late.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    cli::{self, Phases, Statements},
    export::stream::StreamConfig,
    govern::SHARE,
    kubernetes::KubernetesConfig,
};

/// Longest pattern, and rules that are looked through for each process.
const PATTERN_BYTES_MAX: usize = 4096;
const RULES_MAX: usize = 256;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}{reason}", .path.display(), .line.map_or_else(|| " ".into(), |line| format!("{line}: ")))]
pub struct ConfigError {
    pub path: PathBuf,
    pub line: Option<usize>,
    pub reason: String,
}

/// All that can be set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub trace: Trace,
    pub output: Output,
    /// Collectors.
    #[serde(rename = "stream")]
    pub streams: Vec<StreamConfig>,
    pub metrics: Metrics,
    pub budget: Budget,
    /// Whose pods the containers are.
    pub kubernetes: KubernetesConfig,
    /// The first that fits a process says how it is traced.
    #[serde(rename = "process")]
    pub rules: Vec<Rule>,
}

/// What is measured of all.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    #[serde(deserialize_with = "window")]
    pub window: Duration,
    #[serde(deserialize_with = "duration")]
    pub slow_turn: Duration,
    pub phases: Phases,
    pub sample_hz: u32,
    /// PostgreSQL servers, too: who waits for whose locks.
    pub postgres: bool,
    pub statements: Statements,
    pub source_maps: Option<PathBuf>,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            slow_turn: Duration::from_millis(50),
            phases: Phases::Auto,
            sample_hz: 19,
            postgres: true,
            statements: Statements::Fingerprint,
            source_maps: None,
        }
    }
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// Files for newline-delimited JSON; `-` is standard output.
    pub ndjson: Vec<PathBuf>,
}

impl Default for Output {
    fn default() -> Self {
        Self { ndjson: vec!["-".into()] }
    }
}

/// What probes may take from what runs here.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Share of the host's CPUs that all probes together may take, as `agent trace --max-overhead` has it.
    #[serde(deserialize_with = "share")]
    pub max_overhead: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { max_overhead: SHARE }
    }
}

/// For Prometheus, and for those who ask whether the daemon is well.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where `/metrics`, `/healthz` and `/readyz` are served; nothing listens without it.
    pub listen: Option<SocketAddr>,
}

/// Which processes, and how they are traced. A rule without a condition fits all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// The whole command line, its words with spaces between.
    pub command: Option<Pattern>,
    /// The path of the program, as the process has it.
    pub exe: Option<Pattern>,
    /// A name in this host's `/etc/passwd`, or a number.
    pub user: Option<Pattern>,
    /// One of its paths in `/proc/PID/cgroup`.
    pub cgroup: Option<Pattern>,
    /// Attributes of its resource, all of which must fit: container, pod, namespace, service.
    pub resource: BTreeMap<String, Pattern>,
    /// Settings for those that fit.
    pub trace: Option<bool>,
    #[serde(deserialize_with = "maybe_duration")]
    pub slow_turn: Option<Duration>,
    /// Whether its memory is looked at: V8's heaps, handles, what grows.
    pub memory: Option<bool>,
}

/// What a process is to the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub command: String,
    pub exe: String,
    /// The number, and the name where there is one.
    pub users: Vec<String>,
    pub cgroups: Vec<String>,
    pub resource: BTreeMap<String, String>,
}

/// How a process is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessSettings {
    pub slow_turn: Duration,
    pub memory: bool,
}

impl Rule {
    fn fits(&self, candidate: &Candidate) -> bool {
        let Self { command, exe, user, cgroup, resource, trace: _, slow_turn: _, memory: _ } = self;
        let fits = |pattern: &Option<Pattern>, texts: &[String]| {
            pattern.as_ref().is_none_or(|pattern| texts.iter().any(|text| pattern.fits(text)))
        };
        fits(command, std::slice::from_ref(&candidate.command))
            && fits(exe, std::slice::from_ref(&candidate.exe))
            && fits(user, &candidate.users)
            && fits(cgroup, &candidate.cgroups)
            && resource
                .iter()
                .all(|(name, pattern)| candidate.resource.get(name).is_some_and(|text| pattern.fits(text)))
    }
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            path: path.to_owned(),
            line: None,
            reason: format!("cannot be read: {error}"),
        })?;
        Self::parse(&text, path)
    }

    /// `path` is for the messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let refuse = |line, reason: &str| ConfigError {
            path: path.to_owned(),
            line,
            reason: reason.lines().collect::<Vec<_>>().join("; "),
        };
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
            refuse(line, error.message())
        })?;
        if config.trace.sample_hz > 10_000 {
            return Err(refuse(None, "trace.sample_hz: at most 10000"));
        }
        for (at, stream) in config.streams.iter().enumerate() {
            if let Err(error) = stream.address() {
                return Err(refuse(None, &format!("stream {}: {error}", at + 1)));
            }
        }
        if config.rules.len() > RULES_MAX {
            return Err(refuse(None, &format!("at most {RULES_MAX} rules for processes")));
        }
        Ok(config)
    }

    /// How a process is traced; `None` if it is not.
    #[must_use]
    pub fn settings_of(&self, candidate: &Candidate) -> Option<ProcessSettings> {
        let rule = self.rules.iter().find(|rule| rule.fits(candidate));
        let Some(Rule { trace, slow_turn, memory, .. }) = rule else {
            return Some(ProcessSettings { slow_turn: self.trace.slow_turn, memory: true });
        };
        trace.unwrap_or(true).then(|| ProcessSettings {
            slow_turn: slow_turn.unwrap_or(self.trace.slow_turn),
            memory: memory.unwrap_or(true),
        })
    }

    /// What differs from `other` and takes effect with the next start only.
    #[must_use]
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        let Trace { window, slow_turn: _, phases, sample_hz, postgres, statements, source_maps } = &self.trace;
        let before = &other.trace;
        [
            ("trace.window", *window != before.window),
            ("trace.phases", *phases != before.phases),
            ("trace.sample_hz", *sample_hz != before.sample_hz),
            ("trace.postgres", *postgres != before.postgres),
            ("trace.statements", *statements != before.statements),
            ("trace.source_maps", *source_maps != before.source_maps),
            ("output", self.output != other.output),
            ("stream", self.streams != other.streams),
            ("metrics", self.metrics != other.metrics),
            ("budget", self.budget != other.budget),
            ("kubernetes", self.kubernetes != other.kubernetes),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

/// Text in which `*` stands for anything, and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<char>);

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return Err(D::Error::custom(format!("a pattern has from 1 to {PATTERN_BYTES_MAX} bytes")));
        }
        Ok(Self(text.chars().collect()))
    }
}

impl Pattern {
    /// Whether it fits the whole of the text. Goes back to the last `*` only, so it takes no longer than both lengths multiplied.
    #[must_use]
    pub fn fits(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().take(PATTERN_BYTES_MAX).collect();
        let (mut at, mut in_text) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while let Some(c) = text.get(in_text) {
            match self.0.get(at) {
                Some('*') => {
                    star = Some((at, in_text));
                    at += 1;
                }
                Some(p) if *p == '?' || p == c => {
                    at += 1;
                    in_text += 1;
                }
                Some(_) | None => {
                    let Some((star_at, taken)) = star else { return false };
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    in_text = taken + 1;
                }
            }
        }
        self.0.iter().skip(at).all(|p| *p == '*')
    }
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    cli::duration(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn maybe_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

fn share<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    cli::share(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn window<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    cli::window(&String::deserialize(from)?).map_err(D::Error::custom)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    #[test]
    fn an_empty_file_traces_everything() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::default());
        let settings = config.settings_of(&Candidate::default()).unwrap();
        assert_eq!(settings, ProcessSettings { slow_turn: Duration::from_millis(50), memory: true });
    }

    #[test]
    fn the_shipped_example_is_the_default_written_out() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/deploy/agent.toml");
        let shipped = Config::read(&path).unwrap();
        assert_eq!(Config { rules: Vec::new(), ..shipped.clone() }, Config::default());
        assert!(!shipped.rules.is_empty(), "it shows a rule");
    }

    #[test]
    fn the_shipped_unit_starts_what_there_is() {
        use clap::Parser;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/deploy/agent.service");
        let unit = std::fs::read_to_string(path).unwrap();
        let started = unit.lines().filter_map(|line| line.strip_prefix("ExecStart"));
        let words = started.filter_map(|line| Some(line.split_once('=')?.1.split_whitespace()));
        let commands: Vec<_> = words.map(|words| cli::Cli::try_parse_from(words).unwrap().command).collect();
        assert!(matches!(commands.as_slice(), [cli::Command::Daemon(_), cli::Command::Daemon(_)]));
        assert!(unit.contains("\nExecReload=/bin/kill -HUP $MAINPID\n"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let check = |text: &str, told: &str| {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        };
        check("[trace]\nwindou = \"1s\"\n", "agent.toml:2: unknown field `windou`");
        check("[trace]\n\nwindow = \"1ms\"\n", "agent.toml:3: a window lasts from 100ms to 60s");
        check("[[process]]\ncommand = \"\"", "agent.toml:2: a pattern has");
        check("[[process]]\nuser = \"www\"\nslow_turn = 3", "agent.toml:3: ");
        check("trace = [", "agent.toml:1: ");
        check("[nonsense]", "agent.toml:1: unknown field `nonsense`");
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let config = parse(
            r#"
            [[process]]
            command = "*/admin.js*"
            user = "www"
            trace = false
            [[process]]
            user = "www"
            slow_turn = "5ms"
            memory = false
            [[process]]
            cgroup = "/kubepods*"
            [[process]]
            trace = false
            "#,
        )
        .unwrap();
        let who = |command: &str, user: &str, cgroup: &str| Candidate {
            command: command.into(),
            users: vec!["33".into(), user.into()],
            cgroups: vec!["/init.scope".into(), cgroup.into()],
            ..Candidate::default()
        };
        let of = |candidate: Candidate| config.settings_of(&candidate);
        assert_eq!(of(who("node /srv/admin.js x", "www", "/")), None);
        let quick = ProcessSettings { slow_turn: Duration::from_millis(5), memory: false };
        assert_eq!(of(who("node /srv/shop.js", "www", "/")), Some(quick));
        let default = ProcessSettings { slow_turn: Duration::from_millis(50), memory: true };
        assert_eq!(of(who("node /srv/admin.js x", "root", "/kubepods/pod1")), Some(default));
        assert_eq!(of(who("node /srv/shop.js", "root", "/user.slice")), None);
    }

    #[test]
    fn a_rule_may_ask_for_a_namespace() {
        let config =
            parse("[[process]]\nresource = { \"k8s.namespace.name\" = \"shop-*\" }\n[[process]]\ntrace = false")
                .unwrap();
        let in_namespace = |name: &str| Candidate {
            resource: BTreeMap::from([("k8s.namespace.name".into(), name.into())]),
            ..Candidate::default()
        };
        assert!(config.settings_of(&in_namespace("shop-1")).is_some());
        assert!(config.settings_of(&in_namespace("other")).is_none());
        assert!(config.settings_of(&Candidate::default()).is_none());
    }

    #[test]
    fn patterns_fit_whole_texts() {
        let fits = |pattern: &str, text: &str| Pattern(pattern.chars().collect()).fits(text);
        assert!(
            fits("*", "")
                && fits("a*c", "abbbc")
                && fits("a?c", "aäc")
                && fits("*b*", "abc")
                && fits("a*b*c", "aXbYbZc")
        );
        assert!(!fits("a", "ab") && !fits("a*c", "abcd") && !fits("?", "") && !fits("ab", "a"));
        let hostile = "a*".repeat(500) + "b";
        assert!(!fits(&hostile, &"a".repeat(4000)));
    }

    #[test]
    fn what_a_running_daemon_cannot_change_is_named() {
        let (old, new) = (Config::default(), parse("[trace]\nwindow = \"5s\"\nslow_turn = \"1ms\"").unwrap());
        assert_eq!(new.needs_restart(&old), ["trace.window"]);
    }
}
