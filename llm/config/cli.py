"""What every ``run_*.py`` shares: arguments in, one line and an exit status out."""

import os
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from llm.config import schema  # noqa: F401  (registers the schemas that conf/*.yaml start with)
from llm.config import launcher  # noqa: F401  (registers the sweeper and launcher that conf/train.yaml names)
from llm.config.settings import saved_groups
from llm.config.verbatim import quote_arguments, unquote
from llm.errors import Stop
from llm.experiment.sweep import SweepStopped, follow_parent

TRACEBACK = "HYDRA_FULL_ERROR"


def command(main: Callable[[], Any]) -> None:
    """Run a ``@hydra.main`` function: a user's mistake becomes one line and its exit status.

    ``HYDRA_FULL_ERROR=1`` in the environment shows the traceback as well.
    """
    follow_parent()
    wants_traceback = os.environ.get(TRACEBACK) == "1"
    os.environ[TRACEBACK] = "1"  # makes Hydra raise what it would otherwise print before it exits with 1
    try:
        sys.argv[1:] = _with_saved_groups(quote_arguments(sys.argv[1:]))
        main()
    except (Stop, CompactHydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            traceback.print_exc()
        print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_status if isinstance(error, Stop) else 2)
    except (KeyboardInterrupt, SweepStopped):
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, e.g. `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    finally:
        if not wants_traceback:
            del os.environ[TRACEBACK]


def _with_saved_groups(arguments: list[str]) -> list[str]:
    """Before a run is continued, compose with the optimizer and schedule it was started with."""
    folders = [unquote(a.partition("=")[2]) for a in arguments if a.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return arguments
    return [*saved_groups(Path(folders[-1])), *arguments]


def one_line(error: BaseException) -> str:
    """The message of an error, and of what caused it where Hydra's own says less."""
    if isinstance(error, Stop):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    while cause is not None:
        lines += [line.strip() for line in str(cause).splitlines() if line.strip()]
        cause = cause.__cause__
    # OmegaConf repeats the full key and the schema's type below its message, which users need not see.
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    unique = list(dict.fromkeys(kept))
    if len(unique) > 1 and unique[0].startswith("Error merging override"):
        key = unique[0].removeprefix("Error merging override ")
        unique = [f"{key}: {unique[1]}", *unique[2:]]
    return "; ".join(unique[:4]) + _suggestion(error)


def _suggestion(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, ConfigAttributeError | ConfigKeyError) and error.key is not None:
            known = list(error.parent_node.keys()) if error.parent_node is not None else []  # type: ignore[attr-defined]
            close = get_close_matches(str(error.key), [str(key) for key in known], n=1)
            return f"; did you mean '{close[0]}'?" if close else ""
        error = error.__cause__
    return ""
