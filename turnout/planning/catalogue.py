"""Models and GPUs: what is known of each, and reading a model from a folder on this machine."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from turnout.planning.errors import PlanError, unknown

_HERE = Path(__file__).parent
_FULL = ("full_attention", "attention")
_PADDED_VOCAB = 64  # vLLM pads the vocabulary to a multiple (`DEFAULT_VOCAB_PADDING_SIZE`)


class Precision(StrEnum):
    """What a weight is stored in."""

    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def rule_bytes(self) -> float:
        """Bytes per parameter as the rule of thumb has them."""
        return {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}[self]

    @property
    def linear_bytes(self) -> float:
        """Bytes per weight of a linear layer, scales included.

        GPTQ and AWQ keep a 16-bit scale and a 4-bit zero per group of 128 weights.
        """
        return 0.5 + 20 / 8 / 128 if self is Precision.INT4 else self.rule_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The numbers of a `config.json` that memory follows from.

    Attributes:
        hidden: Width of the residual stream.
        layers: Decoder layers.
        heads: Attention heads.
        kv_heads: KV heads, fewer than `heads` under grouped-query attention.
        head_dim: Size of a head.
        vocab: Rows of the embedding.
        context: Longest context, tokens.
        linear: Parameters of linear layers, all experts included.
        active: Those of them that a token passes.
        embedding: Parameters of embedding and output head, which stay in 16 bits.
        latent: Elements that multi-head latent attention caches per token and layer; 0 without it.
        window: Tokens that a layer of sliding attention keeps; 0 where there is none.
        sliding: How many layers are such.
        mtp: Prediction layers that the checkpoint brings along.
        layer: Linear parameters of its last layer.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    linear: int
    active: int
    embedding: int
    latent: int = 0
    window: int = 0
    sliding: int = 0
    mtp: int = 0
    layer: int = 0

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear + self.embedding

    def kv_bytes(self, tp: int, element_bytes: float, layers: int | None = None) -> float:
        """Return the KV cache per token on each of `tp` GPUs, bytes.

        2 x layers x KV heads x head size x bytes, the heads shared out; heads fewer than GPUs are
        kept on several, and a latent cache is kept on all.
        """
        each = self.latent or 2 * max(1.0, self.kv_heads / tp) * self.head_dim
        return (self.layers if layers is None else layers) * each * element_bytes

    def tp_problem(self, tp: int) -> str | None:
        """Return why vLLM would refuse to share the model among `tp` GPUs, or None."""
        if self.heads % tp:
            return f"{self.heads} attention heads cannot be shared among {tp} GPUs"
        if not self.latent and self.kv_heads % tp and tp % self.kv_heads:
            return f"{self.kv_heads} KV heads cannot be shared among {tp} GPUs"
        if -(-self.vocab // _PADDED_VOCAB) * _PADDED_VOCAB % tp:
            return f"a vocabulary of {self.vocab} cannot be shared among {tp} GPUs"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model.

    Attributes:
        name: Checkpoint or folder, as vLLM takes it.
        family: Models trained alike.
        tokenizer: Models with one name here have one vocabulary.
        billions: Size in its name; from its parameters where it has none.
        architecture: Its numbers.
        precision: What its checkpoint is stored in.
        eagle3: A trained EAGLE-3 head, or empty.
        int4: A checkpoint in 4 bits, or empty.
        folder: Where it is on this machine, or None.
        source: What the numbers were read from.
    """

    name: str
    family: str
    tokenizer: str
    billions: float
    architecture: Architecture
    precision: Precision = Precision.BF16
    eagle3: str = ""
    int4: str = ""
    folder: Path | None = None
    source: str

    @property
    def short(self) -> str:
        """The name without its owner."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: Its name.
        gb: Memory as its maker counts it.
        reported_gib: Memory that the driver reports, GiB.
        gb_per_s: Memory bandwidth; 0 where it is not known.
        tflops: Dense BF16 rate, TFLOP/s; 0 where it is not known.
        fp8: Whether it computes in FP8.
        build: vLLM's build for it.
        source: What that was read from.
    """

    name: str
    gb: float
    reported_gib: float
    gb_per_s: float = 0.0
    tflops: float = 0.0
    fp8: bool = False
    build: Literal["cuda", "rocm", "cpu"] = "cuda"
    source: str


@cache
def models() -> Mapping[str, Model]:
    """Return the catalogue's models by name."""
    found = {}
    for row in yaml.safe_load((_HERE / "models.yaml").read_text(encoding="utf-8")):
        config, name = row.pop("config"), row["name"]
        numbers = {"architecture": architecture(config, name), "precision": _stored(config)}
        found[name] = Model(**{"source": f"config.json of {name}"} | numbers | row)
    return found


@cache
def gpus() -> Mapping[str, Gpu]:
    """Return the catalogue's GPUs by name."""
    rows = yaml.safe_load((_HERE / "gpus.yaml").read_text(encoding="utf-8"))
    return {row["name"]: Gpu(**row) for row in rows}


def find_model(text: str) -> Model:
    """Return the model of that name, or in that folder, or of that `config.json`.

    Raises:
        PlanError: If there is none, or its `config.json` lacks what a budget needs.
    """
    path = Path(text)
    if path.is_dir() or path.suffix == ".json":
        return read_model(path)
    for model in models().values():
        if text in (model.name, model.int4):
            is_int4 = text == model.int4
            return replace(model, name=text, precision=Precision.INT4) if is_int4 else model
    short = [model for model in models().values() if _plain(model.name) == _plain(text)]
    if len(short) == 1:
        return short[0]
    if text.startswith(("/", ".", "~")):
        raise PlanError(f"model {text!r}: there is no such folder")
    raise unknown("model", text, models(), other=", or a folder with its config.json")


def _plain(name: str) -> str:
    short = name.rpartition("/")[2].lower()
    return re.sub(r"^meta-|-(instruct|it|chat)(-v[\d.]+)?$", "", short)


def read_model(path: Path) -> Model:
    """Return the model in a folder, or the one that a `config.json` describes.

    One of the same architecture as a model of the catalogue is taken for a kind of it.

    Raises:
        PlanError: If the file is not there, is no JSON object, or lacks what a budget needs.
    """
    file = path / "config.json" if path.is_dir() else path
    config = read_json(file)
    try:
        config |= config.get("text_config") or {}  # of a model that also reads images
        found, stored = architecture(config, str(file)), _stored(config)
    except (AttributeError, TypeError, ValueError) as error:
        raise PlanError(f"{file} is not as a model's config.json is: {error}") from None
    alike = next((each for each in models().values() if each.architecture == found), None)
    kind = str(config.get("model_type", "unknown"))
    return Model(
        name=str(file.parent if path.is_dir() else config.get("_name_or_path") or file),
        family=alike.family if alike else kind,
        tokenizer=alike.tokenizer if alike else f"{kind}, {found.vocab} entries",
        billions=alike.billions if alike else found.parameters / 1e9,
        architecture=found,
        precision=stored,
        folder=path if path.is_dir() else None,
        source=str(file),
    )


def read_json(file: Path) -> dict[str, Any]:
    """Return what a model's JSON file holds.

    Raises:
        PlanError: If it cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise PlanError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PlanError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise PlanError(f"{file} is not a JSON object")
    return content


def _stored(config: Mapping[str, Any]) -> Precision:
    """Return what a checkpoint's weights are stored in.

    Raises:
        PlanError: If it is quantised in a way whose bits are not known.
    """
    quantised = config.get("quantization_config")
    if not quantised:
        return Precision.BF16
    groups = (quantised.get("config_groups") or {}).values()
    weights = next((group.get("weights") or {} for group in groups), quantised)
    bits = weights.get("num_bits") or weights.get("bits")
    method = f"{quantised.get('quant_method')} {quantised.get('quant_algo', '')}".lower().strip()
    if "fp8" in method or (bits == 8 and weights.get("type") == "float"):
        return Precision.FP8
    if bits == 8 or quantised.get("load_in_8bit"):
        return Precision.INT8
    if bits == 4 or "fp4" in method or quantised.get("load_in_4bit"):
        return Precision.INT4
    raise PlanError(f"a checkpoint quantised by {method!r}: how many bits is not known")


def architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the numbers of a `config.json`, and the parameters that follow from them.

    Raises:
        PlanError: If a key is missing or no positive whole number, or a layer keeps a state that
            is no KV cache.
    """

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 0 or (value == 0 and default is None):
            raise PlanError(f"{where}: {key} is {value!r}, must be a positive whole number")
        return value

    hidden, layers = number("hidden_size"), number("num_hidden_layers")
    heads, vocab = number("num_attention_heads"), number("vocab_size")
    kv_heads = number("num_key_value_heads", heads)
    head_dim = number("head_dim", hidden // heads)
    kind = str(config.get("model_type"))
    latent_rank = number("kv_lora_rank", 0)
    if latent_rank:
        attention = _latent_attention(number, hidden, heads)
    else:
        attention = hidden * head_dim * 2 * (heads + kv_heads)
        if kind.startswith("qwen2") or config.get("attention_bias"):
            attention += head_dim * (heads + 2 * kv_heads)
        if kind.startswith("qwen3"):
            attention += 2 * head_dim
    experts = number("num_experts", number("num_local_experts", number("n_routed_experts", 0)))
    inner = number("intermediate_size", 0)
    width = number("moe_intermediate_size", inner)
    dense = number("first_k_dense_replace", 0) if experts else layers
    shared = number("n_shared_experts", 0)
    chosen = number("num_experts_per_tok", 1)
    router = experts * hidden + (experts if kind.startswith("deepseek") else 0)
    sparse_all = 3 * hidden * width * (experts + shared) + router
    sparse_active = 3 * hidden * width * (chosen + shared) + router
    always = layers * (attention + 2 * hidden) + hidden + dense * 3 * hidden * inner
    sliding, window = _sliding(config, where, layers)
    return Architecture(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        context=number("max_position_embeddings"),
        linear=always + (layers - dense) * sparse_all,
        active=always + (layers - dense) * sparse_active,
        embedding=vocab * hidden * (1 if config.get("tie_word_embeddings") else 2),
        latent=latent_rank + number("qk_rope_head_dim", 0) if latent_rank else 0,
        window=window,
        sliding=sliding,
        mtp=number("num_nextn_predict_layers", 0),
        layer=attention + 2 * hidden + (sparse_all if experts else 3 * hidden * inner),
    )


def _latent_attention(number: Any, hidden: int, heads: int) -> int:
    """Return the parameters of a layer's multi-head latent attention (DeepSeek-V2, V3)."""
    nope, rope, value = (
        number(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    rank, query_rank = number("kv_lora_rank"), number("q_lora_rank", 0)
    query = heads * (nope + rope)
    queries = query_rank * (hidden + 1 + query) if query_rank else hidden * query
    keys = hidden * (rank + rope) + rank + rank * heads * (nope + value)
    return cast("int", queries + keys + heads * value * hidden)


def _sliding(config: Mapping[str, Any], where: str, layers: int) -> tuple[int, int]:
    """Return how many layers attend through a window, and its length in tokens."""
    kinds = config.get("layer_types") or ["full_attention"] * layers
    others = sorted({str(kind) for kind in kinds} - {*_FULL, "sliding_attention"})
    if others:
        raise PlanError(
            f"{where}: a layer of type {others[0]!r} keeps a state that is no KV cache"
        )
    count = sum(kind == "sliding_attention" for kind in kinds)
    return count, int(config.get("sliding_window") or 0) if count else 0


def find_gpu(text: str) -> Gpu:
    """Return the GPU of that name.

    Raises:
        PlanError: If it is not in the catalogue, naming the nearest.
    """
    known = {name.lower(): gpu for name, gpu in gpus().items()}
    gpu = known.get(re.sub(r"-?(80|141|180|192)gb$|-sxm\d?$", "", text.lower()))
    if gpu is None:
        raise unknown("GPU", text, gpus())
    return gpu


def gpu_of(vram_gb: float) -> Gpu:
    """Return a GPU of which only the memory is known, GB as its maker counts them.

    The driver is taken to report the smallest share of it that one of the catalogue's does.
    """
    share = min(gpu.reported_gib / gpu.gb for gpu in gpus().values())
    name = f"{vram_gb:g} GB GPU"
    return Gpu(name=name, gb=vram_gb, reported_gib=vram_gb * share, source="--vram")
