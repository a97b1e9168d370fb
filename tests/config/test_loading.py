"""From a file, the environment and the command line to settings, or to what is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.loading import from_urls, load
from config.problems import ConfigError, Problem

MINIMAL = "pools:\n  - name: spec\n    backends: [http://127.0.0.1:8001]\nauth: {open: true}\n"

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a config file and return its path."""

    def written(text: str | bytes) -> Path:
        path = tmp_path / "turnout.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return written


def problems(path: Path, **environ: str) -> list[Problem]:
    """Return what is wrong with the file."""
    with pytest.raises(ConfigError) as raised:
        load(path, environ=environ)
    return list(raised.value.problems)


def only(path: Path, **environ: str) -> Problem:
    (problem,) = problems(path, **environ)
    return problem


def test_a_file_needs_nothing_but_a_pool_and_who_is_served(write: Write) -> None:
    settings = load(write(MINIMAL), environ={})

    assert settings.listen.port == 8080
    assert settings.pools[0].speculation == "auto"


def test_the_environment_overrides_the_file_and_arguments_override_both(write: Write) -> None:
    path = write(f"listen: {{host: a, port: 1, grace_s: 1}}\n{MINIMAL}")
    environ = {"TURNOUT_LISTEN__PORT": "2", "TURNOUT_LISTEN__GRACE_S": "2.5"}

    listen = load(path, environ=environ, arguments={"listen.port": 3, "policy": None}).listen

    assert (listen.host, listen.port, listen.grace_s) == ("a", 3, 2.5)


def test_the_process_environment_is_read_by_default(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_POLICY", "least_loaded")

    assert load(write(MINIMAL)).policy == "least_loaded"


def test_a_variable_may_hold_a_list_or_section_in_json_and_null(write: Write) -> None:
    environ = {
        "TURNOUT_POOLS": '[{"name": "x", "backends": ["http://h:1"], "k": 3}]',
        "TURNOUT_TIMEOUTS": '{"connect_s": 9}',
        "TURNOUT_THRESHOLDS__QPS": '{"high": 9, "low": 5}',
        "TURNOUT_THRESHOLDS__IN_FLIGHT": "null",
        "TURNOUT_THRESHOLDS__TASKS__NGRAM__CODE": "never",
        "TURNOUT_ALLOW_PINNING": "false",
    }

    settings = load(write(MINIMAL), environ=environ)

    assert (settings.pools[0].name, settings.pools[0].k) == ("x", 3)
    assert settings.timeouts.connect_s == 9
    assert settings.thresholds.qps.high == 9
    assert settings.thresholds.in_flight.high is None
    assert "tasks.ngram.code" in settings.thresholds.thresholds().written
    assert not settings.allow_pinning


@pytest.mark.parametrize(
    "variable",
    [
        "TURNOUT_LAB_HOME",
        "TURNOUT_REQUIRE_INTEGRATION",
        "TURNOUT_LABELLED_PROMPTS",
        "TURNOUT_SERVICE_HOST",  # Kubernetes, beside a service named turnout
        "TURNOUT_PORT",
        "TURNOUT_ADMIN_TOKEN",
        "TURNOUT_PORT_8080_TCP_ADDR",
        "TURNOUT_",
        "LISTEN__PORT",
    ],
)
def test_a_variable_that_resembles_no_setting_is_left_alone(write: Write, variable: str) -> None:
    load(write(MINIMAL), environ={variable: "tcp://10.0.0.1:8080"})


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TURNOUT_LISTEN_PORT", "1", "did you mean TURNOUT_LISTEN__PORT?"),
        ("TURNOUT_POLCY", "threshold", "did you mean TURNOUT_POLICY?"),
        ("TURNOUT_LISTEN__PROT", "1", "did you mean 'port'?"),
        ("TURNOUT_QPS__HIGH", "1", "it belongs at thresholds.qps"),
        ("TURNOUT_LISTEN__PORT", "http", '"http" must be a whole number'),
        ("TURNOUT_POOLS", "[{]", "is not valid JSON"),
        ("TURNOUT_POOLS__0__NAME", "x", "give the whole of it as JSON in TURNOUT_POOLS"),
    ],
)
def test_a_mistaken_variable_is_named_with_what_to_write(
    write: Write, variable: str, value: str, says: str
) -> None:
    problem = only(write(MINIMAL), **{variable: value})

    assert problem.where == variable
    assert says in str(problem)


@pytest.mark.parametrize(
    ("text", "line", "key", "what", "fix"),
    [
        ("listen:\n  prot: 1", 2, "listen.prot", "there is no such setting", "mean 'port'?"),
        ("zzz: 1", 1, "zzz", "there is no such setting", "known here: listen, policy"),
        ("dwell_s: 1", 1, "dwell_s", "there is no such", "it belongs at thresholds.dwell_s"),
        ("8080: x", 1, "8080", "there is no such setting", "known here: listen, policy"),
        ("policy: thresold", 1, "policy", '"thresold" is not one of adaptive, threshold',
         "did you mean 'threshold'?"),
        ("policy: 3", 1, "policy", "3 is not one of adaptive, threshold", "How a pool"),
        ("listen:\n  port: 70000", 2, "listen.port", "70000 must be less than or equal to 65535",
         "Default: 8080."),
        ("listen: 3", 1, "listen", "3 must be a section of keys", ""),
        ("admin: 3", 1, "admin", "3 must be a section of keys", "The admin API"),
        ("admin:\n  prt: 1", 2, "admin.prt", "there is no such setting", "mean 'port'?"),
        ("admin: {port: x}", 1, "admin.port", '"x" must be a whole number', "Default: 8081."),
        ("allow_pinning: maybe", 1, "allow_pinning", '"maybe" must be true or false', "Default"),
        ("models: {a: 1}", 1, "models", 'a section must be a list', "A list of models"),
        ("models: [{aliases: []}]", 1, "models[0].name", "is missing", "add it. Name as"),
        ("probes:\n  failures: 1.5", 2, "probes.failures", "1.5 must be a whole number", ""),
        ("timeouts: {connect_s: .nan}", 1, "timeouts.connect_s", "must be greater than 0", ""),
        ("extra_routes: [sleep]", 1, "extra_routes[0]", '"sleep" must match pattern',
         "as `METHOD /path`"),
        ("thresholds:\n  tasks: {ngramm: {}}", 2, "thresholds.tasks.ngramm", '"ngramm" is not one',
         "did you mean 'ngram'?"),
        ("thresholds:\n  tasks:\n    mtp: {qa: no}", 3, "thresholds.tasks.mtp.qa", "false is not",
         "Verdicts that replace"),
        ("thresholds:\n  qps:\n    low: 3", 2, "thresholds.qps", "high and low are set", ""),
        ("listen: {host: [a]}", 1, "listen.host", "a list must be text", "Address to bind"),
        (f"policy: {'x' * 99}", 1, "policy", "xxx... is not one of", "How a pool is chosen"),
    ],
)  # fmt: skip
def test_a_problem_names_its_line_key_value_and_fix(
    write: Write, text: str, line: int, key: str, what: str, fix: str
) -> None:
    path = write(f"{text}\n{MINIMAL}")

    problem = only(path)

    assert (problem.where, problem.key) == (f"{path}:{line}", key)
    assert what in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("pool", "key", "what", "fix"),
    [
        ("{name: x}", "pools[0]", "pool 'x' has no backends; give backends, backends_file", ""),
        ("{name: x, backends: []}", "pools[0]", "pool 'x' has no backends", ""),
        ("{name: x, backends: [dns+http://h]}", "pools[0].backends[0]", "must name a port", ""),
        ("{name: x, backends: [h:8001]}", "pools[0].backends[0]",
         '"h:8001" must be a URL that starts with http:// or https://', "write http://h:8001"),
        ("{name: x, backends: [ftp://h]}", "pools[0].backends[0]", "must be a URL", "Base URLs"),
        ("{name: x, backends: [h]}", "pools[0].backends[0]", "must be a URL", "Base URLs"),
        ("{name: x, backends: [http://h/v1]}", "pools[0].backends[0]", "leave out '/v1'", ""),
        ("{name: a b, backends: [http://h]}", "pools[0].name", '"a b" must match', "letters"),
        ("{name: x, backends: [http://h], speculation: eagle}", "pools[0].speculation",
         '"eagle" is not one of none, ngram, suffix, draft_model, eagle3, mtp, auto',
         "did you mean 'eagle3'?"),
        ("spec", "pools[0]", '"spec" must be a section of keys', "A list of pools"),
    ],
)  # fmt: skip
def test_a_pool_is_checked_like_the_rest(
    write: Write, pool: str, key: str, what: str, fix: str
) -> None:
    problem = only(write(f"pools:\n  - {pool}\n"))

    assert (problem.where[-2:], problem.key) == (":2", key)
    assert what in problem.what
    assert fix in problem.fix


def test_all_problems_are_told_at_once_in_one_text(write: Write) -> None:
    path = write("listen: {port: x}\npolicy: best\n")

    with pytest.raises(ConfigError) as raised:
        load(path, environ={"TURNOUT_POLCY": "threshold"})

    assert str(raised.value).splitlines() == [
        "TURNOUT_POLCY: there is no such setting",
        "    fix: did you mean TURNOUT_POLICY?",
        f'{path}:1: listen.port: "x" must be a whole number',
        "    fix: TCP port; 0 takes a free one. Default: 8080.",
        f'{path}:2: policy: "best" is not one of adaptive, threshold, round_robin, '
        "least_loaded, spec_only, plain_only",
        "    fix: How a pool is chosen. Default: adaptive.",
        f"{path}: pools: is missing",
        "    fix: add it. A list of pools, each with at least `name` and `backends` or "
        "`backends_file`.",
    ]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("listen: [1", 1, "is not YAML: expected ',' or ']'"),
        ("a: b: c", 1, "is not YAML: mapping values are not allowed here (column 5)"),
        ("a: *b", 1, "is not YAML: found undefined alias"),
        ("a: !!python/object:os.system x", 1, "is not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 1\n", 2, "is not YAML: but found another document"),
        ("? [a]\n: 1\n", 1, "is not YAML: found unhashable key"),
        ("- a\n- b\n", 1, "must be keys and values, not a list"),
        ("just words\n", 1, "must be keys and values, not one value"),
        (b"\xff\xfe\xfd", None, "is not YAML: "),
        ("", None, "is empty"),
        ("# nothing\n", None, "is empty"),
        ("a: 2024-13-45\n", None, "has a value that cannot be read: month must be in 1..12"),
        ("[" * 1000, None, "is nested too deeply"),
    ],
)
def test_what_is_no_config_at_all_is_said_with_its_place(
    write: Write, text: str | bytes, line: int | None, what: str
) -> None:
    path = write(text)

    problem = only(path)

    assert problem.where == (str(path) if line is None else f"{path}:{line}")
    assert problem.what.startswith(what)


def test_a_key_written_twice_is_an_error_wherever_it_stands(write: Write) -> None:
    pool = MINIMAL.removesuffix("auth: {open: true}\n")
    path = write(pool + "    name: other\nlisten: {}\nlisten: {}\n")

    first, second = problems(path)

    assert str(first) == (
        f"{path}:4: pools[0].name: is written twice, first in line 2; remove one of them"
    )
    assert (
        str(second) == f"{path}:6: listen: is written twice, first in line 5; remove one of them"
    )


def test_anchors_and_merge_keys_are_understood(write: Write) -> None:
    text = """
auth: {open: true}
pools:
  - &first {name: spec, max_num_seqs: 64, backends: [http://h:1]}
  - {<<: *first, name: plain, speculation: none, backends: [http://h:2]}
"""
    pools = load(write(text), environ={}).pools

    assert [(pool.name, pool.max_num_seqs) for pool in pools] == [("spec", 64), ("plain", 64)]


def test_urls_alone_serve_everybody_unless_the_environment_says_otherwise() -> None:
    keys = '{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '"}]}'

    assert from_urls(["http://a:1"], [], environ={}).auth.open
    auth = from_urls(["http://a:1"], [], environ={"TURNOUT_AUTH": keys}).auth
    assert (auth.open, [key.name for key in auth.keys]) == (False, ["a"])


def test_a_file_says_who_is_served(write: Write) -> None:
    problem = only(write(MINIMAL.replace("auth: {open: true}\n", "")))

    assert problem.what.startswith("auth is missing: list keys under auth.keys")


def test_an_alias_to_itself_is_an_error_and_not_an_endless_loop(write: Write) -> None:
    assert problems(write("pools: &a [*a]\n"))


def test_a_file_that_is_not_there_is_an_error_with_an_example_to_start_from(
    tmp_path: Path,
) -> None:
    problem = only(tmp_path / "gone.yaml")

    assert problem.what == "cannot be read: No such file or directory"
    assert "config/default.yaml" in problem.fix
    assert only(tmp_path).what == "cannot be read: Is a directory"


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_no_text_makes_loading_fail_in_any_other_way(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="replace"))

    assert problems(path)


def test_urls_alone_make_a_speculating_and_a_plain_pool() -> None:
    settings = from_urls(["http://a:1", "http://b:1"], ["http://c:1"], environ={})

    assert [
        (pool.name, pool.speculation, [url.host for url in pool.backends])
        for pool in settings.pools
    ] == [("spec", "auto", ["a", "b"]), ("plain", "none", ["c"])]


def test_one_kind_of_url_makes_one_pool() -> None:
    assert [pool.name for pool in from_urls([], ["http://c:1"], environ={}).pools] == ["plain"]


def test_no_url_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="give at least one --spec URL or --plain URL"):
        from_urls([], [], environ={})


def test_a_mistaken_url_or_argument_is_named_by_its_option() -> None:
    with pytest.raises(ConfigError) as raised:
        from_urls(["http://a:1"], ["c:1"], environ={}, arguments={"listen.port": -1})

    assert [problem.where for problem in raised.value.problems] == ["--port", "--plain"]
