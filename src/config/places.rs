//! The places that remedies name: the hosts and portals of the configured cloud, the tenant and the application.
//!
//! A remedy is written once, for the worldwide cloud, with marks for the parts that differ: `{authority}`, `{api}`,
//! `{tenant}`, `{app}` and `{lookup}`. The names of Microsoft's consoles ("Entra admin centre", "Azure portal",
//! "Exchange Online PowerShell") are those of the worldwide cloud; a national cloud has its own, and the address is
//! then added to the name.

use url::Url;

use super::source::{Cloud, SourceConfig};
use crate::model::is_guid;

impl Cloud {
    /// The place where applications are registered in this cloud. From "National clouds" of the Microsoft identity
    /// platform.
    #[doc(hidden)]
    pub const fn entra(self) -> &'static str {
        match self {
            Self::Enterprise | Self::Gcc => "Entra admin centre",
            Self::GccHigh | Self::Dod => "Entra admin centre (https://entra.microsoft.us)",
            Self::China => "Azure portal (https://portal.azure.cn) > Microsoft Entra ID",
        }
    }

    /// The Azure portal of this cloud, from the same page.
    #[doc(hidden)]
    pub const fn azure_portal(self) -> &'static str {
        match self {
            Self::Enterprise | Self::Gcc => "Azure portal",
            Self::GccHigh | Self::Dod => "Azure portal (https://portal.azure.us)",
            Self::China => "Azure portal (https://portal.azure.cn)",
        }
    }

    /// The command that connects to Exchange Online PowerShell, from "Connect to Exchange Online PowerShell".
    #[doc(hidden)]
    pub const fn exchange(self) -> &'static str {
        match self {
            Self::Enterprise | Self::Gcc => "Exchange Online PowerShell",
            Self::GccHigh => {
                "Exchange Online PowerShell (`Connect-ExchangeOnline -ExchangeEnvironmentName O365USGovGCCHigh`)"
            }
            Self::Dod => "Exchange Online PowerShell (`Connect-ExchangeOnline -ExchangeEnvironmentName O365USGovDoD`)",
            Self::China => "Exchange Online PowerShell (`Connect-ExchangeOnline -ExchangeEnvironmentName O365China`)",
        }
    }

    /// `remedy` with the names of this cloud's consoles. Idempotent.
    #[doc(hidden)]
    pub fn localised(self, remedy: &str) -> String {
        let mut text = remedy.to_owned();
        // The Azure portal first: China's place for Entra names it.
        for (name, own) in [
            ("Azure portal", self.azure_portal()),
            ("Entra admin centre", self.entra()),
            ("Exchange Online PowerShell", self.exchange()),
        ] {
            if own != name && !text.contains(own) {
                text = text.replace(name, own);
            }
        }
        text
    }
}

/// The values of a remedy's marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    cloud: Cloud,
    api: String,
    authority: String,
    tenant: String,
    app: String,
}

impl Places {
    /// The values for one tenant. `app` is shown only if it is a GUID, since any other value may be a secret.
    pub fn new(cloud: Cloud, api_url: &Url, authority_url: &Url, tenant: &str, app: &str) -> Self {
        let origin = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
        let app = if is_guid(app.trim()) { app.trim() } else { "APP" };
        Self {
            cloud,
            api: origin(api_url),
            authority: origin(authority_url),
            tenant: tenant.to_owned(),
            app: app.to_owned(),
        }
    }

    /// Examples, for documents: the worldwide cloud.
    pub fn example() -> Self {
        let cloud = Cloud::Enterprise;
        Self {
            cloud,
            api: cloud.api_url().to_owned(),
            authority: cloud.authority_url().to_owned(),
            tenant: "TENANT".to_owned(),
            app: "APP".to_owned(),
        }
    }

    /// `remedy` for this tenant; `{lookup}` is left to [`Places::lookup`].
    pub fn fill(&self, remedy: &str) -> String {
        let text = remedy
            .replace("{authority}", &self.authority)
            .replace("{api}", &self.api)
            .replace("{tenant}", &self.tenant)
            .replace("{app}", &self.app);
        self.cloud.localised(&text)
    }

    /// Microsoft's own page about an AADSTS code, or about all of them.
    pub fn lookup(&self, code: Option<u32>) -> String {
        let page = format!("{}/error", self.cloud.authority_url());
        code.map_or_else(|| page.clone(), |code| format!("{page}?code={code}"))
    }
}

impl SourceConfig {
    /// The places for this source's remedies.
    #[doc(hidden)]
    pub fn places(&self) -> Places {
        Places {
            cloud: self.cloud,
            api: self.api_origin(),
            authority: self.authority_origin(),
            tenant: self.tenant_id.to_string(),
            app: self
                .client_id
                .as_deref()
                .map(str::trim)
                .filter(|id| is_guid(id))
                .map_or_else(|| "APP".to_owned(), str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_names_the_consoles_of_its_cloud_once() {
        let remedy = "Azure portal > the machine; Entra admin centre > Overview; in Exchange Online PowerShell";
        assert_eq!(Cloud::Enterprise.localised(remedy), remedy);
        assert_eq!(Cloud::Gcc.localised(remedy), remedy);
        let high = Cloud::GccHigh.localised(remedy);
        assert_eq!(
            high,
            "Azure portal (https://portal.azure.us) > the machine; Entra admin centre (https://entra.microsoft.us) > \
             Overview; in Exchange Online PowerShell (`Connect-ExchangeOnline -ExchangeEnvironmentName O365USGovGCCHigh`)"
        );
        for cloud in Cloud::ALL {
            let once = cloud.localised(remedy);
            assert_eq!(cloud.localised(&once), once, "{cloud:?}");
        }
    }

    #[test]
    fn what_is_no_guid_is_not_shown_as_the_application() {
        let url = Url::parse("https://login.example").unwrap();
        let places = |app| Places::new(Cloud::Enterprise, &url, &url, "T", app).fill("{app} {tenant} {authority}");
        assert_eq!(places("s3cret~value"), "APP T https://login.example");
        assert_eq!(
            places(" C0FFEE00-1111-4222-8333-444455556666 "),
            "C0FFEE00-1111-4222-8333-444455556666 T https://login.example"
        );
    }
}
