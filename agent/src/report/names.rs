//! Names of functions as people read them.

/// Code of V8's that nobody has a name for.
pub const UNNAMED_JS: &str = "[js]";

/// Inner frames that every stay off CPU has, and outer ones that every system call has.
const NOISE: &[&str] = &[
    "__schedule",
    "schedule",
    "preempt_schedule",
    "preempt_schedule_common",
    "preempt_schedule_irq",
    "schedule_preempt_disabled",
    "schedule_timeout",
    "schedule_hrtimeout_range",
    "schedule_hrtimeout_range_clock",
    "do_syscall_64",
    "x64_sys_call",
    "entry_SYSCALL_64_after_hwframe",
    "asm_exc_page_fault",
    "asm_sysvec_apic_timer_interrupt",
    "irqentry_exit",
    "irqentry_exit_to_user_mode",
    "exit_to_user_mode_loop",
];

/// A kernel function that says nothing about why the thread stopped there. BPF programs, and what calls them, are on the stack that
/// they look at.
#[must_use]
pub fn is_kernel_noise(name: &str) -> bool {
    NOISE.contains(&name) || ["bpf_", "__bpf_", "__traceiter_"].iter().any(|head| name.starts_with(head))
}

/// A demangled name without parameters, template arguments and return type:
/// `void node::StreamBase::JSMethod<&node::StreamBase::Writev>(v8::FunctionCallbackInfo<v8::Value> const&)` is
/// `node::StreamBase::JSMethod`.
#[must_use]
pub fn short(name: &str) -> String {
    if name.contains("operator") {
        // Its brackets are part of the name.
        return name.to_owned();
    }
    // `{virtual override thunk({offset(-56)}, node::Parser::OnStreamRead(long))}`
    let inner = name.strip_prefix('{').and_then(|inner| inner.split_once("}, ")).map_or(name, |(_, inner)| inner);
    let mut short = String::with_capacity(inner.len());
    let mut depth = 0u32;
    for c in inner.replace("(anonymous namespace)::", "").chars() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => short.push(c),
            _ => {}
        }
    }
    let short = short.replace(" const", "");
    let short = short.trim_end_matches('}').trim();
    let short = short.rsplit(' ').next().unwrap_or(short);
    if short.is_empty() { name.to_owned() } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short() {
        let check = |name, wanted: &str| assert_eq!(short(name), wanted);
        check("node::fs::Read(v8::FunctionCallbackInfo<v8::Value> const&)", "node::fs::Read");
        check("node::(anonymous namespace)::Run(int)", "node::Run");
        check("uv__io_poll", "uv__io_poll");
        check("v8::internal::Heap::Size(int) const", "v8::internal::Heap::Size");
        check("a::operator()(int)", "a::operator()(int)");
        check("(deleted)", "(deleted)");
        check(
            "void node::StreamBase::JSMethod<&node::StreamBase::Writev>(v8::Value const&)",
            "node::StreamBase::JSMethod",
        );
        check(
            "{virtual override thunk({offset(-56)}, node::Parser::OnStreamRead(long, uv_buf_t const&))}",
            "node::Parser::OnStreamRead",
        );
        check("node::Flush(std::unique_ptr<v8::Task, std::default_delete<v8::Task> >) [clone .part.0]", "node::Flush");
        check(
            "v8::Maybe<v8::Object> v8::internal::(anonymous namespace)::Helper<false>(v8::Isolate*)",
            "v8::internal::Helper",
        );
    }
}
