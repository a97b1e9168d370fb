"""`turnout plan memory`: what fits beside the weights, and what a draft costs of it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from routing.pools import Speculation
from turnout.planning.deployment import (
    DRAFT_SHARE,
    GIB,
    RECOMMENDED,
    TARGET_SHARE,
    Account,
    Deployment,
    Pairing,
    alternatives,
    fits,
    pairings,
    shares,
)
from turnout.planning.views import Segments, View
from turnout.simulation.page import Table


def memory_view(deployment: Deployment, *, quantisation: bool = False) -> View:
    """Return the memory of a deployment; with `quantisation`, of each pair of precisions too."""
    tables = [_rule_table(deployment), _account_table(deployment)]
    says, data = list(_sentences(deployment)), described(deployment)
    if quantisation:
        pairs = pairings(deployment)
        tables.append(_pairing_table(deployment, pairs))
        says.append(_why(pairs))
        data["pairings"] = [
            described(pair.deployment) | {"verdict": pair.verdict} for pair in pairs
        ]
    return View(
        title=f"Memory of {named(deployment)}",
        tables=tables,
        says=says,
        data=data,
        bars={
            f"GPU {gpu}, {way.speculation}": segments(way)
            for way in dict.fromkeys((deployment, deployment.plain))
            for gpu in range(deployment.count)
        },
        usable_gib=deployment.account.usable,
        failed=not fits(deployment),
    )


def named(deployment: Deployment) -> str:
    """Return what a deployment is, in a line."""
    parts = [f"{deployment.target.short} {deployment.precision.upper()}"]
    if deployment.draft is not None:
        parts.append(f"{deployment.draft.short} {deployment.draft_precision.upper()}")
    elif deployment.speculation is not Speculation.NONE:
        parts.append(deployment.speculation)
    return f"{' + '.join(parts)} on {gpus_named(deployment)}"


def gpus_named(deployment: Deployment) -> str:
    """Return the GPUs of a deployment, and how its servers share them."""
    servers = f" ({deployment.servers} servers of {deployment.tp})"
    several = deployment.servers > 1
    return f"{deployment.count}x {deployment.gpu.name}{servers if several else ''}"


def described(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment with both accounts of its memory, for JSON."""
    rule, account = deployment.rule, deployment.account
    return asdict(deployment) | {
        "fits": fits(deployment),
        "rule_gb": asdict(rule)
        | {"weights_gb": rule.weights_gb, "left_gb": rule.left_gb, "kv_gb": rule.kv_gb},
        "account_gib_per_gpu": asdict(account) | {"kv": account.kv},
        "kv_tokens": account.kv_tokens,
        "concurrent": account.concurrent(deployment.context),
        "longest_context": account.longest,
    }


def _rule_table(deployment: Deployment) -> Table:
    rule = deployment.rule
    rows = [
        ("memory", f"{rule.total_gb:g}"),
        ("target's weights", f"{rule.target_gb:g}"),
        ("draft's weights", f"{rule.draft_gb:.3g}"),
        ("left beside the weights", f"{rule.left_gb:.4g}"),
        (f"left at utilisation {rule.utilisation:g}", f"{rule.kv_gb:.4g}"),
    ]
    return Table("A server's memory by the rule of thumb", ("", "GB"), rows)


def _account_table(deployment: Deployment) -> Table:
    """Return one GPU's memory, with speculation and without."""
    columns = []
    for way in dict.fromkeys((deployment, deployment.plain)):
        account = way.account
        columns.append(
            {
                "reported by the driver": f"{account.reported:.2f}",
                "vLLM may take": f"{account.usable:.2f}",
                **{label: f"{size:.2f}" for label, size in _parts(account).items()},
                "KV bytes per token": f"{account.kv_bytes_per_token:,.0f}",
                "tokens in the cache": f"{account.kv_tokens:,}",
                f"requests of {way.context:,}": f"{account.concurrent(way.context):,}",
                "longest context": f"{account.longest:,}",
            }
        )
    heads = ("GiB",) if len(columns) == 1 else (f"with {deployment.speculation}", "without")
    rows = [(label, *(column[label] for column in columns)) for label in columns[0]]
    return Table("One GPU as vLLM counts it, GiB", ("", *heads), rows)


def _pairing_table(deployment: Deployment, pairs: list[Pairing]) -> Table:
    rows, strong = [], ""
    for pair, verdict in pairs:
        rule = pair.rule
        drafted = f" + {pair.draft_precision.upper()}" if pair.draft else ""
        label = f"{pair.precision.upper()}{drafted}"
        sizes = (rule.target_gb, rule.draft_gb, rule.weights_gb, rule.left_gb)
        requests = f"{pair.account.concurrent(pair.context):,}"
        rows.append((label, verdict, *(f"{size:.4g}" for size in sizes), requests))
        strong = label if verdict == RECOMMENDED else strong
    heads = ("weights", "verdict", "target", "draft", "both", "left", "requests")
    heading = f"Precisions on {gpus_named(deployment)}, GB, requests of {deployment.context:,}"
    return Table(heading, heads, rows, labels=2, strong=strong)


def _sentences(deployment: Deployment) -> Iterator[str]:
    rule, account, context = deployment.rule, deployment.account, deployment.context
    if not fits(deployment):
        if rule.kv_gb <= 0.0:
            yield (
                f"Does not fit: {rule.weights_gb:g} GB of weights against "
                f"{rule.total_gb * rule.utilisation:.0f} GB "
                f"({rule.total_gb:g} GB at {rule.utilisation:g})"
            )
        else:
            yield (
                f"Does not fit: {account.kv:.1f} GiB per GPU are left for the KV cache, and a "
                f"request of {context:,} tokens takes {account.request_bytes(context) / GIB:.1f}"
            )
        others = list(alternatives(deployment))
        for other in others:
            yield f"would fit: {named(other)}: {other.account.kv_tokens:,} tokens of KV cache"
        if not others:
            yield "nothing in the catalogue would; take a smaller target"
    elif deployment.speculation is not Speculation.NONE:
        plain = deployment.plain.account.concurrent(context)
        yield (
            f"Speculation by {deployment.speculation} leaves room for "
            f"{account.concurrent(context)} of {plain} concurrent requests of {context:,} tokens"
        )
    for share in shares(deployment):
        yield f"warning: {share}"
    yield (
        "GB are the maker's, sizes those of the names; GiB are what vLLM's log prints. What is "
        "assumed was measured with vLLM 0.19 on H100: at the first start compare the log's "
        "'Available KV cache memory'."
    )


def _why(pairs: list[Pairing]) -> str:
    best = next((pair.deployment for pair in pairs if pair.verdict == RECOMMENDED), None)
    if best is None:
        return "No pair fits with a target and a draft within their shares of memory"
    return (
        f"Recommended is {named(best)}: the least quantised that fits with the target within "
        f"{TARGET_SHARE:.0%} and the draft within {DRAFT_SHARE:.0%} of memory. Quantising the "
        "target moves acceptance most, so it goes to 8 bits before 4; the draft is safer to "
        "quantise, and to be quantised before it is taken from another family."
    )


def segments(deployment: Deployment) -> Segments:
    """Return the memory of one GPU in parts; they exceed it where the server cannot start."""
    account = deployment.account
    parts = _parts(account) | {"KV cache": max(0.0, account.kv)}
    return parts | {"left to others": max(0.0, account.reported - sum(parts.values()))}


def _parts(account: Account) -> dict[str, float]:
    return {
        "target's weights": account.target,
        "draft's weights": account.draft,
        "activations (assumed)": account.activations,
        "NCCL, CUDA graphs (assumed)": account.other,
        "KV cache": account.kv,
    }
