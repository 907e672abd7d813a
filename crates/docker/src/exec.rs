//! `/containers/{id}/exec` and `/exec/…`.

use crate::call::Call;
use crate::containers::publish;
use crate::reply::Reply;
use crate::stream::{self, Ended};
use bytes::Bytes;
use gantry_base::{Error, ErrorKind, Result};
use gantry_docker_api::container::{ExecInspect, ExecProcess};
use gantry_docker_api::create::{ExecConfig, ExecStart as Body};
use gantry_docker_api::keys;
use gantry_engine::{Attached, ExecStart, Stream};
use tokio::sync::mpsc;

pub(crate) async fn create(mut call: Call) -> Result<Reply> {
    let config: ExecConfig = call.json().await?;
    if config.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("no exec command specified"));
    }
    let id = call.engine.exec_create(&call.name, config).await?;
    Ok(Reply::created(&serde_json::json!({"Id": id})))
}

pub(crate) async fn start(mut call: Call) -> Result<Reply> {
    let body: Body = call.json_or_default().await?;
    let exec = call.engine.exec_get(&call.name)?;
    let keys = keys::parse(&exec.config.detach_keys)?;
    // The wire says rows first, the engine columns.
    let how = ExecStart {
        detach: body.detach,
        tty: body.tty,
        console_size: body
            .console_size
            .or(exec.config.console_size)
            .map(|(rows, columns)| (columns, rows)),
    };
    let attached = match call.engine.exec_start(&call.name, how).await {
        Ok(Some(attached)) => attached,
        Ok(None) => return Ok(Reply::ok()),
        // Docker has hijacked the connection before it looks for the program, so clients expect this sentence among the output and
        // the code (126, 127) from inspect.
        Err(e) if !body.detach && is_about_the_program(&e) => said(body.tty, &e),
        Err(e) => return Err(e),
    };
    let (engine, container) = (call.engine.clone(), exec.container_id);
    Ok(stream::hijack(call, attached, keys, move |ended| {
        if ended == Ended::Detached {
            publish(&engine, &container, "exec_detach");
        }
    }))
}

fn is_about_the_program(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidArgument | ErrorKind::Internal
    )
}

/// A finished process that printed one sentence.
fn said(tty: bool, error: &Error) -> Attached {
    let (sender, output) = mpsc::channel(1);
    let _ = sender.try_send((
        Stream::Stdout,
        Bytes::from(format!("{}\r\n", error.chain())),
    ));
    Attached {
        tty,
        output,
        input: None,
    }
}

pub(crate) async fn resize(call: Call) -> Result<Reply> {
    let (columns, rows) = call.size()?;
    call.engine.exec_resize(&call.name, columns, rows).await?;
    Ok(Reply::ok())
}

pub(crate) async fn inspect(call: Call) -> Result<Reply> {
    let exec = call.engine.exec_get(&call.name)?;
    let config = &exec.config;
    let words = config.cmd.as_deref().unwrap_or_default();
    let (entrypoint, arguments) = match words.split_first() {
        Some((first, rest)) => (first.as_str(), rest),
        None => ("", &[][..]),
    };
    Ok(Reply::json(&ExecInspect {
        id: &exec.id,
        running: exec.running,
        exit_code: exec.exit_code,
        process_config: ExecProcess {
            tty: config.tty,
            entrypoint,
            arguments,
            privileged: config.privileged,
            user: &config.user,
        },
        open_stdin: config.attach_stdin,
        open_stderr: config.attach_stderr,
        open_stdout: config.attach_stdout,
        can_remove: false,
        container_id: &exec.container_id,
        detach_keys: &config.detach_keys,
        pid: exec.pid,
    }))
}
