//! `UserType`: its numbers, their names, and the word that records use for each.
//!
//! After "User Type" of Microsoft's "Office 365 Management Activity API schema". The feed writes numbers; PowerShell
//! (`-Formatted`), Microsoft Graph and Sentinel write names.

/// A known type of user.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserType {
    /// Its name in the schema.
    pub name: &'static str,
    /// Its word in a record.
    pub kind: &'static str,
}

/// By number.
const TYPES: [UserType; 11] = [
    UserType { name: "Regular", kind: "regular" },
    UserType { name: "Reserved", kind: "reserved" },
    UserType { name: "Admin", kind: "admin" },
    UserType { name: "DcAdmin", kind: "dc_admin" },
    UserType { name: "System", kind: "system" },
    UserType { name: "Application", kind: "application" },
    UserType { name: "ServicePrincipal", kind: "service_principal" },
    UserType { name: "CustomPolicy", kind: "custom_policy" },
    UserType { name: "SystemPolicy", kind: "system_policy" },
    UserType { name: "PartnerTechnician", kind: "partner_technician" },
    UserType { name: "Guest", kind: "guest" },
];

/// The type with this number.
pub(crate) fn info(number: i64) -> Option<&'static UserType> {
    TYPES.get(usize::try_from(number).ok()?)
}

/// The number of a name, in any case.
pub(crate) fn number(name: &str) -> Option<i64> {
    let name = name.trim();
    let at = TYPES.iter().position(|known| known.name.eq_ignore_ascii_case(name))?;
    i64::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_the_number_of_its_place() {
        for (at, known) in TYPES.iter().enumerate() {
            assert_eq!(number(&known.name.to_uppercase()), Some(at as i64));
            assert_eq!(info(at as i64).unwrap().kind, known.kind);
        }
        assert_eq!((number("2"), number(""), number("Nobody")), (None, None, None));
        assert!(info(11).is_none() && info(-1).is_none());
    }
}
