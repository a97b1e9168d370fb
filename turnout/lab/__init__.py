"""vLLM servers on this machine, real on the CPU or emulated, for demos, measurements and tests.

```python
with Lab() as lab:
    spec, plain = lab.up([
        ServerPlan(name="spec", speculation="ngram", core=0),
        ServerPlan(name="plain", core=1),
    ])
```

Nothing here is imported by the gateway. What the lab starts, it stops: on exit, on Ctrl-C, and
when its own process is killed (tether.py). All that it builds lies in one folder (home.py), in
parts that are whole or built anew.
"""

from turnout.lab.errors import BuildFailed, LabError, ServerDied
from turnout.lab.plans import Server, ServerPlan
from turnout.lab.servers import Lab, ServerStatus

__all__ = ["BuildFailed", "Lab", "LabError", "Server", "ServerDied", "ServerPlan", "ServerStatus"]
