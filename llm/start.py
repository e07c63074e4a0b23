"""Imported first by every command: from here on a signal is answered with an exit status, and
nothing that happens to the terminal ends the process.
"""

import atexit

from llm.signals import ignore, listener
from llm.terminal import guard_streams, let_go

guard_streams()  # before anything opens a file, which might get the number of a closed stream
listener.listen()
atexit.register(ignore)  # the first to be registered is the last to be called
atexit.register(let_go)
