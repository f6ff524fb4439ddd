//! The streams that the command line asks for, with what the environment says of OTLP.

use std::path::PathBuf;

use super::driver::DriverError;
use crate::{
    cli::{self, StreamArgs},
    export::stream::{Compression, OtlpSignal, Protocol, SpoolConfig, StreamConfig, StreamError, StreamFormat},
};

/// What the flags say, each for the streams that it is about, over what the environment says. `signal` is what goes over OTLP where
/// nobody says.
pub fn of_args(args: &StreamArgs, signal: Option<OtlpSignal>) -> Result<Vec<StreamConfig>, DriverError> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let configs: Result<Vec<_>, _> = args.to.iter().map(|to| of_url(args, to, environment)).collect();
    let mut configs = configs.map_err(DriverError::Output)?;
    let is_otlp = |config: &StreamConfig| config.format == StreamFormat::Otlp;
    if !args.signals.is_empty() && !configs.iter().any(is_otlp) {
        return Err(DriverError::Output("--signals is of OTLP, and no --to is".into()));
    }
    for config in configs.iter_mut().filter(|config| is_otlp(config) && config.signals.is_none()) {
        config.signals = signal.map(|signal| vec![signal]);
    }
    Ok(configs)
}

fn of_url(args: &StreamArgs, to: &str, environment: impl Fn(&str) -> Option<String>) -> Result<StreamConfig, String> {
    let fail = |error: StreamError| error.to_string();
    let mut config = StreamConfig::parse(to).map_err(fail)?;
    if config.format == StreamFormat::Otlp {
        of_environment(&mut config, to == "otlp", environment)?;
        let signals = args.signals.iter().map(|signal| match signal {
            cli::OtlpSignal::Metrics => OtlpSignal::Metrics,
            cli::OtlpSignal::Logs => OtlpSignal::Logs,
            cli::OtlpSignal::Profiles => OtlpSignal::Profiles,
        });
        config.signals = Some(signals.collect::<Vec<_>>()).filter(|signals| !signals.is_empty());
    }
    let address = config.address().map_err(fail)?;
    if address.is_http() {
        config.headers_file.clone_from(&args.headers_file);
        if args.gzip {
            config.compression = Compression::Gzip;
        }
    }
    if address.is_tls() && args.ca_file.is_some() {
        config.ca_file.clone_from(&args.ca_file);
    }
    if !address.is_here() {
        let spool = args.spool.as_ref();
        config.spool =
            spool.map(|directory| SpoolConfig { directory: directory.clone(), max_bytes: args.spool_size << 20 });
    }
    config.address().map_err(fail)?;
    Ok(config)
}

/// OpenTelemetry's variables. Endpoints and the protocol are taken where the command line leaves them open.
fn of_environment(
    config: &mut StreamConfig,
    is_open: bool,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let of_otlp = |name: &str| environment(&format!("OTEL_EXPORTER_OTLP_{name}"));
    let unknown = |name: &str, value: &str| format!("OTEL_EXPORTER_OTLP_{name}={value} is not known here");
    if is_open {
        config.to = of_otlp("ENDPOINT").unwrap_or_else(|| config.to.clone());
        config.metrics_to = of_otlp("METRICS_ENDPOINT");
        config.logs_to = of_otlp("LOGS_ENDPOINT");
        config.profiles_to = of_otlp("PROFILES_ENDPOINT");
        config.protocol = match of_otlp("PROTOCOL").as_deref() {
            None | Some("http/protobuf") => Protocol::Protobuf,
            Some("http/json") => Protocol::Json,
            Some(other) => return Err(unknown("PROTOCOL", other)),
        };
    }
    match of_otlp("COMPRESSION").as_deref() {
        None | Some("none") => {}
        Some("gzip") => config.compression = Compression::Gzip,
        Some(other) => return Err(unknown("COMPRESSION", other)),
    }
    if let Some(timeout) = of_otlp("TIMEOUT") {
        config.timeout_ms = timeout.trim().parse().map_err(|_| unknown("TIMEOUT", &timeout))?;
    }
    if config.address().is_ok_and(|address| address.is_tls()) {
        config.ca_file = of_otlp("CERTIFICATE").map(PathBuf::from);
    }
    config.headers.0 = pairs(&of_otlp("HEADERS").unwrap_or_default());
    config.resource.extend(pairs(&environment("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default()));
    if let Some(name) = environment("OTEL_SERVICE_NAME") {
        config.resource.insert("service.name".into(), name);
    }
    Ok(())
}

/// `a=b,c=d`, with values percent-encoded, as OpenTelemetry has it; what is no pair is left out.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.trim().to_owned(), decoded(value.trim())));
    text.split(',').filter_map(pair).filter(|(key, _)| !key.is_empty()).collect()
}

fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *byte == b'%').and_then(|code| std::str::from_utf8(code).ok());
        let code = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(code.unwrap_or(*byte));
        rest = code.and_then(|_| tail.get(2..)).unwrap_or(tail);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    const SET: &[(&str, &str)] = &[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/base/"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:1/as/it/is"),
        ("OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT", "http://profiles:2/v1development/profiles"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20secret, x=1,nonsense"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=a"),
        ("OTEL_SERVICE_NAME", "shop"),
    ];

    fn set(name: &str) -> Option<String> {
        SET.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn signals_are_of_otlp_and_profiles_of_those_who_ask() {
        let args = |to: &str, signals: &[cli::OtlpSignal]| StreamArgs {
            to: vec![to.into()],
            signals: signals.to_vec(),
            ..StreamArgs::default()
        };
        let signals = |args: &StreamArgs, signal| of_args(args, signal).map(|configs| configs[0].signals().to_vec());
        let open = args("otlp+http://h", &[]);
        assert_eq!(signals(&open, None).unwrap(), [OtlpSignal::Metrics, OtlpSignal::Logs]);
        assert_eq!(signals(&open, Some(OtlpSignal::Profiles)).unwrap(), [OtlpSignal::Profiles]);
        let all = args("otlp+http://h", &[cli::OtlpSignal::Logs, cli::OtlpSignal::Profiles]);
        assert_eq!(signals(&all, None).unwrap(), [OtlpSignal::Logs, OtlpSignal::Profiles]);
        assert!(of_args(&args("tcp://h:1", &[cli::OtlpSignal::Logs]), None).is_err());
        assert!(of_args(&args("tcp://h:1", &[]), Some(OtlpSignal::Profiles)).is_ok());
    }

    #[test]
    fn the_environment_says_where_otlp_goes() {
        let config = of_url(&StreamArgs::default(), "otlp", set).unwrap();
        assert_eq!((config.to.as_str(), config.protocol), ("https://collector:4318/base/", Protocol::Json));
        assert_eq!(config.logs_to.as_deref(), Some("http://logs:1/as/it/is"));
        assert_eq!(config.profiles_to.as_deref(), Some("http://profiles:2/v1development/profiles"));
        assert_eq!((config.compression, config.timeout_ms), (Compression::Gzip, 2500));
        assert_eq!(config.ca_file, Some(PathBuf::from("/ca.pem")));
        assert_eq!(config.headers.0, [("api-key".into(), "a secret".into()), ("x".into(), "1".into())]);
        assert_eq!(config.resource.get("service.name").map(String::as_str), Some("shop"));
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn the_command_line_goes_over_the_environment_and_other_formats_do_not_ask_it() {
        let config = of_url(&StreamArgs::default(), "otlp+http://here:4318", set).unwrap();
        assert_eq!(
            (config.to.as_str(), config.protocol, config.timeout_ms),
            ("http://here:4318", Protocol::Protobuf, 2500)
        );
        assert_eq!(config.logs_to, None);
        let config = of_url(&StreamArgs::default(), "http://here/", set).unwrap();
        assert_eq!((config.compression, config.headers.0.len()), (Compression::None, 0));
        assert!(
            of_url(&StreamArgs::default(), "otlp", |name| name.ends_with("PROTOCOL").then(|| "grpc".into())).is_err()
        );
    }
}
