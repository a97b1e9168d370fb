"""Which names lead to which pools."""

import pytest

from config.settings import Settings
from proxy.errors import NoBackend, NotServed
from proxy.fleet import Fleet
from routing.pools import Speculation

Declared = dict[str, object]
SPEC: Declared = {
    "name": "spec",
    "backends": ["http://a:1"],
    "model": "m",
    "speculation": "ngram",
    "k": 5,
}
PLAIN: Declared = {"name": "plain", "backends": ["http://b:1", "http://c"], "model": "m"}
OTHER: Declared = {
    "name": "other",
    "backends": ["http://d:1"],
    "model": "n",
    "speculation": "none",
}


def declared(*pools: Declared, **settings: object) -> Settings:
    given = {"pools": pools or (SPEC, PLAIN), "auth": {"open": True}, **settings}
    return Settings.model_validate(given)


def fleet(*pools: Declared, **settings: object) -> Fleet:
    return Fleet(declared(*pools, **settings))


def test_pools_and_members_are_those_declared() -> None:
    made = fleet()

    spec, plain = made.pools
    assert (spec.speculation, plain.speculation) == (Speculation.NGRAM, Speculation.NONE)
    assert [member.name for member in made.members_of(plain)] == ["b:1", "c:80"]
    assert [member.url for member in made.members_of(plain)] == ["http://b:1", "http://c"]
    assert not any(member.load.healthy for member in made.members.values())
    assert made.declared(spec).speculation is Speculation.NGRAM


def test_a_model_leads_to_every_pool_that_serves_it() -> None:
    made = fleet(SPEC, PLAIN, OTHER)

    assert [pool.name for pool in made.resolve("m").pools] == ["spec", "plain"]
    assert [pool.name for pool in made.resolve("n").pools] == ["other"]


def test_an_alias_leads_to_its_model_with_what_is_declared_of_it() -> None:
    model: Declared = {"name": "m", "aliases": ["gpt-4"], "default_temperature": 0.6}
    made = fleet(models=[model])

    served = made.resolve("gpt-4")

    assert (served.name, served.requested, served.default_temperature) == ("m", "gpt-4", 0.6)
    assert made.model_names() == ["gpt-4", "m"]


def test_an_adapter_leads_to_the_pools_whose_servers_have_it() -> None:
    made = fleet()
    made.members["b:1"].models = ("m", "lora")

    assert [pool.name for pool in made.resolve("lora").pools] == ["plain"]
    assert made.model_names() == ["lora", "m"]


def test_no_name_is_the_only_model_there_is() -> None:
    assert fleet().resolve("").name == "m"


def test_no_name_among_several_is_told_the_names() -> None:
    with pytest.raises(NotServed, match="'model' is missing; it must be one of: m, n") as caught:
        fleet(SPEC, OTHER).resolve("")

    assert caught.value.param == "model"


def test_an_unknown_name_is_told_the_names() -> None:
    with pytest.raises(NotServed, match="model 'gpt-5' is not served here; models: m"):
        fleet().resolve("gpt-5")


@pytest.mark.parametrize("name", ["", "m"])
def test_a_pool_that_has_not_told_its_model_may_serve_any(name: str) -> None:
    unknown: Declared = {"name": "new", "backends": ["http://a:1"]}

    with pytest.raises(NoBackend, match="pool 'new' has not answered yet"):
        fleet(unknown).resolve(name)
