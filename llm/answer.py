"""The result of a command for programs, which ``json=true`` prints as one JSON document."""

from llm.sealed import Plain

SCHEMA = 1  # of the document; it changes when a key changes its meaning
document: Plain = {}  # what the running command has answered so far


def answer(**values: object) -> None:
    """Add ``values`` to the document of the running command."""
    document.update(values)
