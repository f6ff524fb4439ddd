//! Where records are streamed to.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

/// Streams to collectors.
#[derive(Args, Clone, Debug, Default)]
pub struct StreamArgs {
    /// Stream the records to a collector, as [FORMAT+]URL; may be given several times
    ///
    /// The URL is tcp://HOST:PORT, tls://HOST:PORT, unix:PATH, http://…, https://…, `file:PATH` (rotated) or -; the format is ndjson
    /// (the default), bunyan, otlp or otlp-json (over HTTP; `otlp` alone goes where `OTEL_EXPORTER_OTLP_ENDPOINT` says). A collector that is slow or away holds nothing up: records wait in memory, and beyond that in
    /// --spool, within bounds, and what is lost is counted.
    #[arg(long, value_name = "URL", help_heading = "Streams")]
    pub to: Vec<String>,

    /// Serve /metrics for Prometheus, /healthz and /readyz at this address, as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS", help_heading = "Streams")]
    pub listen: Option<SocketAddr>,

    /// Directory in which records wait for a collector that is away; the next run with it sends what is left
    #[arg(long, value_name = "DIR", help_heading = "Streams", requires = "to")]
    pub spool: Option<PathBuf>,

    /// Most that waits there for one collector, in MiB
    #[arg(long, value_name = "MIB", help_heading = "Streams", default_value = "512", requires = "spool")]
    pub spool_size: u64,

    /// File of `Name: value` lines: headers of HTTP, as for tokens; they are never printed
    #[arg(long, value_name = "FILE", help_heading = "Streams", requires = "to", env = "AGENT_HEADERS_FILE")]
    pub headers_file: Option<PathBuf>,

    /// Certificates (PEM) of the authorities to trust for TLS [default: those that the host trusts]
    #[arg(long, value_name = "FILE", help_heading = "Streams", requires = "to")]
    pub ca_file: Option<PathBuf>,

    /// Compress the bodies of HTTP
    #[arg(long, help_heading = "Streams", requires = "to")]
    pub gzip: bool,
}
