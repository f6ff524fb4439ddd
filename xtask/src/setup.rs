use crate::run::Error;
use clap::ValueEnum;
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    Build,
    Demo,
    Test,
}
pub fn setup(_: Purpose) -> Result<(), Error> {
    Ok(())
}
