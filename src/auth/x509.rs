//! What is read of a certificate: its key, its subject and its validity. Nothing here verifies a signature or a chain;
//! TLS does that.

use x509_parser::error::X509Error;
use x509_parser::nom;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::model::Timestamp;

/// A certificate of X.509.
pub(crate) struct ReadCertificate {
    pub subject: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// The public key in the form of its algorithm, such as PKCS#1 for RSA.
    pub public_key: Vec<u8>,
}

impl ReadCertificate {
    /// The certificate at the beginning of `der`, which may have more after it.
    ///
    /// # Errors
    /// The library's words for what is no certificate.
    pub fn of(der: &[u8]) -> Result<Self, nom::Err<X509Error>> {
        let (_, certificate) = X509Certificate::from_der(der)?;
        Ok(Self {
            subject: certificate.subject().to_string(),
            not_before: timestamp(certificate.validity().not_before),
            not_after: timestamp(certificate.validity().not_after),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

/// RFC 5280 writes "never expires" as the last second of the year 9999, which is after the last time we can hold.
fn timestamp(time: ASN1Time) -> Timestamp {
    let seconds = time.timestamp();
    Timestamp::from_second(seconds).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SerialNumber, date_time_ymd};

    use super::*;

    fn issued(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Contoso, Ltd");
        params.distinguished_name.push(DnType::CommonName, "audit");
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn key_subject_and_validity_are_read() {
        let der = issued(|params| {
            params.not_before = date_time_ymd(2026, 1, 2);
            params.not_after = date_time_ymd(2027, 3, 4);
        });
        let read = ReadCertificate::of(&der).unwrap();
        assert_eq!(read.subject, "O=Contoso, Ltd, CN=audit");
        assert_eq!(
            (read.not_before.to_string(), read.not_after.to_string()),
            ("2026-01-02T00:00:00Z".to_owned(), "2027-03-04T00:00:00Z".to_owned())
        );
        assert_eq!(read.public_key.first(), Some(&4), "an uncompressed point, without the algorithm before it");
    }

    #[test]
    fn a_certificate_that_never_expires_is_read() {
        // Its last second is after the last that `Timestamp` holds.
        let der = issued(|params| params.not_after = date_time_ymd(9999, 12, 31));
        assert_eq!(ReadCertificate::of(&der).unwrap().not_after, Timestamp::MAX);
    }

    #[test]
    fn serial_numbers_that_rfc_5280_forbids_are_no_reason_to_refuse() {
        for serial in [&[0x00_u8; 1][..], &[0xff; 20], &[0x7f; 40]] {
            let der = issued(|params| params.serial_number = Some(SerialNumber::from_slice(serial)));
            assert!(ReadCertificate::of(&der).is_ok(), "{serial:02x?}");
        }
    }

    #[test]
    fn a_cut_certificate_is_refused_at_every_length() {
        let der = issued(|_| {});
        for length in 0..der.len() {
            assert!(ReadCertificate::of(&der[..length]).is_err(), "{length} of {}", der.len());
        }
    }
}
