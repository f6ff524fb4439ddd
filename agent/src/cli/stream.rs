//! Where records are streamed to.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};

/// What may be sent over OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OtlpSignal {
    /// Windows: what each second was like
    Metrics,
    /// Slow turns, findings, exits and the like
    Logs,
    /// Stacks on CPU and off it (`v1development`, version 1: the collector needs a pipeline for profiles)
    Profiles,
}

/// Where figures are served.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct ListenArgs {
    /// Serve /metrics for Prometheus, /healthz and /readyz at this address, as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS", help_heading = "Streams")]
    pub listen: Option<SocketAddr>,
}

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

    /// Of OTLP: what is sent [default: metrics,logs; of `agent profile`: profiles]
    #[arg(long, value_enum, value_name = "SIGNAL,…", value_delimiter = ',', help_heading = "Streams", requires = "to")]
    pub signals: Vec<OtlpSignal>,

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
