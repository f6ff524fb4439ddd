//! Names for addresses, until the symbol reader is in place: hexadecimal.
use crate::{report::model::Frame, units::{Pid, UserAddr}};
#[derive(Default)] pub struct Symbolizer;
impl Symbolizer {
    pub fn new() -> Self { Self }
    pub fn symbolize_user(&mut self, _: Pid, a: &[u64]) -> Vec<Frame> { a.iter().map(|a| Frame { name: format!("{a:x}"), ..Frame::default() }).collect() }
    pub fn symbolize_kernel(&mut self, a: &[u64]) -> Vec<Frame> { a.iter().map(|a| Frame { name: format!("{a:x}"), ..Frame::default() }).collect() }
    pub fn work_class(&mut self, _: Pid, _: UserAddr) -> Option<&'static str> { None }
}
