"""Guess the encoding of a text that is not UTF-8, to name the command that converts it."""

import codecs
from pathlib import Path

from llm.commands import for_shell

# Longest first: the mark of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def how_to_convert(name: str, raw: bytes) -> str:
    """The end of a message about a file that is not UTF-8: the command that converts it, if its
    first bytes ``raw`` show its encoding, else nothing.

    The command writes a new file into the current folder.
    """
    encoding = guess_encoding(raw)
    if encoding is None:
        return ""
    path = Path(name)
    command = for_shell(["iconv", "-f", encoding, "-t", "UTF-8", name])
    new = for_shell([f"{path.stem}.utf8{path.suffix}"])
    shown = {"GB18030": "GBK"}.get(encoding, encoding)
    return f"; it looks like {shown}, so convert it: {command} > {new}"


def guess_encoding(raw: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, GB18030 (which includes GBK and GB2312) by its characters, or
    None; each is iconv's name.
    """
    for mark, encoding in MARKS.items():
        if raw.startswith(mark):
            text = _decode(raw, encoding)
            return encoding if all(c.isprintable() or c.isspace() for c in text or "\0") else None
    return "GB18030" if b"\0" not in raw and _is_chinese(raw) else None


def _is_chinese(raw: bytes) -> bool:
    # Any bytes may be valid GB18030 by chance. But Latin letters with accents rarely form the pairs
    # of high bytes of the common characters, which are in GB2312. And if most high bytes are valid
    # UTF-8, the text is UTF-8 with an error in it.
    high = sum(byte > 0x7F for byte in raw)
    in_utf8 = sum(len(c.encode()) for c in raw.decode("utf-8", "ignore") if c > "\x7f")
    text = _decode(raw, "GB18030")
    if 2 * in_utf8 > high or text is None:
        return False
    hanzi = "".join(c for c in text if "\u4e00" <= c <= "\u9fff")
    common = len(hanzi.encode("gb2312", "ignore")) // 2
    return 2 * common > sum(c > "\x7f" for c in text)


def _decode(raw: bytes, encoding: str) -> str | None:
    """The text, less a character that is cut off at the end; None if it is not valid."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(raw)
    except UnicodeDecodeError:
        return None
