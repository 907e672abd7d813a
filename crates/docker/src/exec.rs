//! `/containers/{id}/exec` and `/exec/…`.

use crate::call::Call;
use crate::containers::publish;
use crate::reply::Reply;
use crate::stream::{self, Ended, Session};
use gantry_base::{Error, Result};
use gantry_docker_api::container::{ExecInspect, ExecProcess};
use gantry_docker_api::create::{ExecConfig, ExecStart as Body};
use gantry_docker_api::keys;
use gantry_engine::ExecStart;

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
    if body.detach {
        call.engine.exec_start(&call.name, how).await?;
        return Ok(Reply::ok());
    }
    // From here on a failure is a sentence among the output and a code (126, 127) for inspect: the program is looked for only after
    // the connection was handed over.
    let (engine, id) = (call.engine.clone(), call.name.clone());
    let attached = async move {
        let attached = engine.exec_start(&id, how).await?;
        attached.ok_or_else(|| Error::internal("the process was started detached"))
    };
    let (engine, container) = (call.engine.clone(), exec.container_id);
    let session = Session {
        tty: body.tty,
        keys,
        attached,
    };
    Ok(stream::hijack(call, session, move |ended| {
        if ended == Ended::Detached {
            publish(&engine, &container, "exec_detach");
        }
    }))
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
