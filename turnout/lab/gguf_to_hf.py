"""Turn a GGUF file into a Hugging Face folder: `python gguf_to_hf.py MODEL.gguf FOLDER`.

A script, not part of the package: the lab's own Python runs it, which has torch and transformers
and has no `turnout`. Weights are saved as bfloat16; with float32 vLLM warns once per tensor.
"""

import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]  # in the lab's environment only
from transformers import (  # type: ignore[import-not-found]  # in the lab's environment only
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
)


def convert(gguf: Path, folder: Path) -> None:
    """Write weights, tokenizer and chat template of `gguf` into `folder`."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
