//! Which member of a fleet should read a tenant: rendezvous hashing, which everybody computes alike from the list of live
//! members. A member that joins takes its share from all others and nothing else moves; one that goes leaves its share
//! to all others (Thaler and Ravishankar, 1998, with weights).

use std::cmp::Ordering;

/// A live member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its name.
    pub id: String,
    /// How much of the fleet's work it should have, compared with the others.
    pub weight: u32,
}

/// The member that should read `tenant`; `None` when there is none.
pub fn owner_of<'p>(tenant: &str, peers: &'p [Peer]) -> Option<&'p Peer> {
    peers.iter().max_by(|one, other| compare(tenant, one, other))
}

/// The member that should read `tenant` where `member` cannot: the next in the order in which they should, round and round.
pub fn next_after<'p>(member: &str, tenant: &str, peers: &'p [Peer]) -> Option<&'p Peer> {
    let mut order: Vec<&Peer> = peers.iter().collect();
    order.sort_by(|one, other| compare(tenant, other, one));
    let place = order.iter().position(|peer| peer.id == member)?;
    order.get((place + 1) % order.len()).copied().filter(|next| next.id != member)
}

fn compare(tenant: &str, one: &Peer, other: &Peer) -> Ordering {
    // The name decides between two that are equal, so that no two members decide otherwise.
    score(tenant, one).total_cmp(&score(tenant, other)).then_with(|| one.id.cmp(&other.id))
}

fn score(tenant: &str, peer: &Peer) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(peer.id.len() as u64).to_le_bytes());
    hasher.update(peer.id.as_bytes());
    hasher.update(tenant.as_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    // 53 bits, as many as the number has; between 0 and 1, neither of them.
    let drawn = ((u64::from_le_bytes(first) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(peer.weight) / -drawn.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn peers(weights: &[u32]) -> Vec<Peer> {
        weights.iter().enumerate().map(|(n, weight)| Peer { id: format!("worker-{n}"), weight: *weight }).collect()
    }

    fn placed(peers: &[Peer]) -> Vec<&str> {
        (0..10_000).map(|n| owner_of(&format!("tenant {n}"), peers).unwrap().id.as_str()).collect()
    }

    fn shares(placed: &[&str]) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        placed.iter().for_each(|id| *shares.entry((*id).to_owned()).or_insert(0) += 1);
        shares
    }

    #[test]
    fn tenants_are_shared_out_by_weight() {
        for share in shares(&placed(&peers(&[1, 1, 1, 1]))).into_values() {
            assert!((2_300..2_700).contains(&share), "{share}");
        }
        let uneven = shares(&placed(&peers(&[1, 3])));
        assert!((7_300..7_700).contains(&uneven["worker-1"]), "{uneven:?}");
        assert_eq!(owner_of("tenant", &[]), None);
    }

    #[test]
    fn a_member_that_joins_takes_its_share_and_nothing_else_moves() {
        let (four, five) = (peers(&[1; 4]), peers(&[1; 5]));
        let (before, after) = (placed(&four), placed(&five));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).collect::<Vec<_>>();
        assert!(moved.iter().all(|(_, after)| **after == "worker-4"));
        assert!((1_800..2_200).contains(&moved.len()), "{}", moved.len());
    }

    #[test]
    fn who_cannot_read_a_tenant_has_a_next_and_all_are_in_the_round() {
        let five = peers(&[1, 2, 3, 1, 1]);
        let first = owner_of("tenant", &five).unwrap();
        let mut round = vec![first.id.as_str()];
        for _ in 1..5 {
            round.push(&next_after(round.last().unwrap(), "tenant", &five).unwrap().id);
        }
        assert_eq!(next_after(round[4], "tenant", &five), Some(first));
        let second = round[1];
        round.sort_unstable();
        round.dedup();
        assert_eq!(round.len(), 5);
        let without: Vec<Peer> = five.iter().filter(|peer| *peer != first).cloned().collect();
        assert_eq!(owner_of("tenant", &without).unwrap().id, second, "who would have it if the first were gone");
        assert_eq!(next_after("worker-0", "tenant", &peers(&[1])), None);
        assert_eq!(next_after("nobody", "tenant", &five), None);
    }

    #[test]
    fn who_asks_and_in_which_order_the_members_come_decides_nothing() {
        let mut backwards = peers(&[1, 2, 3]);
        backwards.reverse();
        assert_eq!(placed(&peers(&[1, 2, 3])), placed(&backwards));
    }
}
