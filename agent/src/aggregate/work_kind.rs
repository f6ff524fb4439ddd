//! What a thread-pool item does, in the words of the program: kind and operation.

use serde::{Deserialize, Serialize};

/// Kinds of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkKind {
    Fs,
    Dns,
    Crypto,
    Zlib,
    #[default]
    Other,
    /// Not in the pool: the kernel did it.
    IoUring,
}

/// Names of libuv's `uv_fs_type`, from `UV_FS_CUSTOM` on.
const FS: [&str; 37] = [
    "custom",
    "open",
    "close",
    "read",
    "write",
    "sendfile",
    "stat",
    "lstat",
    "fstat",
    "ftruncate",
    "utime",
    "futime",
    "access",
    "chmod",
    "fchmod",
    "fsync",
    "fdatasync",
    "unlink",
    "rmdir",
    "mkdir",
    "mkdtemp",
    "rename",
    "scandir",
    "link",
    "symlink",
    "readlink",
    "chown",
    "fchown",
    "realpath",
    "copyfile",
    "lchown",
    "opendir",
    "readdir",
    "closedir",
    "statfs",
    "mkstemp",
    "lutime",
];

/// Name of a `uv_fs_type`; empty if it is not known.
#[must_use]
pub fn fs_operation(fs_type: u32) -> &'static str {
    FS.get(fs_type as usize).copied().unwrap_or("")
}

/// Name of an `io_uring` opcode, of those that libuv submits; empty for others.
#[must_use]
pub fn uring_operation(opcode: u32) -> &'static str {
    match opcode {
        1 => "readv",
        2 => "writev",
        3 => "fsync",
        18 => "openat",
        19 => "close",
        21 => "statx",
        22 => "read",
        23 => "write",
        35 => "renameat",
        36 => "unlinkat",
        37 => "mkdirat",
        38 => "symlinkat",
        39 => "linkat",
        55 => "ftruncate",
        _ => "",
    }
}

/// Kind and operation of a `node::ThreadPoolWork`, from the name of its class (mangled or not).
#[must_use]
pub fn of_class(class: &str) -> (WorkKind, String) {
    let has = |word: &str| class.contains(word);
    let kind = if has("crypto") {
        WorkKind::Crypto
    } else if has("Zlib") || has("zlib") || has("Brotli") || has("Zstd") || has("CompressionStream") {
        WorkKind::Zlib
    } else if has("fs::") || has("2fs") {
        WorkKind::Fs
    } else if has("cares") || has("dns") {
        WorkKind::Dns
    } else {
        WorkKind::Other
    };
    (kind, operation(class))
}

/// The part of a class name that says what it does: `node::crypto::DeriveBitsJob<node::crypto::PBKDF2Traits>` is `PBKDF2`.
fn operation(class: &str) -> String {
    if class.contains("uvimpl::Work") {
        return "node_api".to_owned();
    }
    let class = class.strip_prefix("vtable for ").unwrap_or(class);
    let inner = class.rsplit('<').next().unwrap_or(class);
    let inner = inner.split(['>', ',']).next().unwrap_or(inner);
    let last = inner.rsplit("::").next().unwrap_or(inner).trim();
    let name = ["Traits", "Context", "Job"].iter().find_map(|suffix| last.strip_suffix(suffix)).unwrap_or(last);
    if name.is_empty() { last.to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(class: &str, kind: WorkKind, operation: &str) {
        assert_eq!(of_class(class), (kind, operation.to_owned()), "{class}");
    }

    #[test]
    fn classes_have_kinds() {
        check("node::crypto::DeriveBitsJob<node::crypto::PBKDF2Traits>", WorkKind::Crypto, "PBKDF2");
        check("vtable for node::crypto::HashJob", WorkKind::Crypto, "Hash");
        check(
            "node::(anonymous namespace)::CompressionStream<node::(anonymous namespace)::ZlibContext>",
            WorkKind::Zlib,
            "Zlib",
        );
        check(
            "node::(anonymous namespace)::BrotliCompressionStream<node::(anonymous namespace)::BrotliEncoderContext>",
            WorkKind::Zlib,
            "BrotliEncoder",
        );
        check("node::fs::ReadFileJob", WorkKind::Fs, "ReadFile");
        check("(anonymous namespace)::uvimpl::Work", WorkKind::Other, "node_api");
        check(
            "node::crypto::KeyGenJob<node::crypto::KeyPairGenTraits<node::crypto::RsaKeyPairParams>>",
            WorkKind::Crypto,
            "RsaKeyPairParams",
        );
        check("", WorkKind::Other, "");
    }

    #[test]
    fn operations_have_libuvs_names() {
        assert_eq!(
            (fs_operation(3), fs_operation(28), fs_operation(36), fs_operation(u32::MAX)),
            ("read", "realpath", "lutime", "")
        );
    }
}
