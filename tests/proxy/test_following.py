"""What a worker makes of what others have done, one that takes another's place above all."""

import logging
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from threading import Event

import pytest

from config.problems import ConfigError, Problem
from config.settings import Settings
from proxy.reloading import Source
from proxy.team import READINGS_ASKED, Commons, Team
from tests.proxy.wire import Backend, Running, begin, config, eventually, gateway, soon

pytestmark = pytest.mark.anyio


class Config:
    """A config that all workers read; what it says is one number."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._before = 1_000
        self.says(0.5)

    def holds_up(self, after: int) -> None:
        """Hold up who reads it after so many have."""
        self._before, self.held, self.goes_on = after, Event(), Event()

    def _hold_up(self) -> None:
        self._before -= 1
        if self._before < 0:
            self.held.set()
            assert self.goes_on.wait(30.0)

    def says(self, temperature: float | None) -> None:
        """Be another config; None is not a valid one."""
        self.temperature = temperature
        self.file.write_text(f"{temperature}")

    def worker(self, team: Team, *, began_with: float) -> AbstractAsyncContextManager[Running]:
        """Return a worker that has read `began_with`."""
        backend = Backend()

        def read() -> Settings:
            self._hold_up()
            if self.temperature is None:
                raise ConfigError([Problem(where="config", key="", what="is not valid")])
            thresholds = {"max_temperature": self.temperature}
            written = config([], [backend], each_pool={}, thresholds=thresholds)
            return Settings.model_validate(written)

        return gateway(
            plain=[backend],
            thresholds={"max_temperature": began_with},
            seams={"team": team, "source": Source(file=self.file, read=read)},
        )


@pytest.fixture
def read(tmp_path: Path) -> Config:
    return Config(tmp_path / "gateway.yaml")


def temperature(running: Running) -> float | None:
    return running.app.settings.thresholds.max_temperature


async def test_a_worker_begins_though_what_was_ordered_is_of_a_config_before(
    commons: Commons, read: Config
) -> None:
    """A backend that was drained has been removed; a threshold is no more."""
    other = Team(commons, 0)
    other.order("drain", backend="gone:1", drained=True)
    other.order("thresholds", patch={"no_such": 1})
    other.order("learning", paused=True)

    async with read.worker(Team(commons, 1), began_with=0.5) as running:
        assert running.app.router.learner.paused


async def test_a_worker_that_begins_while_another_reads_the_config_anew_reads_it_too(
    commons: Commons, read: Config
) -> None:
    other = Team(commons, 0)
    other.has_read(())
    beginning = Team(commons, 1)  # and reads the config
    read.says(0.7)

    async with read.worker(beginning, began_with=0.5) as running:
        assert temperature(running) == 0.5  # that order was before

    beginning = Team(commons, 1)
    other.has_read(())

    async with read.worker(beginning, began_with=0.5) as running:
        assert temperature(running) == 0.7


async def test_one_that_leads_in_anothers_place_has_all_read_what_has_changed_meanwhile(
    commons: Commons, read: Config
) -> None:
    other = Team(commons, 1)
    async with read.worker(Team(commons, 0), began_with=0.5):
        assert other.orders() == []
    read.says(0.7)

    async with read.worker(Team(commons, 0), began_with=0.5) as running:
        await eventually(lambda: temperature(running) == 0.7, what="it reads the config too")
        assert [each["order"] for each in other.orders()] == ["reload"]

    async with read.worker(Team(commons, 0), began_with=0.7):
        assert other.orders() == []  # nothing has changed


async def test_one_that_leads_in_anothers_place_hears_what_that_one_was_told(
    commons: Commons, read: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="turnout")
    asked = Team(commons, 1).shared_cell(READINGS_ASKED, 2)
    asked[0] += 1.0  # by SIGHUP, while nobody was there to hear

    async with read.worker(Team(commons, 0), began_with=0.5):
        await eventually(lambda: "read again" in caplog.text, what="the config is read again")
    caplog.clear()
    async with read.worker(Team(commons, 0), began_with=0.5) as running:
        applied = running.count("turnout_config_reloads_total", outcome="applied")

    assert applied == 1.0
    assert "read again" not in caplog.text


async def test_a_backend_that_comes_anew_is_not_drained_by_what_was_ordered_before() -> None:
    one, other = Backend(), Backend()
    async with gateway(plain=[one, other]) as running:
        command, has_read = running.app.command, running.app.reloader.on_applied
        assert has_read is not None

        def drained() -> dict[str, bool]:
            return {name: each.drained for name, each in running.app.fleet.members.items()}

        for name in (one.name, other.name):
            await command("drain", backend=name, drained=True)
        await command("remove", backend=one.name)
        await command("add", pool="plain", url=one.url, backend=one.name)
        await has_read()
        await command("learning", paused=True)
        assert drained() == {other.name: True, one.name: False}

        for backends in ([one.url], [one.url, other.url]):
            running.reload(plain={"backends": backends})
            await has_read()
            await command("learning", paused=True)
        assert drained() == {one.name: False, other.name: False}


async def test_all_show_whether_the_config_was_refused(commons: Commons, read: Config) -> None:
    asked = Team(commons, 1).shared_cell(READINGS_ASKED, 2)
    async with (
        read.worker(Team(commons, 0), began_with=0.5) as one,
        read.worker(Team(commons, 1), began_with=0.5) as other,
    ):
        for says, shown in ((None, 0.0), (0.7, 1.0)):
            read.says(says)
            asked[0] += 1.0
            await eventually(
                lambda shown=shown: one.count("turnout_config_last_reload_ok") == shown,  # type: ignore[misc]
                what="it is read",
            )
            assert other.count("turnout_config_last_reload_ok") == shown
        await eventually(lambda: temperature(other) == 0.7, what="both go by it")


async def test_an_order_that_comes_while_a_worker_reads_the_config_is_obeyed_by_all(
    commons: Commons, read: Config
) -> None:
    """Written behind the reload it is obeyed behind it, also where it came in."""
    async with (
        read.worker(Team(commons, 0), began_with=0.5) as one,
        read.worker(Team(commons, 1), began_with=0.5) as other,
    ):
        read.says(0.7)
        read.holds_up(1)  # `one` reads at once, what `other` reads is held up
        one.app.reloader.ask()
        await eventually(read.held.is_set, what="the other has begun to read")

        ordered = begin(other.app.command("thresholds", patch={"max_temperature": 0.9}))
        await eventually(lambda: temperature(one) == 0.9, what="it is obeyed elsewhere")
        read.goes_on.set()
        await soon(ordered)

        assert (temperature(one), temperature(other)) == (0.9, 0.9)


async def test_a_config_that_breaks_before_all_have_read_it_applies_to_all_as_the_first_read_it(
    commons: Commons, read: Config
) -> None:
    async with (
        read.worker(Team(commons, 0), began_with=0.5) as one,
        read.worker(Team(commons, 1), began_with=0.5) as other,
    ):
        read.says(0.7)
        read.holds_up(1)
        one.app.reloader.ask()
        await eventually(read.held.is_set, what="the other has begun to read")
        assert temperature(one) == 0.7

        read.says(None)
        read.goes_on.set()

        await eventually(lambda: temperature(other) == 0.7, what="both go by it", within_s=20.0)
        assert temperature(one) == 0.7
