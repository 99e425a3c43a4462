"""Ways to damage a file: its bytes, the JSON in it, the members of an archive; and to seal it anew."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from typing import Any

from lpk.tickets import files, tensors

# As text, since Python would refuse to write some of them.
VALUES = [
    *("null", "true", "false", "0", "1", "-1", "2", "255", "1e999", "-0.0", "1.0", "0.5", "NaN", "-Infinity", '""'),
    *("[]", "{}", "[[]]", '"float32"', '"float64"', '"F16"', '"I64"', '"BOOL"', '"w.weight"', '"lpk.mask"', "[4,5]"),
    *(
        str(2**31),
        str(2**40),
        str(2**63),
        str(-(2**63)),
        str(2**64),
        "1" * 5000,
        '"\\ud800"',
        '"a\\nb\\u0000"',
        '"../x"',
    ),
    *("[" * 5000, '{"a":' * 5000, "[" * 900 + "]" * 900, "[1099511627776]", '["float32",1099511627776,1099511627776]'),
    *('[["x","float32",[1099511627776]]]', '{"tensor":"0"}', '{"dict":[[[],1]]}', '"' + "x" * 5000 + '"'),
]
BYTES = ("flip", "flip", "flip", "truncate", "extend", "splice", "overwrite", "empty", "digit")
TREE = ("replace", "replace", "delete", "rename", "swap", "copy", "twice", "sorted")
ZIP = ("deflate", "drop member", "double member", "rename member", "flip in member", "swap members")
Mutation = tuple[str, int, int, int]


def mutated(content: bytes, change: Mutation, others: list[bytes]) -> bytes:
    what, a, b, value = change
    if what in TREE:
        return in_json(content, change)
    if what in ZIP:
        return in_zip(content, change)
    if not content:
        return content
    at = a % len(content)
    match what:
        case "flip":
            return content[:at] + bytes([content[at] ^ 1 << b % 8]) + content[at + 1 :]
        case "truncate":
            return content[:at]
        case "extend":
            return content + VALUES[value].encode()
        case "splice":
            other = others[a % len(others)]
            return content[: b % len(content)] + other[b % (len(other) + 1) :]
        case "overwrite":
            number = (0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(content), b)[value % 8]
            at = 0 if b % 3 == 0 else at  # the length of a header
            return content[:at] + struct.pack("<Q", number) + content[at + 8 :]
        case "line":  # of TOML, whose values are nearly JSON's
            lines = content.split(b"\n")
            lines[a % len(lines)] = lines[a % len(lines)].partition(b"=")[0] + b"= " + VALUES[value].encode()
            return b"\n".join(lines)
        case "digit":
            digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
            at = digits[a % len(digits)] if digits else at
            return content[:at] + bytes([48 + b % 10]) + content[at + 1 :]
    return b""


def in_json(content: bytes, change: Mutation) -> bytes:
    """The mutation of a JSON file, of a safetensors header, or of the metadata in it; the rest fits again."""
    try:
        if content[:1] == b"{":
            return in_tree(json.loads(content), change).encode()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        if change[1] % 2 and "lpk" in header.get("__metadata__", {}):
            header["__metadata__"]["lpk"] = in_tree(json.loads(header["__metadata__"]["lpk"]), change)
            text = json.dumps(header).encode()
        else:
            text = in_tree(header, change).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    except (ValueError, AttributeError, TypeError, RecursionError, struct.error):  # an earlier mutation broke it
        return content


def in_tree(tree: Any, change: Mutation) -> str:
    """The JSON text of a tree with one of its nodes changed."""
    what, a, b, value = change
    places = places_of(tree)
    if what == "sorted" or not places:
        return json.dumps(tree, sort_keys=True, indent=b % 3)
    parent, key = places[a // 2 % len(places)]
    other, other_key = places[b % len(places)]
    mark = "@the value@"
    match what:
        case "replace":
            parent[key] = mark
        case "delete":
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[str(other_key)[: b % 40]] = parent.pop(key)
        case "swap":
            parent[key], other[other_key] = other[other_key], parent[key]
        case "copy":
            parent[key] = json.loads(json.dumps(other[other_key]))
        case "twice" if isinstance(tree, dict) and tree:
            name = list(tree)[a % len(tree)]
            return "{" + f"{json.dumps(name)}:{VALUES[value]}," + json.dumps(tree)[1:]
    return json.dumps(tree).replace(f'"{mark}"', VALUES[value])


def places_of(tree: Any) -> list[tuple[Any, Any]]:
    """Every node but the root: what it stands in, and under which key or number."""
    places, open_ = [], [tree]
    while open_:
        parent = open_.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else ()
        places += [(parent, key) for key in keys]
        open_ += [parent[key] for key in keys]
    return places


def in_zip(content: bytes, change: Mutation) -> bytes:
    """The mutation of a zip archive, with right checksums."""
    what, a, b, _ = change
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    except Exception:  # it is none, or an earlier mutation broke it
        return content
    at, other = a % len(members), b % len(members)
    name, data = members[at]
    match what:
        case "drop member":
            del members[at]
        case "double member":
            members.append((name, members[other][1]))
        case "rename member":
            members[at] = members[other][0] + "x", data
        case "flip in member" if data:
            byte = b % len(data)
            members[at] = name, data[:byte] + bytes([data[byte] ^ 1 << a % 8]) + data[byte + 1 :]
        case "swap members":
            members[at], members[other] = (name, members[other][1]), (members[other][0], data)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, data in members:
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if what == "deflate" else zipfile.ZIP_STORED)
    return made.getvalue()


def sealed_anew(content: bytes) -> bytes:
    """The content with a digest that fits, where there is one: what lpk itself might have written, had it a fault."""
    try:
        if content[:1] == b"{":
            tree = files.schema.parsed(content)
            return (
                json.dumps(tree | {"digest": files._digest(content.decode())}).encode() if "digest" in tree else content
            )
        file = io.BytesIO(content)
        header = tensors.read_header(file, len(content))
        metadata = header.metadata["lpk"]
        own = tensors.read(file, header.entries)
        return tensors.written(own, {"lpk": metadata, "digest": tensors.digest(own, metadata)})
    except (ValueError, KeyError, TypeError, RecursionError):
        return content
