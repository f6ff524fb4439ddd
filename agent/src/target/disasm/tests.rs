#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;

use super::*;

const START: FileAddr = FileAddr(0x1000);

fn entry(code: &[u8], args: u8) -> Result<u64, Refusal> {
    Function::decode(START, code)?.entry(args).map(|addr| addr.0 - START.0)
}

fn after(code: &[u8], marks: &[u64]) -> Result<Vec<u64>, Refusal> {
    let marks = marks.iter().map(|at| FileAddr(START.0 + at)).collect();
    let places = Function::decode(START, code)?.after_calls(FileAddr(0x2000), &marks, &|_, _| Vec::new())?;
    Ok(places.into_iter().map(|addr| addr.0 - START.0).collect())
}

/// `call 0x2000` for code that has it at `at`.
fn call(at: u64) -> [u8; 5] {
    let to = u32::try_from(0x2000 - (START.0 + at + 5)).expect("a near call").to_le_bytes();
    [0xe8, to[0], to[1], to[2], to[3]]
}

#[test]
fn what_the_kernel_emulates() {
    for emulated in
        [&[0x55][..], &[0x41, 0x57], &[0x90], &[0x66, 0x90], &[0xeb, 0], &[0x74, 0], &[0x0f, 0x84, 0, 0, 0, 0]]
    {
        assert!(is_emulated(emulated), "{emulated:x?}");
    }
    // endbr64; mov rbp,rsp; nop dword [rax]; pause; call word; push imm8; push qword [rax]; jmp rax
    let others = [
        &[0xf3, 0x0f, 0x1e, 0xfa][..],
        &[0x48, 0x89, 0xe5],
        &[0x0f, 0x1f, 0x00],
        &[0xf3, 0x90],
        &[0x66, 0xe8, 0, 0],
        &[0x6a, 1],
        &[0xff, 0x30],
        &[0xff, 0xe0],
        // push rax with a prefix that the kernel does not know there
        &[0x48, 0x50],
        &[],
    ];
    for other in others {
        assert!(!is_emulated(other), "{other:x?}");
    }
}

#[test]
fn the_entry_is_best() {
    assert_eq!(entry(&[0x55, 0xc3], arg::RDI), Ok(0));
}

#[test]
fn a_branch_after_a_test_will_do_while_arguments_last() {
    // test rdx,rdx; je +0; ret
    assert_eq!(entry(&[0x48, 0x85, 0xd2, 0x74, 0x00, 0xc3], arg::RDI | arg::RDX), Ok(3));
    // mov rdi,rsi; push rbp; ret
    let moved = [0x48, 0x89, 0xf7, 0x55, 0xc3];
    assert_eq!(entry(&moved, arg::RSI), Ok(3));
    assert!(matches!(entry(&moved, arg::RDI), Err(Refusal::SingleStepped { .. })));
}

#[test]
fn implicit_writes_count() {
    // mul rcx (writes rdx); push rbp; ret
    assert!(entry(&[0x48, 0xf7, 0xe1, 0x55, 0xc3], arg::RDX).is_err());
    // mov edi,1 (clears the upper half); push rbp; ret
    assert!(entry(&[0xbf, 1, 0, 0, 0, 0x55, 0xc3], arg::RDI).is_err());
    // cpuid (writes rcx and rdx)
    assert!(entry(&[0x0f, 0xa2, 0x55, 0xc3], arg::RCX).is_err());
}

#[test]
fn nothing_behind_the_straight_line() {
    // ret; push rbp
    assert!(entry(&[0xc3, 0x55], arg::NONE).is_err());
    // mov eax,[rdi]; push rbp; jmp to the push
    assert!(entry(&[0x8b, 0x07, 0x55, 0xeb, 0xfd], arg::NONE).is_err());
}

#[test]
fn what_follows_a_call_is_marked_at_each_call() {
    // call f; mov rax,[rbx]; push rax; call f; nop; ret
    let mut code = call(0).to_vec();
    code.extend([0x48, 0x8b, 0x03, 0x50]);
    code.extend(call(9));
    code.extend([0x90, 0xc3]);
    assert_eq!(after(&code, &[]), Ok(vec![8, 14]));
    assert_eq!(after(&[0x90, 0xc3], &[]), Err(Refusal::NoCall));
}

#[test]
fn a_place_that_another_phase_leads_to_is_refused() {
    // call f; L: push rax; call +0x100; jmp L
    let mut code = call(0).to_vec();
    code.extend([0x50, 0xe8, 0xf5, 0, 0, 0, 0xeb, 0xf8]);
    assert_eq!(after(&code, &[]), Ok(vec![5]), "the loop passes no mark");
    assert!(matches!(after(&code, &[0x100]), Err(Refusal::AfterCall { .. })));
    // The same with a loop that starts at the call.
    let last = code.len() - 1;
    code[last] = 0xf3;
    assert_eq!(after(&code, &[0x100]), Ok(vec![5]));
}

#[test]
fn constants_and_addresses_are_read_from_code() {
    // mov eax,0x12c02; ret
    assert_eq!(returned_constant(&[0xb8, 0x02, 0x2c, 0x01, 0, 0xc3], START), Some(0x12c02));
    // lea rax,[rip+0x10]; ret
    let lea = [0x48, 0x8d, 0x05, 0x10, 0, 0, 0, 0xc3];
    assert_eq!(first_data_address(&lea, START, |_| true), Some(FileAddr(0x1017)));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(code in proptest::collection::vec(any::<u8>(), 0..600), callee in any::<u64>(), args in 0u8..16) {
        let _ = returned_constant(&code, START);
        let _ = first_data_address(&code, START, |addr| addr.0 % 3 == 0);
        for start in [START, FileAddr(u64::MAX - 300)] {
            let Ok(function) = Function::decode(start, &code) else { continue };
            let _ = function.entry(args);
            let callees: BTreeSet<FileAddr> = function.callees().collect();
            for callee in callees.iter().copied().chain([FileAddr(callee)]) {
                let _ = function.after_calls(callee, &callees, &|_, bytes| vec![7; usize::try_from(bytes).expect("bounded")]);
                let _ = function.loaded_before_calls(callee, Register::RCX);
            }
            let _ = (function.fields(), function.first_field_of_rdi(), function.stack_bytes(), function.addresses().count());
        }
    }

    #[test]
    fn a_place_is_emulated_and_on_a_boundary(code in proptest::collection::vec(any::<u8>(), 1..200), args in 0u8..16) {
        if let Ok(function) = Function::decode(START, &code)
            && let Ok(place) = function.entry(args)
        {
            let instruction = function.instructions().iter().find(|instruction| instruction.ip() == place.0);
            prop_assert!(instruction.is_some_and(|instruction| function.emulates(instruction)));
        }
    }
}
