"""Make vLLM's start a tenth shorter: its imports make millions of objects, all of them to stay.

Each of a server's three processes imports for 8 s on an idle core; with the collector this rare it
is 7. Python imports a module of this name, found on `PYTHONPATH`, before anything else.
"""

import gc

gc.set_threshold(100_000, 50, 100)
