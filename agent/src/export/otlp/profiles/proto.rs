//! Messages of profiles, `v1development`: those of `opentelemetry-proto` 1.10 and 1.11, whose development version is 1.
//!
//! Version 1.9 has other numbers and does not go together with them. What a request says which version it is, is a header.

use prost::Message;
use serde::Serialize;

use super::super::proto::{AnyValue, Resource, Scope, text, texts};

/// What a request's header says of the version of these messages.
pub const DEVELOPMENT_VERSION: &str = "1";

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfilesRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_profiles: Vec<ResourceProfiles>,
    /// Of all of them.
    #[prost(message, optional, tag = "2")]
    pub dictionary: Option<Dictionary>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceProfiles {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_profiles: Vec<ScopeProfiles>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScopeProfiles {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub profiles: Vec<Profile>,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    #[prost(message, optional, tag = "1")]
    pub sample_type: Option<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
    /// When it began.
    #[prost(fixed64, tag = "3")]
    #[serde(serialize_with = "text")]
    pub time_unix_nano: u64,
    #[prost(uint64, tag = "4")]
    #[serde(serialize_with = "text")]
    pub duration_nano: u64,
    #[prost(message, optional, tag = "5")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_type: Option<ValueType>,
    #[prost(int64, tag = "6")]
    #[serde(serialize_with = "text")]
    pub period: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValueType {
    #[prost(int32, tag = "1")]
    pub type_strindex: i32,
    #[prost(int32, tag = "2")]
    pub unit_strindex: i32,
}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    #[prost(int32, tag = "1")]
    pub stack_index: i32,
    #[prost(int32, repeated, tag = "2")]
    pub attribute_indices: Vec<i32>,
    #[prost(int64, repeated, tag = "4")]
    #[serde(serialize_with = "texts")]
    pub values: Vec<i64>,
}

/// Tables; the first item of each is empty, and what is not set points at it.
#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dictionary {
    #[prost(message, repeated, tag = "1")]
    pub mapping_table: Vec<Mapping>,
    #[prost(message, repeated, tag = "2")]
    pub location_table: Vec<Location>,
    #[prost(message, repeated, tag = "3")]
    pub function_table: Vec<Function>,
    #[prost(message, repeated, tag = "4")]
    pub link_table: Vec<Link>,
    #[prost(string, repeated, tag = "5")]
    pub string_table: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub attribute_table: Vec<KeyValueAndUnit>,
    #[prost(message, repeated, tag = "7")]
    pub stack_table: Vec<Stack>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    #[prost(int32, tag = "4")]
    pub filename_strindex: i32,
}

/// One place in code, and the functions that are inlined there: innermost first.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    #[prost(int32, tag = "1")]
    pub mapping_index: i32,
    #[prost(message, repeated, tag = "3")]
    pub lines: Vec<Line>,
    #[prost(int32, repeated, tag = "4")]
    pub attribute_indices: Vec<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    #[prost(int32, tag = "1")]
    pub function_index: i32,
    #[prost(int64, tag = "2")]
    #[serde(serialize_with = "text")]
    pub line: i64,
    #[prost(int64, tag = "3")]
    #[serde(serialize_with = "text")]
    pub column: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Function {
    #[prost(int32, tag = "1")]
    pub name_strindex: i32,
    #[prost(int32, tag = "2")]
    pub system_name_strindex: i32,
    #[prost(int32, tag = "3")]
    pub filename_strindex: i32,
    #[prost(int64, tag = "4")]
    #[serde(serialize_with = "text")]
    pub start_line: i64,
}

/// To a span, of which there are none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message, Serialize)]
pub struct Link {}

#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyValueAndUnit {
    #[prost(int32, tag = "1")]
    pub key_strindex: i32,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<AnyValue>,
}

/// Innermost first.
#[derive(Clone, PartialEq, Eq, Hash, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stack {
    #[prost(int32, repeated, tag = "1")]
    pub location_indices: Vec<i32>,
}
