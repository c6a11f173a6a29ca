//! Networks that rules name, and whether an address is in one.

use std::net::IpAddr;

/// A network, as an address and the number of bits that count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    address: u128,
    bits: u32,
    v4: bool,
}

impl Network {
    /// `203.0.113.0/24`, or an address alone.
    pub(super) fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let v4 = address.is_ipv4();
        let width = if v4 { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        (bits <= width).then(|| Network { address: as_number(address), bits, v4 })
    }

    /// Whether an address is in it.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let width = if self.v4 { 32 } else { 128 };
        let shift = width - self.bits;
        address.is_ipv4() == self.v4
            && self.address.checked_shr(shift).unwrap_or(0) == as_number(address).checked_shr(shift).unwrap_or(0)
    }
}

fn as_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
