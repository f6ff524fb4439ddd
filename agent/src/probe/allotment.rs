//! Which rows of the shared array are whose: each unwind table is there once, however many files hold it.

use std::collections::HashMap;

use crate::target::content::Content;

/// Where a table's rows are in the array, and from where to where they go by the file's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub first: u32,
    pub count: u32,
    pub from: u32,
    pub to: u32,
}

/// The array's rows, `most` in all.
pub struct Allotment {
    most: u32,
    tables: HashMap<Content, Rows>,
}

impl Allotment {
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self { most, tables: HashMap::new() }
    }

    #[must_use]
    pub fn get(&self, content: Content) -> Option<Rows> {
        self.tables.get(&content).copied()
    }

    /// Finds room for `rows`, whose first is set; where there is none, tables that are not used make room. `None` if that is too little.
    pub fn add(&mut self, content: Content, rows: Rows, is_used: impl Fn(Content) -> bool) -> Option<Rows> {
        let first = self.gap(rows.count).or_else(|| {
            self.tables.retain(|content, _| is_used(*content));
            self.gap(rows.count)
        })?;
        let rows = Rows { first, ..rows };
        self.tables.insert(content, rows);
        Some(rows)
    }

    /// Where the first so many rows begin that are nobody's.
    fn gap(&self, count: u32) -> Option<u32> {
        let mut taken: Vec<(u32, u32)> = self.tables.values().map(|rows| (rows.first, rows.count)).collect();
        taken.sort_unstable();
        let mut from = 0;
        for (first, held) in taken {
            if first - from >= count {
                break;
            }
            from = first + held;
        }
        (self.most - from >= count).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a table of so many rows came to lie.
    fn add(allotment: &mut Allotment, content: Content, count: u32, used: &[Content]) -> Option<u32> {
        let rows = Rows { first: 0, count, from: 0, to: 1 };
        Some(allotment.add(content, rows, |content| used.contains(&content))?.first)
    }

    #[test]
    fn what_nobody_uses_makes_room_and_nothing_else_moves() {
        let mut allotment = Allotment::new(100);
        let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(Content::of);
        assert_eq!(add(&mut allotment, one, 40, &[]), Some(0));
        assert_eq!(add(&mut allotment, two, 40, &[one]), Some(40));
        // As long as there is room, what was used stays for who comes next.
        assert_eq!(add(&mut allotment, three, 20, &[two]), Some(80));
        assert_eq!(allotment.get(one).map(|rows| rows.first), Some(0));
        assert_eq!(add(&mut allotment, four, 30, &[one, two, three]), None);
        assert_eq!(add(&mut allotment, four, 30, &[two, three]), Some(0));
        assert_eq!(allotment.get(one), None);
        assert_eq!(allotment.get(two).map(|rows| rows.first), Some(40));
        assert_eq!(add(&mut allotment, five, 10, &[two, three, four]), Some(30));
    }
}
