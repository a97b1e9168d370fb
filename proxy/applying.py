"""Changing a gateway while it runs: by a config read again, by addresses, by the admin API.

A change is checked before any of it is applied, and applied in one piece, between two steps of the
loop: no request sees half of it, and one that was decided goes where it was decided to go.
"""

import logging
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.backends import read_backends
from config.certificates import read_certificate, server_context
from config.patching import patched
from config.problems import ConfigError, Problem
from config.settings import Settings, ThresholdSettings
from proxy.addresses import Addresses
from proxy.decisions import check_file
from proxy.errors import InvalidRequest, NotServed
from proxy.fleet import Change, Fleet, Member
from routing.learner import Learner

log = logging.getLogger("turnout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A config with what it refers to.

    Attributes:
        settings: The config.
        urls: Base URLs of backends by pool, as they are written.
        api_keys: Pool name to the key its servers want, where they want one.
        admin_token: What requests to the admin API must bear; None where there is no admin API.
        tls: What clients' connections are encrypted with; None where they are not.
    """

    settings: Settings
    urls: Mapping[str, Sequence[str]]
    api_keys: Mapping[str, str] = field(repr=False)
    admin_token: str | None = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)


def prepare(settings: Settings, *, environ: Mapping[str, str] | None = None) -> Prepared:
    """Read what `settings` refer to: files of backends, variables with keys.

    Args:
        settings: The config.
        environ: Environment variables; the process's own by default.

    Raises:
        ConfigError: If a file cannot be used, or a variable that the config names is not set.
    """
    environ, admin = os.environ if environ is None else environ, settings.admin
    wanted = {
        f"pools[{at}].api_key_env": (pool.api_key_env, _KEY)
        for at, pool in enumerate(settings.pools)
        if pool.api_key_env
    }
    if admin is not None:
        wanted["admin.token_env"] = admin.token_env, _BEAR
    secrets: dict[str, str] = {}
    problems: list[Problem] = []
    for key, (variable, fix) in wanted.items():
        # Files and secret stores often end a value with a line break.
        secrets[variable] = secret = environ.get(variable, "").strip()
        if not _PRINTABLE.fullmatch(secret):
            what = "holds what cannot stand in a header" if secret else "is not set"
            where = f"environment variable {variable}"
            problems.append(Problem(where=where, key=key, what=what, fix=fix))
    if problems:
        raise ConfigError(problems)
    if (decisions := settings.observation.decision_log) is not None:
        for seat in range(settings.listen.workers):
            check_file(decisions.of_worker(seat))
    return Prepared(
        settings=settings,
        urls=read_backends(settings),
        api_keys={p.name: secrets[p.api_key_env] for p in settings.pools if p.api_key_env},
        admin_token=None if admin is None else secrets[admin.token_env],
        tls=None if settings.listen.tls is None else server_context(settings.listen.tls),
    )


_PRINTABLE = re.compile("[ -~]+")
_KEY = "set it to the API key of the pool's servers, or remove api_key_env"
_BEAR = "set it to the token that requests to the admin API must bear, or remove admin"


_BOUND = ("host", "port", "workers", "tls", "max_head_bytes", "head_s", "connections_per_client")
"""What of `listen` connections are made with."""


def without_restart(present: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Return what of `new` can be applied to a running gateway, and the keys that need a restart.

    Those keep their present values.
    """
    listen = {key: getattr(present.listen, key) for key in _BOUND}
    kept = new.model_copy(
        update={
            "listen": new.listen.model_copy(update=listen),
            "learning": new.learning.model_copy(
                update={"state_file": present.learning.state_file}
            ),
            "observation": new.observation.model_copy(
                update={"decision_log": present.observation.decision_log}
            ),
            "admin": present.admin,
        }
    )
    pairs: dict[str, tuple[Any, Any]] = {
        **{
            f"listen.{key}": (getattr(present.listen, key), getattr(new.listen, key))
            for key in _BOUND
        },
        "learning.state_file": (present.learning.state_file, new.learning.state_file),
        "observation.decision_log": (
            present.observation.decision_log,
            new.observation.decision_log,
        ),
        "admin": (present.admin, new.admin),
    }
    return kept, [key for key, (before, after) in pairs.items() if before != after]


class Applier:
    """Applies changes to the parts of a gateway.

    Args:
        prepared: What it was started with.
        fleet: Its pools and backends.
        addresses: Where the backends are.
        learner: Goes on learning with every config.
        configure: Hands settings to all other parts.
        follow: Told how the fleet has changed.

    Attributes:
        settings: What applies at present.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        fleet: Fleet,
        addresses: Addresses,
        learner: Learner,
        configure: Callable[[Settings], None],
        follow: Callable[[Change], None],
    ) -> None:
        self.settings = prepared.settings
        self._api_keys = prepared.api_keys
        self._tls = prepared.tls
        self._fleet = fleet
        self._addresses = addresses
        self._learner = learner
        self._configure = configure
        self._follow = follow

    def apply(self, prepared: Prepared) -> None:
        """Go by another config; what the admin API has changed is void."""
        tls = self.settings.listen.tls
        if self._tls is not None and tls is not None and tls == prepared.settings.listen.tls:
            read_certificate(tls, self._tls)  # it may have been renewed
        self.settings, left = without_restart(self.settings, prepared.settings)
        for key in left:
            log.warning("%s was changed: it needs a restart, until then it stays as it was", key)
        self._api_keys = prepared.api_keys
        self._addresses.write(prepared.urls)
        self._learner.paused = False
        self._configure(self.settings)
        self.place()

    def place(self) -> None:
        """Bring the fleet up to date with where the backends are."""
        urls = self._addresses.by_pool()
        change = self._fleet.update(self.settings, urls=urls, api_keys=self._api_keys)
        for member in change.removed:
            log.info("backend %s of pool %s is removed", member.name, member.pool.name)
        for member in change.added:
            log.info("backend %s of pool %s is added", member.name, member.pool.name)
        self._follow(change)

    def check_thresholds(self, patch: Mapping[str, Any]) -> ThresholdSettings:
        """Return the thresholds with some of them set as if they were written in the config.

        Raises:
            ConfigError: If they are not valid.
        """
        return patched(self.settings.thresholds, patch)

    def patch_thresholds(self, patch: Mapping[str, Any]) -> None:
        """Go by other thresholds.

        Raises:
            ConfigError: If they are not valid.
        """
        thresholds = self.check_thresholds(patch)
        self.settings = self.settings.model_copy(update={"thresholds": thresholds})
        self._configure(self.settings)

    def member(self, name: str) -> Member:
        """Return the backend of this name.

        Raises:
            NotServed: If there is none.
        """
        member = self._fleet.members.get(name)
        if member is None:
            names = ", ".join(self._fleet.members) or "none"
            raise NotServed(f"there is no backend {name[:200]!r}; there are: {names}")
        return member

    def check_place(self, pool: str, name: str) -> None:
        """Check that a backend may be added to a pool.

        Raises:
            NotServed: If there is no such pool.
            InvalidRequest: If there is such a backend.
        """
        if pool not in (pools := [each.name for each in self._fleet.pools]):
            raise NotServed(f"there is no pool {pool[:200]!r}; there are: {', '.join(pools)}")
        if (member := self._fleet.members.get(name)) is not None:
            raise InvalidRequest(f"backend {name} is there, in pool {member.pool.name!r}")

    def add(self, pool: str, url: str, name: str) -> None:
        """Add a backend to a pool; raises as `check_place` does."""
        self.check_place(pool, name)
        self._addresses.add(pool, url)
        self.place()

    def remove(self, name: str) -> None:
        """Remove a backend; its requests in flight finish.

        Raises:
            NotServed: If there is none of this name.
        """
        self.member(name)
        self._addresses.remove(name)
        self.place()
