"""``python -m llm``: which commands there are."""

import sys

from llm.commands import command_line, purposes
from llm.version import version_line


def main() -> None:
    """Print a line for each command."""
    print(version_line())
    if "--version" not in sys.argv[1:]:
        found = {command_line(name): purpose for name, purpose in purposes().items()}
        print("The commands are scripts; --help says what each of them takes:")
        for typed, purpose in found.items():
            print(f"  {typed:<{max(map(len, found))}}   {purpose}")
        if not found:
            print("  run_prepare.py run_train.py run_sample.py run_plan.py, in a checkout of llm")


if __name__ == "__main__":
    main()
