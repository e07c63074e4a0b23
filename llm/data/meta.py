"""``meta.json`` of a prepared folder describes its token files and holds their tokenizer."""

from pathlib import Path

from llm.disk import write_durably
from llm.errors import Refused, require
from llm.sealed import Plain, opened, read_json, sealed

META = "meta.json"
FORMAT_VERSION = 2
SPLITS = ("train", "val")
KINDS = {
    "format_version": int, "name": str, "dtype": str, "byte_order": str, "vocab_size": int,
    "max_id": int, "source": dict, "made_from": dict, "tokenizer": dict,
}  # fmt: skip
KINDS_PER_SPLIT = {"tokens": int, "bytes": int, "sha256": str}
AGAIN = "prepare it again with data.overwrite=true"


def write_meta(folder: Path, values: Plain) -> None:
    """Write ``meta.json`` with the digest of ``values``; it is on the disk when this returns."""
    write_durably(folder / META, sealed(values).encode())


def read_meta(folder: Path) -> Plain:
    """The values of ``meta.json``; :class:`llm.errors.Refused` naming what is wrong with them."""
    path = folder / META
    try:
        return _checked(read_json(path), path)
    except FileNotFoundError:
        raise Refused(
            f"{folder} is not a prepared dataset, it has no {META}: "
            "take another data.name, or replace it with data.overwrite=true"
        ) from None
    except Refused as error:
        raise Refused(f"{error}: {AGAIN}") from None


def _checked(saved: Plain, path: Path) -> Plain:
    version = saved.get("format_version")
    require(
        version == FORMAT_VERSION,
        f"{path} has format_version={version!r:.40}, and this program reads {FORMAT_VERSION}",
    )
    values = opened(saved, path)
    unknown = sorted(set(values).difference(KINDS, KINDS_PER_SPLIT))
    require(not unknown, f"{path} has the unknown key {''.join(unknown[:1])!r:.40}")
    for key, kind in KINDS.items():
        require(type(values.get(key)) is kind, f"{path} has no usable {key}")
    for key, kind in KINDS_PER_SPLIT.items():
        each = values.get(key)
        require(
            isinstance(each, dict)
            and set(each) == set(SPLITS)
            and all(type(value) is kind for value in each.values()),
            f"{path} has no usable {key} per split",
        )
    for key, expected in (("dtype", ("uint16", "uint32")), ("byte_order", ("little",))):
        require(
            values[key] in expected,
            f"{path} has {key}={values[key]!r:.40}: {' or '.join(expected)} expected",
        )
    return values
