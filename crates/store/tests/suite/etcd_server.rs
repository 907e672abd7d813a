//! An etcd of the test's own, on loopback, in a directory that goes away with it.

use gantry_store::etcd::{Config, Etcd};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Access {
    Plain,
    TlsAndPassword,
}

pub(crate) struct EtcdServer {
    dir: tempfile::TempDir,
    child: Child,
    client: u16,
    peer: u16,
    access: Access,
}

const PASSWORD: &str = "a password of the test";

impl EtcdServer {
    pub(crate) fn start(access: Access) -> Self {
        let mut dir = tempfile::tempdir().unwrap();
        if access == Access::TlsAndPassword {
            certificates(dir.path());
        }
        // A port that was free a moment ago may be taken by somebody else: then etcd exits and others are tried.
        for _ in 0..10 {
            let (client, peer) = (free_port(), free_port());
            let child = run(dir.path(), client, peer, access);
            let mut server = Self {
                dir,
                child,
                client,
                peer,
                access,
            };
            if server.is_ready() {
                if access == Access::TlsAndPassword {
                    server.require_password();
                }
                return server;
            }
            server.kill();
            let _ = std::fs::remove_dir_all(server.dir.path().join("data"));
            dir = std::mem::replace(&mut server.dir, tempfile::tempdir().unwrap());
        }
        panic!("etcd does not start");
    }

    fn is_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // etcd listens only once it serves, and answers health when it has a leader.
            if self.etcdctl(&["endpoint", "health"]) {
                return true;
            }
        }
        false
    }

    fn etcdctl(&self, words: &[&str]) -> bool {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint(), "--dial-timeout=2s"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if self.access == Access::TlsAndPassword {
            command.arg("--cacert").arg(self.dir.path().join("ca.pem"));
        }
        command.args(words).status().unwrap().success()
    }

    fn require_password(&self) {
        for words in [
            &["user", "add", &format!("root:{PASSWORD}")][..],
            &["user", "grant-role", "root", "root"],
            &["auth", "enable"],
        ] {
            // The role may be there already; what counts is the end.
            self.etcdctl(words);
        }
        assert!(!self.etcdctl(&["get", "x"]), "etcd asks for no password");
    }

    fn endpoint(&self) -> String {
        let scheme = match self.access {
            Access::Plain => "http",
            Access::TlsAndPassword => "https",
        };
        format!("{scheme}://127.0.0.1:{}", self.client)
    }

    fn config(&self) -> Config {
        let mut config = Config {
            endpoints: vec![format!("127.0.0.1:{}", self.client)],
            ..Config::default()
        };
        if self.access == Access::TlsAndPassword {
            config.ca = Some(std::fs::read(self.dir.path().join("ca.pem")).unwrap());
            config.user = Some(("root".to_owned(), PASSWORD.to_owned()));
        }
        config
    }

    pub(crate) async fn connect(&self) -> Etcd {
        Etcd::connect(&self.config()).await.unwrap()
    }

    /// A wrong password, no password, and an authority that did not sign.
    pub(crate) async fn refuses_strangers(&self) {
        let mut config = self.config();
        config.user = Some(("root".to_owned(), "wrong".to_owned()));
        let refused = Etcd::connect(&config).await.err().unwrap();
        assert_eq!(
            refused.kind(),
            gantry_base::ErrorKind::Unauthorized,
            "{refused:?}"
        );
        config.user = None;
        let refused = Etcd::connect(&config).await.err().unwrap();
        assert_eq!(
            refused.kind(),
            gantry_base::ErrorKind::Unauthorized,
            "{refused:?}"
        );
        let other = tempfile::tempdir().unwrap();
        certificates(other.path());
        let mut config = self.config();
        config.ca = Some(std::fs::read(other.path().join("ca.pem")).unwrap());
        assert!(Etcd::connect(&config).await.is_err());
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn restart(&mut self) {
        self.child = run(self.dir.path(), self.client, self.peer, self.access);
        assert!(self.is_ready(), "etcd does not start again");
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn run(dir: &Path, client: u16, peer: u16, access: Access) -> Child {
    let scheme = if access == Access::Plain {
        "http"
    } else {
        "https"
    };
    let client = format!("{scheme}://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if access == Access::TlsAndPassword {
        command
            .arg("--cert-file")
            .arg(dir.join("cert.pem"))
            .arg("--key-file")
            .arg(dir.join("key.pem"));
    }
    command
        .spawn()
        .expect("Debian's package etcd-server is installed")
}

fn certificates(dir: &Path) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "test CA");
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = server.signed_by(&key, &issuer).unwrap();
    std::fs::write(dir.join("ca.pem"), ca_certificate.pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}
