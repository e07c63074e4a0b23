"""The names of the folders of a sweep's jobs."""

import hashlib
import re
from collections.abc import Iterable
from unicodedata import normalize

LONGEST = 120  # bytes
# With 8 digits, two of 20,000 jobs would share a digest in 1 of 20 sweeps.
DIGITS = 12
DIGEST = re.compile(rf"-[0-9a-f]{{{DIGITS}}}$")
NO_VALUES = "job-0"
# Windows reads these as devices, with any ending.
RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)


def folder_name(values: dict[str, str]) -> str:
    """``model.n_layer-4_optimizer.lr-0.001``: the folder of the job with these values, by key.

    Letters and digits of any script and ``. _ -``, at most 120 bytes. A digest of the values is
    appended if the rest does not determine them: ``optimizer.lr-1e30-8c2f0f5d1a7e``. So jobs that
    differ in the values of the same keys have different folders, on file systems that ignore case
    or change the form of accented letters as well.
    """
    if not values:
        return NO_VALUES
    keys = sorted(values, key=lambda key: f"{key}=")
    parts = {key: f"{_clean_key(key)}-{_clean(values[key])}" for key in keys}
    name = "_".join(parts.values())
    if RESERVED.match(name):
        name = f"_{name}"
    raw = name.encode()
    room = LONGEST - DIGITS - 1
    if len(raw) <= room and _is_reversible([values[key] for key in keys], keys, name):
        return name
    exact = ascii(sorted(values.items()))  # JSON writes an emoji like a pair of surrogates
    digest = hashlib.sha256(exact.encode()).hexdigest()[:DIGITS]
    return f"{raw[:room].decode(errors='ignore')}-{digest}"  # not half a character


def values_of(overrides: Iterable[str]) -> dict[str, str]:
    """The values of overrides ``key=value``, by key, for :func:`folder_name`; the last one wins."""
    pairs = (one.partition("=") for one in overrides)
    return {key: value for key, _, value in pairs}


def folded(name: str) -> str:
    """Equal for names that some file system takes for the same."""
    return normalize("NFC", normalize("NFC", name).upper().casefold())


def _is_reversible(values: list[str], keys: list[str], name: str) -> bool:
    """Whether ``name``, made of ``values``, determines them on every file system."""
    if any(value != _clean(value) or value != folded(value) for value in values):
        return False
    # Windows drops dots at the end. A value that ends like a digest could belong to a longer name.
    if values[-1].endswith(".") or DIGEST.search(values[-1]):
        return False
    same = folded(name)
    separators = [folded(f"_{_clean_key(key)}-") for key in keys[1:]]
    return all(same.find(one) == same.rfind(one) for one in separators)


def _clean_key(key: str) -> str:
    return _clean(key).lstrip(".-") or "key"


def _clean(text: str) -> str:
    """``text`` with ``-`` for characters other than letters, digits and ``. _ -``."""
    text = normalize("NFC", text).replace("e+", "e")  # 1e+30 must not read as 1e-30
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
