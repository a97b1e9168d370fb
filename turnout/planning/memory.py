"""`turnout plan memory`: what fits beside the weights, and what a draft costs of it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from routing.pools import Speculation
from turnout.planning.deployment import (
    DRAFT_SHARE,
    RECOMMENDED,
    TARGET_SHARE,
    Deployment,
    alternatives,
    fits,
    pairings,
    shares,
)
from turnout.planning.views import FREE, Segments, View
from turnout.simulation.page import Table


def memory_view(deployment: Deployment, *, quantisation: bool = False) -> View:
    """Return the memory of a deployment; with `quantisation`, of each pair of precisions too."""
    tables = [_rule_table(deployment), _account_table(deployment)]
    data = described(deployment)
    if quantisation:
        tables.append(_pairing_table(deployment))
        data["pairings"] = [
            described(pair.deployment) | {"verdict": pair.verdict} for pair in pairings(deployment)
        ]
    return View(
        title=f"Memory of {named(deployment)}",
        tables=tables,
        says=[*_sentences(deployment), *(_why(deployment) if quantisation else ())],
        data=data,
        bars=bars(deployment),
        failed=not fits(deployment),
    )


def named(deployment: Deployment) -> str:
    """Return what a deployment is, in a line."""
    target = f"{deployment.target.short} {deployment.precision.upper()}"
    if deployment.draft is not None:
        drafting = f" + {deployment.draft.short} {deployment.draft_precision.upper()}"
    elif deployment.speculation is not Speculation.NONE:
        drafting = f" + {deployment.speculation}"
    else:
        drafting = ""
    return f"{target}{drafting} on {gpus_named(deployment)}"


def gpus_named(deployment: Deployment) -> str:
    """Return the GPUs of a deployment, and how its servers share them."""
    gpus = f"{deployment.count}x {deployment.gpu.name}"
    if deployment.servers == 1:
        return gpus
    return f"{gpus} ({deployment.servers} servers of {deployment.tp})"


def described(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment with both accounts of its memory, for JSON."""
    rule, account = deployment.rule, deployment.account
    return {
        "target": deployment.target.name,
        "precision": deployment.precision,
        "draft": deployment.draft.name if deployment.draft else None,
        "draft_precision": deployment.draft_precision if deployment.draft else None,
        "speculation": deployment.speculation,
        "k": deployment.k,
        "gpu": deployment.gpu.name,
        "gpus": deployment.count,
        "tensor_parallel": deployment.tp,
        "utilisation": deployment.utilisation,
        "context": deployment.context,
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
    ways = [deployment]
    if deployment.speculation is not Speculation.NONE:
        ways.append(deployment.plain)
    accounts = [way.account for way in ways]
    context = deployment.context
    rows = [
        ("reported by the driver", *(f"{each.reported:.2f}" for each in accounts)),
        ("vLLM may take", *(f"{each.usable:.2f}" for each in accounts)),
        ("target's weights", *(f"{each.target:.2f}" for each in accounts)),
        ("draft's weights", *(f"{each.draft:.2f}" for each in accounts)),
        ("activations (assumed)", *(f"{each.activations:.2f}" for each in accounts)),
        ("NCCL, CUDA graphs (assumed)", *(f"{each.other:.2f}" for each in accounts)),
        ("KV cache", *(f"{each.kv:.2f}" for each in accounts)),
        ("KV bytes per token", *(f"{each.kv_bytes_per_token:,.0f}" for each in accounts)),
        ("tokens in the cache", *(f"{each.kv_tokens:,}" for each in accounts)),
        (f"requests of {context:,}", *(f"{each.concurrent(context):,}" for each in accounts)),
        ("longest context", *(f"{each.longest:,}" for each in accounts)),
    ]
    heads = ("GiB" if len(ways) == 1 else f"with {deployment.speculation}", "without")
    return Table("One GPU as vLLM counts it, GiB", ("", *heads[: len(ways)]), rows)


def _pairing_table(deployment: Deployment) -> Table:
    rows = []
    strong = ""
    for pair in pairings(deployment):
        rule, account = pair.deployment.rule, pair.deployment.account
        label = pair.deployment.precision.upper()
        if deployment.draft is not None:
            label += f" + {pair.deployment.draft_precision.upper()}"
        if pair.verdict == RECOMMENDED:
            strong = label
        rows.append(
            (
                label,
                pair.verdict,
                f"{rule.target_gb:g}",
                f"{rule.draft_gb:.3g}",
                f"{rule.weights_gb:.4g}",
                f"{rule.left_gb:.4g}",
                f"{account.concurrent(deployment.context):,}",
            )
        )
    heads = ("weights", "verdict", "target", "draft", "both", "left", "requests")
    heading = f"Precisions on {gpus_named(deployment)}, GB, requests of {deployment.context:,}"
    return Table(heading, heads, rows, labels=2, strong=strong)


def _sentences(deployment: Deployment) -> Iterator[str]:
    rule, account = deployment.rule, deployment.account
    if not fits(deployment):
        yield (
            f"Does not fit: {rule.weights_gb:g} GB of weights against {rule.usable_gb:.0f} GB "
            f"({rule.total_gb:g} GB at {deployment.utilisation:g})"
            if rule.kv_gb <= 0.0
            else f"Does not fit: {account.kv:.1f} GiB per GPU are left for the KV cache, and a "
            f"request of {deployment.context:,} tokens takes "
            f"{account.request_bytes(deployment.context) / 2**30:.1f}"
        )
        others = list(alternatives(deployment))
        for other in others:
            tokens = other.account.kv_tokens
            yield f"would fit: {named(other)}: {tokens:,} tokens of KV cache"
        if not others:
            yield "nothing in the catalogue would; take a smaller target"
    elif deployment.speculation is not Speculation.NONE:
        yield _cost_of_drafting(deployment)
    for share in shares(deployment):
        yield f"warning: {share}"
    yield (
        "GB are the maker's, sizes those of the names; GiB are what vLLM's log prints. What is "
        "assumed was measured with vLLM 0.19 on H100: at the first start compare the log's "
        "'Available KV cache memory'."
    )


def _why(deployment: Deployment) -> Iterator[str]:
    pairs = pairings(deployment)
    best = next((pair for pair in pairs if pair.verdict == RECOMMENDED), None)
    if best is None:
        yield "No pair fits with a target and a draft within their shares of memory"
        return
    yield (
        f"Recommended is {named(best.deployment)}: the least quantised that fits with the target "
        f"within {TARGET_SHARE:.0%} and the draft within {DRAFT_SHARE:.0%} of memory. Quantising "
        "the target moves acceptance most, so it goes to 8 bits before 4; the draft is safer to "
        "quantise, and to be quantised before it is taken from another family."
    )


def _cost_of_drafting(deployment: Deployment) -> str:
    context = deployment.context
    drafting = deployment.account.concurrent(context)
    plain = deployment.plain.account.concurrent(context)
    return (
        f"Speculation by {deployment.speculation} leaves room for {drafting} of {plain} "
        f"concurrent requests of {context:,} tokens"
    )


def bars(deployment: Deployment) -> Mapping[str, Segments]:
    """Return each GPU's memory in parts, with speculation and without."""
    found: dict[str, Segments] = {}
    for way in dict.fromkeys((deployment, deployment.plain)):
        account = way.account
        parts = {
            "target": account.target,
            "draft": account.draft,
            "activations": account.activations,
            "NCCL, CUDA graphs": account.other,
            "KV cache": max(0.0, account.kv),
            FREE: account.reported - account.usable,
        }
        for gpu in range(deployment.count):
            found[f"GPU {gpu}, {way.speculation}"] = parts
    return found
