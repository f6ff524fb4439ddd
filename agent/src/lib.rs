//! An eBPF tracing agent for production Node.js.
