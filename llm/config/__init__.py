"""The only package that uses Hydra: from the command line to settings and jobs.

Hydra loads plugins only from the namespace package ``hydra_plugins``, to which every installed
plugin adds. This program's part is in ``plugins/``; an entry in ``sys.path`` makes it importable.
"""

import sys
from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"

if str(PLUGINS) not in sys.path:
    sys.path.append(str(PLUGINS))
