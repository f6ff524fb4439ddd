//! Programs of others that read what we write.

use super::{
    apt,
    node::{fresh, publish},
};
use crate::run::{Error, cache, say};

/// Prometheus' own judge of metrics: `.cache/prometheus/usr/bin/promtool`. Not installed, as its package brings a server that would run.
pub fn promtool() -> Result<(), Error> {
    let directory = cache().join("prometheus");
    if directory.join("usr/bin/promtool").is_file() {
        return Ok(());
    }
    say("promtool");
    let partial = fresh(&cache().join("prometheus.partial"))?;
    apt::unpack(&["prometheus"], &partial)?;
    publish(&partial, &directory)
}

/// A collector of lines over TCP: `.cache/rsyslog/usr/sbin/rsyslogd`, with the libraries that it brings. Not installed for the same reason.
pub fn rsyslog() -> Result<(), Error> {
    let directory = cache().join("rsyslog");
    if directory.join("usr/sbin/rsyslogd").is_file() {
        return Ok(());
    }
    say("rsyslog");
    let partial = fresh(&cache().join("rsyslog.partial"))?;
    apt::unpack(&["rsyslog", "libestr0", "libfastjson4", "liblognorm5"], &partial)?;
    publish(&partial, &directory)
}
