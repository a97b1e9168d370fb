"""The URLs of every pool's backends, as they are written in the config and in the pools' files."""

from collections.abc import Iterator, Mapping

from pydantic import TypeAdapter, ValidationError

from config.problems import ConfigError, Problem
from config.settings import DNS, BackendUrl, PoolSettings, Settings

_URL: TypeAdapter[BackendUrl] = TypeAdapter(BackendUrl)


def read_url(text: str) -> str:
    """Return a base URL as backends are named by it, without a trailing slash.

    Raises:
        ValueError: If it is not one; the message says why.
    """
    try:
        return str(_URL.validate_python(text)).rstrip("/")
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def backend_name(url: str) -> str:
    """Return the name of the backend at a base URL, `host:port`."""
    parsed = _URL.validate_python(url)
    return f"{parsed.host}:{parsed.port}"


def read_backends(settings: Settings) -> Mapping[str, tuple[str, ...]]:
    """Return the base URLs of each pool, by its name: of the config first, then of its file.

    Raises:
        ConfigError: If a file cannot be read, is empty or has a line that is no URL, or a backend
            stands twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    problems: list[Problem] = []
    for pool in settings.pools:
        urls = [str(url).rstrip("/") for url in pool.backends]
        for each in _in_file(pool):
            if isinstance(each, Problem):
                problems.append(each)
            else:
                urls.append(each)
        found[pool.name] = tuple(urls)
    problems += _twice(settings, found)
    if problems:
        raise ConfigError(problems)
    return found


def _in_file(pool: PoolSettings) -> Iterator[str | Problem]:
    file = pool.backends_file
    if file is None:
        return
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        yield Problem(where=str(file), key="", what=what, fix=_fix(pool))
        return
    any_line = False
    for number, line in enumerate(text.splitlines(), start=1):
        url = line.partition("#")[0].strip()
        if not url:
            continue
        any_line = True
        try:
            yield read_url(url)
        except ValueError as error:
            what = f"{url!r} is no base URL: {error}"
            yield Problem(where=f"{file}:{number}", key="", what=what)
    if not any_line:
        yield Problem(where=str(file), key="", what="names no backend", fix=_fix(pool))


def _fix(pool: PoolSettings) -> str:
    return f"it is the backends_file of pool {pool.name!r}: one base URL a line"


def _twice(settings: Settings, found: Mapping[str, tuple[str, ...]]) -> Iterator[Problem]:
    """Yield a problem for each backend that stands twice, if a file has a part in it."""
    seen: set[str] = set()
    for pool in settings.pools:
        for url in found[pool.name]:
            name = backend_name(url)
            if name in seen:
                where = str(pool.backends_file or f"pool {pool.name!r}")
                what = f"backend {name!r} appears twice; each must be unique"
                yield Problem(where=where, key="", what=what)
            seen.add(name)


def is_name(url: str) -> bool:
    """Whether a base URL is of a name that stands for several backends."""
    return url.startswith(DNS)


def at_address(url: str, address: str) -> str:
    """Return the base URL of the backend at one address of the name in `url`."""
    parsed = _URL.validate_python(url)
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{parsed.port}{(parsed.path or '').rstrip('/')}"
