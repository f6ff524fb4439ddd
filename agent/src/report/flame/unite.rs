//! Stacks with folded recursion that are alike but for how deep.

use std::collections::HashMap;

use super::{FlameStack, Times};

/// Stacks that differ in how deep they recurse share their frames.
pub fn unite(mut stacks: Vec<FlameStack>) -> Vec<FlameStack> {
    stacks.sort_by(|a, b| functions_of(a).cmp(functions_of(b)));
    let deepest = stacks.iter().map(|stack| stack.steps.len()).max().unwrap_or(0);
    // Where two neighbours part ways: to the left of it they share what they have.
    let shared: Vec<usize> = stacks
        .windows(2)
        .map(|pair| match pair {
            [a, b] => functions_of(a).zip(functions_of(b)).take_while(|(a, b)| a == b).count(),
            _ => 0,
        })
        .collect();
    for depth in 0..deepest {
        let mut begin = 0;
        while begin < stacks.len() {
            let run = shared.iter().skip(begin).take_while(|shared| **shared > depth).count();
            let end = begin + run + 1;
            let here = || stacks.get(begin..end).unwrap_or_default().iter().filter_map(|stack| stack.steps.get(depth));
            let least = here().map(|step| step.times.least).min().unwrap_or(1);
            let most = here().map(|step| step.times.most).max().unwrap_or(1);
            for stack in stacks.get_mut(begin..end).unwrap_or_default() {
                if let Some(step) = stack.steps.get_mut(depth) {
                    step.times = Times { least, most };
                }
            }
            begin = end;
        }
    }
    let mut merged = HashMap::<_, usize>::new();
    let mut united: Vec<FlameStack> = Vec::new();
    for stack in stacks {
        let key = (stack.pid, stack.tid, stack.lane, stack.state, stack.steps.clone());
        let at = *merged.entry(key).or_insert(united.len());
        match united.get_mut(at) {
            Some(known) => known.add(stack.count, stack.weight_ns, stack.gc_ns),
            None => united.push(stack),
        }
    }
    united
}

fn functions_of(stack: &FlameStack) -> impl Iterator<Item = u32> + '_ {
    stack.steps.iter().map(|step| step.function)
}
