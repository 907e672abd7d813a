//! Keys and the authority: made once, kept in the store, wrapped by one root key that alone lies in the data directory.
//!
//! ```text
//! D/keys/root                      32 random bytes, 0600; a server that joins gets the same ones
//! /gantry/keys/authority           CA: certificate and private key            ┐ sealed with the root key;
//! /gantry/keys/service-accounts    private key that signs tokens (ES256)      │ whoever writes first wins, the others
//! /gantry/keys/data                key that Secrets are sealed with           ┘ take what is there
//! ```
//! Sealed: AES-256-GCM, a random nonce of 12 bytes first; the store's key is authenticated too, so that a value cannot be moved.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use gantry_base::file::{Durability, atomic_write};
use gantry_base::{Error, Result, ResultExt};
use gantry_store::{Store, Txn};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType,
};
use std::net::IpAddr;
use std::path::Path;

const ROOT_KEY_BYTES: usize = 32;
/// Days that the authority holds, and that a certificate of a server or a client does.
const AUTHORITY_DAYS: i64 = 3650;
const CERTIFICATE_DAYS: i64 = 398;
/// What a sealed value begins with: no JSON document does.
const SEALED: &[u8] = b"\0gantry:sealed:1:";

/// Everything secret that a server works with.
pub(crate) struct Keys {
    pub(crate) authority: Authority,
    pub(crate) tokens: EcdsaKeyPair,
    data: LessSafeKey,
}

/// The certificate authority of this cluster.
pub(crate) struct Authority {
    pub(crate) certificate_pem: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

/// A certificate with its private key, as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Keys {
    /// What the store has, or what this server makes because it has nothing yet.
    pub(crate) async fn open(store: &dyn Store, dir: &Path) -> Result<Self> {
        let root = root_key(&dir.join("root"))?;
        let authority = kept(store, &root, "authority", new_authority).await?;
        let tokens = kept(store, &root, "service-accounts", || {
            let made = EcdsaKeyPair::generate_pkcs8(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &aws_lc_rs::rand::SystemRandom::new(),
            );
            Ok(made
                .context(|| "making the key of service accounts".into())?
                .as_ref()
                .to_vec())
        })
        .await?;
        let data = kept(store, &root, "data", || random_key().map(|k| k.to_vec())).await?;
        let tokens = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &tokens)
            .context(|| "reading the key of service accounts".into())?;
        Ok(Self {
            authority: Authority::read(&authority)?,
            tokens,
            data: cipher(&data)?,
        })
    }

    /// The form in which a Secret is kept under `key`.
    pub(crate) fn seal(&self, key: &[u8], value: &[u8]) -> Result<Bytes> {
        seal(&self.data, key, value).map(Bytes::from)
    }

    /// What was sealed, or the value itself when it is not sealed.
    pub(crate) fn open_value(&self, key: &[u8], value: Bytes) -> Result<Bytes> {
        if value.starts_with(SEALED) {
            return unseal(&self.data, key, &value).map(Bytes::from);
        }
        Ok(value)
    }

    /// The public half of the key that signs tokens, uncompressed.
    pub(crate) fn token_public_key(&self) -> &[u8] {
        self.tokens.public_key().as_ref()
    }
}

impl Authority {
    fn read(text: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(text).context(|| "reading the authority".into())?;
        let at = text
            .find("-----BEGIN PRIVATE KEY")
            .ok_or_else(|| Error::internal("the kept authority has no private key"))?;
        let (certificate, key) = text.split_at(at);
        let key = rcgen::KeyPair::from_pem(key).context(|| "reading the authority's key".into())?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key)
            .context(|| "reading the authority's certificate".into())?;
        Ok(Self {
            certificate_pem: certificate.to_owned(),
            issuer,
        })
    }

    /// A certificate for whoever serves under `names` and `addresses`.
    pub(crate) fn server(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Pair> {
        let mut params = CertificateParams::default();
        for name in names {
            let name = (*name).try_into().context(|| format!("the name {name}"))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name = subject("kube-apiserver", &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A certificate that makes its holder `user` in `groups`.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(user, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Pair> {
        hold(&mut params, CERTIFICATE_DAYS)?;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        let key = rcgen::KeyPair::generate().context(|| "making a private key".into())?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context(|| "signing a certificate".into())?;
        Ok(Pair {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// The UTC day of a second.
fn day(seconds: i64) -> Result<(i32, u8, u8)> {
    let day = jiff::Timestamp::from_second(seconds)
        .context(|| "a date".into())?
        .to_zoned(jiff::tz::TimeZone::UTC);
    let part = |n: i8| u8::try_from(n).expect("months and days are positive");
    Ok((i32::from(day.year()), part(day.month()), part(day.day())))
}

/// Sets for how long a certificate holds, in whole days.
fn hold(params: &mut CertificateParams, days: i64) -> Result<()> {
    let now = jiff::Timestamp::now().as_second();
    // A clock that is a little behind ours must not refuse it.
    let (year, month, from) = day(now - 3600)?;
    params.not_before = rcgen::date_time_ymd(year, month, from);
    let (year, month, to) = day(now + days * 86_400)?;
    params.not_after = rcgen::date_time_ymd(year, month, to);
    Ok(())
}

fn subject(name: &str, groups: &[&str]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    // A name has one organisation here: rcgen keeps one value of a type. Further groups come by RBAC.
    if let Some(group) = groups.first() {
        subject.push(DnType::OrganizationName, *group);
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn new_authority() -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("gantry-ca", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    hold(&mut params, AUTHORITY_DAYS)?;
    let key = rcgen::KeyPair::generate().context(|| "making the authority's key".into())?;
    let certificate = params
        .self_signed(&key)
        .context(|| "signing the authority".into())?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()).into_bytes())
}

/// The value under `/gantry/keys/<name>`; made by this server only if nobody was faster.
async fn kept(
    store: &dyn Store,
    root: &[u8; ROOT_KEY_BYTES],
    name: &str,
    make: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let failed = |e: gantry_store::Error| {
        Error::new(e.kind(), format!("keeping the cluster's {name} key")).with_source(e)
    };
    let cipher = cipher(root)?;
    let key = Bytes::from(format!("/gantry/keys/{name}"));
    if store.get(key.clone()).await.map_err(failed)?.is_none() {
        let sealed = seal(&cipher, &key, &make()?)?;
        store
            .txn(Txn::swap(key.clone(), 0, sealed))
            .await
            .map_err(failed)?;
    }
    let found = store.get(key.clone()).await.map_err(failed)?;
    let found = found.ok_or_else(|| Error::internal(format!("the {name} key vanished")))?;
    unseal(&cipher, &key, &found.value)
}

fn root_key(path: &Path) -> Result<[u8; ROOT_KEY_BYTES]> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let bytes = BASE64_STANDARD.decode(text.trim()).ok();
            bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| {
                Error::internal(format!(
                    "{} does not hold a root key; restore it: without it the cluster's keys and Secrets cannot be read",
                    path.display()
                ))
            })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let key = random_key()?;
            let text = format!("{}\n", BASE64_STANDARD.encode(key));
            if let Some(folder) = path.parent() {
                use std::os::unix::fs::DirBuilderExt;
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)
                    .context(|| format!("creating {}", folder.display()))?;
            }
            atomic_write(path, text.as_bytes(), 0o600, Durability::Disk)
                .context(|| format!("writing {}", path.display()))?;
            Ok(key)
        }
        Err(e) => Err(e).context(|| format!("reading {}", path.display())),
    }
}

fn random_key() -> Result<[u8; ROOT_KEY_BYTES]> {
    let mut key = [0; ROOT_KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).context(|| "asking the kernel for random numbers".into())?;
    Ok(key)
}

fn cipher(key: &[u8]) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key).context(|| "taking up a key".into())?;
    Ok(LessSafeKey::new(key))
}

fn seal(cipher: &LessSafeKey, key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).context(|| "asking the kernel for random numbers".into())?;
    let mut text = value.to_vec();
    cipher
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(key),
            &mut text,
        )
        .context(|| "sealing a value".into())?;
    Ok([SEALED, &nonce, &text].concat())
}

fn unseal(cipher: &LessSafeKey, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
    let what = || {
        let key = String::from_utf8_lossy(key);
        format!("{key} cannot be opened: it was sealed with another key, or changed")
    };
    let rest = sealed
        .strip_prefix(SEALED)
        .and_then(|rest| rest.split_first_chunk::<NONCE_LEN>());
    let (nonce, text) = rest.ok_or_else(|| Error::internal(what()))?;
    let mut text = text.to_vec();
    let length = cipher
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(key),
            &mut text,
        )
        .context(what)?
        .len();
    text.truncate(length);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_store::embedded::Embedded;

    #[tokio::test]
    async fn two_servers_have_one_authority_and_read_each_others_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let first = dir.path().join("a");
        let second = dir.path().join("b");
        std::fs::create_dir_all(&second).unwrap();
        // The root key is what a join token carries.
        root_key(&first.join("root")).unwrap();
        std::fs::copy(first.join("root"), second.join("root")).unwrap();
        let (a, b) = tokio::join!(Keys::open(&store, &first), Keys::open(&store, &second));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.authority.certificate_pem, b.authority.certificate_pem);
        assert_eq!(a.token_public_key(), b.token_public_key());
        let sealed = a.seal(b"/k", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(b.open_value(b"/k", sealed.clone()).unwrap(), "secret");
        assert!(b.open_value(b"/other", sealed).is_err(), "moved");
        let stranger = Keys::open(&store, &dir.path().join("c")).await;
        let refusal = stranger.err().expect("another root key").chain();
        assert!(refusal.contains("sealed with another key"), "{refusal}");
    }
}
