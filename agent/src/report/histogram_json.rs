//! A histogram in JSON: sparse buckets of OpenTelemetry's exponential histogram.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::aggregate::histogram::{Histogram, Parts};

#[derive(Serialize, Deserialize)]
struct Json {
    /// OpenTelemetry's scale: bucket `i` holds values in `(2^(i/2^scale), 2^((i+1)/2^scale)]`.
    scale: u32,
    count: u64,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
    zeros: u64,
    /// `[index, count]` in rising order.
    buckets: Vec<(u32, u64)>,
}

pub fn serialize<S: Serializer>(histogram: &Histogram, serializer: S) -> Result<S::Ok, S::Error> {
    let parts = histogram.parts();
    Json {
        scale: agent_ebpf::histogram::SCALE,
        count: histogram.count(),
        sum_ns: parts.sum,
        min_ns: parts.min,
        max_ns: parts.max,
        zeros: parts.zeros,
        buckets: parts.buckets,
    }
    .serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Histogram, D::Error> {
    let json = Json::deserialize(deserializer)?;
    if json.scale != agent_ebpf::histogram::SCALE {
        return Err(D::Error::custom(format_args!("histogram of scale {}", json.scale)));
    }
    Histogram::from_parts(&Parts {
        zeros: json.zeros,
        sum: json.sum_ns,
        min: json.min_ns,
        max: json.max_ns,
        buckets: json.buckets,
    })
    .ok_or_else(|| D::Error::custom("histogram bucket out of range"))
}
