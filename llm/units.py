"""Numbers with a unit, as text."""


def format_bytes(count: float) -> str:
    """Bytes as ``84 bytes``, ``127 KiB``, ``12 MiB`` or ``1.50 GiB``."""
    if 0 < count < 1000:
        return f"{count:.0f} bytes"
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def format_count(count: float) -> str:
    """``950``, ``32.8k``, ``109M`` or ``2.46B``: three digits."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{float(f'{count / size:.3g}'):g}{letter}"
    return f"{count:.0f}"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """``1 layer``, ``12 layers``, ``2,000 batches``."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def minutes(count: float) -> str:
    """``1 minute``, ``2.5 minutes``."""
    return f"{count:g} minute" + "s" * (count != 1)
