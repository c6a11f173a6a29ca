-- The tables of a fleet. Every statement may be run again. `meta.schema` says which version this is.
create table if not exists meta (
    name text primary key,
    value bigint not null
);
-- Who is in the fleet. Only the store's clock says until when.
create table if not exists member (
    id text primary key,
    incarnation bigint not null,
    expires timestamptz not null,
    version text not null,
    weight int not null,
    address text not null
);
-- Who should read a tenant. It bounds what comes twice; that nothing is lost rests on `owner.revision` alone.
create table if not exists lease (
    tenant uuid primary key,
    member text,
    incarnation bigint,
    since timestamptz not null,
    wanted_by text
);
create index if not exists lease_member on lease (member);
-- The entry that every commit of a tenant rewrites against the revision it knows.
create table if not exists owner (
    tenant uuid primary key,
    revision bigint not null,
    member text not null,
    sum bigint not null,
    value bytea not null
) with (fillfactor = 50);
create table if not exists kv (
    tenant uuid not null,
    key text collate "C" not null,
    revision bigint not null,
    sum bigint not null,
    value bytea not null,
    primary key (tenant, key)
) with (fillfactor = 85);
-- Keys and events do not compress: what is large is stored beside the row as it is.
alter table kv alter column value set storage external;
-- What an operator asked of the owner of a tenant: back-fill, heal, a moved position.
create table if not exists request (
    id bigserial primary key,
    tenant uuid not null,
    what jsonb not null,
    progress jsonb,
    claimed_revision bigint
);
-- Tenants that no file names.
create table if not exists tenant (
    id uuid primary key,
    name text unique not null,
    template text,
    settings jsonb not null,
    revision bigint not null
);

-- Applies one commit of one tenant, all or nothing, and returns the key that was not as expected, or null.
--
-- `next` is the revision the commit gives out, drawn by the committer. An expectation is a revision, 0 for "no such
-- key", null for "whatever is there"; a null value takes the key away. The owner's entry has a table of its own: its row
-- is the lock, so commits of one tenant come one after the other.
create or replace function m365_commit(
    t uuid, by_member text, next bigint,
    owner_expected bigint, owner_sum bigint, owner_value bytea, owner_goes boolean, owner_place int,
    keys text[], expected bigint[], sums bigint[], vals bytea[]
) returns text language plpgsql as $$
declare
    found_revision bigint;
    clash text;
    clash_place bigint;
begin
    select revision into found_revision from owner where tenant = t for update;
    if not found then
        insert into owner values (t, 0, '', 0, '') on conflict (tenant) do nothing;
        select revision into found_revision from owner where tenant = t for update;
    end if;
    select k.key, k.n into clash, clash_place
        from unnest(keys, expected) with ordinality as k (key, expected, n)
        left join kv on kv.tenant = t and kv.key = k.key
        where k.expected is not null and coalesce(kv.revision, 0) <> k.expected
        order by k.n limit 1;
    -- Of several the first step is told.
    if owner_expected is not null and found_revision <> owner_expected and (clash is null or owner_place < clash_place) then
        return 'owner';
    end if;
    if clash is not null then
        return clash;
    end if;
    if owner_goes then
        update owner set revision = 0, member = '', sum = 0, value = '' where tenant = t;
    elsif owner_value is not null then
        update owner set revision = next, member = by_member, sum = owner_sum, value = owner_value where tenant = t;
    end if;
    insert into kv (tenant, key, revision, sum, value)
        select t, k.key, next, k.sum, k.value from unnest(keys, sums, vals) as k (key, sum, value) where k.value is not null
        on conflict (tenant, key) do update set revision = excluded.revision, sum = excluded.sum, value = excluded.value;
    if array_position(vals, null) is not null then
        delete from kv using unnest(keys, vals) as k (key, value)
            where kv.tenant = t and kv.key = k.key and k.value is null;
    end if;
    return null;
end
$$;
