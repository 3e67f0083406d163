//! Gets a model of the catalogue from a hub: one commit of its repository, each file held against its digest.
//!
//! The hub speaks as huggingface.co does. The list of a commit's files gives a sha256 for large files and git's blob id
//! for small ones; what arrives must have it. The folder appears whole or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{RootCerts, TlsConfig};

use super::catalogue::Entry;
use super::{Parts, MODELS};

/// Names another hub, such as a mirror.
pub const ENDPOINT_ENV: &str = "HF_ENDPOINT";
/// Holds the token for models that ask for one.
pub const TOKEN_ENV: &str = "HF_TOKEN";
/// What a model's folder says of where it came from.
pub const RECEIPT: &str = "fetched.json";

const ENDPOINT_DEFAULT: &str = "https://huggingface.co";
/// For one answer to begin, and between two pieces of one.
const PATIENCE: Duration = Duration::from_secs(30);
/// What every model has beside its graph.
const BESIDE: [&str; 4] = ["tokenizer.json", "config.json", "special_tokens_map.json", "tokenizer_config.json"];

/// Why a model was not fetched. Nothing is left behind then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only a commit stays the same.
    #[error(
        "`--revision {0}` is not a commit: give its 40 hexadecimal digits, as the hub's page of the model shows \
        them; a branch would not stay the same"
    )]
    Revision(String),
    /// Another one would be overwritten.
    #[error("{folder} is there already{of}; delete it to fetch the model again")]
    Exists {
        folder: String,
        /// Where it came from, if that is known.
        of: String,
    },
    /// The hub did not do as asked.
    #[error("{url}: {message}")]
    Hub {
        url: String,
        /// What came instead, and the way out.
        message: String,
    },
    /// The commit lacks a file.
    #[error("{repository} has no `{file}` at commit {revision}; another commit may have it")]
    NoFile { repository: String, file: String, revision: String },
    /// What came is not what the hub says the file is.
    #[error("{url}: {message}; nothing was kept, try again or another mirror")]
    Digest { url: String, message: String },
    /// The token would be read on the way.
    #[error("{ENDPOINT_ENV} is {0}, and {TOKEN_ENV} would be sent there unencrypted: use https, or unset {TOKEN_ENV}")]
    TokenInTheClear(String),
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    File { path: String, source: io::Error },
}

/// Where models come from.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: String,
    authorization: Option<String>,
    agent: ureq::Agent,
}

/// What a commit holds.
#[derive(Deserialize)]
struct Commit {
    sha: String,
    siblings: Vec<HubFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HubFile {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: String,
}

/// What [`RECEIPT`] holds.
#[derive(Debug, Deserialize, Serialize)]
pub struct Receipt {
    /// In the catalogue.
    pub name: String,
    pub repository: String,
    pub revision: String,
    /// The sha256 of each file, hexadecimal.
    pub sha256: BTreeMap<String, String>,
}

impl Receipt {
    /// That of a model's folder, if the model was fetched.
    pub fn of(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(RECEIPT)).ok()?).ok()
    }
}

impl Hub {
    /// As the environment says.
    ///
    /// # Errors
    /// When a token would be sent unencrypted.
    pub fn from_environment() -> Result<Self, Error> {
        let set =
            |name| std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let endpoint = set(ENDPOINT_ENV).unwrap_or_else(|| ENDPOINT_DEFAULT.to_owned());
        Self::new(endpoint.trim_end_matches('/'), set(TOKEN_ENV).as_deref())
    }

    fn new(endpoint: &str, token: Option<&str>) -> Result<Self, Error> {
        let is_local = is_loopback(endpoint);
        let is_encrypted = endpoint.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        if token.is_some() && !is_encrypted && !is_local {
            return Err(Error::TokenInTheClear(endpoint.to_owned()));
        }
        // The system's certificates: a mirror in a closed network has one of its own.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let proxy = if is_local { None } else { ureq::Proxy::try_from_env() };
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            // Hubs send from one of their addresses to another; the token stays with the host that it was given for.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .into();
        let authorization = token.map(|token| format!("Bearer {token}"));
        Ok(Self { endpoint: endpoint.to_owned(), authorization, agent })
    }

    fn get(&self, url: &str) -> Result<ureq::http::Response<ureq::Body>, Error> {
        let mut request = self.agent.get(url);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        request.call().map_err(|error| {
            let message = match error {
                ureq::Error::StatusCode(code @ (401 | 403)) => {
                    format!(
                        "the hub answers {code}: the model asks for a token in {TOKEN_ENV}, or the token may not \
                        read it"
                    )
                }
                ureq::Error::StatusCode(404) => "the hub knows no such commit or file".to_owned(),
                ureq::Error::StatusCode(code) => format!("the hub answers {code}"),
                error => format!("the hub does not answer: {error}; {ENDPOINT_ENV} names a mirror"),
            };
            Error::Hub { url: url.to_owned(), message }
        })
    }

    fn commit(&self, repository: &str, revision: &str) -> Result<Commit, Error> {
        let url = format!("{}/api/models/{repository}/revision/{revision}?blobs=true", self.endpoint);
        let odd = |message: String| Error::Hub { url: url.clone(), message };
        let text = self.get(&url)?.body_mut().read_to_string().map_err(|error| odd(error.to_string()))?;
        let commit: Commit = serde_json::from_str(&text).map_err(|error| {
            odd(format!("the answer is no list of files: {error}; does {ENDPOINT_ENV} name a hub?"))
        })?;
        if commit.sha != revision {
            return Err(odd(format!("the hub answers with commit {}", crate::text::shortened(&commit.sha))));
        }
        Ok(commit)
    }
}

/// Whether all that is said to the endpoint stays on this machine.
fn is_loopback(endpoint: &str) -> bool {
    let Ok(uri) = endpoint.parse::<ureq::http::Uri>() else { return false };
    let Some(authority) = uri.authority().filter(|authority| !authority.as_str().contains('@')) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Gets the files of a model at a commit into the parts folder, and returns the folder they are in. `progress` hears of
/// each file's bytes: those that have come and those there are.
///
/// # Errors
/// Says what is in the way; nothing is left behind then.
pub fn fetch(
    parts: &Parts,
    entry: &Entry,
    revision: &str,
    hub: &Hub,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<PathBuf, Error> {
    let is_commit = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_commit {
        return Err(Error::Revision(revision.to_owned()));
    }
    let models = parts.folder.join(MODELS);
    let folder = models.join(&entry.name);
    if folder.exists() {
        let of =
            Receipt::of(&folder).map(|receipt| format!(" (commit {} of {})", receipt.revision, receipt.repository));
        return Err(Error::Exists { folder: folder.display().to_string(), of: of.unwrap_or_default() });
    }
    let commit = hub.commit(&entry.repository, revision)?;
    let unwritten = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error::File { path, source }
    };
    std::fs::create_dir_all(&models).map_err(unwritten(&models))?;
    // Beside, so that the last step is a rename. Gone again when anything fails; what was killed is cleared away here.
    let prefix = format!(".fetch-{}-", entry.name);
    clear_away(&models, &prefix).map_err(unwritten(&models))?;
    let own = format!("{prefix}{}-", std::process::id());
    let beside = tempfile::Builder::new().prefix(&own).tempdir_in(&models).map_err(unwritten(&models))?;
    let mut receipt = Receipt {
        name: entry.name.clone(),
        repository: entry.repository.clone(),
        revision: revision.to_owned(),
        sha256: BTreeMap::new(),
    };
    for (file, name) in wanted(entry) {
        let listed = commit.siblings.iter().find(|listed| listed.rfilename == file).ok_or_else(|| Error::NoFile {
            repository: entry.repository.clone(),
            file: file.to_owned(),
            revision: revision.to_owned(),
        })?;
        let url = format!("{}/{}/resolve/{revision}/{file}", hub.endpoint, entry.repository);
        let path = beside.path().join(name);
        let body = hub.get(&url)?.into_body().into_reader();
        let sha256 = download(&url, body, listed, &path, &mut |done, all| progress(name, done, all))?;
        let _ = receipt.sha256.insert(name.to_owned(), sha256);
    }
    let path = beside.path().join(RECEIPT);
    let text = serde_json::to_vec_pretty(&receipt).unwrap_or_default();
    write_synced(&path, &text).map_err(unwritten(&path))?;
    File::open(beside.path()).and_then(|beside| beside.sync_all()).map_err(unwritten(&folder))?;
    std::fs::rename(beside.path(), &folder).map_err(unwritten(&folder))?;
    File::open(&models).and_then(|models| models.sync_all()).map_err(unwritten(&models))?;
    Ok(folder)
}

/// Removes what processes that are gone have left of a fetch.
fn clear_away(models: &Path, prefix: &str) -> io::Result<()> {
    for left in std::fs::read_dir(models)? {
        let left = left?;
        let name = left.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next()).map(str::to_owned);
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            std::fs::remove_dir_all(left.path())?;
        }
    }
    Ok(())
}

/// Each file in the repository, and what it is called here.
fn wanted(entry: &Entry) -> Vec<(&str, &str)> {
    let last = |path| Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
    let graph = [(entry.file.as_str(), "model.onnx")];
    // The graph names those by what they are called beside it.
    let weights = entry.weight_files.iter().map(|file| (file.as_str(), last(file)));
    BESIDE.map(|file| (file, file)).into_iter().chain(graph).chain(weights).collect()
}

/// Writes what comes, and returns its sha256 if it is what the hub lists.
fn download(
    url: &str,
    mut body: impl Read,
    listed: &HubFile,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<String, Error> {
    let unread = |error: io::Error| Error::Hub { url: url.to_owned(), message: format!("broke off: {error}") };
    let unwritten = |source| Error::File { path: path.display().to_string(), source };
    let wrong = |message: String| Error::Digest { url: url.to_owned(), message };
    let size = listed.size.ok_or_else(|| wrong("the hub names no size".into()))?;
    let mut file = File::create(path).map_err(unwritten)?;
    let (mut sha256, mut blob) = (Sha256::new(), Sha1::new());
    blob.update(format!("blob {size}\0"));
    let mut bytes = vec![0; 256 * 1024];
    let mut done = 0;
    loop {
        progress(done, size);
        let read = body.read(&mut bytes).map_err(unread)?;
        if read == 0 {
            break;
        }
        done += read as u64;
        if done > size {
            return Err(wrong(format!("more than its {size} bytes came")));
        }
        sha256.update(&bytes[..read]);
        blob.update(&bytes[..read]);
        file.write_all(&bytes[..read]).map_err(unwritten)?;
    }
    if done < size {
        return Err(wrong(format!("{done} of its {size} bytes came")));
    }
    let sha256 = hexadecimal(&sha256.finalize());
    let (kind, expected, found) = match (&listed.lfs, &listed.blob_id) {
        (Some(large), _) => ("sha256", &large.sha256, sha256.clone()),
        (None, Some(id)) => ("git blob id", id, hexadecimal(&blob.finalize())),
        (None, None) => return Err(wrong("the hub names no digest".into())),
    };
    if !expected.eq_ignore_ascii_case(&found) {
        return Err(wrong(format!("its {kind} is {found}, and the hub lists {}", crate::text::shortened(expected))));
    }
    file.sync_all().map_err(unwritten)?;
    Ok(sha256)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    fn listed(size: u64, blob_id: Option<&str>, sha256: Option<&str>) -> HubFile {
        let lfs = sha256.map(|sha256| LargeFile { sha256: sha256.into() });
        HubFile { rfilename: "file".into(), size: Some(size), blob_id: blob_id.map(Into::into), lfs }
    }

    fn got(bytes: &[u8], listed: &HubFile) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let sha256 = download("url", bytes, listed, &path, &mut |_, _| {}).map_err(|error| error.to_string())?;
        assert_eq!(std::fs::read(path).unwrap(), bytes);
        Ok(sha256)
    }

    #[test]
    fn files_are_held_against_the_digest_that_the_hub_lists() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
        let blob = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let hello = b"hello\n";
        assert_eq!(got(hello, &listed(6, Some(blob), None)).unwrap(), sha256);
        assert_eq!(got(hello, &listed(6, Some("of a pointer"), Some(sha256))).unwrap(), sha256);
        let refused = |bytes: &[u8], listed: &HubFile| got(bytes, listed).unwrap_err();
        assert!(refused(b"hallo\n", &listed(6, Some(blob), None)).contains("git blob id"));
        assert!(refused(b"hallo\n", &listed(6, None, Some(sha256))).contains("sha256"));
        assert!(refused(b"hell", &listed(6, Some(blob), None)).contains("4 of its 6 bytes"));
        assert!(refused(b"hello\n\n", &listed(6, Some(blob), None)).contains("more than its 6 bytes"));
        assert!(refused(hello, &listed(6, None, None)).contains("no digest"));
    }

    #[test]
    fn tokens_travel_encrypted_or_not_at_all() {
        for open in ["http://mirror:80/hub", "HTTP://mirror", "http://localhost:80@mirror", "http://127.0.0.1.mirror"] {
            assert!(matches!(Hub::new(open, Some("secret")), Err(Error::TokenInTheClear(_))), "{open}");
        }
        for endpoint in
            ["http://127.0.0.1:80", "http://[::1]:80/hub", "http://localhost", "https://mirror", "HTTPS://mirror"]
        {
            assert!(Hub::new(endpoint, Some("secret")).is_ok(), "{endpoint}");
        }
        assert!(Hub::new("http://mirror", None).is_ok());
    }

    #[test]
    fn graphs_get_one_name_and_their_weights_keep_theirs() {
        let files = wanted(catalogue::find("bge-m3").unwrap());
        assert_eq!(files[4], ("onnx/model.onnx", "model.onnx"));
        assert_eq!(files[5], ("onnx/model.onnx_data", "model.onnx_data"));
        assert_eq!(files.len(), 7);
    }
}
