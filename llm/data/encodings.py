"""A text in another encoding: which one it seems to be, and the command that converts it."""

import codecs
from pathlib import Path

from llm.commands import for_shell

# Longest first: the mark of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def converted_by(name: str, raw: bytes) -> str:
    """The end of a message about a file that is not UTF-8: how to convert it, where its first
    bytes ``raw`` tell its encoding, else nothing.

    The command writes a new file into the folder that the user stands in.
    """
    encoding = guess(raw)
    if encoding is None:
        return ""
    path = Path(name)
    words = ["iconv", "-f", encoding, "-t", "UTF-8", name]
    new = for_shell([f"{path.stem}.utf8{path.suffix}"])
    alias = {"GB18030": "GBK"}.get(encoding, encoding)
    return f"; it looks like {alias}, so convert it: {for_shell(words)} > {new}"


def guess(raw: bytes) -> str | None:
    """What iconv calls the encoding of ``raw``: UTF-16, UTF-32, GB18030 (which holds GBK and
    GB2312), or None.
    """
    for mark, encoding in MARKS.items():
        if raw.startswith(mark):
            return encoding if _ascii_characters(raw, encoding) is not None else None
    if b"\0" not in raw:
        return "GB18030" if _is_chinese(raw) else None
    # Without a mark: read the wrong way round, a line end or a Latin letter is another character.
    found = {encoding: _ascii_characters(raw, encoding) for encoding in ("UTF-16LE", "UTF-16BE")}
    best = max(found, key=lambda encoding: found[encoding] or 0)
    return best if found[best] else None


def _ascii_characters(raw: bytes, encoding: str) -> int | None:
    """Number of ASCII characters in ``raw``; None if it is not text in this encoding."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(raw)
    except UnicodeDecodeError:
        return None
    if not all(c.isprintable() or c.isspace() for c in text):
        return None
    return sum(c.isascii() for c in text)


def _is_chinese(raw: bytes) -> bool:
    # Any bytes may be valid GB18030 by chance. But UTF-8 with an error in it is mostly UTF-8, and
    # Latin letters with accents seldom come in the pairs of high bytes that GB2312 has for the
    # common characters.
    utf8 = [c for c in raw.decode("utf-8", errors="ignore") if c > "\x7f"]
    if 2 * len("".join(utf8).encode()) > sum(byte > 0x7F for byte in raw):
        return False
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(raw)
    except UnicodeDecodeError:
        return False
    foreign = [c for c in text if c > "\x7f"]
    common = sum("\u4e00" <= c <= "\u9fff" and _is_in_gb2312(c) for c in foreign)
    return 2 * common > len(foreign)


def _is_in_gb2312(character: str) -> bool:
    try:
        return len(character.encode("gb2312")) == 2
    except UnicodeEncodeError:
        return False
