//! Who asks, and what he may. `S/access.json`, changed by `gantry registry account`, read again when it changes.
//!
//! ```text
//! no file: everybody may do everything (such a registry listens on loopback only)
//! Authorization: Basic   name and password of an account, or name and secret of a robot
//! Authorization: Bearer  a token from /v2/token: signed, for five minutes, for what its scopes say
//! ```
//! Passwords are kept as PBKDF2-HMAC-SHA512; robots' secrets are 256 random bits, for which a plain hash is enough. Tokens are
//! signed with `S/token.key`, which all servers over one store share, so any of them accepts what another gave.

use crate::Registry;
use crate::api::{Peer, blocking, send_json};
use crate::body::{Body, Query, collect};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::{Algorithm, Digest, Repository, hex};
use crate::policy::{Watched, matches};
use crate::store::{Store, random_hex, read_limited};
use aws_lc_rs::{hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Response, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub const FILE: &str = "access.json";
const SERVICE: &str = "gantry-registry";
const TOKEN_SECONDS: i64 = 300;
/// Clocks of several servers differ a little.
const SKEW_SECONDS: i64 = 30;
const ROUNDS: u32 = 210_000;
/// A name or password longer than this is nobody's.
const CREDENTIAL_LIMIT: usize = 1024;
const SCOPES: usize = 32;
const FORM_LIMIT: usize = 16 << 10;
/// A password that was right is not computed again for so long.
const REMEMBER: Duration = Duration::from_secs(120);
const REMEMBERED: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Read,
    Write,
    Delete,
}

impl Action {
    /// The word of Docker's scopes.
    fn word(self) -> &'static str {
        match self {
            Self::Read => "pull",
            Self::Write => "push",
            Self::Delete => "delete",
        }
    }
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Delete];
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// A pattern, see [`crate::policy`].
    pub repositories: String,
    pub actions: Vec<Action>,
}

impl Grant {
    /// `team/*:read,write`
    pub fn parse(text: &str) -> Option<Self> {
        let (repositories, words) = text.rsplit_once(':')?;
        let action = |word: &str| match word {
            "read" => Some(Action::Read),
            "write" => Some(Action::Write),
            "delete" => Some(Action::Delete),
            _ => None,
        };
        let actions = words.split(',').map(action).collect::<Option<Vec<_>>>()?;
        (!repositories.is_empty()).then(|| Self {
            repositories: repositories.to_owned(),
            actions,
        })
    }
    fn allows(&self, name: &str, action: Action) -> bool {
        self.actions.contains(&action) && matches(&self.repositories, name)
    }
}

/// How an account proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// `ROUNDS$SALT$HASH`, the last two in hex.
    Password(String),
    /// SHA-256 of the secret, in hex.
    Secret(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    pub proof: Proof,
    pub grants: Vec<Grant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accounts {
    pub accounts: BTreeMap<String, Account>,
    /// What callers without an account may do.
    pub anonymous: Vec<Grant>,
}

impl Accounts {
    /// What the file in `root` says; empty without one.
    pub fn read(root: &Path) -> Result<Self, String> {
        Ok(crate::policy::read(&root.join(FILE))?.unwrap_or_default())
    }
    pub fn write(&self, root: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).expect("plain data can be written");
        gantry_base::file::atomic_write(
            &root.join(FILE),
            &bytes,
            0o600,
            gantry_base::file::Durability::Disk,
        )
    }
}

/// A name that may stand before the colon of Basic and in a token.
pub fn is_account_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._+@-".contains(&c);
    !name.is_empty() && name.len() <= 128 && name.bytes().all(plain)
}

/// A proof of this password for the file. Takes a moment, on purpose.
pub fn password_proof(password: &str) -> io::Result<Proof> {
    let salt = random_hex()?;
    let hash = stretch(ROUNDS, &salt, password);
    Ok(Proof::Password(format!("{ROUNDS}${salt}${}", hex(&hash))))
}

/// A new secret and its proof.
pub fn new_secret() -> io::Result<(String, Proof)> {
    let secret = format!("{}{}", random_hex()?, random_hex()?);
    let proof = Proof::Secret(
        Digest::of(Algorithm::Sha256, secret.as_bytes())
            .hex()
            .to_owned(),
    );
    Ok((secret, proof))
}

fn stretch(rounds: u32, salt: &str, password: &str) -> [u8; 64] {
    let mut hash = [0; 64];
    let rounds = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA512,
        rounds,
        salt.as_bytes(),
        password.as_bytes(),
        &mut hash,
    );
    hash
}

impl Proof {
    fn accepts(&self, given: &str) -> bool {
        let (computed, kept) = match self {
            Self::Secret(kept) => (
                Digest::of(Algorithm::Sha256, given.as_bytes())
                    .hex()
                    .to_owned(),
                kept.as_str(),
            ),
            Self::Password(kept) => {
                let mut parts = kept.splitn(3, '$');
                let (Some(rounds), Some(salt), Some(hash)) =
                    (parts.next(), parts.next(), parts.next())
                else {
                    return false;
                };
                let rounds = rounds.parse().unwrap_or(ROUNDS).min(10 * ROUNDS);
                (hex(&stretch(rounds, salt, given)), hash)
            }
        };
        aws_lc_rs::constant_time::verify_slices_are_equal(computed.as_bytes(), kept.as_bytes())
            .is_ok()
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The account; `None` without one.
    pub(crate) name: Option<String>,
    rights: Rights,
}

#[derive(Debug, Clone)]
enum Rights {
    All,
    Grants(Vec<Grant>),
    Token(Vec<Scope>),
}

/// One entry of a token. The words are those of Docker's token specification.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Scope {
    r#type: String,
    name: String,
    actions: Vec<String>,
}

impl Caller {
    pub(crate) fn may(&self, name: &Repository, action: Action) -> bool {
        let name = name.as_str();
        match &self.rights {
            Rights::All => true,
            Rights::Grants(grants) => grants.iter().any(|grant| grant.allows(name, action)),
            Rights::Token(scopes) => scopes.iter().any(|s| {
                s.r#type == "repository"
                    && s.name == name
                    && s.actions.iter().any(|a| a == action.word())
            }),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    exp: i64,
    nbf: i64,
    iat: i64,
    access: Vec<Scope>,
}

/// Accounts, tokens, and the memory of passwords that were right.
#[derive(Debug)]
pub(crate) struct Access {
    accounts: Watched<Accounts>,
    key: hmac::Key,
    limits: Arc<Limits>,
    /// Keyed by a hash of name, password and proof under a key of this process, so that no password is kept.
    right: Mutex<HashMap<[u8; 32], Instant>>,
    memory_key: hmac::Key,
}

impl Access {
    pub(crate) fn open(store: &Store, limits: Arc<Limits>) -> Result<Self, String> {
        let accounts = Watched::open(store.root().join(FILE))?;
        let key = shared_key(store).map_err(|e| format!("the key of tokens: {e}"))?;
        let random = hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new());
        Ok(Self {
            accounts,
            key,
            limits,
            right: Mutex::default(),
            memory_key: random.map_err(|_| "the kernel gives no random numbers".to_owned())?,
        })
    }

    /// Nobody has to say who he is.
    pub(crate) fn is_open(&self) -> bool {
        self.accounts.get().is_none()
    }

    pub(crate) async fn caller(&self, headers: &HeaderMap, peer: Peer) -> Result<Caller> {
        let Some(accounts) = self.accounts.get() else {
            return Ok(Caller {
                name: None,
                rights: Rights::All,
            });
        };
        let Some(given) = headers.get(AUTHORIZATION) else {
            return Ok(Caller {
                name: None,
                rights: Rights::Grants(accounts.anonymous.clone()),
            });
        };
        let given = given.to_str().unwrap_or_default();
        let (scheme, value) = given.split_once(' ').unwrap_or((given, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            let refused = |_| self.challenge(headers, peer, None, Some("invalid_token"));
            let claims = self.open_token(value.trim()).map_err(refused)?;
            return Ok(Caller {
                name: Some(claims.sub).filter(|s| !s.is_empty()),
                rights: Rights::Token(claims.access),
            });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let (name, password) =
                basic(value.trim()).ok_or_else(|| self.challenge(headers, peer, None, None))?;
            return self.sign_in(&accounts, headers, peer, name, password).await;
        }
        Err(self.challenge(headers, peer, None, None))
    }

    async fn sign_in(
        &self,
        accounts: &Accounts,
        headers: &HeaderMap,
        peer: Peer,
        name: String,
        password: String,
    ) -> Result<Caller> {
        self.limits.may_try(&name, peer.address)?;
        let refused = || {
            self.limits.failed(&name, peer.address);
            let mut error = self.challenge(headers, peer, None, None);
            error.message = "unauthorized: incorrect username or password".to_owned();
            error
        };
        let account = accounts.accounts.get(&name).cloned();
        // Unknown names cost the same time as known ones.
        let nobody = || Proof::Password(format!("{ROUNDS}$00$00"));
        let proof = account
            .as_ref()
            .map_or_else(nobody, |account| account.proof.clone());
        let mark = self.mark(&name, &password, &proof);
        let known = self.remembered(&mark);
        let accepted = known || blocking(move || Ok(proof.accepts(&password))).await?;
        let Some(account) = account.filter(|_| accepted) else {
            return Err(refused());
        };
        if account.expires.is_some_and(|end| end <= Timestamp::now()) {
            let mut error = refused();
            error.message = format!("unauthorized: {name} expired");
            return Err(error);
        }
        self.remember(mark);
        Ok(Caller {
            name: Some(name.clone()),
            rights: Rights::Grants(account.grants),
        })
    }

    fn mark(&self, name: &str, password: &str, proof: &Proof) -> [u8; 32] {
        let proof = match proof {
            Proof::Password(kept) | Proof::Secret(kept) => kept,
        };
        let mut context = hmac::Context::with_key(&self.memory_key);
        for part in [name, password, proof] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        context
            .sign()
            .as_ref()
            .try_into()
            .expect("HMAC-SHA256 has 32 bytes")
    }
    fn remembered(&self, mark: &[u8; 32]) -> bool {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.get(mark).is_some_and(|at| at.elapsed() < REMEMBER)
    }
    fn remember(&self, mark: [u8; 32]) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() >= REMEMBERED {
            right.clear();
        }
        right.entry(mark).or_insert_with(Instant::now);
        right.retain(|_, at| at.elapsed() < REMEMBER);
    }

    /// Passes who may; others learn how to prove that they may, or that they may not.
    pub(crate) fn check(
        &self,
        caller: &Caller,
        name: &Repository,
        action: Action,
        headers: &HeaderMap,
        peer: Peer,
    ) -> Result<()> {
        if caller.may(name, action) {
            return Ok(());
        }
        if caller.name.is_some() && matches!(caller.rights, Rights::Grants(_)) {
            return Err(Error::denied("requested access to the resource is denied"));
        }
        let error = matches!(caller.rights, Rights::Token(_)).then_some("insufficient_scope");
        let scope = match action {
            Action::Write => format!("repository:{name}:pull,push"),
            other => format!("repository:{name}:{}", other.word()),
        };
        Err(self.challenge(headers, peer, Some(&scope), error))
    }

    /// Passes who has proved anything; used where no repository is named.
    pub(crate) fn check_known(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        peer: Peer,
    ) -> Result<()> {
        match (&caller.name, &caller.rights) {
            (_, Rights::All | Rights::Token(_)) | (Some(_), _) => Ok(()),
            (None, Rights::Grants(_)) => Err(self.challenge(headers, peer, None, None)),
        }
    }

    /// 401, with where a token is to be had.
    fn challenge(
        &self,
        headers: &HeaderMap,
        peer: Peer,
        scope: Option<&str>,
        error: Option<&str>,
    ) -> Error {
        let host = headers
            .get(HOST)
            .and_then(|h| h.to_str().ok())
            .filter(|h| is_host(h))
            .unwrap_or("localhost");
        let scheme = if peer.tls { "https" } else { "http" };
        let mut value =
            format!("Bearer realm=\"{scheme}://{host}/v2/token\",service=\"{SERVICE}\"");
        for (name, text) in [("scope", scope), ("error", error)] {
            if let Some(text) = text {
                value.push_str(&format!(",{name}=\"{text}\""));
            }
        }
        Error::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            "authentication required",
        )
        .with(WWW_AUTHENTICATE, value)
    }

    /// A token for those of the scopes that the caller has a right to.
    fn token(&self, caller: &Caller, scopes: &[&str]) -> (String, i64) {
        let now = Timestamp::now().as_second();
        let claims = Claims {
            iss: SERVICE.to_owned(),
            sub: caller.name.clone().unwrap_or_default(),
            aud: SERVICE.to_owned(),
            exp: now + TOKEN_SECONDS,
            nbf: now - SKEW_SECONDS,
            iat: now,
            access: scopes
                .iter()
                .filter_map(|scope| granted(caller, scope))
                .collect(),
        };
        let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        let body =
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).expect("plain data can be written"));
        let signed = format!("{head}.{body}");
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, signed.as_bytes()));
        (format!("{signed}.{signature}"), now)
    }

    fn open_token(&self, token: &str) -> Result<Claims, ()> {
        let (signed, signature) = token.rsplit_once('.').ok_or(())?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| ())?;
        // Only what was signed here is read at all, so the head's `alg` has no say.
        hmac::verify(&self.key, signed.as_bytes(), &signature).map_err(|_| ())?;
        let (_, body) = signed.split_once('.').ok_or(())?;
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| ())?;
        let claims: Claims = serde_json::from_slice(&body).map_err(|_| ())?;
        let now = Timestamp::now().as_second();
        let valid = claims.aud == SERVICE
            && claims.nbf <= now + SKEW_SECONDS
            && now < claims.exp + SKEW_SECONDS;
        if valid { Ok(claims) } else { Err(()) }
    }
}

/// `repository:NAME:pull,push`, cut down to what the caller may.
fn granted(caller: &Caller, scope: &str) -> Option<Scope> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, words) = rest.rsplit_once(':')?;
    let repository = Repository::parse(name).filter(|_| kind == "repository")?;
    let asked = |action: &Action| words.split(',').any(|w| w == action.word() || w == "*");
    let actions: Vec<_> = Action::ALL
        .into_iter()
        .filter(|action| asked(action) && caller.may(&repository, *action))
        .map(|action| action.word().to_owned())
        .collect();
    (!actions.is_empty()).then(|| Scope {
        r#type: kind.to_owned(),
        name: name.to_owned(),
        actions,
    })
}

/// The token service. Docker's token authentication: `GET` with Basic; OAuth2's `POST` with name and password in a form.
pub(crate) async fn token<B>(
    registry: &Arc<Registry>,
    method: &Method,
    headers: &HeaderMap,
    query: Query,
    body: B,
    peer: Peer,
) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let access = &registry.access;
    let (caller, query) = match *method {
        Method::GET => (access.caller(headers, peer).await?, query),
        Method::POST => {
            let receiving =
                tokio::time::timeout(Duration::from_secs(10), collect(body, FORM_LIMIT));
            let Ok(Ok(form)) = receiving.await else {
                return Err(Error::new(
                    StatusCode::BAD_REQUEST,
                    "UNSUPPORTED",
                    "the form is too long or broken",
                ));
            };
            let form = Query::parse(std::str::from_utf8(&form).ok());
            let accounts = access.accounts.get().unwrap_or_default();
            match (
                form.get("grant_type"),
                form.get("username"),
                form.get("password"),
            ) {
                (Some("password"), Some(name), Some(password)) => {
                    let (name, password) = (name.to_owned(), password.to_owned());
                    (
                        access
                            .sign_in(&accounts, headers, peer, name, password)
                            .await?,
                        form,
                    )
                }
                _ => {
                    let text = "grant_type must be password; refresh tokens are not given here";
                    return Err(Error::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", text));
                }
            }
        }
        _ => return Err(Error::unsupported()),
    };
    registry.limits.admit(&caller, peer.address)?;
    // One parameter may hold several scopes, too.
    let scopes: Vec<&str> = query
        .all("scope")
        .flat_map(|s| s.split(' '))
        .take(SCOPES)
        .collect();
    let (token, now) = access.token(&caller, &scopes);
    let issued = Timestamp::from_second(now).unwrap_or_default().to_string();
    send_json(
        &json!({ "token": token, "access_token": token, "expires_in": TOKEN_SECONDS, "issued_at": issued }),
        Response::builder().header(CACHE_CONTROL, "no-store"),
    )
}

fn basic(value: &str) -> Option<(String, String)> {
    if value.len() > 4 * CREDENTIAL_LIMIT {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    let fits = name.len() <= CREDENTIAL_LIMIT && password.len() <= CREDENTIAL_LIMIT;
    fits.then(|| (name.to_owned(), password.to_owned()))
}

/// What may stand in a URL as host and port. The header goes back to the client in a challenge.
fn is_host(text: &str) -> bool {
    text.len() <= 255
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b".-_:[]".contains(&c))
}

/// The key that all servers over one store sign with; the first one makes it.
fn shared_key(store: &Store) -> io::Result<hmac::Key> {
    let path: PathBuf = store.root().join("token.key");
    loop {
        if let Some(text) = read_limited(&path, 256)? {
            let text = text.trim();
            if text.len() < 64 {
                return Err(io::Error::other(format!(
                    "{} is damaged; remove it, and clients sign in again",
                    path.display()
                )));
            }
            return Ok(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes()));
        }
        let temporary = store.temporary();
        let text = format!("{}{}\n", random_hex()?, random_hex()?);
        store.write(&temporary, text.as_bytes())?;
        // Not a rename: of two servers that start at once the first wins, and the second reads its key.
        let linked = std::fs::hard_link(&temporary, &path);
        std::fs::remove_file(&temporary)?;
        match linked {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => crate::store::sync_parent(&path)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read_as_they_are_typed() {
        let grant = Grant::parse("team/*:read,write").unwrap();
        assert!(grant.allows("team/a", Action::Write) && !grant.allows("team/a", Action::Delete));
        assert!(!grant.allows("teams", Action::Read));
        for bad in ["", "team", ":read", "team:all", "team:"] {
            assert_eq!(Grant::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn passwords_and_secrets_are_proved_and_never_kept() {
        let proof = password_proof("hunter2").unwrap();
        assert!(proof.accepts("hunter2") && !proof.accepts("hunter3"));
        assert!(!format!("{proof:?}").contains("hunter2"));
        let (secret, proof) = new_secret().unwrap();
        assert!(
            proof.accepts(&secret) && !proof.accepts("") && !format!("{proof:?}").contains(&secret)
        );
        assert!(!Proof::Password("x".into()).accepts(""));
        assert!(!Proof::Password("1$2$".into()).accepts("x"));
    }

    #[test]
    fn a_scope_gives_no_more_than_the_account_has() {
        let caller = Caller {
            name: Some("a".into()),
            rights: Rights::Grants(vec![Grant::parse("team/*:read,write").unwrap()]),
        };
        let actions = |scope: &str| granted(&caller, scope).map(|s| s.actions.join(","));
        assert_eq!(
            actions("repository:team/x:pull,push,delete").as_deref(),
            Some("pull,push")
        );
        assert_eq!(actions("repository:team/x:*").as_deref(), Some("pull,push"));
        for nothing in [
            "repository:other:pull",
            "registry:catalog:*",
            "repository:team/../x:pull",
            "x",
            "repository:team/x:",
        ] {
            assert_eq!(actions(nothing), None, "{nothing}");
        }
    }
}
