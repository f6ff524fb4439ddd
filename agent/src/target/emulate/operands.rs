//! Registers, and what an instruction's operands mean.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::{Fault, Flags, Machine, Step, THREAD_BASE};
use crate::target::memory::Memory;

impl<S: Memory> Machine<'_, S> {
    pub(super) fn get(&self, register: usize) -> u64 {
        self.registers.get(register).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, register: usize, value: u64) {
        if let Some(place) = self.registers.get_mut(register) {
            *place = value;
        }
    }

    pub(super) fn address(&self, instruction: &Instruction) -> u64 {
        let of = |register: Register| match register {
            Register::None | Register::RIP => 0,
            register => self.register(register),
        };
        let base = match instruction.memory_base() {
            // The displacement is the address itself.
            Register::RIP => 0,
            base => of(base),
        };
        let index = of(instruction.memory_index()).wrapping_mul(u64::from(instruction.memory_index_scale()));
        let segment = if instruction.memory_segment() == Register::FS { THREAD_BASE } else { 0 };
        base.wrapping_add(index).wrapping_add(instruction.memory_displacement64()).wrapping_add(segment)
    }

    pub(super) fn register(&self, register: Register) -> u64 {
        let whole = self.get(register.full_register().number());
        match register.size() {
            1 if is_high(register) => (whole >> 8) & 0xff,
            size => cut(whole, size),
        }
    }

    pub(super) fn set_register(&mut self, register: Register, value: u64) {
        let at = register.full_register().number();
        let whole = self.get(at);
        let value = match register.size() {
            1 if is_high(register) => whole & !0xff00 | (value & 0xff) << 8,
            1 => whole & !0xff | value & 0xff,
            2 => whole & !0xffff | value & 0xffff,
            // Writing a 32-bit register clears the upper half.
            4 => value & 0xffff_ffff,
            _ => value,
        };
        self.set(at, value);
    }

    /// Bytes of an operand.
    pub(super) fn size(instruction: &Instruction, operand: u32) -> usize {
        match instruction.op_kind(operand) {
            OpKind::Register => instruction.op_register(operand).size(),
            OpKind::Memory => instruction.memory_size().size(),
            OpKind::Immediate8 => 1,
            OpKind::Immediate16 | OpKind::Immediate8to16 => 2,
            OpKind::Immediate32 | OpKind::Immediate8to32 => 4,
            _ => 8,
        }
    }

    pub(super) fn read(&mut self, instruction: &Instruction, operand: u32) -> Step<u64> {
        match instruction.op_kind(operand) {
            OpKind::Register => Ok(self.register(instruction.op_register(operand))),
            OpKind::Memory => {
                let at = self.address(instruction);
                let value = self.load(at, Self::size(instruction, operand))?;
                if let Some(loads) = &mut self.loads {
                    loads.push((at, value));
                }
                Ok(value)
            }
            _ => instruction.try_immediate(operand).map_err(|_| beyond(instruction)),
        }
    }

    pub(super) fn write(&mut self, instruction: &Instruction, operand: u32, value: u64) -> Step<()> {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                self.set_register(instruction.op_register(operand), value);
                Ok(())
            }
            OpKind::Memory => self.store(self.address(instruction), Self::size(instruction, operand), value),
            _ => Err(beyond(instruction)),
        }
    }

    pub(super) fn condition(&self, instruction: &Instruction) -> Option<bool> {
        use iced_x86::ConditionCode as Cc;
        let Flags { carry, zero, sign, overflow, parity } = self.flags;
        Some(match instruction.condition_code() {
            Cc::None => return None,
            Cc::o => overflow,
            Cc::no => !overflow,
            Cc::b => carry,
            Cc::ae => !carry,
            Cc::e => zero,
            Cc::ne => !zero,
            Cc::be => carry || zero,
            Cc::a => !carry && !zero,
            Cc::s => sign,
            Cc::ns => !sign,
            Cc::p => parity,
            Cc::np => !parity,
            Cc::l => sign != overflow,
            Cc::ge => sign == overflow,
            Cc::le => zero || sign != overflow,
            Cc::g => !zero && sign == overflow,
        })
    }
}

pub(super) fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

pub(super) fn beyond(instruction: &Instruction) -> Fault {
    let mnemonic =
        if instruction.code() == Code::Syscall { "syscall".into() } else { format!("{:?}", instruction.mnemonic()) };
    Fault::Instruction { at: instruction.ip(), mnemonic: mnemonic.to_lowercase() }
}

/// The low `size` bytes.
pub(super) fn cut(value: u64, size: usize) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}
