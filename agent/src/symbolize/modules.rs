//! The files whose code is on stacks, as many of them as there is memory for.

use std::collections::HashMap;

use blazesym::symbolize::Symbolizer as Inlined;

use super::module::Module;
use crate::{
    limits::{SYMBOL_BYTES_MAX, SYMBOL_FILES_MAX},
    target::procfs::{self, Mapping},
    units::Pid,
};

pub struct Modules {
    /// By device and inode. Of one that cannot be read it is not tried again.
    all: HashMap<(u64, u64), Known>,
    inlined: Inlined,
    /// How often one was asked for.
    asked: u64,
    files_max: usize,
}

struct Known {
    module: Option<Module>,
    /// When it was asked for last.
    last: u64,
}

impl Default for Modules {
    fn default() -> Self {
        Self::at_most(SYMBOL_FILES_MAX)
    }
}

impl Modules {
    fn at_most(files_max: usize) -> Self {
        Self { all: HashMap::new(), inlined: inlined(), asked: 0, files_max }
    }

    /// The file that is mapped there, and who knows what was inlined in it.
    pub fn get(&mut self, pid: Pid, mapping: &Mapping) -> Option<(&Module, &Inlined)> {
        let identity = (mapping.device, mapping.inode);
        if !self.all.contains_key(&identity) {
            let module = Module::open(pid, mapping);
            if module.is_none() && !procfs::is_alive(pid) {
                // Nobody can open what only it had; another process may have the same file.
                return None;
            }
            self.make_room();
            self.all.insert(identity, Known { module, last: 0 });
        }
        self.asked += 1;
        let known = self.all.get_mut(&identity)?;
        known.last = self.asked;
        known.module.as_ref().map(|module| (module, &self.inlined))
    }

    /// Where there are too many, that half goes which nobody has asked for the longest.
    fn make_room(&mut self) {
        let held = self.all.values().filter_map(|known| known.module.as_ref()?.held());
        let bytes: usize = held.collect::<HashMap<usize, usize>>().into_values().sum();
        if self.all.len() < self.files_max && bytes < SYMBOL_BYTES_MAX {
            return;
        }
        let mut asked: Vec<u64> = self.all.values().map(|known| known.last).collect();
        asked.sort_unstable();
        let middle = asked.get(asked.len().saturating_sub(1) / 2).copied().unwrap_or_default();
        self.all.retain(|_, known| known.last > middle);
        // It knows files by the numbers of their descriptors, which others get now.
        self.inlined = inlined();
    }
}

/// Names are made readable elsewhere, whichever table they come from.
fn inlined() -> Inlined {
    Inlined::builder().enable_demangling(false).build()
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn files_that_nobody_asks_for_make_room_for_others() {
        let own = Pid(std::process::id());
        let mappings = procfs::executable_mappings(own).expect("maps of this process").into_iter();
        let files: BTreeMap<u64, Mapping> =
            mappings.filter(Mapping::is_file).map(|mapping| (mapping.inode, mapping)).collect();
        let files: Vec<Mapping> = files.into_values().collect();
        let [one, two, three, ..] = files.as_slice() else { panic!("this program has some libraries: {files:?}") };
        let mut modules = Modules::at_most(2);
        for file in [one, two, one, three] {
            assert!(modules.get(own, file).is_some(), "{file:?}");
        }
        let kept = |file: &Mapping| modules.all.contains_key(&(file.device, file.inode));
        assert_eq!([one, two, three].map(kept), [true, false, true]);
    }
}
