"""What can go wrong in the lab.

```
LabError         the message names the thing, its value and what to do
- BuildFailed    the environment or the model could not be built
- ServerDied     a server ended by itself; its last lines are in the message
```
"""


class LabError(Exception):
    """The lab could not do what was asked; the message says why and what helps."""


class BuildFailed(LabError):
    """The environment or the model could not be built: no network, no room, pip's own failure."""


class ServerDied(LabError):
    """A server ended by itself; the message has its last lines and names its log file."""
