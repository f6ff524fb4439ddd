//! How a V8 lays out its objects, as far as its file says: the `v8dbg_*` constants that it carries for post-mortem debuggers.

use std::collections::BTreeMap;

use agent_ebpf::state::AwaitLayout;

use super::elf::{ElfFile, Lookup};

/// The file's `v8dbg_*` constants of these names, given without the prefix; those that it has.
#[must_use]
pub fn constants<'a>(elf: &ElfFile, names: &[&'a str]) -> BTreeMap<&'a str, i32> {
    let symbols: Vec<String> = names.iter().map(|name| format!("v8dbg_{name}")).collect();
    let found = elf.lookup(symbols.iter().map(String::as_str)).unwrap_or_default();
    let value = |lookup: &Lookup| elf.u32_at(lookup.symbol()?.addr).map(u32::cast_signed);
    let values = names.iter().zip(&symbols).map(|(name, symbol)| Some((*name, value(found.get(symbol.as_str())?)?)));
    values.flatten().collect()
}

/// What the kernel half needs to look through a `JSFunction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionLayout {
    /// Offset of its `SharedFunctionInfo` from its untagged address.
    pub shared: u32,
    /// Instance types that are functions, both ends included.
    pub types: (u16, u16),
    /// What it needs to follow promises; zeroes where that is not known.
    pub awaits: AwaitLayout,
}

impl FunctionLayout {
    /// `None` where the file does not say.
    #[must_use]
    pub fn read(elf: &ElfFile, version: [u32; 4]) -> Option<Self> {
        const SHARED: &str = "class_JSFunction__shared__SharedFunctionInfo";
        const FIRST: &str = "FirstJSFunctionType";
        const LAST: &str = "LastJSFunctionType";
        const ONE: &str = "type_JSFunction__JS_FUNCTION_TYPE";
        /// Types of functions where their last is not given: with class constructors, of which the last is the fifteenth after the first.
        const TYPES: u16 = 16;
        let constants = constants(elf, &[SHARED, FIRST, LAST, ONE]);
        let get = |name: &str| constants.get(name).copied();
        let shared = u32::try_from(get(SHARED)?).ok()?;
        let first = u16::try_from(get(FIRST).or_else(|| get(ONE))?).ok()?;
        let last = get(LAST).and_then(|last| u16::try_from(last).ok()).unwrap_or(first.saturating_add(TYPES - 1));
        Some(Self { shared, types: (first, last), awaits: awaits(elf, version).unwrap_or_default() })
    }
}

/// Words of a reaction and of a function moved between versions and have no constants; a wrong guess is noticed, as
/// then no small integer is where one must be.
fn awaits(elf: &ElfFile, version: [u32; 4]) -> Option<AwaitLayout> {
    const CONTEXT: &str = "class_JSFunction__context__Context";
    const TYPES: [&str; 6] = [
        "type_JSAsyncFunctionObject__JS_ASYNC_FUNCTION_OBJECT_TYPE",
        "type_JSAsyncGeneratorObject__JS_ASYNC_GENERATOR_OBJECT_TYPE",
        "type_JSPromise__JS_PROMISE_TYPE",
        "type_PromiseReaction__PROMISE_REACTION_TYPE",
        "type_PromiseCapability__PROMISE_CAPABILITY_TYPE",
        "type_AsyncGeneratorRequest__ASYNC_GENERATOR_REQUEST_TYPE",
    ];
    let names: Vec<&str> = TYPES.into_iter().chain([CONTEXT]).collect();
    let constants = constants(elf, &names);
    let get = |name: &str| constants.get(name).and_then(|value| u16::try_from(*value).ok());
    let [async_function, async_generator, promise, reaction, capability, generator_request] = TYPES.map(get);
    let [major, ..] = version;
    Some(AwaitLayout {
        function_context: get(CONTEXT)?,
        function_data: if major >= 13 { 16 } else { 8 },
        reaction_next: if major >= 12 { 16 } else { 8 },
        reserved: 0,
        async_function: async_function?,
        async_generator: async_generator?,
        promise: promise?,
        reaction: reaction?,
        capability: capability?,
        generator_request: generator_request?,
        reserved_too: 0,
    })
}
