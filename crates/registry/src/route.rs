//! Which endpoint a path means. distribution-spec: "Endpoints".

use crate::error::{Error, Result};
use crate::name::{Digest, Reference, Repository};
use crate::upload::Id;

/// The endpoint and what its path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/token`
    Token,
    /// `/v2/_catalog`
    Catalog,
    Blob(Repository, Digest),
    Uploads(Repository),
    Upload(Repository, Id),
    Manifest(Repository, Reference),
    Tags(Repository),
    Referrers(Repository, Digest),
}

impl Route {
    /// `path` is decoded. A repository may have any of the words of the API in its name, so paths are read from their end.
    pub(crate) fn parse(path: &str) -> Result<Self> {
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Self::Base),
            Some(rest) => rest.strip_prefix('/').ok_or_else(Error::not_found)?,
            None => return Err(Error::not_found()),
        };
        match rest {
            "token" => return Ok(Self::Token),
            "_catalog" => return Ok(Self::Catalog),
            _ => {}
        }
        let name = |text: &str| Repository::parse(text).ok_or_else(Error::name_invalid);
        if let Some(text) = rest.strip_suffix("/tags/list") {
            return Ok(Self::Tags(name(text)?));
        }
        if let Some(text) = rest
            .strip_suffix("/blobs/uploads/")
            .or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Ok(Self::Uploads(name(text)?));
        }
        let (rest, last) = rest.rsplit_once('/').ok_or_else(Error::not_found)?;
        if let Some(text) = rest.strip_suffix("/blobs/uploads") {
            let id = Id::parse(last).ok_or_else(Error::upload_unknown);
            return Ok(Self::Upload(name(text)?, id?));
        }
        let digest = || {
            last.parse().map_err(|_| {
                Error::digest_invalid("provided digest is not one of sha256 or sha512")
            })
        };
        if let Some(text) = rest.strip_suffix("/blobs") {
            return Ok(Self::Blob(name(text)?, digest()?));
        }
        if let Some(text) = rest.strip_suffix("/manifests") {
            let reference = Reference::parse(last).ok_or_else(|| match last.contains(':') {
                true => Error::digest_invalid("provided digest is not one of sha256 or sha512"),
                false => Error::manifest_invalid("the tag is not one"),
            });
            return Ok(Self::Manifest(name(text)?, reference?));
        }
        if let Some(text) = rest.strip_suffix("/referrers") {
            return Ok(Self::Referrers(name(text)?, digest()?));
        }
        Err(Error::not_found())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let name = |text| Repository::parse(text).unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        for (path, expected) in [
            ("/v2", Route::Base),
            ("/v2/", Route::Base),
            ("/v2/_catalog", Route::Catalog),
            ("/v2/a/tags/list", Route::Tags(name("a"))),
            (
                "/v2/a/manifests/tags/list",
                Route::Tags(name("a/manifests")),
            ),
            ("/v2/blobs/blobs/uploads/", Route::Uploads(name("blobs"))),
            ("/v2/a/b/blobs/uploads", Route::Uploads(name("a/b"))),
            (
                &format!("/v2/a/blobs/uploads/{id}"),
                Route::Upload(name("a"), Id::parse(id).unwrap()),
            ),
            (
                &format!("/v2/a/blobs/{d}"),
                Route::Blob(name("a"), d.parse().unwrap()),
            ),
            (
                &format!("/v2/a/referrers/{d}"),
                Route::Referrers(name("a"), d.parse().unwrap()),
            ),
            (
                "/v2/a/manifests/v1",
                Route::Manifest(name("a"), Reference::Tag("v1".into())),
            ),
        ] {
            assert_eq!(Route::parse(path).unwrap(), expected, "{path}");
        }
        for (path, code) in [
            ("/", "UNSUPPORTED"),
            ("/v1/x", "UNSUPPORTED"),
            ("/v2x", "UNSUPPORTED"),
            ("/v2/a", "UNSUPPORTED"),
            ("/v2/A/tags/list", "NAME_INVALID"),
            ("/v2/a/../b/tags/list", "NAME_INVALID"),
            ("/v2//tags/list", "NAME_INVALID"),
            ("/v2/a/blobs/sha256:00", "DIGEST_INVALID"),
            ("/v2/a/manifests/sha256:00", "DIGEST_INVALID"),
            ("/v2/a/manifests/.a", "MANIFEST_INVALID"),
            ("/v2/a/blobs/uploads/../../x", "UNSUPPORTED"),
            ("/v2/a/blobs/uploads/x", "BLOB_UPLOAD_UNKNOWN"),
        ] {
            assert_eq!(Route::parse(path).unwrap_err().code, code, "{path}");
        }
    }
}
