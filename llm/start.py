"""Every command imports this first: it installs the signal handlers and the safe streams."""

import atexit
import sys

from llm.answer import begin
from llm.signals import ignore, listener
from llm.terminal import empty_buffers, guard_streams

guard_streams()  # before any file is opened, which might get the number of a closed stream
listener.listen()
begin(sys.argv[1:])  # with json=true, output of imports goes to standard error too
atexit.register(ignore)  # registered first, so called last
atexit.register(empty_buffers)
