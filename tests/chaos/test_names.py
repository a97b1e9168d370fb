"""Names of backends stop resolving, and come to mean another server, under load."""

import asyncio
from collections import Counter

import pytest
from openai import AsyncOpenAI

from tests.proxy.wire import Backend, eventually, gateway

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]


async def test_a_name_that_is_gone_loses_nothing_and_one_that_moves_is_followed() -> None:
    known: dict[str, list[str]] = {"vllm.internal": ["127.0.0.1"]}
    answered: Counter[str] = Counter()

    async def resolver(name: str, port: int) -> list[str]:
        del port
        if not known[name]:
            raise OSError("Name or service not known")
        return known[name]

    async def ask(client: AsyncOpenAI) -> None:
        messages = [{"role": "user", "content": "hello"}]
        raw = await client.chat.completions.with_raw_response.create(
            model="m",
            messages=messages,  # type: ignore[arg-type]
        )
        assert raw.parse().choices[0].message.content == "ok"
        answered[raw.headers["x-turnout-backend"]] += 1

    async with Backend() as first, Backend(host="127.0.0.2", port=first.port) as second:
        url = f"dns+http://vllm.internal:{first.port}"
        async with (
            gateway(
                pools=[{"name": "p", "backends": [url], "model": "m", "speculation": "none"}],
                probes={"resolve_interval_s": 0.05, "health_interval_s": 0.05},
                seams={"resolver": resolver},
                known=[first, second],
            ) as running,
            AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
            asyncio.TaskGroup() as group,
        ):

            async def load(until: asyncio.Event) -> None:
                while not until.is_set():
                    group.create_task(ask(client))
                    await asyncio.sleep(0.01)

            over = asyncio.Event()
            sending = group.create_task(load(over))
            await eventually(lambda: answered[first.name] > 20, what="the first answers")
            known["vllm.internal"] = []
            failed = "turnout_discovery_failures_total"
            await eventually(lambda: running.count(failed, pool="p") > 3, what="it is gone")
            before = answered[first.name]
            await eventually(lambda: answered[first.name] > before + 20, what="it goes on")
            known["vllm.internal"] = ["127.0.0.2"]
            await eventually(lambda: answered[second.name] > 20, what="the second answers")
            moved = answered[first.name]
            await eventually(lambda: answered[second.name] > 40, what="it goes on")
            over.set()
            await sending

        print(f"a name gone and moved: {dict(answered)}")
        assert answered[first.name] == moved
        assert running.endings == Counter(finished=answered.total())
