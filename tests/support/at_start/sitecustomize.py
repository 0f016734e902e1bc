"""Python imports this at the start of a process that has this folder on its PYTHONPATH. See `litter.of`.

At SIGUSR1 the process writes how many objects of which type only the collector of cycles would have freed since the
signal before, as one line of JSON after `litter `.
"""

import collections
import gc
import json
import signal
import sys


def _tell(*_: object) -> None:
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = collections.Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
    gc.garbage.clear()
    gc.collect()
    gc.disable()  # from now on, so that nothing goes unseen
    sys.stderr.write(f"litter {json.dumps(found)}\n")


signal.signal(signal.SIGUSR1, _tell)
