//! How registries are reached: mirrors, which hosts may be spoken to without a trusted certificate, certificates of their own.
//!
//! ```text
//! docker.io      ─▶ each mirror in turn ─▶ https, verified
//! host           ─▶ https, verified (system's authorities and certs.d/<host>/*.crt; client certificates *.cert with *.key)
//! insecure host  ─▶ https, any certificate ─▶ http when what answers does not speak TLS
//! ```
//! Loopback addresses are insecure hosts, as in Docker, except where `certs.d/<host>` says what to expect: then nothing less will do.

use gantry_base::{Error, ErrorKind, Result, ResultExt};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(60);
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const REGISTRY_CERTIFICATES: &str = "/etc/docker/certs.d";
/// Mirrors, and insecure hosts.
const LIST_LIMIT: usize = 64;
/// A PEM file larger than this is none.
const PEM_LIMIT: u64 = 4 << 20;

pub(crate) type Client<B> = Pool<HttpsConnector<HttpConnector>, B>;

/// Docker's `registry-mirrors` and `insecure-registries`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Registries {
    mirrors: Vec<String>,
    insecure: Vec<Insecure>,
    certificates: PathBuf,
    /// An answer must begin within this time, and a body that brings next to nothing for so long is given up.
    patience: Duration,
}

#[derive(Debug, Clone, PartialEq)]
enum Insecure {
    Host(String),
    Net(IpAddr, u8),
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            insecure: Vec::new(),
            certificates: REGISTRY_CERTIFICATES.into(),
            patience: PATIENCE,
        }
    }
}

/// One way to a registry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Endpoint {
    /// `https://host:port`
    pub(crate) base: String,
    /// The name of its folder in `certs.d`.
    pub(crate) host: String,
    pub(crate) verify: bool,
    /// Plain text may be tried when it turns out not to speak TLS.
    pub(crate) may_be_plain: bool,
    pub(crate) mirror: bool,
}

impl Registries {
    /// Refuses in Docker's words what is neither a mirror nor a host.
    pub fn new(mirrors: &[String], insecure: &[String]) -> Result<Self> {
        if mirrors.len() > LIST_LIMIT || insecure.len() > LIST_LIMIT {
            return Err(Error::invalid(format!(
                "more than {LIST_LIMIT} registry mirrors or insecure registries"
            )));
        }
        Ok(Self {
            mirrors: mirrors.iter().map(|m| mirror(m)).collect::<Result<_>>()?,
            insecure: insecure
                .iter()
                .map(|text| parse_insecure(text))
                .collect::<Result<_>>()?,
            ..Self::default()
        })
    }

    /// Another folder than `/etc/docker/certs.d`.
    #[must_use]
    pub fn with_certificates(mut self, folder: &Path) -> Self {
        folder.clone_into(&mut self.certificates);
        self
    }

    /// Another patience with silent registries than a minute.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// With a slash at the end, as Docker shows them.
    pub fn mirrors(&self) -> Vec<String> {
        self.mirrors.iter().map(|m| format!("{m}/")).collect()
    }

    /// What was told to be insecure: the hosts, then the networks. Loopback is so by itself.
    pub fn insecure(&self) -> (Vec<String>, Vec<String>) {
        let (mut hosts, mut nets) = (Vec::new(), Vec::new());
        for entry in &self.insecure {
            match entry {
                Insecure::Host(host) => hosts.push(host.clone()),
                Insecure::Net(address, prefix) => nets.push(format!("{address}/{prefix}")),
            }
        }
        (hosts, nets)
    }

    /// Where to ask, in this order. Mirrors serve pulls of Docker's own registry alone.
    pub(crate) async fn endpoints(&self, domain: &str, pull: bool) -> Vec<Endpoint> {
        let mut found = Vec::new();
        if domain == "docker.io" && pull {
            for base in &self.mirrors {
                let host = base.split("://").nth(1).unwrap_or_default();
                found.push(Endpoint {
                    mirror: true,
                    base: base.clone(),
                    may_be_plain: false,
                    ..self.endpoint(host).await
                });
            }
        }
        let host = match domain {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        found.push(self.endpoint(host).await);
        found
    }

    pub(crate) async fn endpoint(&self, host: &str) -> Endpoint {
        let expected = self.certificates.join(host).is_dir();
        let insecure = self.is_insecure(host).await || (is_loopback(host) && !expected);
        Endpoint {
            base: format!("https://{host}"),
            host: host.to_owned(),
            verify: !insecure,
            may_be_plain: insecure,
            mirror: false,
        }
    }

    async fn is_insecure(&self, host: &str) -> bool {
        let named = |entry: &Insecure| matches!(entry, Insecure::Host(known) if known == host);
        if self.insecure.iter().any(named) {
            return true;
        }
        if !self.insecure.iter().any(|e| matches!(e, Insecure::Net(..))) {
            return false;
        }
        // Docker looks the name up to compare addresses with networks.
        let name = bare(host);
        let addresses: Vec<IpAddr> = match name.parse() {
            Ok(address) => vec![address],
            Err(_) => match tokio::time::timeout(CONNECT, tokio::net::lookup_host((name, 0))).await
            {
                Ok(Ok(found)) => found.map(|a| a.ip()).collect(),
                _ => Vec::new(),
            },
        };
        self.insecure.iter().any(|entry| match entry {
            Insecure::Net(net, prefix) => addresses.iter().any(|a| is_within(*a, *net, *prefix)),
            Insecure::Host(_) => false,
        })
    }

    pub(crate) fn client<B>(&self, endpoint: &Endpoint) -> Result<Client<B>>
    where
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
    {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context(|| "setting up TLS".into())?;
        let tls = if endpoint.verify {
            let own = self.certificates.join(&endpoint.host);
            let builder = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Trusted::new(&own, provider)?));
            match client_certificate(&own)? {
                Some((chain, key)) => builder
                    .with_client_auth_cert(chain, key)
                    .kind(ErrorKind::Internal, || {
                        format!("using the client certificate in {}", own.display())
                    })?,
                None => builder.with_no_client_auth(),
            }
        } else {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
                .with_no_client_auth()
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT.min(self.patience)));
        http.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Ok(Pool::builder(TokioExecutor::new()).build(connector))
    }
}

/// Docker: `ValidateMirror`.
fn mirror(text: &str) -> Result<String> {
    let refuse = |why: String| Err(Error::invalid(format!("invalid mirror: {why}")));
    let Some((scheme, rest)) = text.split_once("://") else {
        return refuse(format!(
            "no scheme specified for {text:?}: must use either 'https://' or 'http://'"
        ));
    };
    if !matches!(scheme, "http" | "https") {
        return refuse(format!(
            "unsupported scheme {scheme:?} in {text:?}: must use either 'https://' or 'http://'"
        ));
    }
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.contains(['/', '?', '#']) {
        return refuse(format!(
            "path, query, or fragment at end of the URI {text:?}"
        ));
    }
    if host.contains('@') {
        return refuse("username/password not allowed in URI".to_owned());
    }
    if host.is_empty() || text.parse::<http::Uri>().is_err() {
        return refuse(format!("{text:?} is not a valid URI"));
    }
    Ok(format!("{scheme}://{host}"))
}

fn parse_insecure(text: &str) -> Result<Insecure> {
    if text.contains("://") {
        return Err(Error::invalid(format!(
            "insecure registry {text} should not contain '://'"
        )));
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let parsed = address.parse::<IpAddr>().ok().zip(prefix.parse().ok());
        return match parsed {
            Some((address, prefix)) if prefix <= if address.is_ipv4() { 32 } else { 128 } => {
                Ok(Insecure::Net(address, prefix))
            }
            _ => Err(Error::invalid(format!(
                "insecure registry {text} is not valid: invalid host {text:?}"
            ))),
        };
    }
    let valid = !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b));
    if !valid {
        return Err(Error::invalid(format!(
            "insecure registry {text} is not valid: invalid host {text:?}"
        )));
    }
    Ok(Insecure::Host(text.to_owned()))
}

fn is_within(address: IpAddr, net: IpAddr, prefix: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let shift = width - u32::from(prefix);
        a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
    };
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
        _ => false,
    }
}

/// A host without its port and brackets.
fn bare(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// By its text: a name elsewhere that leads to this machine is not believed.
fn is_loopback(host: &str) -> bool {
    let name = bare(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == end))
        .collect();
    found.sort();
    found
}

fn read_pem(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(PEM_LIMIT)
        .read_to_end(&mut text)?;
    Ok(text)
}

/// All authorities, and those that were put here for this registry.
fn roots(own: &Path) -> (rustls::RootCertStore, Vec<CertificateDer<'static>>) {
    let mut roots = rustls::RootCertStore::empty();
    let mut exact = Vec::new();
    for text in files(own, "crt")
        .iter()
        .filter_map(|path| read_pem(path).ok())
    {
        exact.extend(CertificateDer::pem_slice_iter(&text).flatten());
    }
    let system = read_pem(Path::new(SYSTEM_CERTIFICATES)).unwrap_or_default();
    let system = CertificateDer::pem_slice_iter(&system).flatten();
    for certificate in system.chain(exact.iter().cloned()) {
        // One that cannot be used is one that nothing is signed with.
        let _ = roots.add(certificate);
    }
    (roots, exact)
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Docker: `ReadCertsDirectory`. Of several pairs the first.
fn client_certificate(own: &Path) -> Result<Option<ClientCertificate>> {
    let name = |path: &Path| {
        path.file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    for key in files(own, "key") {
        if !key.with_extension("cert").exists() {
            return Err(Error::internal(format!(
                "missing client certificate {} for key {}",
                name(&key.with_extension("cert")),
                name(&key)
            )));
        }
    }
    let Some(certificate) = files(own, "cert").into_iter().next() else {
        return Ok(None);
    };
    let key = certificate.with_extension("key");
    if !key.exists() {
        return Err(Error::internal(format!(
            "missing key {} for client certificate {}. CA certificates must use the extension .crt",
            name(&key),
            name(&certificate)
        )));
    }
    let text = read_pem(&certificate).context(|| format!("reading {}", certificate.display()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text).flatten().collect();
    let text = read_pem(&key).context(|| format!("reading {}", key.display()))?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|e| Error::internal(format!("reading {}: {e}", key.display())))?;
    Ok(Some((chain, key)))
}

/// The authorities, and as in Docker a server's own certificate that lies among them (what `openssl req -x509` makes is
/// formally an authority, which webpki does not take for a server's).
#[derive(Debug)]
struct Trusted {
    /// `None` without any authority.
    chains: Option<Arc<WebPkiServerVerifier>>,
    exact: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Trusted {
    fn new(own: &Path, provider: Arc<CryptoProvider>) -> Result<Self> {
        let (roots, exact) = roots(own);
        let chains = if roots.is_empty() {
            None
        } else {
            let built =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build();
            Some(built.context(|| "setting up TLS".into())?)
        };
        Ok(Self {
            chains,
            exact,
            provider,
        })
    }
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        if self.exact.contains(certificate) {
            let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
            rustls::client::verify_server_name(&parsed, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let Some(chains) = &self.chains else {
            return Err(unknown);
        };
        match chains.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // A self-signed certificate that nobody put here.
            Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(_))) => {
                Err(unknown)
            }
            result => result,
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Takes any certificate; that the other end holds its key is still proven.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(registries: &Registries, domain: &str, pull: bool) -> Vec<(String, bool, bool)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let found = runtime.block_on(registries.endpoints(domain, pull));
        found
            .into_iter()
            .map(|e| (e.base, e.verify, e.may_be_plain))
            .collect()
    }

    fn registries(mirrors: &[&str], insecure: &[&str]) -> Result<Registries> {
        let own = |list: &[&str]| list.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        Registries::new(&own(mirrors), &own(insecure))
    }

    #[test]
    fn only_this_machine_is_insecure_by_itself() {
        let known = Registries::default();
        for (host, verified) in [
            ("localhost:5000", false),
            ("127.0.0.1:5000", false),
            ("[::1]:5000", false),
            ("127.0.0.1.example:80", true),
            ("registry.example", true),
            ("10.0.0.1:5000", true),
        ] {
            let want = (format!("https://{host}"), verified, !verified);
            assert_eq!(endpoints(&known, host, true), [want], "{host}");
        }
    }

    #[test]
    fn insecure_hosts_and_networks() {
        let known = registries(&[], &["reg.example:5000", "10.1.0.0/16", "fd00::/8"]).unwrap();
        for (host, verified) in [
            ("reg.example:5000", false),
            ("10.3.2.3", true),
            ("10.1.2.3:5000", false),
            ("10.2.2.3", true),
            ("[fd12::1]:5000", false),
        ] {
            assert_eq!(endpoints(&known, host, true)[0].1, verified, "{host}");
        }
        for text in ["http://a", "a/b", "10.0.0.0/33", "", "a b"] {
            assert!(registries(&[], &[text]).is_err(), "{text}");
        }
    }

    #[test]
    fn mirrors_serve_pulls_of_one_registry() {
        let known = registries(&["http://127.0.0.1:5000/", "https://m.example"], &[]).unwrap();
        let bases = |domain, pull| -> Vec<String> {
            endpoints(&known, domain, pull)
                .into_iter()
                .map(|e| e.0)
                .collect()
        };
        let own = "https://registry-1.docker.io";
        assert_eq!(
            bases("docker.io", true),
            ["http://127.0.0.1:5000", "https://m.example", own]
        );
        assert_eq!(bases("docker.io", false), [own]);
        assert_eq!(bases("other.example", true), ["https://other.example"]);
        for text in [
            "m.example",
            "ftp://m",
            "http://m/path",
            "http://m?x",
            "http://u:p@m",
            "http://",
        ] {
            let refused = registries(&[text], &[]).unwrap_err().chain();
            assert!(refused.starts_with("invalid mirror: "), "{text}: {refused}");
        }
    }
}
