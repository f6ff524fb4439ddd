//! The streams that the command line asks for.

use super::driver::DriverError;
use crate::{
    cli::StreamArgs,
    export::stream::{Compression, SpoolConfig, StreamConfig},
};

/// What the flags say, each for the streams that it is about.
pub fn of_args(args: &StreamArgs) -> Result<Vec<StreamConfig>, DriverError> {
    args.to.iter().map(|to| of_url(args, to).map_err(|error| DriverError::Output(error.to_string()))).collect()
}

fn of_url(args: &StreamArgs, to: &str) -> Result<StreamConfig, crate::export::stream::StreamError> {
    let mut config = StreamConfig::parse(to)?;
    let address = config.address()?;
    if address.is_http() {
        config.headers_file.clone_from(&args.headers_file);
        if args.gzip {
            config.compression = Compression::Gzip;
        }
    }
    if address.is_tls() {
        config.ca_file.clone_from(&args.ca_file);
    }
    if !address.is_here() {
        let spool = args.spool.as_ref();
        config.spool =
            spool.map(|directory| SpoolConfig { directory: directory.clone(), max_bytes: args.spool_size << 20 });
    }
    Ok(config)
}
