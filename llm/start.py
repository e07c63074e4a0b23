"""Every command imports this first: from here on a signal leads to an exit status, and nothing
that happens to the terminal ends the process.
"""

import atexit

from llm.signals import ignore, listener
from llm.terminal import empty_buffers, guard_streams

guard_streams()  # before any file is opened: it might get the number of a closed stream
listener.listen()
atexit.register(ignore)  # registered first, so called last
atexit.register(empty_buffers)
