//! Buckets of the one histogram that the project has: OpenTelemetry's exponential histogram at scale 6.
//!
//! Bucket `i` holds values in `(2^(i/64), 2^((i+1)/64)]`, 64 buckets an octave: a bucket's geometric middle is at most
//! 0.55 % away from any value in it. Both halves use this index, so a histogram that the kernel filled merges with
//! one that user space filled, and both go to OTLP bucket by bucket.

/// `log2` of the number of buckets an octave.
pub const SCALE: u32 = 6;
/// Buckets an octave.
pub const PER_OCTAVE: u32 = 1 << SCALE;
/// Indices are below this: 64 octaves.
pub const INDEX_END: u32 = 64 * PER_OCTAVE;

/// `floor(2^(63 + k/64))` for k in 0..64: where the k-th bucket of an octave begins, as a 64-bit mantissa.
/// An integer value with this mantissa or a lower one is in the bucket below; all but the first are irrational.
/// The tail stops the search at the octave's end without a comparison of indices, which the verifier likes.
pub static BOUNDS: [u64; PER_OCTAVE as usize + CLIMBS_MAX] = [
    0x8000000000000000,
    0x8164d1f3bc030773,
    0x82cd8698ac2ba1d7,
    0x843a28c3acde4046,
    0x85aac367cc487b14,
    0x871f61969e8d1010,
    0x88980e8092da8527,
    0x8a14d575496efd9a,
    0x8b95c1e3ea8bd6e6,
    0x8d1adf5b7e5ba9e5,
    0x8ea4398b45cd53c0,
    0x9031dc431466b1dc,
    0x91c3d373ab11c336,
    0x935a2b2f13e6e92b,
    0x94f4efa8fef70961,
    0x96942d3720185a00,
    0x9837f0518db8a96f,
    0x99e0459320b7fa64,
    0x9b8d39b9d54e5538,
    0x9d3ed9a72cffb750,
    0x9ef5326091a111ad,
    0xa0b0510fb9714fc2,
    0xa27043030c496818,
    0xa43515ae09e6809e,
    0xa5fed6a9b15138ea,
    0xa7cd93b4e9653569,
    0xa9a15ab4ea7c0ef8,
    0xab7a39b5a93ed337,
    0xad583eea42a14ac6,
    0xaf3b78ad690a4374,
    0xb123f581d2ac258f,
    0xb311c412a9112489,
    0xb504f333f9de6484,
    0xb6fd91e328d17791,
    0xb8fbaf4762fb9ee9,
    0xbaff5ab2133e45fb,
    0xbd08a39f580c36be,
    0xbf1799b67a731082,
    0xc12c4cca66709456,
    0xc346ccda24976407,
    0xc5672a115506dadd,
    0xc78d74c8abb9b15c,
    0xc9b9bd866e2f27a2,
    0xcbec14fef2727c5c,
    0xce248c151f8480e3,
    0xd06333daef2b2594,
    0xd2a81d91f12ae45a,
    0xd4f35aabcfedfa1f,
    0xd744fccad69d6af4,
    0xd99d15c278afd7b5,
    0xdbfbb797daf23755,
    0xde60f4825e0e9123,
    0xe0ccdeec2a94e111,
    0xe33f8972be8a5a51,
    0xe5b906e77c8348a8,
    0xe8396a503c4bdc68,
    0xeac0c6e7dd24392e,
    0xed4f301ed9942b84,
    0xefe4b99bdcdaf5cb,
    0xf281773c59ffb139,
    0xf5257d152486cc2c,
    0xf7d0df730ad13bb8,
    0xfa83b2db722a033a,
    0xfd3e0c0cf486c174,
    u64::MAX,
    u64::MAX,
    u64::MAX,
    u64::MAX,
    u64::MAX,
    u64::MAX,
];

/// `log2(1 + x)` exceeds its linear guess `x` by less than 5.6 of 64ths.
const CLIMBS_MAX: usize = 6;

/// The bucket of a value; 0 and 1 share the first.
#[inline(always)]
#[must_use]
pub fn index(value: u64) -> u32 {
    if value <= 1 {
        return 0;
    }
    let octave = 63 - value.leading_zeros();
    let mantissa = value << value.leading_zeros();
    // Powers of two belong to the bucket that ends at them.
    if mantissa == 1 << 63 {
        return octave * PER_OCTAVE - 1;
    }
    // Begin at the linear guess, then climb.
    let mut slot = ((mantissa << 1) >> (64 - SCALE)) as usize & (PER_OCTAVE as usize - 1);
    let mut climbs = 0;
    while climbs < CLIMBS_MAX {
        if mantissa <= BOUNDS[slot + 1] {
            break;
        }
        slot += 1;
        climbs += 1;
    }
    octave * PER_OCTAVE + slot as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: u64) {
        let i = index(value);
        let exact = (value as f64).log2() * f64::from(PER_OCTAVE);
        // Upper bound inclusive: index = ceil(log) - 1. Allow for f64 at the bucket's edge.
        let (low, high) = (f64::from(i), f64::from(i) + 1.0);
        assert!(exact > low - 1e-9 && exact < high + 1e-9, "{value}: index {i}, log {exact}");
    }

    #[test]
    fn a_value_is_inside_its_bucket() {
        for shift in 1..63 {
            for k in 0..257u64 {
                check((1u64 << shift) + ((1u64 << shift) / 257) * k);
                check((1u64 << shift) + k);
            }
        }
        check(u64::MAX);
    }

    #[test]
    fn powers_of_two_end_their_bucket() {
        for shift in 1..64 {
            assert_eq!(index(1 << shift), shift * PER_OCTAVE - 1);
        }
        assert_eq!(index(0), 0);
        assert_eq!(index(1), 0);
    }

    #[test]
    fn the_index_never_falls() {
        let mut last = 0;
        for value in 0..200_000 {
            assert!(index(value) >= last);
            last = index(value);
        }
    }
}
