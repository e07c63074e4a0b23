"""Every command imports this first: it installs the signal handlers and the safe streams."""

import atexit

from llm.signals import ignore, listener
from llm.terminal import empty_buffers, guard_streams

guard_streams()  # before any file is opened, which might get the number of a closed stream
listener.listen()
atexit.register(ignore)  # registered first, so called last
atexit.register(empty_buffers)
