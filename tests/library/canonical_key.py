"""Canonical keys (docs/receipts.md): events in, keys out, a line each. Argument: the table of record types."""
import hashlib
import json
import re
import sys
from datetime import datetime, timezone

NUMBERS = {}
for number, name, *_ in (line.strip().split(",") for line in list(open(sys.argv[1]))[1:]):
    NUMBERS[re.sub("[^a-z0-9]", "", name.lower())] = number

TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.\d{1,9})?(Z|[+-]\d\d:\d\d)?$")


def text(value):
    return value if isinstance(value, str) else ""


def record_type(value):
    value = text(value).strip()
    return NUMBERS.get(re.sub("[^a-z0-9]", "", value.lower()), value)


def time(value):
    found = TIME.match(text(value).strip())
    if not found:
        return text(value).strip()
    zone = (found[3] or "Z").replace("Z", "+00:00")
    try:
        second = re.sub(":60$", ":59", found[2])
        at = datetime.fromisoformat(f"{found[1]}T{second}{zone}").astimezone(timezone.utc)
    except ValueError:  # No such day or hour.
        return text(value).strip()
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def key(event):
    of = {name.lower(): value for name, value in event.items()}.get
    identity = re.sub("[A-Z]", lambda letter: letter[0].lower(), text(of("id")).strip())
    if not identity:
        return "none"
    kind, at, number = record_type(of("recordtype")), time(of("creationtime")), text(of("recordnumber")).strip()
    parts = [identity, kind, at, text(of("operation")), number]
    hashed = b"".join(b"%d:%s," % (len(part), part) for part in (part.encode() for part in parts))
    return hashlib.blake2b(hashed, digest_size=16).hexdigest()


for line in sys.stdin:
    # Numbers as they are written.
    print(key(json.loads(line, parse_int=str, parse_float=str)))
