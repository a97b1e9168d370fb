"""Which servers run: one JSON file each in a folder, so that another process can stop them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turnout.lab import processes
from turnout.lab.errors import LabError
from turnout.lab.plans import Server, ServerPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A server as it was started.

    Attributes:
        server: The server.
        kind: The launcher's kind.
        started: When its process started (`processes.ProcessStat`), which tells it from a later
            one with the same pid.
    """

    server: Server
    kind: str
    started: int

    @property
    def name(self) -> str:
        """The server's name."""
        return self.server.plan.name

    @property
    def is_alive(self) -> bool:
        """Whether the server's leading process runs."""
        return processes.is_alive(self.server.pid, self.started)


class Records:
    """The records in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of the servers on record, sorted."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def read(self, name: str) -> Record:
        """Return a server's record.

        Raises:
            LabError: If there is none.
        """
        if (record := self.find(name)) is None:
            known = ", ".join(self.names()) or "none"
            raise LabError(f"there is no server {name!r} in the lab; running: {known}")
        return record

    def find(self, name: str) -> Record | None:
        """Return a server's record, None if there is none."""
        try:
            raw = json.loads(self._path(name).read_text())
        except FileNotFoundError:
            return None
        server = raw["server"]
        plan = ServerPlan(**server["plan"] | _tuples(server["plan"]))
        return Record(
            server=Server(
                plan=plan, url=server["url"], pid=server["pid"], log=Path(server["log"])
            ),
            kind=raw["kind"],
            started=raw["started"],
        )

    def write(self, record: Record) -> None:
        """Put a server on record."""
        partial = self._folder / f"{record.name}.partial"
        partial.write_text(json.dumps(asdict(record), default=str))
        partial.replace(self._path(record.name))

    def forget(self, name: str) -> None:
        """Remove a server's record; nothing happens if there is none."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _tuples(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a plan that JSON keeps as lists."""
    schedule = tuple(tuple(part) for part in plan.get("schedule", ()))
    return {"extra_args": tuple(plan["extra_args"]), "schedule": schedule}
