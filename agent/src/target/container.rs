//! In which container a process runs, told from its control groups.
//!
//! Runtimes put a container's id into the name of its control group, each in its own way. A process that may make control groups
//! (in a privileged container, say) can give them any name: so nothing is taken over but ids in the form that runtimes give them,
//! and of several the outermost, which is not the process's choice. Kubernetes inside of a container is told by the pod, which
//! there is the outer one again.

use super::procfs::{self, ProcError};
use crate::{
    limits::{CGROUP_FILE_BYTES_MAX, CGROUP_LINES_MAX, CGROUP_SEGMENTS_MAX},
    units::Pid,
};

/// What started a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Docker,
    Containerd,
    CriO,
    Podman,
}

impl Runtime {
    /// As `container.runtime.name` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
        }
    }
}

/// A container, as control groups tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits; on AWS Fargate 32, and ten decimal ones.
    pub id: String,
    /// Not every name tells.
    pub runtime: Option<Runtime>,
    /// The pod's id in Kubernetes.
    pub pod_uid: Option<String>,
}

/// `None` of a process that is in no container, or in one that its control groups do not tell of.
pub fn of_process(pid: Pid) -> Result<Option<Container>, ProcError> {
    Ok(parse(&procfs::read(pid, "cgroup", CGROUP_FILE_BYTES_MAX)?))
}

/// `/proc/PID/cgroup` (cgroups(7)): one line a hierarchy, `id:controllers:path`; version 2 has the one line `0::path`, and hybrid
/// hosts have it beside the others.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Container> {
    let lines = bytes.split(|byte| *byte == b'\n').take(CGROUP_LINES_MAX);
    let mut found: Option<Container> = None;
    for line in lines.filter_map(|line| str::from_utf8(line).ok()) {
        let Some(container) = line.splitn(3, ':').nth(2).and_then(of_path) else { continue };
        // Hierarchies may differ in depth: the one that tells most is believed.
        let tells = |container: &Container| (container.pod_uid.is_some(), container.runtime.is_some());
        if found.as_ref().is_none_or(|known| tells(&container) > tells(known)) {
            found = Some(container);
        }
    }
    found
}

fn of_path(path: &str) -> Option<Container> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    // containerd under systemd, in the one form that no slice reflects: `…-pod<uid>.slice:cri-containerd:<id>`.
    let segments: Vec<&str> = path.split(['/', ':']).take(CGROUP_SEGMENTS_MAX).collect();
    let pod = segments.iter().enumerate().find_map(|(at, segment)| Some((at, pod_uid(segment)?)));
    let below_pod = pod.as_ref().map_or(0, |(at, _)| *at);
    let (id, runtime) = segments
        .windows(2)
        .skip(below_pod)
        .find_map(|pair| if let [parent, segment] = pair { container_id(parent, segment) } else { None })?;
    Some(Container { id: id.to_owned(), runtime, pod_uid: pod.map(|(_, uid)| uid) })
}

/// Words before an id. Those of the monitors (`crio-conmon-`, `libpod-conmon-`), which are outside of the container, are none of them.
const PREFIXES: [(&str, Runtime); 5] = [
    ("docker-", Runtime::Docker),
    ("cri-containerd-", Runtime::Containerd),
    ("nerdctl-", Runtime::Containerd),
    ("crio-", Runtime::CriO),
    ("libpod-", Runtime::Podman),
];

fn container_id<'a>(parent: &str, segment: &'a str) -> Option<(&'a str, Option<Runtime>)> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix).filter(|id| is_container_id(id)) {
            return Some((id, Some(runtime)));
        }
    }
    let runtime = match parent {
        "docker" => Some(Runtime::Docker),
        "cri-containerd" => Some(Runtime::Containerd),
        // A pod of podman's, which has containers below it.
        "libpod_parent" => return None,
        _ => None,
    };
    is_container_id(name).then_some((name, runtime))
}

fn is_container_id(text: &str) -> bool {
    if text.len() == 64 {
        return is_hex(text);
    }
    let fargate = |(task, number): (&str, &str)| {
        task.len() == 32
            && is_hex(task)
            && (8..=12).contains(&number.len())
            && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    text.split_once('-').is_some_and(fargate)
}

/// The id in `pod<uid>` or `…-pod<uid>.slice`: systemd has underscores in place of its hyphens, and pods from files have a hash.
fn pod_uid(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let (head, uid) = name.rsplit_once("pod")?;
    if !head.is_empty() && !head.ends_with('-') {
        return None;
    }
    let uid = uid.replace('_', "-");
    let groups: Vec<usize> = uid.split('-').map(str::len).collect();
    let is_uid = matches!(groups.as_slice(), [8, 4, 4, 4, 12] | [32]);
    (is_uid && uid.split('-').all(is_hex)).then_some(uid)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "4f2a0c7be1d94b1c8a1f5d1a0f6f3b6b2a4f6f7f0f4c7c1f7e5f4c9e8b1d2a3c";
    const B: &str = "b7d4e2c1a09f8e7d6c5b4a39281706f5e4d3c2b1a0f9e8d7c6b5a49382716050";
    const UID: &str = "0b7a2d5e-5c1f-4a3b-9d8e-6f7a8b9c0d1e";
    const UID_SYSTEMD: &str = "0b7a2d5e_5c1f_4a3b_9d8e_6f7a8b9c0d1e";

    /// What the file says, with `A`, `B`, `UID` and `UID_` in their places; and what is found: id, runtime, pod.
    fn check(file: &str, expected: Option<(&str, Option<Runtime>, Option<&str>)>) {
        let file = file.replace("UID_", UID_SYSTEMD).replace("UID", UID).replace("<A>", A).replace("<B>", B);
        let found = parse(file.as_bytes());
        let found = found.as_ref().map(|found| (found.id.as_str(), found.runtime, found.pod_uid.as_deref()));
        assert_eq!(found, expected, "{file}");
    }

    #[test]
    fn containers_of_docker() {
        let docker = Some((A, Some(Runtime::Docker), None));
        check("12:memory:/docker/<A>\n1:name=systemd:/docker/<A>\n", docker);
        check("0::/docker/<A>\n", docker);
        check("0::/system.slice/docker-<A>.scope\n", docker);
        check("11:pids:/system.slice/docker-<A>.scope\n0::/system.slice/docker-<A>.scope\n", docker);
        // Systemd inside.
        check("0::/system.slice/docker-<A>.scope/init.scope\n", docker);
        // Seen from another container, whose namespace of control groups begins beside.
        check("0::/../docker-<A>.scope\n", docker);
        check("0::/../<A>\n", Some((A, None, None)));
    }

    #[test]
    fn containers_of_podman() {
        let podman = Some((A, Some(Runtime::Podman), None));
        check("4:memory:/libpod_parent/libpod-<A>\n0::/libpod_parent/libpod-<A>\n", podman);
        check("0::/machine.slice/libpod-<A>.scope\n", podman);
        check("0::/machine.slice/libpod-<A>.scope/container\n", podman);
        check("0::/machine.slice/machine-libpod_pod_<B>.slice/libpod-<A>.scope/container\n", podman);
        check("5:cpu:/libpod_parent/<B>/libpod-<A>\n", podman);
        check("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-<A>.scope/container\n", podman);
        // Its monitor is outside of it.
        check("0::/machine.slice/libpod-conmon-<A>.scope\n", None);
        check("0::/libpod_parent/conmon\n", None);
    }

    #[test]
    fn containers_of_pods() {
        let pod = |runtime| Some((A, runtime, Some(UID)));
        check("0::/kubepods/burstable/podUID/<A>\n", pod(None));
        check("11:cpuset:/kubepods/podUID/<A>\n10:memory:/kubepods/podUID/<A>\n", pod(None));
        let slices = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice";
        check(&format!("0::/{slices}/cri-containerd-<A>.scope\n"), pod(Some(Runtime::Containerd)));
        check(&format!("0::/{slices}/docker-<A>.scope\n"), pod(Some(Runtime::Docker)));
        check(&format!("0::/{slices}/crio-<A>.scope\n"), pod(Some(Runtime::CriO)));
        check(&format!("0::/{slices}/crio-<A>.scope/container\n"), pod(Some(Runtime::CriO)));
        check(&format!("0::/{slices}/crio-conmon-<A>.scope\n"), None);
        check("0::/kubepods/besteffort/podUID/crio-<A>\n", pod(Some(Runtime::CriO)));
        check(
            "9:pids:/system.slice/containerd.service/kubepods-burstable-podUID_.slice:cri-containerd:<A>\n",
            pod(Some(Runtime::Containerd)),
        );
        // From a pod of another class.
        check("0::/../../kubepods-besteffort-podUID_.slice/cri-containerd-<A>.scope\n", pod(Some(Runtime::Containerd)));
    }

    #[test]
    fn a_pod_from_a_file_has_a_hash() {
        let file = format!("0::/kubepods/burstable/pod5f3b0a1c2d4e6f708192a3b4c5d6e7f8/{A}\n");
        let pod = parse(file.as_bytes()).expect("a container").pod_uid;
        assert_eq!(pod.as_deref(), Some("5f3b0a1c2d4e6f708192a3b4c5d6e7f8"));
    }

    #[test]
    fn kubernetes_in_a_container_is_told_by_its_pods() {
        check("0::/docker/<B>/kubelet/kubepods/burstable/podUID/<A>\n", Some((A, None, Some(UID))));
        let file = "0::/system.slice/docker-<B>.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID_.slice/\
                    cri-containerd-<A>.scope\n";
        check(file, Some((A, Some(Runtime::Containerd), Some(UID))));
        // What belongs to the node, not to a pod.
        check("0::/docker/<B>/system.slice/containerd.service\n", Some((B, Some(Runtime::Docker), None)));
    }

    #[test]
    fn containers_of_aws() {
        let task = "0123456789abcdef0123456789abcdef";
        check(&format!("9:cpu:/ecs/{task}/<A>\n"), Some((A, None, None)));
        let id = format!("{task}-2531612879");
        check(&format!("9:cpu:/ecs/{task}/{id}\n"), Some((&id, None, None)));
    }

    #[test]
    fn on_hybrid_hosts_the_line_that_tells_most_counts() {
        check("8:memory:/kubepods/podUID/<A>\n0::/system.slice/containerd.service\n", Some((A, None, Some(UID))));
        check("3:cpu:/<A>\n2:memory:/docker/<A>\n0::/\n", Some((A, Some(Runtime::Docker), None)));
    }

    #[test]
    fn processes_of_the_host_are_in_none() {
        for file in [
            "",
            "0::/\n",
            "0::/init.scope\n",
            "0::/user.slice/user-1000.slice/session-2.scope\n",
            "12:cpu:/system.slice/ssh.service\n1:name=systemd:/system.slice/ssh.service\n0::/system.slice/ssh.service\n",
            "0::/lxc.payload.box\n",
            "0::/kubepods/burstable/podUID\n",
        ] {
            check(file, None);
        }
    }

    #[test]
    fn a_group_that_a_process_made_below_its_own_does_not_rename_it() {
        check("0::/kubepods/podUID/<A>/docker-<B>.scope\n", Some((A, None, Some(UID))));
        let other = "11111111-2222-3333-4444-555555555555";
        check(&format!("0::/kubepods/podUID/<A>/kubepods/pod{other}/<B>\n"), Some((A, None, Some(UID))));
        check("0::/docker/<A>/docker/<B>\n", Some((A, Some(Runtime::Docker), None)));
    }

    #[test]
    fn what_is_no_id_is_not_taken_for_one() {
        for name in [
            &A[1..],
            &format!("{A}0"),
            &A.to_uppercase(),
            &A.replace('4', "\u{1b}"),
            &A.replace('4', "g"),
            "../../../etc/passwd",
            &"a".repeat(1 << 16),
        ] {
            check(&format!("0::/docker/{name}\n"), None);
            check(&format!("0::/system.slice/docker-{name}.scope\n"), None);
            check(&format!("0::/kubepods/pod{name}/<A>\n"), Some((A, None, None)));
        }
        assert_eq!(parse(&[0xff; 4096]), None);
    }

    proptest! {
        #[test]
        fn whatever_is_found_is_an_id(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert_eq!(parse(&bytes), None);
        }

        #[test]
        fn ids_are_found_and_clean_among_whatever_segments(
            before in "[ -~]{0,40}", between in "(/[a-z:.-]{0,12}){0,4}", after in "[ -~]{0,40}"
        ) {
            let file = format!("0::/{before}/pod{UID}{between}/{A}/{after}\n");
            if let Some(found) = parse(file.as_bytes()) {
                prop_assert!(is_container_id(&found.id));
                prop_assert!(found.pod_uid.is_none_or(|uid| uid == UID));
            }
        }
    }
}
