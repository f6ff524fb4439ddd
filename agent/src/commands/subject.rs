//! temporary
use std::{collections::HashMap, path::{Path, PathBuf}};
use agent_ebpf::spec::*;
use super::session::FileProbes;
use crate::{core::TargetFacts, units::{Clock, MonoNs, Pid, Tid}, probe::maps::monotonic_ns};
#[derive(Clone, Debug)]
pub struct Subject { pub pid: Pid, pub facts: TargetFacts, pub files: Vec<FileProbes> }
#[derive(Debug, thiserror::Error)]
pub enum SubjectError { #[error("{0}")] Other(String) }
pub fn examine(pid: Pid) -> Result<Subject, SubjectError> {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| SubjectError::Other(format!("no process {pid}: {e}")))?;
    let cmd = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let cmd = cmd.split(|b| *b == 0).take(2).map(|b| String::from_utf8_lossy(b).into_owned()).collect::<Vec<_>>();
    expect(pid, &exe, &cmd)
}
pub fn expect(pid: Pid, exe: &Path, command: &[String]) -> Result<Subject, SubjectError> {
    let data = std::fs::read(exe).unwrap();
    use object::{Object, ObjectSymbol, ObjectSegment};
    let f = object::File::parse(&*data).unwrap();
    let syms: HashMap<&str, u64> = f.symbols().filter_map(|s| Some((s.name().ok()?, s.address()))).collect();
    if !syms.contains_key("uv_run") { return Err(SubjectError::Other(format!("{} is not Node.js", exe.display()))); }
    let off = |a: u64| f.segments().find_map(|s| (a >= s.address() && a < s.address() + s.size()).then(|| a - s.address() + s.file_range().0));
    let pts = |g| PROBES.iter().filter(|p| p.group == g && p.place == Place::Entry).filter_map(|p| Some((off(*p.symbols.iter().find_map(|n| syms.get(n))?)?, p.id))).collect();
    let files = vec![FileProbes { path: exe.to_owned(), identity: (0, 0), base: pts(Group::Base), phases: pts(Group::Phases) }];
    let facts = TargetFacts { pid, exe: exe.display().to_string(), command: command.to_vec(), thread_pool_size: Some(4), kernel_release: "x".into(), cpus: 2, ..TargetFacts::default() };
    Ok(Subject { pid, facts, files })
}
pub fn exists(pid: Pid) -> bool { std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z ")) }
pub fn clock() -> Clock {
    let m = monotonic_ns().0 as i128;
    let r = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i128;
    Clock { offset_ns: (r - m) as i64 }
}
pub fn thread_names(pids: &[Pid]) -> Vec<(Tid, String)> {
    let mut v = vec![];
    for p in pids { for e in std::fs::read_dir(format!("/proc/{p}/task")).into_iter().flatten().flatten() {
        let t: u32 = e.file_name().to_string_lossy().parse().unwrap_or(0);
        v.push((Tid(t), std::fs::read_to_string(e.path().join("comm")).unwrap_or_default().trim().to_owned()));
    } }
    let _ = MonoNs(0);
    v
}
