//! Numbers of V8's builtins, by which functions that they run are known: such a function has neither name nor script.
//!
//! The embedded data has a row a builtin, in the order of their numbers: where its code begins, how long it is, and more that differs
//! between versions (`EmbeddedData::LayoutDescription`). Where rows begin that are known by their code, says how long rows are.

use crate::target::elf::{ElfFile, Symbol};

/// Closures of the functions that wait for several promises, and whose they are. Numbers of the first three follow one upon another.
const CLOSURES: [(&str, &str); 4] = [
    ("Builtins_PromiseAllResolveElementClosure", "Promise.all"),
    ("Builtins_PromiseAllSettledResolveElementClosure", "Promise.allSettled"),
    ("Builtins_PromiseAllSettledRejectElementClosure", "Promise.allSettled"),
    ("Builtins_PromiseAnyRejectElementClosure", "Promise.any"),
];
const IN_A_ROW: usize = 3;

/// Where code begins and where its description does; until 10.x these names are of pointers, and others of what they point at.
const CODE: [&str; 2] = ["v8_Default_embedded_blob_code_data_", "v8_Default_embedded_blob_code_"];
const DATA: [&str; 2] = ["v8_Default_embedded_blob_data_data_", "v8_Default_embedded_blob_data_"];

/// Three checksums.
const HEADER_WORDS: usize = 6;

/// Most of it is not rows: 2 500 builtins of 32 bytes.
const ROWS_BYTES_MAX: u64 = 128 << 10;

/// Builtins that wait for several promises, by number; none where the file does not say.
#[must_use]
pub fn combinators(elf: &ElfFile) -> Vec<(u32, &'static str)> {
    read(elf).unwrap_or_default()
}

fn read(elf: &ElfFile) -> Option<Vec<(u32, &'static str)>> {
    let names = CLOSURES.iter().map(|(name, _)| *name).chain(CODE).chain(DATA);
    let found = elf.lookup(names).ok()?;
    let symbol = |name: &str| found.get(name)?.symbol();
    let first = |names: [&str; 2]| names.into_iter().find_map(symbol);
    let (code, data) = (first(CODE)?, first(DATA)?);
    let rows: Vec<u32> = elf
        .bytes_at(data.addr, ROWS_BYTES_MAX)
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .collect();
    let place = |Symbol { addr, size, .. }: Symbol| {
        let begin = u32::try_from(addr.0.checked_sub(code.addr.0)?).ok()?;
        let row = [begin, u32::try_from(size).ok()?];
        rows.get(HEADER_WORDS..)?.array_windows().position(|words: &[u32; 2]| *words == row)
    };
    let places = CLOSURES.map(|(name, _)| symbol(name).and_then(place));
    numbers(&places.into_iter().collect::<Option<Vec<_>>>()?)
        .map(|numbers| numbers.into_iter().zip(CLOSURES).map(|(number, (_, whose))| (number, whose)).collect())
}

/// Numbers of rows by where they begin; the first ones follow one upon another.
fn numbers(places: &[usize]) -> Option<Vec<u32>> {
    let [first, second, ..] = places else { return None };
    let words = second.checked_sub(*first).filter(|words| *words > 0)?;
    let number = |(index, place): (usize, &usize)| {
        let is_row = (index >= IN_A_ROW || *place == first + index * words) && place.is_multiple_of(words);
        is_row.then(|| u32::try_from(place / words).ok()).flatten()
    };
    places.iter().enumerate().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_long_as_they_are_apart() {
        assert_eq!(numbers(&[3_572, 3_576, 3_580]), Some(vec![893, 894, 895]));
        assert_eq!(numbers(&[9, 12, 15]), Some(vec![3, 4, 5]));
        assert_eq!(numbers(&[9, 12, 15, 33]), Some(vec![3, 4, 5, 11]));
        assert_eq!(numbers(&[9, 12, 15, 34]), None);
        assert_eq!(numbers(&[9, 12, 16]), None);
        assert_eq!(numbers(&[10, 13, 16]), None);
        assert_eq!(numbers(&[9, 9, 9]), None);
        assert_eq!(numbers(&[9, 6, 3]), None);
    }
}
