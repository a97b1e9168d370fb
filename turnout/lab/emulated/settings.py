"""What an emulated server is started with."""

from dataclasses import dataclass, replace
from typing import Literal

from turnout.simulation.acceptance import Speculation
from turnout.simulation.engine import EngineSettings
from turnout.simulation.presets import PRESETS, Preset

VERSION = "0.32.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedSettings:
    """One emulated server.

    Attributes:
        name: Stands in `system_fingerprint` and the log.
        model_name: The served model name.
        preset: Key of `PRESETS`: hardware and model.
        speculation: Method, `none` for a plain server.
        k: Draft tokens per step; 0 exactly when `speculation` is `none`.
        schedule: Draft tokens by batch size, see `EngineSettings`.
        time_scale: Engine seconds per wall second: 10 is ten times as fast, `inf` unpaced.
        max_num_seqs: Batch limit; None takes the preset's.
        seed: Seeds requests above temperature 0 that bring no seed.
        max_num_queued_reqs: Requests in the engine, waiting and running, above which new ones get
            503; None never.
        shutdown_timeout_s: How long running requests may go on after SIGTERM, wall seconds.
        shutdown_answer: What cut and late requests get during a shutdown. `abort`: status 200 and
            `finish_reason` abort, as vLLM's engine answers. `error`: 500 or an error event, as
            seen of vLLM 0.32 on a CPU, where front end or process supervisor come first.
        request_metrics: Add `metrics` to answers (`--enable-per-request-metrics`, and with
            speculation `--per-request-spec-decode-metrics summary`).

    Raises:
        ValueError: If the preset is unknown or does not go with the speculation, the schedule is
            none, or time would not pass.
    """

    name: str = "emulated"
    model_name: str = "smollm2"
    preset: str = "cpu-smollm2"
    speculation: Speculation = "none"
    k: int = 0
    schedule: tuple[tuple[int, int], ...] = ()
    time_scale: float = 1.0
    max_num_seqs: int | None = None
    seed: int = 0
    max_num_queued_reqs: int | None = None
    shutdown_timeout_s: float = 0.0
    shutdown_answer: Literal["abort", "error"] = "abort"
    request_metrics: bool = True

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is one of {sorted(PRESETS)}, not {self.preset!r}")
        if not self.time_scale > 0.0:
            raise ValueError(f"time_scale is above 0, not {self.time_scale}")
        self.engine()

    @property
    def hardware(self) -> Preset:
        """The preset itself."""
        return PRESETS[self.preset]

    def engine(self) -> EngineSettings:
        """Return the engine model's settings."""
        engine = self.hardware.engine(
            speculation=self.speculation, k=self.k, max_num_seqs=self.max_num_seqs
        )
        return replace(engine, schedule=self.schedule)
