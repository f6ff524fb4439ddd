//! Instructions on vectors: those that compilers use to copy, clear and add up words.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::{Machine, Step, operands::beyond};
use crate::target::memory::Memory;

impl<S: Memory> Machine<'_, S> {
    /// Copies of sixteen bytes and the like: two figures at a time.
    pub(super) fn vector(&mut self, instruction: &Instruction) -> Step<bool> {
        let high = |value: u128| value & (u128::MAX << 64);
        match instruction.mnemonic() {
            Mnemonic::Movups
            | Mnemonic::Movaps
            | Mnemonic::Movdqu
            | Mnemonic::Movdqa
            | Mnemonic::Movupd
            | Mnemonic::Movapd => {
                let value = self.read_vector(instruction, 1)?;
                self.write_vector(instruction, 0, value, 16)?;
            }
            Mnemonic::Movq
            | Mnemonic::Movd
            | Mnemonic::Movsd
            | Mnemonic::Movss
            | Mnemonic::Movlps
            | Mnemonic::Movlpd => {
                let size = if matches!(instruction.mnemonic(), Mnemonic::Movd | Mnemonic::Movss) { 4 } else { 8 };
                let mask = (1u128 << (size * 8)) - 1;
                let value = self.read_vector(instruction, 1)? & mask;
                let keeps = matches!(instruction.mnemonic(), Mnemonic::Movlps | Mnemonic::Movlpd)
                    || instruction.op1_kind() == OpKind::Register
                        && matches!(instruction.mnemonic(), Mnemonic::Movsd | Mnemonic::Movss);
                let kept =
                    if keeps && is_vector(instruction, 0) { self.read_vector(instruction, 0)? & !mask } else { 0 };
                self.write_vector(instruction, 0, kept | value, size)?;
            }
            Mnemonic::Movhps | Mnemonic::Movhpd => {
                let value = self.read_vector(instruction, 1)?;
                if is_vector(instruction, 0) {
                    let kept = self.read_vector(instruction, 0)? & u128::from(u64::MAX);
                    self.write_vector(instruction, 0, kept | value << 64, 16)?;
                } else {
                    self.write_vector(instruction, 0, value >> 64, 8)?;
                }
            }
            Mnemonic::Punpcklqdq | Mnemonic::Movlhps | Mnemonic::Unpcklpd => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                self.write_vector(instruction, 0, left & u128::from(u64::MAX) | right << 64, 16)?;
            }
            Mnemonic::Punpckhqdq | Mnemonic::Movhlps => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                let kept = if instruction.mnemonic() == Mnemonic::Movhlps { high(left) } else { high(right) };
                let low = if instruction.mnemonic() == Mnemonic::Movhlps { right >> 64 } else { left >> 64 };
                self.write_vector(instruction, 0, kept | low, 16)?;
            }
            Mnemonic::Pxor | Mnemonic::Xorps | Mnemonic::Xorpd => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                self.write_vector(instruction, 0, left ^ right, 16)?;
            }
            Mnemonic::Paddq => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                let low = (left as u64).wrapping_add(right as u64);
                let top = ((left >> 64) as u64).wrapping_add((right >> 64) as u64);
                self.write_vector(instruction, 0, u128::from(top) << 64 | u128::from(low), 16)?;
            }
            Mnemonic::Psrldq => {
                let value = self.read_vector(instruction, 0)?;
                let by = instruction.try_immediate(1).map_err(|_| beyond(instruction))?.min(16);
                let shifted = if by == 16 { 0 } else { value >> (by * 8) };
                self.write_vector(instruction, 0, shifted, 16)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn read_vector(&mut self, instruction: &Instruction, operand: u32) -> Step<u128> {
        if is_vector(instruction, operand) {
            let at = instruction.op_register(operand).number();
            return Ok(self.vectors.get(at).copied().unwrap_or(0));
        }
        match instruction.op_kind(operand) {
            OpKind::Memory => {
                let size = match instruction.memory_size() {
                    MemorySize::Unknown => 16,
                    size => size.size(),
                };
                self.load_vector(self.address(instruction), size)
            }
            _ => self.read(instruction, operand).map(u128::from),
        }
    }

    pub(super) fn write_vector(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        value: u128,
        size: usize,
    ) -> Step<()> {
        if is_vector(instruction, operand) {
            let at = instruction.op_register(operand).number();
            if let Some(place) = self.vectors.get_mut(at) {
                *place = value;
            }
            return Ok(());
        }
        match instruction.op_kind(operand) {
            OpKind::Memory => {
                let bytes = value.to_le_bytes();
                self.store_bytes(self.address(instruction), bytes.get(..size.min(16)).unwrap_or_default())
            }
            _ => self.write(instruction, operand, value as u64),
        }
    }
}

fn is_vector(instruction: &Instruction, operand: u32) -> bool {
    instruction.op_kind(operand) == OpKind::Register && instruction.op_register(operand).is_xmm()
}
