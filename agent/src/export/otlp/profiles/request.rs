//! Windows of processes as one request.

use std::{
    collections::{BTreeMap, HashMap},
    iter, mem,
    sync::Arc,
};

use super::{
    super::scope,
    Window,
    proto::{Profile, ProfilesRequest, ResourceProfiles, Sample, ScopeProfiles},
    tables::{Tables, Value},
};
use crate::{
    export::message::word,
    limits::{OTLP_PROFILE_STACKS_MAX, OTLP_REQUEST_SAMPLES_MAX},
    report::{
        flame::{Lane, State, as_called, note, state_of_stay},
        model::{Class, Frame, OffCpuStack, ProfileStack, Stack, StackId, Truncated},
        names,
    },
};

type Stacks = BTreeMap<StackId, Stack>;

/// A request, as it fills.
#[derive(Debug)]
pub struct Request<'a> {
    stacks: &'a Stacks,
    tables: Tables,
    resource_profiles: Vec<ResourceProfiles>,
    samples: usize,
}

/// Samples that have the same stack and the same attributes are one.
#[derive(Debug, Default)]
struct Sums {
    known: HashMap<(i32, Vec<i32>), usize>,
    samples: Vec<Sample>,
}

impl Sums {
    fn add(&mut self, stack_index: i32, attribute_indices: Vec<i32>, value: u64) {
        if value == 0 {
            return;
        }
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        let at = *self.known.entry((stack_index, attribute_indices.clone())).or_insert(self.samples.len());
        match self.samples.get_mut(at).and_then(|sample| sample.values.first_mut()) {
            Some(sum) => *sum = sum.saturating_add(value),
            None => self.samples.push(Sample { stack_index, attribute_indices, values: vec![value] }),
        }
    }
}

impl<'a> Request<'a> {
    fn new(stacks: &'a Stacks) -> Self {
        Self { stacks, tables: Tables::default(), resource_profiles: Vec::new(), samples: 0 }
    }

    /// One request, or more where it would become too long.
    pub fn all(windows: impl Iterator<Item = Window>, stacks: &'a Stacks) -> Vec<ProfilesRequest> {
        let mut requests = Vec::new();
        let mut request = Self::new(stacks);
        for window in windows {
            request.add(window);
            if request.samples >= OTLP_REQUEST_SAMPLES_MAX {
                requests.extend(mem::replace(&mut request, Self::new(stacks)).finish());
            }
        }
        requests.extend(request.finish());
        requests
    }

    fn finish(self) -> Option<ProfilesRequest> {
        let Self { tables, resource_profiles, .. } = self;
        let dictionary = Some(tables.finish());
        (!resource_profiles.is_empty()).then_some(ProfilesRequest { resource_profiles, dictionary })
    }

    fn add(&mut self, window: Window) {
        let profiles: Vec<_> = self.on_cpu(&window).into_iter().chain(self.off_cpu(&window)).collect();
        if profiles.is_empty() {
            return;
        }
        self.samples += profiles.iter().map(|profile| profile.samples.len()).sum::<usize>();
        let scope_profiles = vec![ScopeProfiles { scope: Some(scope()), profiles }];
        self.resource_profiles.push(ResourceProfiles { resource: Some(window.resource), scope_profiles });
    }

    fn on_cpu(&mut self, window: &Window) -> Option<Profile> {
        let mut sums = Sums::default();
        let mut other = window.on_cpu.other_samples;
        for (at, sampled) in window.on_cpu.stacks.iter().enumerate() {
            let &ProfileStack { tid, class, user_stack, kernel_stack, samples, gc_samples } = sampled;
            // The most samples come first.
            if at >= OTLP_PROFILE_STACKS_MAX {
                other = other.saturating_add(samples);
                continue;
            }
            let stack = self.stack((user_stack, kernel_stack), State::OnCpu, note::NO_STACK);
            let thread = self.thread(window, Some(tid), class);
            let gc_samples = gc_samples.min(samples);
            if gc_samples > 0 {
                let in_gc = self.tables.attribute("agent.v8js.gc", Value::Flag(true));
                sums.add(stack, [thread.as_slice(), &[in_gc]].concat(), gc_samples);
            }
            sums.add(stack, thread, samples - gc_samples);
        }
        self.beyond_limit(&mut sums, other);
        (!sums.samples.is_empty()).then(|| Profile {
            sample_type: Some(self.tables.value_type("samples", "count")),
            samples: sums.samples,
            time_unix_nano: window.end_ns.saturating_sub(window.duration_ns),
            duration_nano: window.duration_ns,
            period_type: Some(self.tables.value_type("cpu", "nanoseconds")),
            period: i64::try_from(window.on_cpu.period_ns).unwrap_or(i64::MAX),
        })
    }

    /// Time off CPU in which there was something to do.
    fn off_cpu(&mut self, window: &Window) -> Option<Profile> {
        let mut sums = Sums::default();
        for stay in &window.off_cpu.stacks {
            let OffCpuStack { tid, class, reason, user_stack, kernel_stack, totals } = stay;
            let is_asleep = user_stack.is_none() && kernel_stack.is_none() && totals.over_budget == 0;
            let user = self.frames(*user_stack).iter().map(AsRef::as_ref);
            let state = state_of_stay(Lane::of_class(*class), *reason, is_asleep, user);
            let runnable_ns = totals.runnable_ns.min(totals.total_ns);
            let none = if is_asleep { note::ASLEEP } else { note::NO_STACK };
            for (state, ns) in [(state, totals.total_ns - runnable_ns), (State::Runnable, runnable_ns)] {
                if state == State::Idle || ns == 0 {
                    continue;
                }
                let stack = self.stack((*user_stack, *kernel_stack), state, none);
                let mut attributes = self.thread(window, *tid, *class);
                let state = Value::Text(word_of(state).to_owned());
                attributes.push(self.tables.attribute("agent.thread.state", state));
                sums.add(stack, attributes, ns);
            }
        }
        self.beyond_limit(&mut sums, window.off_cpu.other.as_ref().map_or(0, |other| other.total_ns));
        (!sums.samples.is_empty()).then(|| Profile {
            sample_type: Some(self.tables.value_type("off_cpu", "nanoseconds")),
            samples: sums.samples,
            time_unix_nano: window.end_ns.saturating_sub(window.duration_ns),
            duration_nano: window.duration_ns,
            period_type: None,
            period: 0,
        })
    }

    fn beyond_limit(&mut self, sums: &mut Sums, value: u64) {
        if value != 0 {
            let location = self.tables.note(note::BEYOND_LIMIT);
            sums.add(self.tables.stack(vec![location]), Vec::new(), value);
        }
    }

    fn thread(&mut self, window: &Window, tid: Option<u32>, class: Class) -> Vec<i32> {
        let class = self.tables.attribute("agent.thread.class", Value::Text(word(&class)));
        let tables = &mut self.tables;
        let id = tid.map(|tid| tables.attribute("thread.id", Value::Number(tid)));
        let name = tid.and_then(|tid| window.names.get(&tid));
        let name = name.map(|name| tables.attribute("thread.name", Value::Text(name.clone())));
        iter::once(class).chain(id).chain(name).collect()
    }

    fn frames(&self, id: Option<StackId>) -> &'a [Arc<Frame>] {
        id.and_then(|id| self.stacks.get(&id)).map_or(&[], |stack| stack.frames.as_slice())
    }

    /// There is one, but nobody named it in time.
    fn is_lost(&self, id: Option<StackId>) -> bool {
        id.is_some_and(|id| !self.stacks.contains_key(&id))
    }

    /// Both halves of a stack, innermost first, as all of our profiles show them.
    fn stack(&mut self, (user, kernel): (Option<StackId>, Option<StackId>), state: State, none: &str) -> i32 {
        let in_kernel = self.frames(kernel).iter().map(AsRef::as_ref);
        // What every thread that leaves its CPU goes through says nothing about it.
        let in_kernel: Vec<&Frame> =
            in_kernel.skip_while(|frame| state != State::OnCpu && names::is_kernel_noise(&frame.name)).collect();
        let mut locations = self.locations(&in_kernel);
        if self.is_lost(kernel) && !self.is_lost(user) {
            locations.push(self.tables.note(note::NOT_NAMED));
        }
        let mut in_user = as_called(self.frames(user));
        in_user.reverse();
        locations.extend(self.locations(&in_user));
        let truncated = user.and_then(|user| self.stacks.get(&user)).and_then(|stack| stack.truncated);
        locations.extend(truncated.map(|why| {
            self.tables.note(match why {
                Truncated::TooDeep => note::CUT_TOO_DEEP,
                Truncated::NoFramePointer => note::CUT_NO_FRAME_POINTER,
            })
        }));
        if self.is_lost(user) {
            locations.push(self.tables.note(note::NOT_NAMED));
        } else if locations.is_empty() {
            locations.push(self.tables.note(none));
        }
        self.tables.stack(locations)
    }

    /// What is inlined goes with the frame that it is inlined into.
    fn locations(&mut self, frames: &[&Frame]) -> Vec<i32> {
        frames.split_inclusive(|frame| !frame.inlined).map(|frames| self.tables.location(frames)).collect()
    }
}

/// As `agent.thread.state` has it in metrics.
const fn word_of(state: State) -> &'static str {
    match state {
        State::OnCpu => "on_cpu",
        State::Blocked => "blocked",
        State::Runnable => "runnable",
        State::Stopped => "stopped",
        State::Idle => "idle",
    }
}
