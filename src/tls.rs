//! TLS for the connections that we open: rustls with ring, and the trusted CAs. Owns file reading.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read CA file {path}: {why}")]
    CaFile { path: String, why: String },
    #[error("cannot set up TLS: {0}")]
    Setup(String),
}

/// Builds the TLS client configuration. `ca_file`: a PEM file with the only CAs to trust; without
/// it, the system's CAs are trusted.
///
/// # Errors
/// Returns [`TlsError`] if no CA certificate can be loaded, or if TLS cannot be set up.
pub fn client_config(ca_file: Option<&str>) -> Result<rustls::ClientConfig, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let error = |why: String| TlsError::CaFile { path: path.to_owned(), why };
            let found = CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))?;
            for certificate in found {
                let certificate = certificate.map_err(|e| error(e.to_string()))?;
                roots.add(certificate).map_err(|e| error(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(error("it holds no certificate".to_owned()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why =
                    "the system has no CA certificates; install ca-certificates or set ca_file";
                return Err(TlsError::Setup(why.to_owned()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Setup(e.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
