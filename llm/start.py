"""Imported first by every command: from here on a signal is answered with an exit status."""

import atexit

from llm.signals import ignore, listener

listener.listen()
atexit.register(ignore)  # the first to be registered is the last to be called
