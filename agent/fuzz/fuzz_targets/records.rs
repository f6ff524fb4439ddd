//! What the rings deliver, through the whole core: the first byte says which family.
#![no_main]

use agent::{
    core::{Core, Input, TargetFacts},
    report::model::EndReason,
    units::{MonoNs, Pid},
};
use bytes::Bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((family, records)) = bytes.split_first() else { return };
    let mut core = Core::new();
    core.step(Input::Target(Box::new(TargetFacts { pid: Pid(1), ..TargetFacts::default() })));
    core.step(Input::Records { family: u32::from(*family % 8), bytes: Bytes::copy_from_slice(records) });
    core.step(Input::Tick(Box::default()));
    core.step(Input::Stop { now: MonoNs(1), reason: EndReason::Duration });
});
