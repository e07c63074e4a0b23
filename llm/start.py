"""Imported first by every command: from here on a signal is answered with an exit status."""

from llm.signals import listener

listener.listen()
