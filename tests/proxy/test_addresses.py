"""Where backends are: as written, by name, and by an operator's word."""

import asyncio
from collections.abc import Sequence

import pytest

from proxy.addresses import Addresses, resolve

pytestmark = pytest.mark.anyio

NAME = "dns+http://n:80/base"


class Names:
    """A resolver that a test has filled, and what was asked of it."""

    def __init__(self) -> None:
        self.known: dict[str, Sequence[str] | Exception] = {}
        self.asked: list[tuple[str, int]] = []
        self.failed: list[str] = []

    async def __call__(self, name: str, port: int) -> Sequence[str]:
        self.asked.append((name, port))
        found = self.known[name]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def names() -> Names:
    return Names()


def addresses(names: Names, *urls: str) -> Addresses:
    return Addresses({"p": urls}, resolver=names, on_failure=names.failed.append)


async def test_a_name_stands_for_each_of_its_addresses_once(names: Names) -> None:
    names.known["n"] = ["10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.1"]
    where = addresses(names, "http://a:1", NAME)

    assert where.by_pool() == {"p": ["http://a:1"]}
    assert await where.look_up(within_s=1.0)
    assert where.by_pool() == {
        "p": [
            "http://a:1",
            "http://10.0.0.1:80/base",
            "http://10.0.0.2:80/base",
            "http://[fd00::1]:80/base",
        ]
    }
    assert not await where.look_up(within_s=1.0)
    assert names.asked == [("n", 80)] * 2


@pytest.mark.parametrize(
    "failure", [OSError(-2, "Name or service not known"), UnicodeError("label too long"), ()]
)
async def test_a_look_that_finds_nothing_says_nothing(
    names: Names, failure: Exception | tuple[()], caplog: pytest.LogCaptureFixture
) -> None:
    where = addresses(names, NAME)
    names.known["n"] = ["10.0.0.1"]
    await where.look_up(within_s=1.0)
    names.known["n"] = failure

    assert not await where.look_up(within_s=1.0)
    assert not await where.look_up(within_s=1.0)

    assert where.by_pool() == {"p": ["http://10.0.0.1:80/base"]}
    assert names.failed == ["p", "p"]
    assert caplog.text.count("no address of n, of pool p, is found") == 1
    names.known["n"] = ["10.0.0.1"]
    await where.look_up(within_s=1.0)
    names.known["n"] = failure
    await where.look_up(within_s=1.0)
    assert caplog.text.count("no address of n, of pool p, is found") == 2


async def test_a_look_that_takes_too_long_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def hangs(name: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return ()

    where = Addresses({"p": [NAME]}, resolver=hangs)

    assert not await where.look_up(within_s=0.01)

    assert "no answer in 0.01 s" in caplog.text


async def test_what_a_new_config_names_is_looked_up_before_it_applies(names: Names) -> None:
    where = addresses(names, NAME)
    names.known |= {"n": ["10.0.0.1"], "new": ["10.0.0.9"]}
    await where.look_up(within_s=1.0)
    names.asked.clear()
    new = {"p": [NAME, "dns+http://new:80"]}

    await where.look_up(new, within_s=1.0)
    where.write(new)

    assert names.asked == [("new", 80)]
    assert where.by_pool() == {"p": ["http://10.0.0.1:80/base", "http://10.0.0.9:80"]}
    where.write({"p": ["http://a:1"]})
    where.write(new)
    assert where.by_pool() == {"p": []}


async def test_an_operators_word_holds_until_the_config_is_read_again(names: Names) -> None:
    where = addresses(names, "http://a:1", NAME)
    names.known["n"] = ["10.0.0.1", "10.0.0.2"]
    await where.look_up(within_s=1.0)

    where.add("p", "http://b:1")
    where.add("p", "http://b:1")
    where.remove("a:1")
    where.remove("10.0.0.1:80")
    names.known["n"] = ["10.0.0.1", "10.0.0.3"]
    await where.look_up(within_s=1.0)

    assert where.by_pool() == {"p": ["http://10.0.0.3:80/base", "http://b:1"]}
    where.remove("b:1")
    where.add("p", "http://a:1")
    assert where.by_pool() == {"p": ["http://a:1", "http://10.0.0.3:80/base"]}
    where.write({"p": ["http://a:1"]})
    assert where.by_pool() == {"p": ["http://a:1"]}


async def test_the_system_resolves_names() -> None:
    assert "127.0.0.1" in await resolve("127.0.0.1", 80)


async def test_an_address_that_no_url_can_hold_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        async def getaddrinfo(self, *_: object, **more: object) -> list[tuple[object, ...]]:
            return [(10, ("fe80::1%eth0", 80, 0, 2)), (2, ("10.0.0.1", 80))]

    monkeypatch.setattr("asyncio.get_running_loop", Loop)

    assert await resolve("n", 80) == ["10.0.0.1"]
