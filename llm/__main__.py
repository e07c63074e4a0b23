"""``python -m llm``: a list of the commands."""

import sys

from llm.commands import command_line, purposes
from llm.version import version_line


def main() -> None:
    """Print a line for each command."""
    print(version_line())
    if "--version" in sys.argv[1:]:
        return
    commands = {command_line(name): purpose for name, purpose in purposes().items()}
    if not commands:
        print("The commands are scripts in a checkout of llm: run_prepare.py, run_train.py, ...")
        return
    print("The commands are scripts; each lists its options with --help:")
    for typed, purpose in commands.items():
        print(f"  {typed:<{max(map(len, commands))}}   {purpose}")


if __name__ == "__main__":
    main()
