"""Which names lead to which pools."""

from collections.abc import Iterable

import pytest

from config.settings import Settings
from proxy.errors import NoBackend, NotServed
from proxy.fleet import Change, Fleet, Member
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


@pytest.mark.parametrize(
    ("b", "c", "lacking"),
    [
        ((), (), set()),
        (("m",), ("m", "lora"), set()),
        (("n",), ("m",), {"b:1"}),
        (("n",), (), {"b:1"}),
        (("n",), ("x",), {"b:1", "c:80"}),
    ],
)
def test_of_a_pools_own_model_those_lack_it_that_say_so_unless_all_do(
    b: tuple[str, ...], c: tuple[str, ...], lacking: set[str]
) -> None:
    made = fleet()
    made.members["b:1"].models, made.members["c:80"].models = b, c

    assert made.resolve("m").lacking == lacking
    made.members["a:1"].models = ("z",)
    made.renew()
    assert made.resolve("m").lacking == (set() if len(lacking) == 2 else lacking | {"a:1"})


def test_an_adapter_is_lacked_by_those_of_its_pools_that_do_not_say_that_they_have_it() -> None:
    made = fleet()
    made.members["b:1"].models = ("m", "lora")

    assert made.resolve("lora").lacking == {"c:80"}
    made.members["a:1"].models = ("lora",)
    version = made.version
    made.renew()
    assert made.version > version
    assert [pool.name for pool in made.resolve("lora").pools] == ["spec", "plain"]


def test_no_name_is_the_only_model_there_is() -> None:
    assert fleet().resolve("").name == "m"


def test_no_name_among_several_is_told_the_names() -> None:
    with pytest.raises(NotServed, match="'model' is missing; it must be one of: m, n") as caught:
        fleet(SPEC, OTHER).resolve("")

    assert caught.value.param == "model"


def test_an_unknown_name_is_told_the_names() -> None:
    with pytest.raises(NotServed, match="model 'gpt-5' is not served here; models: m"):
        fleet().resolve("gpt-5")


def update(made: Fleet, *pools: Declared, **settings: object) -> Change:
    new = declared(*pools, **settings)
    urls = {pool.name: [str(url).rstrip("/") for url in pool.backends] for pool in new.pools}
    return made.update(new, urls=urls, api_keys={"spec": "k"})


def names(members: Iterable[Member]) -> list[str]:
    return [member.name for member in members]


def test_an_update_keeps_the_objects_of_what_stays() -> None:
    made = fleet()
    pools, members, version = list(made.pools), dict(made.members), made.version

    change = update(
        made, PLAIN, {**SPEC, "max_num_seqs": 3}, models=[{"name": "m", "aliases": ["x"]}]
    )

    assert change == Change()
    assert made.pools == pools[::-1]
    assert (pools[0].max_num_seqs, pools[0].max_in_flight) == (3, 6)
    assert made.members == members
    assert list(made.members) == ["b:1", "c:80", "a:1"]
    assert made.resolve("x").name == "m"
    assert [made.members[name].access.key for name in ("a:1", "b:1")] == ["k", None]
    assert made.version > version


def test_an_update_says_what_has_come_and_gone() -> None:
    made = fleet()
    spec, plain = made.pools
    gone, stays = made.members["b:1"], made.members["c:80"]
    gone.up = gone.load.healthy = True
    gone.load.in_flight = 2

    change = update(made, SPEC, {**PLAIN, "backends": ["http://c", "http://new:1"]})

    assert names(change.removed) == ["b:1"]
    assert names(change.added) == ["new:1"]
    assert not change.void
    assert [backend.name for backend in plain.backends] == ["c:80", "new:1"]
    assert made.members["c:80"] is stays
    assert (gone.up, gone.load.healthy, gone.load.in_flight) == (False, False, 2)
    assert made.has(stays)
    assert not made.has(gone)

    change = update(made, PLAIN)
    assert change.void == (spec,)
    assert not spec.backends
    assert names(change.removed) == ["a:1", "new:1"]


def test_a_backend_at_another_url_or_in_another_pool_is_another() -> None:
    made = fleet()
    before = dict(made.members)

    change = update(
        made,
        {**SPEC, "backends": ["http://a:1/x", "http://c"]},
        {**PLAIN, "backends": ["http://b:1"]},
    )

    assert names(change.removed) == ["a:1", "c:80"]
    assert names(change.added) == ["a:1", "c:80"]
    assert made.members["c:80"].pool.name == "spec"
    assert made.members["b:1"] is before["b:1"]


def test_of_two_pools_with_one_backend_the_first_has_it_and_names_are_passed_over() -> None:
    made = fleet()
    urls = {"spec": ["http://x:1"], "plain": ["http://x:1", "dns+http://n:1", "http://y:1"]}

    made.update(made.settings, urls=urls, api_keys={})

    assert [backend.name for backend in made.pools[1].backends] == ["y:1"]
    assert made.members["x:1"].pool.name == "spec"


@pytest.mark.parametrize(
    ("changes", "model", "speculation", "k"),
    [
        ({"model": "n"}, "n", "ngram", 5),
        ({"model": None}, "m", "ngram", 5),
        ({"speculation": "mtp"}, "m", "mtp", 5),
        ({"speculation": "auto"}, "m", "ngram", 5),
        ({"speculation": "none"}, "m", "none", 0),
        ({"k": 3}, "m", "ngram", 3),
        ({"k": None}, "m", "ngram", 5),
    ],
)
def test_a_pool_declared_to_be_another_is_void_and_is_what_is_declared(
    changes: Declared, model: str, speculation: str, k: int
) -> None:
    made = fleet()
    spec = made.pools[0]

    change = update(made, {**SPEC, **changes}, PLAIN)

    assert change == Change(void=(spec,))
    assert (spec.model, spec.speculation, spec.k) == (model, speculation, k)


@pytest.mark.parametrize("name", ["", "m"])
def test_a_pool_that_has_not_told_its_model_may_serve_any(name: str) -> None:
    unknown: Declared = {"name": "new", "backends": ["http://a:1"]}

    with pytest.raises(NoBackend, match="pool 'new' has not answered yet"):
        fleet(unknown).resolve(name)
