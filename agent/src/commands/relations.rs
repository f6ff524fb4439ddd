//! Names of PostgreSQL's relations, asked of the server itself: the only thing that is, and only where a connection was given for it.
//!
//! A connection sees the relations of its own database. The address of the server, and what it takes to connect, are secret: they
//! are in no message.

use std::{collections::BTreeSet, time::Duration};

use log::{debug, warn};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tokio_postgres::{Client, Config, NoTls};

use crate::{
    core::Input,
    limits::PG_RELATIONS_MAX,
    postgres::{PgPid, Reading},
    units::Pid,
};

/// How long one question may take: names are not worth more.
const PATIENCE: Duration = Duration::from_secs(3);

/// Nothing is written, and no lock is waited for.
const OPTIONS: &str = "-c default_transaction_read_only=on -c statement_timeout=2s -c lock_timeout=500ms";

const DATABASE: &str = "select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()";
const NAMES: &str = "select c.oid, n.nspname || '.' || c.relname \
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = any($1)";

/// Why there are no names.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    #[error("what was given is no connection string of PostgreSQL")]
    NotAConnection,
    #[error("it took more than {} s", PATIENCE.as_secs())]
    Late,
    /// Neither the address nor the password is in its text.
    #[error("{}", told(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

/// What the server says, or what kind of error it was.
fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| format!("{}: {}", error.severity(), error.message()))
}

/// A name, from a connection that this backend serves.
struct Answer {
    backend: PgPid,
    database: u32,
    relation: u32,
    name: String,
}

/// The way to one connection.
#[derive(Debug)]
pub struct Names {
    questions: UnboundedSender<Vec<u32>>,
    answers: UnboundedReceiver<Answer>,
    asked: BTreeSet<(u32, u32)>,
}

impl Names {
    /// Connects in the background, when there is something to ask. Belongs in a runtime.
    pub fn start(url: &str) -> Result<Self, NamesError> {
        let mut config: Config = url.parse().map_err(|_| NamesError::NotAConnection)?;
        config.application_name("agent").connect_timeout(PATIENCE).options(OPTIONS);
        let (questions, inbox) = unbounded_channel();
        let (outbox, answers) = unbounded_channel();
        tokio::spawn(async move {
            if let Err(error) = answer_all(&config, inbox, &outbox).await {
                warn!("relations of PostgreSQL have no names: {error}");
            }
        });
        Ok(Self { questions, answers, asked: BTreeSet::new() })
    }

    /// Asks for the relations of a reading that were not asked for yet.
    pub fn ask(&mut self, reading: &Reading) {
        let relations = reading.locks.iter().filter_map(|lock| Some((lock.id.database()?, lock.id.relation()?)));
        let new: Vec<_> = relations.filter(|relation| !self.asked.contains(relation)).collect();
        if new.is_empty() || self.asked.len() >= PG_RELATIONS_MAX {
            return;
        }
        self.asked.extend(&new);
        // Of other databases nothing is found; a connection that failed is told once.
        let _ = self.questions.send(new.into_iter().map(|(_, relation)| relation).collect());
    }

    /// Names that have come, for the cluster whose backends they came from.
    pub fn inputs(&mut self, cluster_of: impl Fn(PgPid) -> Option<Pid>) -> Vec<Input> {
        let mut inputs = Vec::new();
        while let Ok(Answer { backend, database, relation, name }) = self.answers.try_recv() {
            let input = |cluster| Input::PgRelation { cluster, database, relation, name };
            inputs.extend(cluster_of(backend).map(input));
        }
        inputs
    }
}

async fn answer_all(
    config: &Config,
    mut inbox: UnboundedReceiver<Vec<u32>>,
    outbox: &UnboundedSender<Answer>,
) -> Result<(), NamesError> {
    let Some(mut relations) = inbox.recv().await else { return Ok(()) };
    let (client, connection) = timeout(PATIENCE, config.connect(NoTls)).await.map_err(|_| NamesError::Late)??;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!("the connection for names ended: {}", told(&error));
        }
    });
    let (backend, database) = timeout(PATIENCE, who(&client)).await.map_err(|_| NamesError::Late)??;
    loop {
        let rows = timeout(PATIENCE, client.query(NAMES, &[&relations])).await.map_err(|_| NamesError::Late)??;
        for row in rows {
            let (relation, name) = (row.try_get(0)?, row.try_get(1)?);
            if outbox.send(Answer { backend, database, relation, name }).is_err() {
                return Ok(());
            }
        }
        let Some(next) = inbox.recv().await else { return Ok(()) };
        relations = next;
    }
}

/// The backend that serves the connection, and its database.
async fn who(client: &Client) -> Result<(PgPid, u32), NamesError> {
    let backend: i32 = client.query_one("select pg_catalog.pg_backend_pid()", &[]).await?.try_get(0)?;
    let database = client.query_one(DATABASE, &[]).await?.try_get(0)?;
    Ok((PgPid(backend.cast_unsigned()), database))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_connection_is_refused_without_a_word_of_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(async { Names::start("postgres://u:secret@host:port/db").unwrap_err() });
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
