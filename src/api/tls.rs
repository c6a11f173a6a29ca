//! The trusted certificates: the machine's authorities, and those of `ca_file`.
//!
//! A certificate of `ca_file` that a server presents as its own (a self-signed one) is trusted for the names in it
//! while it is valid, as other programs do with such a file. The library refuses it if it is marked as an authority's,
//! so this module decides that one case.

use std::sync::{Arc, Weak};

#[cfg(feature = "kafka")]
use base64::Engine as _;
#[cfg(feature = "kafka")]
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use url::Url;

use crate::auth::forms::{authorities, parts};

#[cfg_attr(not(feature = "embedded"), allow(dead_code, reason = "for sinks, which are left out"))]
pub(crate) fn tls(ca_pem: Option<&[u8]>, target: &Url) -> Result<rustls::ClientConfig, String> {
    tls_with(ca_pem, target, None, None)
}

/// One set of rules for the proxy's TLS and the target's. `client_pem` is presented to any server that requests a
/// certificate: the proxy it is meant for. Microsoft's hosts do not request one.
pub(super) fn tls_with(
    ca_pem: Option<&[u8]>,
    target: &Url,
    proxy: Option<&Url>,
    client_pem: Option<&[u8]>,
) -> Result<rustls::ClientConfig, String> {
    let is_tls = target.scheme() == "https" || proxy.is_some_and(|proxy| proxy.scheme() == "https");
    let mut roots = if is_tls { native_roots() } else { Arc::new(rustls::RootCertStore::empty()) };
    let own = match ca_pem {
        Some(bytes) => authorities(bytes).map_err(|why| format!("`ca_file` {why}"))?,
        None => Vec::new(),
    };
    for certificate in &own {
        let added = Arc::make_mut(&mut roots).add(certificate.clone());
        added.map_err(|error| format!("a certificate of `ca_file` cannot be used: {error}"))?;
    }
    if is_tls && roots.is_empty() {
        return Err("this machine has no trusted root certificates".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if own.is_empty() {
        builder.with_root_certificates(roots)
    } else {
        let verifier = Pinning::new(roots, own, provider)?;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    let mut config = match client_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let parts = parts(pem, None).map_err(|why| format!("`proxy_certificate_file` {why}"))?;
            let chain = parts.certificates.into_iter().map(CertificateDer::from).collect();
            let key = PrivateKeyDer::from_pem_slice(pem);
            let key = key.map_err(|error| format!("the proxy certificate's key is not PEM: {error}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("`proxy_certificate_file` cannot be used: {error}"))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The certificates that [`tls`] trusts, as PEM: for a library with its own TLS.
#[cfg(feature = "kafka")]
pub(crate) fn trusted_pem(ca_pem: Option<&[u8]>) -> Result<String, String> {
    use std::fmt::Write as _;

    let own = match ca_pem {
        Some(bytes) => authorities(bytes).map_err(|why| format!("`ca_file` {why}"))?,
        None => Vec::new(),
    };
    // As below: unreadable certificates of the system's store are left out.
    let mut store = rustls::RootCertStore::empty();
    let mut natives = rustls_native_certs::load_native_certs().certs;
    natives.retain(|certificate| store.add(certificate.clone()).is_ok());
    let mut pem = String::new();
    for certificate in own.iter().chain(&natives) {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            let _ = writeln!(pem, "{}", String::from_utf8_lossy(line));
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    if pem.is_empty() { Err("this machine has no trusted root certificates".into()) } else { Ok(pem) }
}

/// The certificates this machine trusts, read again when no client holds them: a process with a thousand tenants must
/// not read and hold them a thousand times.
fn native_roots() -> Arc<rustls::RootCertStore> {
    static IN_USE: Mutex<Weak<rustls::RootCertStore>> = Mutex::new(Weak::new());
    let mut in_use = IN_USE.lock();
    if let Some(roots) = in_use.upgrade() {
        return roots;
    }
    let mut roots = rustls::RootCertStore::empty();
    // Single unreadable certificates are common in system stores, and are not a reason to stop.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let roots = Arc::new(roots);
    *in_use = Arc::downgrade(&roots);
    roots
}

/// The library's verifier, and the certificates of `ca_file` as servers' own.
#[derive(Debug)]
struct Pinning {
    inner: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl Pinning {
    fn new(
        roots: Arc<rustls::RootCertStore>,
        pinned: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider);
        let inner = inner.build().map_err(|error| error.to_string())?;
        Ok(Self { inner, pinned })
    }
}

impl ServerCertVerifier for Pinning {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        // Only a certificate with an unknown issuer is looked up: a wrong name or time stays an error. The library looks at
        // the time first, so what is looked up here is valid now.
        let unplaced = matches!(
            judged,
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_) | CertificateError::UnknownIssuer))
        );
        if !unplaced || !self.pinned.iter().any(|pinned| pinned.as_ref() == end_entity.as_ref()) {
            return judged;
        }
        rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
