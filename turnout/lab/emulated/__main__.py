"""`python -m turnout.lab.emulated`: one emulated vLLM server."""

import argparse
import asyncio
import logging
import signal
from types import FrameType

import uvicorn

from turnout.lab.emulated.server import EmulatedApp, create_emulated
from turnout.lab.emulated.settings import EmulatedSettings
from turnout.simulation.acceptance import SPECULATIONS
from turnout.simulation.presets import PRESETS


class _Server(uvicorn.Server):
    """A server that drains its engine on the first signal and stops on the second."""

    def __init__(self, config: uvicorn.Config, app: EmulatedApp) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """React to SIGTERM and SIGINT."""
        if self._app.runner.draining or sig == signal.SIGINT:
            self.should_exit = True
        self._app.runner.drain()

    async def serve_until_drained(self) -> None:
        """Serve until a shutdown is asked for and the engine is empty."""
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._exit_when_drained())
            await self.serve()
            watch.cancel()

    async def _exit_when_drained(self) -> None:
        await self._app.runner.drained.wait()
        self.should_exit = True


def _schedule(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple((int(size), int(k)) for size, k in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not sizes and tokens, as 4:5,8:2") from None


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m turnout.lab.emulated", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--name", default="emulated")
    parser.add_argument("--model-name", default="smollm2")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu-smollm2")
    parser.add_argument("--speculation", choices=SPECULATIONS, default="none")
    parser.add_argument("--k", type=int, default=5, help="draft tokens per step")
    parser.add_argument(
        "--schedule",
        type=_schedule,
        default=(),
        metavar="SIZE:K,...",
        help="draft tokens by largest batch size, as 4:5,8:2,16:0 (default: always --k)",
    )
    parser.add_argument("--time-scale", type=float, default=1.0, help="engine s per wall s")
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-num-queued-reqs", type=int)
    parser.add_argument("--shutdown-timeout", type=float, default=0.0)
    parser.add_argument("--shutdown-answer", choices=("abort", "error"), default="abort")
    parser.add_argument("--no-request-metrics", action="store_true")
    args = parser.parse_args()
    try:
        settings = EmulatedSettings(
            name=args.name,
            model_name=args.model_name,
            preset=args.preset,
            speculation=args.speculation,
            k=args.k if args.speculation != "none" else 0,
            schedule=args.schedule,
            time_scale=args.time_scale,
            max_num_seqs=args.max_num_seqs,
            seed=args.seed,
            max_num_queued_reqs=args.max_num_queued_reqs,
            shutdown_timeout_s=args.shutdown_timeout,
            shutdown_answer=args.shutdown_answer,
            request_metrics=not args.no_request_metrics,
        )
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO)
    app = create_emulated(settings)
    config = uvicorn.Config(
        app, host=args.host, port=args.port, access_log=False, timeout_graceful_shutdown=5
    )
    asyncio.run(_Server(config, app).serve_until_drained())


if __name__ == "__main__":
    main()
