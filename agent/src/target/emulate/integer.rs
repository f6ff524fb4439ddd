//! Instructions on whole numbers.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{
    Machine, Step, number,
    operands::{beyond, cut},
};
use crate::target::memory::Memory;

impl<S: Memory> Machine<'_, S> {
    pub(super) fn result(&mut self, value: u64, size: usize) {
        let value = cut(value, size);
        self.flags.zero = value == 0;
        self.flags.sign = value >> (size.clamp(1, 8) * 8 - 1) & 1 == 1;
        self.flags.parity = (value & 0xff).count_ones().is_multiple_of(2);
    }

    pub(super) fn logic(&mut self, value: u64, size: usize) {
        self.result(value, size);
        self.flags.carry = false;
        self.flags.overflow = false;
    }

    pub(super) fn sum(&mut self, left: u64, right: u64, carry: bool, size: usize) -> u64 {
        let (left, right) = (cut(left, size), cut(right, size));
        let wide = u128::from(left) + u128::from(right) + u128::from(carry);
        let value = cut(wide as u64, size);
        self.result(value, size);
        self.flags.carry = wide >> (size.clamp(1, 8) * 8) != 0;
        let top = size.clamp(1, 8) * 8 - 1;
        self.flags.overflow = (left ^ value) & (right ^ value) & (1 << top) != 0;
        value
    }

    pub(super) fn difference(&mut self, left: u64, right: u64, borrow: bool, size: usize) -> u64 {
        let (left, right) = (cut(left, size), cut(right, size));
        let value = cut(left.wrapping_sub(right).wrapping_sub(u64::from(borrow)), size);
        self.result(value, size);
        self.flags.carry = u128::from(left) < u128::from(right) + u128::from(borrow);
        let top = size.clamp(1, 8) * 8 - 1;
        self.flags.overflow = (left ^ right) & (left ^ value) & (1 << top) != 0;
        value
    }

    /// False if the instruction is none of these.
    pub(super) fn arithmetic(&mut self, instruction: &Instruction) -> Step<bool> {
        let size = Self::size(instruction, 0);
        let mnemonic = instruction.mnemonic();
        let carry = self.flags.carry;
        let mut operands = || -> Step<(u64, u64)> { Ok((self.read(instruction, 0)?, self.read(instruction, 1)?)) };
        match mnemonic {
            Mnemonic::Add | Mnemonic::Adc => {
                let (left, right) = operands()?;
                let value = self.sum(left, right, mnemonic == Mnemonic::Adc && carry, size);
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Sub | Mnemonic::Sbb => {
                let (left, right) = operands()?;
                let value = self.difference(left, right, mnemonic == Mnemonic::Sbb && carry, size);
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Cmp => {
                let (left, right) = operands()?;
                self.difference(left, right, false, size);
            }
            Mnemonic::Test => {
                let (left, right) = operands()?;
                self.logic(left & right, size);
            }
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => {
                let (left, right) = operands()?;
                let value = match mnemonic {
                    Mnemonic::And => left & right,
                    Mnemonic::Or => left | right,
                    _ => left ^ right,
                };
                self.logic(value, size);
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar => {
                let (left, right) = operands()?;
                self.shift(instruction, left, right, size)?;
            }
            Mnemonic::Bt => {
                let (left, right) = operands()?;
                if instruction.op0_kind() != OpKind::Register {
                    return Ok(false);
                }
                self.flags.carry = left >> (right % (size as u64 * 8)) & 1 == 1;
            }
            Mnemonic::Xadd => {
                let (left, right) = operands()?;
                let value = self.sum(left, right, false, size);
                self.write(instruction, 1, left)?;
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Cmpxchg => {
                let (left, right) = operands()?;
                let expected = cut(self.get(number::RAX), size);
                self.difference(expected, left, false, size);
                if self.flags.zero {
                    self.write(instruction, 0, right)?;
                } else {
                    let old = self.get(number::RAX);
                    let value = if size >= 4 { left } else { old & !cut(u64::MAX, size) | left };
                    self.set(number::RAX, value);
                }
            }
            Mnemonic::Xchg => {
                let (left, right) = operands()?;
                self.write(instruction, 0, right)?;
                self.write(instruction, 1, left)?;
            }
            Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Neg | Mnemonic::Not => {
                let value = self.read(instruction, 0)?;
                let value = match mnemonic {
                    Mnemonic::Inc => self.sum(value, 1, false, size),
                    Mnemonic::Dec => self.difference(value, 1, false, size),
                    Mnemonic::Neg => self.difference(0, value, false, size),
                    _ => !value,
                };
                if matches!(mnemonic, Mnemonic::Inc | Mnemonic::Dec) {
                    self.flags.carry = carry;
                }
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Imul if instruction.op_count() > 1 => {
                let first = u32::from(instruction.op_count() == 3);
                let left = self.read(instruction, first)?;
                let right = self.read(instruction, first + 1)?;
                let value =
                    signed(left, size).wrapping_mul(signed(right, Self::size(instruction, first + 1).max(size)));
                self.write(instruction, 0, value.cast_unsigned())?;
            }
            Mnemonic::Mul if size == 8 => {
                let wide = u128::from(self.read(instruction, 0)?) * u128::from(self.get(number::RAX));
                self.set(number::RAX, wide as u64);
                self.set(number::RDX, (wide >> 64) as u64);
            }
            Mnemonic::Div if size == 8 || size == 4 => {
                let by = self.read(instruction, 0)?;
                let bits = size * 8;
                let low = cut(self.get(number::RAX), size);
                let wide = u128::from(cut(self.get(number::RDX), size)) << bits | u128::from(low);
                let quotient = wide.checked_div(u128::from(by)).ok_or_else(|| beyond(instruction))?;
                self.set(number::RAX, cut(quotient as u64, size));
                self.set(number::RDX, cut((wide % u128::from(by)) as u64, size));
            }
            Mnemonic::Bsr | Mnemonic::Bsf | Mnemonic::Tzcnt | Mnemonic::Lzcnt | Mnemonic::Popcnt => {
                let value = self.read(instruction, 1)?;
                let bits = size as u64 * 8;
                self.flags.zero = value == 0;
                let value = match mnemonic {
                    Mnemonic::Popcnt => u64::from(value.count_ones()),
                    Mnemonic::Lzcnt => u64::from(value.leading_zeros()) - (64 - bits),
                    Mnemonic::Bsr if value != 0 => 63 - u64::from(value.leading_zeros()),
                    _ if value == 0 => bits,
                    _ => u64::from(value.trailing_zeros()),
                };
                self.write(instruction, 0, value)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn shift(&mut self, instruction: &Instruction, value: u64, by: u64, size: usize) -> Step<()> {
        let by = by & if size == 8 { 63 } else { 31 };
        if by == 0 {
            return Ok(());
        }
        let bits = size as u64 * 8;
        let (shifted, carry) = match instruction.mnemonic() {
            Mnemonic::Shl => (value << by, by <= bits && value >> (bits - by) & 1 == 1),
            Mnemonic::Shr => (value >> by, value >> (by - 1) & 1 == 1),
            _ => ((signed(value, size) >> by).cast_unsigned(), signed(value, size) >> (by - 1) & 1 == 1),
        };
        self.logic(shifted, size);
        self.flags.carry = carry;
        self.write(instruction, 0, shifted)
    }

    pub(super) fn moving(&mut self, instruction: &Instruction) -> Step<bool> {
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => {
                let of_vector = |operand| {
                    instruction.op_kind(operand) == OpKind::Register && !instruction.op_register(operand).is_gpr()
                };
                if of_vector(0) || of_vector(1) {
                    return Ok(false);
                }
                let mut value = self.read(instruction, 1)?;
                if matches!(instruction.mnemonic(), Mnemonic::Movsx | Mnemonic::Movsxd) {
                    value = signed(value, Self::size(instruction, 1)).cast_unsigned();
                }
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Lea => {
                let address = self.address(instruction);
                self.write(instruction, 0, address)?;
            }
            Mnemonic::Push => {
                let value = self.read(instruction, 0)?;
                self.push(value)?;
            }
            Mnemonic::Pop => {
                let value = self.pop()?;
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Leave => {
                self.set(number::RSP, self.get(number::RBP));
                let base = self.pop()?;
                self.set(number::RBP, base);
            }
            Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Pause | Mnemonic::Mfence | Mnemonic::Prefetcht0 => {}
            Mnemonic::Cdqe => self.set(number::RAX, signed(self.get(number::RAX), 4).cast_unsigned()),
            Mnemonic::Cqo => {
                let sign = signed(self.get(number::RAX), 8) >> 63;
                self.set(number::RDX, sign.cast_unsigned());
            }
            Mnemonic::Cdq => {
                let sign = signed(self.get(number::RAX), 4) >> 63;
                self.set_register(Register::EDX, sign.cast_unsigned());
            }
            _ => return self.conditional(instruction),
        }
        Ok(true)
    }

    pub(super) fn conditional(&mut self, instruction: &Instruction) -> Step<bool> {
        let Some(holds) = self.condition(instruction) else { return Ok(false) };
        if instruction.op_count() == 1 {
            self.write(instruction, 0, u64::from(holds))?;
        } else {
            let operand = u32::from(holds);
            let value = self.read(instruction, operand)?;
            self.write(instruction, 0, value)?;
        }
        Ok(true)
    }
}

fn signed(value: u64, size: usize) -> i64 {
    match size {
        1 => i64::from(value as u8 as i8),
        2 => i64::from(value as u16 as i16),
        4 => i64::from(value as u32 as i32),
        _ => value.cast_signed(),
    }
}
