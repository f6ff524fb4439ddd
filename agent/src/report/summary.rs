//! What the records of a trace add up to: the same, live and from a file.

use super::Record;

/// The sums of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {}

impl Summary {
    pub fn add(&mut self, record: &Record) {
        let _ = record;
    }

    pub fn from_records<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut summary = Self::default();
        for record in records {
            summary.add(record);
        }
        summary
    }
}
