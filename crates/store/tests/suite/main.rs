//! What every store must do, run on both.

mod cases;
mod etcd_server;

use etcd_server::{Access, EtcdServer};
use gantry_store::embedded::Embedded;

#[tokio::test(flavor = "multi_thread")]
async fn embedded_passes_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).unwrap();
    cases::all(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_passes_the_suite() {
    let server = EtcdServer::start(Access::Plain);
    cases::all(&server.connect().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_with_tls_and_authentication_passes_the_suite() {
    let server = EtcdServer::start(Access::TlsAndPassword);
    server.refuses_strangers().await;
    cases::all(&server.connect().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_gone_is_unavailable_and_then_goes_on() {
    let mut server = EtcdServer::start(Access::Plain);
    let store = server.connect().await;
    cases::outage(&store, &mut server).await;
}
