use proptest::prelude::*;

use super::{symbols::SYMBOL_BYTES, *};

const BASE: u64 = 0x40_0000;

/// A file of one segment with a build id and these symbols, all of them in `.symtab`.
fn file(symbols: &[(&str, u64)]) -> Vec<u8> {
    let mut names = vec![0u8];
    let mut table = vec![0u8; SYMBOL_BYTES];
    for (name, addr) in symbols {
        table.extend(u32::try_from(names.len()).expect("short").to_le_bytes());
        let kind = if name.starts_with("_ZTV") { elf::STT_OBJECT } else { elf::STT_FUNC };
        table.extend([elf::STB_GLOBAL << 4 | kind, 0, 1, 0]);
        table.extend(addr.to_le_bytes());
        table.extend(8u64.to_le_bytes());
        names.extend(name.as_bytes());
        names.push(0);
    }
    let note =
        [&4u32.to_le_bytes()[..], &2u32.to_le_bytes(), &3u32.to_le_bytes(), b"GNU\0", &[0xab, 0xcd, 0, 0]].concat();
    let note_at = (HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES) as u64;
    let table_at = note_at + note.len() as u64;
    let names_at = table_at + table.len() as u64;
    let sections_at = names_at + names.len() as u64;
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();

    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0];
    bytes.extend(words(&[BASE, HEADER_BYTES as u64, sections_at]));
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 3, 0, 0, 0]);
    bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    bytes.extend(words(&[0, BASE, BASE, sections_at, sections_at + 0x1000, 0x1000]));
    bytes.extend([4, 0, 0, 0, 4, 0, 0, 0]);
    bytes.extend(words(&[note_at, BASE + note_at, BASE + note_at, note.len() as u64, note.len() as u64, 4]));
    bytes.extend(note);
    bytes.extend(&table);
    bytes.extend(&names);
    bytes.extend([0; SECTION_HEADER_BYTES]);
    for (kind, at, size, link) in [(2u32, table_at, table.len(), 2u32), (3, names_at, names.len(), 0)] {
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(words(&[0, 0, at, size as u64]));
        bytes.extend(link.to_le_bytes());
        bytes.extend([0; 20]);
    }
    bytes
}

fn lookup(symbols: &[(&str, u64)], name: &str) -> Lookup {
    let elf = ElfFile::from_bytes(&file(symbols)).expect("a well-formed file");
    elf.lookup([name, "uv", "uv_run_longer"]).expect("a well-formed table").remove(name).expect("it was asked for")
}

fn found(addr: u64) -> Lookup {
    Lookup::Found(Symbol { addr: FileAddr(addr), size: 8, via: Via::Symtab })
}

#[test]
fn the_exact_name_wins() {
    assert_eq!(
        lookup(&[("uv_run.part.0", BASE + 8), ("uv_run", BASE + 16), ("uv_run.cold", BASE)], "uv_run"),
        found(BASE + 16)
    );
    assert_eq!(lookup(&[("uv_runx", BASE + 8), ("xuv_run", BASE + 16)], "uv_run"), Lookup::Absent);
}

#[test]
fn a_clone_is_never_taken_for_the_function() {
    let clone = Lookup::CloneOnly { clone: "uv_run.isra.3".to_owned() };
    assert_eq!(lookup(&[("uv_run.isra.3", BASE + 8)], "uv_run"), clone);
}

#[test]
fn two_functions_of_one_name_are_ambiguous() {
    assert_eq!(lookup(&[("uv_run", BASE + 8), ("uv_run", BASE + 8)], "uv_run"), found(BASE + 8));
    assert_eq!(lookup(&[("uv_run", BASE + 8), ("uv_run", BASE + 16)], "uv_run"), Lookup::Ambiguous { count: 2 });
}

#[test]
fn addresses_and_identity() {
    let elf = ElfFile::from_bytes(&file(&[("_ZTVN4node14ThreadPoolWorkE", BASE + 64)])).expect("a well-formed file");
    assert_eq!(elf.build_id_hex().as_deref(), Some("abcd"));
    assert_eq!(elf.file_offset(FileAddr(BASE + 5)), Some(FileOffset(5)));
    assert_eq!(elf.file_offset(FileAddr(BASE - 1)), None);
    assert!(elf.is_mapped(FileAddr(BASE + 0x1000)));
    assert_eq!(elf.file_offset(FileAddr(BASE + 0x1000)), None);
    assert_eq!(elf.class_of_vptr(FileAddr(BASE + 80)).as_deref(), Some("N4node14ThreadPoolWorkE"));
    assert_eq!(elf.class_of_vptr(FileAddr(BASE + 88)).as_deref(), None);
    assert_eq!(elf.bytes_at(FileAddr(BASE), u64::MAX).get(..4), Some(&b"\x7fELF"[..]));
}

/// Asks for everything that reads the file.
fn read_all(bytes: &[u8]) {
    let Ok(elf) = ElfFile::from_bytes(bytes) else { return };
    let _ = (elf.lookup(["uv_run", "a"]), elf.lookup_exported(["b"]), elf.class_of_vptr(FileAddr(BASE)));
    let _ = (elf.function_bytes(FileAddr(BASE)), elf.bytes_at(FileAddr(BASE), u64::MAX), elf.bias(BASE, 0));
    let _ = (crate::target::libuv::recover(&elf), elf.build_id_hex());
}

proptest! {
    #[test]
    fn a_truncated_file_is_survived(bytes in 0usize..600) {
        let whole = file(&[("uv_run", BASE), ("uv_fs_open", BASE + 8)]);
        read_all(whole.get(..bytes.min(whole.len())).unwrap_or_default());
    }

    #[test]
    fn a_damaged_file_is_survived(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24)) {
        let mut bytes = file(&[("uv_run", BASE), ("uv_fs_open", BASE + 8)]);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_all(&bytes);
    }

    #[test]
    fn any_note_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = build_id(&bytes);
    }
}
