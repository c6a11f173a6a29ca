#!/usr/bin/env python3
"""Verifies what `receipts export` wrote (docs/receipts.md), with python3-cryptography: verify_receipts.py DIR --key FILE"""
import base64, datetime, hashlib, pathlib, re, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
HASH = r"([A-Za-z0-9+/]{43}=)"
STATEMENT = re.compile(rf"m365-audit/receipts/(.+)\n([0-9]+)\n{HASH}\nentries ([0-9]+)\nseq ([0-9]+)\nhour (.+)\npart ([0-9]+)( last)?"
                       rf"(?: begins)?\nprevious {HASH}\n((?:rule [0-9]+ .+\n)*)((?:count .+\n)*)")
HEAD = re.compile(rf"m365-audit/receipts-head/(.+)\n([0-9]+)\n{HASH}\nfirst ([0-9]+)\nlast ([0-9]+)\nprevious {HASH}\n.+\n")

def check(holds, why):
    if not holds: sys.exit(f"not verified: {why}")
def unpack(text):
    check(base64.b64encode(base64.b64decode(text)).decode() == text, "base64 that is not as it is written")
    return base64.b64decode(text)
def root(leaves):
    if len(leaves) < 2: return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    left = 1 << (len(leaves) - 1).bit_length() - 1  # The greatest power of two below their number.
    return hashlib.sha256(b"\1" + root(leaves[:left]) + root(leaves[left:])).digest()

def open_note(path, key_text, form):
    name, key_id, key = key_text.split("+", 2)
    note = re.fullmatch(r"((?:[^\n]+\n)+)\n— (\S+) (\S+)\n", path.read_bytes().decode(errors="replace"))
    check(note and note[2] == name and unpack(note[3])[:4].hex() == key_id, f"{path}: no note that this key signed")
    check(hashlib.sha256(name.encode() + b"\n" + unpack(key)).hexdigest()[:8] == key_id, "the key's id")
    Ed25519PublicKey.from_public_bytes(unpack(key)[1:]).verify(unpack(note[3])[4:], note[1].encode())
    return form.fullmatch(note[1]).groups(), base64.b64encode(hashlib.sha256(note[1].encode()).digest()).decode()

def verify_tenant(folder, key):
    seqs = sorted({int(file.stem, 16) for file in folder.iterdir() if file.name != "head"})
    names = {f"{seq:016x}.{kind}" for seq in seqs for kind in ("checkpoint", "entries")} | {"head"}
    check(seqs and seqs == list(range(seqs[0], seqs[-1] + 1)), f"{folder}: parts are missing")
    check({file.name for file in folder.iterdir()} == names, f"{folder}: files are missing or were added")
    follows = None
    for seq in seqs:
        statement, digest = open_note(folder / f"{seq:016x}.checkpoint", key, STATEMENT)
        tenant, leaves, top, size, number, hour, part, last, previous, rules, counts = statement
        hour, part = datetime.datetime.strptime(hour, "%Y-%m-%dT%H:00:00Z"), int(part)
        follows = follows or ((hour, 0, "A" * 43 + "=") if seq == 0 else (hour, part, previous))
        check((tenant, int(number)) == (folder.name, seq), f"part {seq} is another")
        check((hour, part, previous) == follows, f"part {seq} does not follow on the one before it")
        follows = (hour + datetime.timedelta(hours=1), 0, digest) if last else (hour, part + 1, digest)
        data = (folder / f"{seq:016x}.entries").read_bytes()
        entries, blocks = ([data[at:at + cut] for at in range(0, len(data), cut)] for cut in (17, 17 * 64))  # 64 in a leaf.
        sizes = (len(data), len(blocks)) == (17 * int(size), int(leaves))
        check(sizes and unpack(top) == root(blocks), f"part {seq}: entries were changed")
        known = all(entry[16] < 4 or 0 <= entry[16] - 16 < rules.count("\n") for entry in entries)
        check(known and all(a < b for a, b in zip(entries, entries[1:])), f"part {seq}: order or class of its entries")
        for at, name in enumerate(("delivered", "set_aside", "held", "dropped")):
            stated = sum(map(int, re.findall(f" {name} ([0-9]+)", counts)))
            check(stated == sum(min(entry[16], 3) == at for entry in entries), f"part {seq}: its entries are not {stated} {name}")
    found = (folder.name, leaves, top, str(seqs[0]), str(seqs[-1]), digest)
    check(open_note(folder / "head", key, HEAD)[0] == found, f"{folder}: the head is of other parts")
    print(f"{folder.name}: verified, parts {seqs[0]} to {seqs[-1]}, to the end of {hour:%Y-%m-%dT%H}h")

if __name__ == "__main__":
    directory, key = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[sys.argv.index("--key") + 1]).read_text()
    check((directory / "key.pub").read_bytes().decode() == key, "key.pub is not the key given")
    tenants = sorted(path for path in directory.iterdir() if path.name != "key.pub")
    check(tenants and all(path.is_dir() for path in tenants), "there are no receipts, or files beside them")
    for tenant in tenants: verify_tenant(tenant, key.rstrip("\n"))
