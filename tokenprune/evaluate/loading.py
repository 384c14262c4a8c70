"""Load the model and processor of a comparison: the bundled one, a local folder, or a hub id."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenprune.models import Clip

BUNDLED = "bundled"
_MEBIBYTE = 2**20


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedModel:
    """A model ready to answer.

    Attributes:
        name: "bundled", or the path or hub id asked for.
        model: the Hugging Face model, in evaluation mode on its device.
        processor: its processor.
        digest: names these weights.
        device: "cpu", "cuda:0", ...
        dtype: of the weights, for instance "float32".
        attention: the attention backend of the language model.
        clip: a CLIP model beside it, for strategies that need one.
        clip_digest: names that one's weights.
    """

    name: str
    model: Any
    processor: Any
    digest: str
    device: str
    dtype: str
    attention: str
    clip: "Clip | None" = None
    clip_digest: str | None = None


def choose_device(device: str) -> str:
    """The device to run on: "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: when the device does not exist here.
    """
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    return "cuda:0" if device == "cuda" else device


def choose_dtype(dtype: str, device: str) -> str:
    """The dtype to load into: "auto" is float32 on the CPU and the checkpoint's own elsewhere ("checkpoint")."""
    if dtype == "auto":
        return "float32" if device == "cpu" else "checkpoint"
    return dtype


def load(
    name: str = BUNDLED,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    clip: str | None = None,
) -> LoadedModel:
    """Load a model of a supported family with its processor.

    Args:
        name: "bundled", a local folder, or a hub id such as "llava-hf/llava-1.5-7b-hf".
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32", "float16" or "bfloat16".
        attention: "sdpa", "eager" or another backend of transformers.
        clip: a local folder or a hub id of the CLIP model that its vision tower was made from.

    Raises:
        ValueError: when the model cannot be found, loaded, or is of a family without an adapter.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tokenprune.models import adapter_for

    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    source: str | Path = name
    if name == BUNDLED:
        from tokenprune.bundled import MODEL_DIR

        source = MODEL_DIR
    elif Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        source = Path(name).expanduser()
        if not (source / "config.json").is_file():
            raise ValueError(
                f"--model {name}: there is no {source / 'config.json'}; give a folder written by save_pretrained"
            )
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype="auto" if precision == "checkpoint" else getattr(torch, precision),
            attn_implementation=attention,
        )
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        way_out = "give a folder written by save_pretrained, or a hub id with a connection or a filled cache"
        raise ValueError(f"--model {name}: {_first_line(error).rstrip('.')}; {way_out}") from error
    model.eval().to(place)
    adapter_for(model)  # refuses families that are not supported, before any work
    beside = None if clip is None else _load_clip(clip, processor, place)
    return LoadedModel(
        name=name,
        model=model,
        processor=processor,
        digest=_digest(model, Path(source)),
        device=place,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config.get_text_config()._attn_implementation),
        clip=beside,
        clip_digest=None if beside is None else _digest(beside.model, Path(str(clip))),
    )


def on_device(inputs: Mapping[str, Any], loaded: LoadedModel) -> dict[str, Any]:
    """The processor's tensors on the model's device, floating ones in its dtype."""
    import torch

    device, dtype = loaded.model.device, loaded.model.dtype
    return {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }


def _load_clip(name: str, processor: Any, device: str) -> "Clip":  # noqa: ANN401
    from tokenprune.models import Clip

    try:
        clip = Clip.from_pretrained(name, processor)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"--clip {name}: {_first_line(error).rstrip('.')}; give the folder or hub id of a CLIPModel"
        ) from error
    clip.model.to(device)
    return clip


def _digest(model: Any, source: Path) -> str:  # noqa: ANN401
    """Names the weights of a loaded model: the hub's commit, or what is in the folder."""
    return getattr(model.config, "_commit_hash", None) or folder_digest(source)


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder: whole small files; of large ones the size and the first and last MiB.

    Reading all of a 14 GB checkpoint at every start would take longer than many runs, and retrained weights differ in
    their first MiB.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix not in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= 16 * _MEBIBYTE:
                digest.update(stream.read())
            else:
                digest.update(stream.read(_MEBIBYTE))
                stream.seek(-_MEBIBYTE, 2)
                digest.update(stream.read())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
