//! Connects to a NATS server, reads the configuration of a target's stream, and decides whether the stream is fit.

use super::{StreamProblem, StreamTarget};
use crate::model::printable;
use crate::nats::{Fitness, JetStreamError, NatsConnection, NatsError, StreamInfo, judge_server};
use crate::units::count;

/// The version of the server, the configuration of the stream, and the problems of this configuration.
pub(super) struct Inspection {
    /// The version that the server reports.
    pub(super) version: String,
    pub(super) info: StreamInfo,
    pub(super) fitness: Fitness,
    pub(super) is_cluster: bool,
}

impl StreamTarget {
    /// Connects to a server and reads the stream's configuration.
    ///
    /// # Errors
    /// [`StreamProblem`], if no server can be reached or the stream cannot be read.
    pub(super) async fn connect(&self) -> Result<(NatsConnection, Inspection), StreamProblem> {
        let connection = self.servers.connect().await.map_err(|error| match error {
            NatsError::NotAllowed(text) => StreamProblem::lasting(text),
            NatsError::Unreachable(text) => StreamProblem::passing(text),
        })?;
        let inspection = self.inspect(&connection).await?;
        Ok((connection, inspection))
    }

    /// Reads the stream's configuration.
    ///
    /// # Errors
    /// [`StreamProblem`], if the stream cannot be read.
    pub(super) async fn inspect(&self, connection: &NatsConnection) -> Result<Inspection, StreamProblem> {
        let server = connection.client().server_info();
        let info = connection.stream_info(&self.name).await;
        let info = info.map_err(|error| self.explain(error, server.cluster.is_some()))?;
        let is_cluster = server.cluster.is_some() || info.is_clustered();
        let mut fitness = info.judge(&self.required());
        match judge_server(&server.version, is_cluster) {
            Ok(note) => fitness.notes.extend(note),
            Err(problem) => fitness.problems.insert(0, problem),
        }
        Ok(Inspection { version: printable(&server.version, 40), info, fitness, is_cluster })
    }

    fn explain(&self, error: JetStreamError, is_cluster: bool) -> StreamProblem {
        let text = format!("stream {}: {error}", self.name);
        match error {
            JetStreamError::NoStream => {
                StreamProblem { lines: vec![text, self.advice(is_cluster)], needs_person: true }
            }
            JetStreamError::Refused(_) => StreamProblem::lasting(text),
            JetStreamError::NoAnswer(_) => StreamProblem::passing(text),
        }
    }

    /// Returns a line for the operator with the command that creates a fit stream.
    fn advice(&self, is_cluster: bool) -> String {
        format!("the stream that is meant: {}", self.required().command(is_cluster))
    }

    /// Returns lines about everything that forbids the use of the stream, and a line with the command that creates a fit stream.
    /// The list is empty if nothing forbids the use of the stream.
    pub(super) fn problems(&self, inspection: &Inspection) -> Vec<String> {
        let problems = &inspection.fitness.problems;
        let mut lines: Vec<_> = problems.iter().map(|problem| format!("stream {}: {problem}", self.name)).collect();
        if !lines.is_empty() {
            lines.push(self.advice(inspection.is_cluster));
        }
        lines
    }
}

/// For `check --connect`: connects, reads the stream's configuration, and publishes nothing.
pub(in crate::forward) async fn probe(stream: &StreamTarget) -> Vec<Result<String, String>> {
    let (_connection, inspection) = match stream.connect().await {
        Ok(connected) => connected,
        Err(problem) => return problem.lines.into_iter().map(Err).collect(),
    };
    let Inspection { version, info, fitness, .. } = &inspection;
    let mut lines = vec![Ok(format!(
        "{} can be reached, NATS {version}; stream {} has {}; nothing was published",
        stream.servers,
        stream.name,
        count(info.messages(), "message")
    ))];
    lines.extend(fitness.notes.iter().map(|note| Ok(format!("note: {note}"))));
    lines.extend(stream.problems(&inspection).into_iter().map(Err));
    lines
}
