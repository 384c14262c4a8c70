"""`tokenprune doctor`: does pruning work on this model, here, with these versions?"""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from tokenprune.cli.console import make_console
from tokenprune.cli.options import JsonFlag, ModelOptions, load_model

if TYPE_CHECKING:
    from tokenprune.evaluate.doctor import Diagnosis, MakeInputs

UNHEALTHY = 1
app = App(name="doctor")


@app.default
def doctor(
    *,
    config: str | None = None,
    model: ModelOptions = ModelOptions(),
    json: JsonFlag = False,
) -> int:
    """Prune one image in every supported way, and compare the logits with runs that know nothing of pruning.

    The model is loaded, or a tiny random one of a family is built. The exit status is 1 when a check fails.

    Args:
        config: no weights: a tiny random model of a family such as llava_next, or of the family that a config.json
            names (whose full-size structure is looked at too).
    """
    import torch
    import transformers

    from tokenprune import __version__
    from tokenprune.evaluate.doctor import diagnose_model

    structure = None
    if config is None:
        loaded = load_model(model)
        module, make_inputs, name = loaded.model, _from_processor(loaded.model, loaded.processor), loaded.name
    else:
        module, make_inputs, structure = _tiny(config, model)
        name = f"a tiny random model for --config {config}"
    diagnosis = diagnose_model(module, make_inputs)
    about = {
        "name": name,
        "device": str(module.device),
        "dtype": str(module.dtype).removeprefix("torch."),
        "attention": str(module.config.get_text_config()._attn_implementation),
        "tokenprune": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    if json:
        print(json_module.dumps({**about, "structure": structure, **diagnosis.to_dict()}, indent=2))
    else:
        _show(about, structure, diagnosis)
    return 0 if diagnosis.healthy else UNHEALTHY


def _from_processor(model: Any, processor: Any) -> "MakeInputs":  # noqa: ANN401
    from PIL import Image

    from tokenprune.evaluate.batches import chat_prompt

    ramp = Image.linear_gradient("L")
    image = Image.merge("RGB", (ramp, Image.radial_gradient("L"), ramp.rotate(90)))

    def make(questions: Any) -> dict[str, Any]:  # noqa: ANN401
        texts = [chat_prompt(processor, question, 1) for question in questions]
        images = [image] * len(texts)
        made = processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in made.items()
        }

    return make


def _tiny(config: str, options: ModelOptions) -> tuple[Any, "MakeInputs", dict[str, Any] | None]:
    import torch

    from tokenprune.evaluate.loading import choose_device, choose_dtype
    from tokenprune.testing import tiny_families, tiny_model

    family, structure = config, None
    if Path(family).is_file():
        family, structure = _structure(Path(family))
    if family not in tiny_families():
        raise ValueError(
            f"--config {config}: the family is {family!r}, known are {', '.join(tiny_families())}; give one of "
            "them or a config.json"
        )
    device = choose_device(options.device)
    precision = choose_dtype(options.dtype, "cpu")
    model, make_inputs = tiny_model(family, attn_implementation=options.attn, dtype=getattr(torch, precision), layers=4)
    model.to(device)

    def make(questions: Any) -> dict[str, Any]:  # noqa: ANN401
        made = make_inputs([f"look at <0> {question}" for question in questions])
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in made.items()
        }

    return model, make, structure


def _structure(file: Path) -> tuple[str, dict[str, Any]]:
    """The family that a config.json names, and what its adapter finds in a model of that size, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from tokenprune.models import adapter_for

    try:
        config = AutoConfig.from_pretrained(file)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--config {file}: {' '.join(str(error).split())[:300]}") from error
    family = str(config.model_type)
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except ValueError as error:
        raise ValueError(f"--config {file}: {family!r} is no model that turns images and text into text") from error
    adapter = adapter_for(model)
    return family, {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "decoder_layers": len(adapter.decoder_layers),
        "vision_attention": len(adapter.vision_attention),
        "signals": sorted(adapter.signals),
    }


def _show(about: dict[str, str], structure: dict[str, Any] | None, diagnosis: "Diagnosis") -> None:
    console = make_console()

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    line(f"{about['name']}: {diagnosis.model} ({diagnosis.family}), {diagnosis.adapter}")
    line(
        f"{about['device']}, {about['dtype']}, attention {about['attention']}; tokenprune {about['tokenprune']}, "
        f"transformers {about['transformers']}, torch {about['torch']}"
    )
    line(f"{diagnosis.visual_tokens} visual tokens, {diagnosis.layers} decoder layers")
    if structure is not None:
        line(
            f"full size: {structure['parameters'] / 1e9:.2f} B parameters, {structure['decoder_layers']} decoder "
            f"layers, {structure['vision_attention']} attention modules in the tower; not built"
        )
    line(f"sites      {', '.join(diagnosis.sites)}")
    line(f"signals    {', '.join(diagnosis.signals)}")
    line(f"in decoder {', '.join(diagnosis.decoder_signals) or '-'}")
    for name, reason in sorted(diagnosis.missing.items()):
        line(f"           no {name}: {reason}")
    line("")
    for check in diagnosis.checks:
        difference = "" if check.difference is None else f" (difference {check.difference:.1e})"
        line(f"{check.status:<12}{check.name}: {check.detail}{difference}")
    line("")
    failed = [check.name for check in diagnosis.checks if check.status == "failed"]
    line(f"failed: {', '.join(failed)}" if failed else "everything that is supported works")
