"""Servers that start in milliseconds, for tests of the lab's supervision."""

import os
import sys
from collections.abc import Callable

import httpx

from turnout.lab.home import LabHome, Progress
from turnout.lab.launchers import Launch
from turnout.lab.plans import ServerPlan

# Healthy, with a child as vLLM has its engine; the first line of its log is the child's pid.
HEALTHY = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass

engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(engine.pid, flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""

DYING = """
import sys
for number in range(100):
    print(f"line {number}")
sys.exit("RuntimeError: no such model")
"""

NEVER_HEALTHY = """
import time
print("loading, for ever", flush=True)
time.sleep(600)
"""

DEAF_TO_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + HEALTHY

DRAINING = (
    "import os, signal, threading\n"
    "signal.signal(signal.SIGTERM, lambda *_: threading.Timer(1.0, os._exit, (0,)).start())\n"
    + HEALTHY
)
"""Answers its health check for a second after SIGTERM, as vLLM does while requests finish."""


class FakeLauncher:
    """Runs a Python text per server name, with the port as its argument."""

    kind = "fake"

    def __init__(
        self,
        *,
        scripts: dict[str, str] | None = None,
        prove: Callable[[ServerPlan, httpx.Client], None] = lambda _plan, _client: None,
    ) -> None:
        self._scripts = scripts or {}
        self._prove = prove

    def prepare(self, home: LabHome, progress: Progress) -> None:
        progress("environment", "ready")

    def launch(self, plan: ServerPlan, home: LabHome) -> Launch:
        script = self._scripts.get(plan.name, HEALTHY)
        return Launch(command=(sys.executable, "-c", script, str(plan.port)), env=os.environ)

    def prove(self, plan: ServerPlan, client: httpx.Client) -> None:
        self._prove(plan, client)
