//! The agent in a container, beside another one with Node.js: by a real runtime, with the rights that the shipped manifests give it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    api_server::{Server, pod},
    harness::{Bench, VERSION, bench, node, patience, say, skip},
    manifests,
    records::{Records, get, number, text},
};

/// Starts with the rights that this machine's root has: podman asks for limits and a capability that it may not have.
const RUNTIME: &str = r#"
import json, os, sys
arguments = sys.argv[1:]
if "create" in arguments:
    path = os.path.join(arguments[arguments.index("--bundle") + 1], "config.json")
    with open(path) as file:
        config = json.load(file)
    process = config["process"]
    process.pop("rlimits", None)
    for names in process.get("capabilities", {}).values():
        if "CAP_SYS_RESOURCE" in names:
            names.remove("CAP_SYS_RESOURCE")
    with open(path, "w") as file:
        json.dump(config, file)
os.execvp("runc", ["runc", *arguments])
"#;

const APP: &str = "
const until = (ms) => { const end = Date.now() + ms; while (Date.now() < end); };
setInterval(() => until(3), 20);
";

/// A store of images and containers of its own; what runs in it ends with it.
struct Podman {
    dir: PathBuf,
}

impl Podman {
    /// `None`, said aloud, where no container can be run.
    fn new(bench: &Bench) -> Option<Self> {
        let missing = manifests::missing().or_else(|| {
            let is_there = |program: &&str| Command::new(program).arg("--version").output().is_ok();
            ["podman", "runc"].into_iter().find(|program| !is_there(program))
        });
        if let Some(missing) = missing {
            skip(missing);
            return None;
        }
        let dir = bench.dir.path().join("podman");
        fs::create_dir_all(&dir).unwrap();
        let runtime = dir.join("runc");
        fs::write(&runtime, format!("#!{}{RUNTIME}", manifests::python().display())).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        let conf = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n";
        fs::write(dir.join("containers.conf"), conf).unwrap();
        Some(Self { dir })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let at = |name: &str| self.dir.join(name);
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", at("containers.conf"));
        command.arg("--root").arg(at("root")).arg("--runroot").arg(at("run")).arg("--tmpdir").arg(at("tmp"));
        command.arg("--runtime").arg(at("runc")).args(["--storage-driver", "vfs", "--log-level", "error"]);
        command.args(arguments);
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "podman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command(&["rm", "--all", "--force", "--time", "0"]).output();
        let _ = self.command(&["umount", "--all", "--force"]).output();
    }
}

/// Puts a program and the shared libraries that it needs below a directory, each where it looks for it.
fn stage(program: &Path, root: &Path, at: &str) {
    let place = |from: &Path, at: &str| {
        let to = root.join(at.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    place(program, at);
    // Of a static program it says that there are none, and fails.
    let listed = Command::new("ldd").arg(program).output().unwrap();
    for word in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        place(Path::new(word), word);
    }
}

/// The options of `podman run` that give a container what its pod gives it in the manifest. What is not known here ends the test:
/// it would not be tried.
struct Lifted {
    options: Vec<String>,
}

impl Lifted {
    fn new(manifests: &[Value], scratch: &Path) -> Self {
        let pod = &manifests::one(manifests, "DaemonSet")["spec"]["template"]["spec"];
        let mut lifted = Self { options: Vec::new() };
        for (key, value) in pod.as_object().unwrap() {
            match key.as_str() {
                "hostPID" => lifted.add(&["--pid=host"]),
                "containers" => lifted.container(&value[0], pod, manifests, scratch),
                // The scheduler's, and the API server's.
                "nodeSelector"
                | "tolerations"
                | "serviceAccountName"
                | "automountServiceAccountToken"
                | "enableServiceLinks"
                | "terminationGracePeriodSeconds"
                | "volumes" => {}
                other => panic!("pod: {other} is not lifted"),
            }
        }
        lifted
    }

    fn add(&mut self, options: &[&str]) {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
    }

    fn container(&mut self, container: &Value, pod: &Value, manifests: &[Value], scratch: &Path) {
        for (key, value) in container.as_object().unwrap() {
            match key.as_str() {
                "securityContext" => self.security(value),
                "env" => self.add(&["--env", "NODE_NAME=node-1"]),
                "resources" => {
                    let memory = value["limits"]["memory"].as_str().unwrap();
                    self.add(&["--memory", &memory.replace("Mi", "m")]);
                }
                "volumeMounts" => {
                    for mount in value.as_array().unwrap() {
                        self.mount(mount, pod, manifests, scratch);
                    }
                }
                // The kubelet's; and what is run is the test's.
                "name" | "image" | "imagePullPolicy" | "args" | "ports" | "startupProbe" | "livenessProbe"
                | "readinessProbe" => {}
                other => panic!("container: {other} is not lifted"),
            }
        }
    }

    fn security(&mut self, context: &Value) {
        for (key, value) in context.as_object().unwrap() {
            match (key.as_str(), value) {
                ("privileged", Value::Bool(true)) => self.add(&["--privileged"]),
                ("readOnlyRootFilesystem", Value::Bool(true)) => self.add(&["--read-only", "--read-only-tmpfs=false"]),
                ("allowPrivilegeEscalation", Value::Bool(false)) => self.add(&["--security-opt", "no-new-privileges"]),
                ("privileged", Value::Bool(false)) | ("allowPrivilegeEscalation", Value::Bool(true)) => {}
                ("runAsUser", user) => self.add(&["--user", &user.to_string()]),
                ("capabilities", of) => {
                    for (option, names) in [("--cap-drop", &of["drop"]), ("--cap-add", &of["add"])] {
                        for name in names.as_array().unwrap() {
                            self.add(&[option, name.as_str().unwrap()]);
                        }
                    }
                }
                ("seccompProfile", of) if of["type"] == "Unconfined" => {
                    self.add(&["--security-opt", "seccomp=unconfined"]);
                }
                // This machine has none.
                ("appArmorProfile", of) if of["type"] == "Unconfined" => {}
                other => panic!("securityContext: {other:?} is not lifted"),
            }
        }
    }

    fn mount(&mut self, mount: &Value, pod: &Value, manifests: &[Value], scratch: &Path) {
        let (name, path) = (mount["name"].as_str().unwrap(), mount["mountPath"].as_str().unwrap());
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).unwrap();
        let read_only = if mount["readOnly"] == true { ":ro" } else { "" };
        if let Some(host) = volume["hostPath"]["path"].as_str() {
            self.add(&["--volume", &format!("{host}:{path}{read_only}")]);
        } else if volume.get("emptyDir").is_some() {
            self.add(&["--tmpfs", path]);
        } else {
            let wanted = &volume["configMap"]["name"];
            let map = manifests::one(manifests, "ConfigMap");
            assert_eq!(&map["metadata"]["name"], wanted);
            let directory = scratch.join("config");
            fs::create_dir_all(&directory).unwrap();
            for (file, text) in map["data"].as_object().unwrap() {
                fs::write(directory.join(file), text.as_str().unwrap()).unwrap();
            }
            self.add(&["--volume", &format!("{}:{path}{read_only}", directory.display())]);
        }
    }
}

/// The image that is shipped, with the program of this build, and a container with Node.js.
struct Stage {
    podman: Podman,
    scratch: PathBuf,
    node: String,
    pid: String,
}

const IMAGE: &str = "localhost/agent:test";

impl Stage {
    fn set(bench: &Bench) -> Option<Self> {
        let podman = Podman::new(bench)?;
        let scratch = bench.dir.path().to_owned();
        let context = scratch.join("image");
        // That of `cargo xtask image`, where it is named.
        let program = std::env::var_os("AGENT_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_agent").into());
        stage(Path::new(&program), &context.join("rootfs"), "/usr/bin/agent");
        let file = manifests::repository().join("scripts/image/Containerfile");
        let (file, context) = (file.to_str().unwrap().to_owned(), context.to_str().unwrap().to_owned());
        podman.run(&["build", "--quiet", "--isolation", "chroot", "--tag", IMAGE, "--file", &file, &context]);

        let root = scratch.join("node-root");
        stage(&node(VERSION), &root, "/usr/bin/node");
        fs::create_dir_all(root.join("srv")).unwrap();
        fs::write(root.join("srv/app.js"), APP).unwrap();
        for directory in ["proc", "sys", "dev", "tmp", "etc", "run"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let declared = "OTEL_RESOURCE_ATTRIBUTES=service.name=shop,deployment.environment.name=test";
        let root = root.to_str().unwrap().to_owned();
        let run = ["run", "--detach", "--network", "none", "--env", declared, "--rootfs", &root];
        let node = podman.run(&[&run[..], &["/usr/bin/node", "/srv/app.js"]].concat());
        let pid = podman.run(&["inspect", "--format", "{{.State.Pid}}", &node]);
        Some(Self { podman, scratch, node, pid })
    }

    fn agent(&self, options: &[String], arguments: &[&str]) -> Output {
        let mut command = self.podman.command(&["run", "--rm", "--network", "none"]);
        command.args(options).arg(IMAGE).args(arguments).output().unwrap()
    }

    /// A second and a half of the container with Node.js.
    fn trace(&self, options: &[String]) -> Output {
        self.agent(options, &["trace", "--pid", &self.pid, "--duration", "1500ms", "--format", "ndjson", "-o", "-"])
    }

    /// The same as records.
    fn records(&self, options: &[String]) -> Records {
        let output = self.trace(options);
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        let file = self.scratch.join("container.ndjson");
        fs::write(&file, &output.stdout).unwrap();
        Records::read(&file)
    }
}

#[test]
fn each_overlay_traces_node_in_another_container() {
    let Some(bench) = bench() else { return };
    let Some(stage) = Stage::set(&bench) else { return };
    // What Node.js needs to be up.
    std::thread::sleep(Duration::from_millis(500));
    let mut degraded = Vec::new();
    for overlay in manifests::OVERLAYS {
        let lifted = Lifted::new(&manifests::render(overlay), &stage.scratch);
        let is_refused = || {
            let output = stage.trace(&lifted.options);
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(4), "{told}");
            assert!(told.contains("CAP_SYS_ADMIN") && told.contains("kernel.perf_event_paranoid"), "{told}");
        };
        let is_least = overlay == "least-privilege";
        if is_least && perf_events_are_kept_back() {
            is_refused();
        }
        let eased = is_least.then(Eased::new);
        if is_least && !has_multi_links() {
            is_refused();
            continue;
        }
        let records = stage.records(&lifted.options);
        drop(eased);
        let target = records.target();
        let resource = get(target, "resource");
        assert_eq!(text(resource, "container.id"), stage.node, "{overlay}");
        assert_eq!(text(resource, "container.runtime.name"), "podman", "{overlay}");
        assert_eq!(text(resource, "service.name"), "shop", "{overlay}");
        assert_eq!(text(resource, "deployment.environment.name"), "test", "{overlay}");
        let main = records.loop_windows("main");
        let (turns, on_cpu) = (crate::records::sum(&main, "turns"), crate::records::sum(&main, "on_cpu_ns"));
        say(&format!("measured {overlay}: {turns} turns, {:.0} ms on CPU", on_cpu / 1e6));
        // A timer each 20 ms that burns 3 ms.
        assert!(turns > 20.0 && on_cpu > 1e8, "{overlay}: {turns} turns, {on_cpu} ns on CPU");
        assert!(number(records.one("end"), "duration_ns") > 1e9, "{overlay}");
        degraded.push(get(target, "degraded").clone());
    }
    // More rights buy nothing more.
    say(&format!("measured degraded: {degraded:?}"));
    assert!(degraded.windows(2).all(|pair| pair[0] == pair[1]));
}

/// The status of an answer over HTTP, and its text; `None` while nobody answers.
fn get_http(port: u64, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some((answer.split(' ').nth(1)?.parse().ok()?, answer))
}

#[test]
fn the_shipped_daemon_traces_node_in_another_container() {
    let Some(bench) = bench() else { return };
    let Some(stage) = Stage::set(&bench) else { return };
    let Some(mut server) = Server::start() else { return };
    let _eased = Eased::new();
    let shop = pod("shop-1", 7, &stage.node);
    server.tell(&json!({"pods": {"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [shop]}}));
    // What the kubelet adds to every pod: where the API server is, and the account's token.
    let account = stage.scratch.join("account");
    fs::create_dir_all(&account).unwrap();
    fs::copy(server.dir.path().join("token"), account.join("token")).unwrap();
    fs::copy(server.dir.path().join("ca.pem"), account.join("ca.crt")).unwrap();
    let account = format!("{}:/var/run/secrets/kubernetes.io/serviceaccount:ro", account.display());
    let api = [format!("KUBERNETES_SERVICE_PORT={}", server.port), "KUBERNETES_SERVICE_HOST=127.0.0.1".to_owned()];

    // The least that does.
    let manifests = manifests::render(if has_multi_links() { "least-privilege" } else { "sys-admin" });
    let lifted = Lifted::new(&manifests, &stage.scratch);
    let container = &manifests::one(&manifests, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut run = stage.podman.command(&["run", "--detach", "--network", "host", "--log-driver", "k8s-file"]);
    run.args(&lifted.options).args(["--volume", &account, "--env", &api[0], "--env", &api[1]]);
    let output = run.arg(IMAGE).args(strings(&container["args"])).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let agent = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let log = || stage.podman.command(&["logs", &agent]).output().unwrap();

    let port = container["ports"][0]["containerPort"].as_u64().unwrap();
    let probe = |name: &str| {
        let path = container[name]["httpGet"]["path"].as_str().unwrap();
        get_http(port, path).is_some_and(|(status, _)| status == 200)
    };
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let deadline = Instant::now() + patience(Duration::from_secs(40));
        while !is_so() {
            let log = log();
            let told = String::from_utf8_lossy(&log.stderr);
            assert!(Instant::now() < deadline, "{what} did not come: {told}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    until("the start", &|| probe("startupProbe"));
    let pid: u64 = stage.pid.parse().unwrap();
    // The shipped window is ten seconds long.
    let lines = || -> Vec<Value> {
        let text = String::from_utf8_lossy(&log().stdout).into_owned();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let of = |kind: &str| lines().into_iter().rfind(|line| line["type"] == kind && line["pid"] == pid);
    until("a window", &|| of("window").is_some());
    assert!(probe("livenessProbe") && probe("readinessProbe"));
    let metrics = get_http(port, "/metrics").unwrap().1;
    assert!(metrics.contains("pod=\"shop-1\""), "{metrics}");
    let target = of("target").unwrap();
    let resource = get(&target, "resource");
    for (key, value) in [("container.id", stage.node.as_str()), ("k8s.pod.name", "shop-1"), ("k8s.node.name", "node-1")]
    {
        assert_eq!(text(resource, key), value, "{resource}");
    }
    let window = of("window").unwrap();
    let main = &window["loops"][0];
    say(&format!("measured shipped daemon: {} turns, {} ns on CPU", main["turns"], main["on_cpu_ns"]));
    // A timer each 20 ms that burns 3 ms.
    assert!(number(main, "turns") > 20.0 && number(main, "on_cpu_ns") > 1e8, "{main}");
    // As the kubelet ends it. The collector of the manifest is not there, which is no reason to wait for long.
    let grace = manifests::one(&manifests, "DaemonSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        .to_string();
    let begin = Instant::now();
    stage.podman.run(&["stop", "--time", &grace, &agent]);
    let code = stage.podman.run(&["inspect", "--format", "{{.State.ExitCode}}", &agent]);
    say(&format!("measured shipped daemon: ended {:.1?} after it was told to, with {code}", begin.elapsed()));
    assert!(begin.elapsed() < Duration::from_secs(25), "the kubelet would have killed it");
}

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// As Debian's kernels do: `CAP_PERFMON` is not enough for them.
fn perf_events_are_kept_back() -> bool {
    fs::read_to_string(PARANOID).unwrap().trim().parse::<i32>().unwrap() > 2
}

/// `CAP_PERFMON` is enough for perf events while this lives.
struct Eased {
    before: String,
}

impl Eased {
    fn new() -> Self {
        let before = fs::read_to_string(PARANOID).unwrap();
        if perf_events_are_kept_back() {
            fs::write(PARANOID, "2").unwrap();
        }
        Self { before }
    }
}

impl Drop for Eased {
    fn drop(&mut self) {
        let _ = fs::write(PARANOID, &self.before);
    }
}

fn has_multi_links() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').filter_map(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

#[test]
fn doctor_says_which_capability_is_missing_in_a_container() {
    let Some(bench) = bench() else { return };
    let Some(stage) = Stage::set(&bench) else { return };
    let doctor = |options: &[String]| {
        let output = stage.agent(options, &["doctor", "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), answer)
    };
    let how = |answer: &Value, name: &str| {
        let checks = get(answer, "host").as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {answer}"));
        text(check, "state").to_owned()
    };
    let lifted = Lifted::new(&manifests::render("least-privilege"), &stage.scratch);
    if perf_events_are_kept_back() {
        let (code, answer) = doctor(&lifted.options);
        assert_eq!((code, how(&answer, "perf events").as_str()), (Some(4), "off"), "{answer}");
        assert_eq!(how(&answer, "CAP_SYS_ADMIN"), "poorer", "{answer}");
        let admin = Lifted::new(&manifests::render("sys-admin"), &stage.scratch);
        let (code, answer) = doctor(&admin.options);
        assert_eq!((code, how(&answer, "CAP_SYS_ADMIN").as_str()), (Some(0), "ok"), "{answer}");
    }
    let _eased = Eased::new();
    let (code, answer) = doctor(&lifted.options);
    for capability in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SYSLOG"] {
        assert_eq!(how(&answer, capability), "ok", "{capability}");
    }
    if has_multi_links() {
        assert_eq!((code, how(&answer, "CAP_SYS_ADMIN").as_str()), (Some(0), "ok"), "{answer}");
    }
    // Take one away at a time.
    for missing in ["BPF", "PERFMON", "SYS_PTRACE"] {
        let mut options = lifted.options.clone();
        let at = options.iter().position(|option| option == missing).unwrap();
        options.drain(at - 1..=at);
        let (code, answer) = doctor(&options);
        assert_eq!((code, how(&answer, &format!("CAP_{missing}")).as_str()), (Some(4), "off"), "{answer}");
    }
}
