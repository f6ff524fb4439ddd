//! How uprobes are attached.

use agent_ebpf::spec::Group;
use aya::sys::{UProbeMultiFeature, is_uprobe_multi_supported};

/// How uprobes are attached on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One link for all probes of a file: fast, and no `CAP_SYS_ADMIN`.
    Multi,
    /// One perf event a probe: kernels before 6.6.
    Single,
}

impl Way {
    /// What the running kernel offers.
    #[must_use]
    pub fn of_kernel() -> Self {
        match is_uprobe_multi_supported(UProbeMultiFeature::LinkCreation) {
            Ok(true) => Self::Multi,
            Ok(false) | Err(_) => Self::Single,
        }
    }

    /// The program that probes of a group run.
    #[must_use]
    pub fn program(self, group: Group) -> &'static str {
        let [multi, single] = match group {
            Group::Postgres => ["postgres_multi", "postgres_single"],
            Group::Allocations => ["returned_multi", "returned_single"],
            Group::Makers | Group::Takers | Group::Scopes | Group::Allocators | Group::Frees => {
                ["site_multi", "site_single"]
            }
            Group::Gc
            | Group::GcKinds
            | Group::Pool
            | Group::Calibration
            | Group::Phases
            | Group::Requests
            | Group::Polls
            | Group::Switches
            | Group::Waits
            | Group::Faults => ["probe_multi", "probe_single"],
        };
        match self {
            Self::Multi => multi,
            Self::Single => single,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Multi => "uprobe_multi link",
            Self::Single => "perf event a probe",
        }
    }
}
