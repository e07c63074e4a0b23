"""The only room that knows Hydra: from what is typed to settings, objects and jobs.

Hydra accepts plugins only from the namespace package ``hydra_plugins``, which every installed
plugin is a part of. Our part is in ``plugins/``; one more entry of ``sys.path`` lets Python find it
beside the others.
"""

import sys
from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"

if str(PLUGINS) not in sys.path:
    sys.path.append(str(PLUGINS))
