"""Every way of calling, for every family: one function each, for the tests and for `python -m tests.compatibility`."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.models.decoder_oracle import Attended, Stage, most_attended
from tests.models.family_oracle import BATCHES, LAYERS, VIDEO_BATCHES, check_family, check_inside, tiny
from tests.models.flash import emulated_flash, use_flash
from tests.models.oracle import ByContent, KeepAll
from tokenprune import prune
from tokenprune.evaluate.doctor import CHECKS, _Patient, longer
from tokenprune.models import UnsupportedError, adapter_for
from tokenprune.testing.tiny.families import tiny_model

BACKENDS = ("sdpa", "eager", "flash")
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 3,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


class NotThereError(Exception):
    """The family, or transformers, has no such thing."""


@cache
def flash(family: str) -> Any:
    """The same weights as those of `tiny`, on the emulated backend."""
    return use_flash(tiny_model(family, layers=LAYERS)[0])


def on_flash(family: str, prompts: list[str], strategy: Any, **settings: Any) -> None:
    """The emulated backend gives the logits of SDPA, which other checks compare with a reference."""
    plain, make_inputs = tiny(family)
    inputs = make_inputs(prompts)
    with torch.no_grad():
        dense = plain(**inputs).logits[:, -1]
        with emulated_flash():
            if (flash(family)(**inputs).logits[:, -1] - dense).abs().max() > 1e-3:
                raise NotThereError("transformers itself gives other logits with FlashAttention, without pruning too")
    logits = []
    for model, kernels in ((plain, nullcontext()), (flash(family), emulated_flash())):
        with kernels, prune(model, strategy, positions="original") as record:
            output = model.generate(**inputs, **SETTINGS, **settings)
        assert record.kept_share < 1
        logits.append(torch.stack(output.logits))
    assert (logits[0] - logits[1]).abs().max() <= 2e-5


def before(family: str, backend: str) -> None:
    """Logits of every step, rows of different length; both position policies."""
    if backend == "flash":
        on_flash(family, BATCHES["padded"], ByContent())
        return
    inputs = tiny(family)[1](BATCHES["padded"])
    check_family(family, backend, inputs, ByContent(), "original")
    check_family(family, backend, inputs, ByContent(), "compact")


def equal_rows(family: str, backend: str) -> None:
    """Rows of one length that keep different numbers of tokens."""
    if backend == "flash":
        on_flash(family, BATCHES["equal length"], ByContent())
        return
    check_family(family, backend, tiny(family)[1](BATCHES["equal length"]), ByContent(), "compact")


def several(family: str, backend: str) -> None:
    """Several images in a prompt, text between them, a prompt without any."""
    if backend == "flash":
        on_flash(family, BATCHES["several images"], ByContent())
        return
    check_family(family, backend, tiny(family)[1](BATCHES["several images"]), ByContent(), "original")


def inside(family: str, backend: str) -> None:
    """A stage inside the language model that looks at its attention."""
    if backend == "flash":
        on_flash(family, BATCHES["padded"], Attended(layer=2))
        return
    stages = [Stage(2, "original", most_attended(lambda key, left: 3 + key % 9))]
    check_inside(family, backend, tiny(family)[1](BATCHES["padded"]), Attended(), stages, "original")


def static(family: str, backend: str) -> None:
    """A static cache."""
    if backend == "flash":
        on_flash(family, BATCHES["padded"], ByContent(), cache_implementation="static", disable_compile=True)
        return
    inputs = tiny(family)[1](BATCHES["padded"])
    check_family(family, backend, inputs, ByContent(), "original", cache_implementation="static", disable_compile=True)


def videos(family: str, backend: str) -> None:
    """Videos."""
    if not any("video" in key for key in adapter_for(tiny(family)[0]).visual_keys):
        raise NotThereError("images only")
    if backend == "flash":
        on_flash(family, VIDEO_BATCHES["videos"], ByContent())
        return
    check_family(family, backend, tiny(family)[1](VIDEO_BATCHES["videos"]), ByContent(), "original")


def doctor(name: str, dtype: torch.dtype = torch.float32) -> Callable[[str, str], None]:
    """A check of `tokenprune doctor`."""

    def check(family: str, backend: str) -> None:
        model, make_inputs = (
            tiny(family, backend) if dtype == torch.float32 else tiny_model(family, dtype=dtype, layers=4)
        )
        if backend == "flash":
            model = flash(family)

        def make(questions: Any) -> Any:
            made = make_inputs([f"look at <0> {question}" for question in questions])
            return {k: v.to(dtype) if v.is_floating_point() else v for k, v in made.items()}

        CHECKS[name](_Patient(model, make))

    return check


def labels(family: str, backend: str) -> None:
    """The loss, from the logits by hand."""
    model, make_inputs = tiny(family, backend)
    inputs = make_inputs(BATCHES["padded"])
    adapter = adapter_for(model)
    given = inputs["input_ids"].clone()
    for token in adapter.image_token_ids:
        given[given == token] = -100
    given[inputs["attention_mask"] == 0] = -100
    with prune(model, ByContent()) as record, torch.no_grad():
        output = model(**inputs, labels=given)
    columns = record.calls[-1].columns
    assert columns is not None
    losses = []
    for row, places in enumerate(columns):
        real = places[places >= 0]
        start = len(places) - len(real)
        targets = given[row, real][1:]
        losses.append(cross_entropy(output.logits[row, start:-1], targets, ignore_index=-100, reduction="none"))
        losses[-1] = losses[-1][targets != -100]
    assert abs(torch.cat(losses).mean() - output.loss) <= 1e-5


def new_image(family: str, backend: str) -> None:
    """A second turn with a new image on the kept cache, against the whole conversation encoded anew."""
    model, make_inputs = tiny(family, backend)
    first, both = make_inputs(["look at <0> now"]), make_inputs(["look at <0> now and <4> why"])
    length = first["input_ids"].shape[1]
    if not torch.equal(both["input_ids"][:, :length], first["input_ids"]):
        raise NotThereError("an image takes other tokens beside a second one")
    settings = {**SETTINGS, "suppress_tokens": list(adapter_for(model).image_token_ids)}
    with prune(model, ByContent(), positions="original", turns="freeze") as record:
        answer = model.generate(**first, **settings)
        ids = torch.cat([answer.sequences, both["input_ids"][:, length:]], dim=1)
        more = answer.sequences.shape[1] - length
        inputs = {**both, "input_ids": ids}
        for name, value in both.items():
            if name != "input_ids" and value.shape == both["input_ids"].shape:
                said = value[:, length - 1 : length].expand(-1, more)
                inputs[name] = torch.cat([value[:, :length], said, value[:, length:]], dim=1)
        kept = model.generate(**inputs, **settings, past_key_values=answer.past_key_values)
        anew = model.generate(**inputs, **settings)
    assert [len(call.images) for call in record.calls] == [1, 1, 2]
    assert [image.frozen for image in record.calls[2].images] == [True, False]
    assert torch.equal(record.calls[1].images[0].indices, record.calls[2].images[1].indices)
    assert (torch.stack(kept.logits) - torch.stack(anew.logits)).abs().max() <= 2e-5


def returned(family: str, backend: str) -> None:
    """Sampled return sequences: every step's logits against a forward over everything so far."""
    model, make_inputs = tiny(family, backend)
    prompt = BATCHES["one row"][0]
    torch.manual_seed(5)
    drawn = {"do_sample": True, "num_return_sequences": 2, "suppress_tokens": list(adapter_for(model).image_token_ids)}
    with prune(model, ByContent(), positions="original") as record, torch.no_grad():
        output = model.generate(**make_inputs([prompt]), **{**SETTINGS, **drawn})
        assert len(record.images) == 1, "one selection for all sequences"
        twice = make_inputs([prompt] * 2)
        length = twice["input_ids"].shape[1]
        for step in range(3):
            logits = model(**longer(twice, output.sequences[:, : length + step], family)).logits[:, -1]
            assert (logits - output.logits[step]).abs().max() <= 2e-5


def sampling(family: str, backend: str) -> None:
    """With a seed and everything kept, what the plain model draws."""
    model, make_inputs = tiny(family, backend)
    inputs = make_inputs(BATCHES["padded"])
    drawn = []
    for context in (nullcontext(), prune(model, KeepAll())):
        torch.manual_seed(11)
        with context:
            drawn.append(model.generate(**inputs, max_new_tokens=6, do_sample=True, top_k=20))
    assert torch.equal(drawn[0], drawn[1])


class Note:
    """A streamer that remembers."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.seen.append(value.flatten())

    def end(self) -> None:
        pass


def streamer(family: str, backend: str) -> None:
    """A streamer sees the whole prompt and every new token."""
    model, make_inputs = tiny(family, backend)
    note = Note()
    with prune(model, ByContent()):
        output = model.generate(**make_inputs(BATCHES["one row"]), max_new_tokens=3, do_sample=False, streamer=note)
    assert torch.equal(torch.cat(note.seen), output[0])


def right_padding(family: str, backend: str) -> None:
    """Padding on the right gives the tokens that padding on the left gives."""
    model, make_inputs = tiny(family, backend)
    new = []
    for side in ("left", "right"):
        inputs = make_inputs(BATCHES["padded"], padding_side=side)
        with prune(model, ByContent()):
            new.append(model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:])
    assert torch.equal(*new)


def compiled(family: str, backend: str, inputs: dict[str, Tensor] | None = None) -> None:
    """Decoding steps captured as one graph, as `generate` compiles them on a GPU."""
    model, make_inputs = tiny(family, backend)
    inputs = make_inputs(BATCHES["padded"]) if inputs is None else inputs
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}

    def run() -> Tensor:
        captured = torch.compile(model.__call__, backend="eager", fullgraph=True)
        call = model.__call__

        def step(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids")
            return captured(*args, **kwargs) if ids is not None and ids.shape[1] == 1 else call(*args, **kwargs)

        vars(model)["get_compiled_call"] = lambda config: step
        vars(model)["_valid_auto_compile_criteria"] = lambda *args: True
        try:
            tokens: Tensor = model.generate(**inputs, **settings)
        finally:
            del vars(model)["get_compiled_call"], vars(model)["_valid_auto_compile_criteria"]
            torch.compiler.reset()
        return tokens

    try:
        run()
    except Exception as error:
        raise NotThereError(f"transformers does not do it without pruning: {type(error).__name__}") from error
    with prune(model, ByContent()):
        plain = model.generate(**inputs, **settings, disable_compile=True)
        assert torch.equal(run(), plain)


CALLS: dict[str, tuple[Callable[[str, str], None], tuple[str, ...]]] = {
    "tokens dropped before the language model": (before, BACKENDS),
    "tokens dropped inside the language model": (inside, BACKENDS),
    "rows of one length, different numbers kept": (equal_rows, BACKENDS),
    "several images, interleaved text": (several, BACKENDS),
    "videos": (videos, BACKENDS),
    "static cache": (static, BACKENDS),
    "everything kept: bit for bit the plain model": (doctor("keep everything"), ("sdpa", "eager")),
    "removed = masked (plain forward)": (doctor("before the language model"), ("sdpa", "eager")),
    "cache = no cache": (doctor("decoding"), ("sdpa", "eager")),
    "beams": (doctor("beams"), ("sdpa", "eager")),
    "second turn on the kept cache": (doctor("second turn"), ("sdpa", "eager")),
    "a new image in the second turn": (new_image, ("sdpa", "eager")),
    "return sequences, sampled": (returned, ("sdpa",)),
    "sampling with a seed": (sampling, ("sdpa",)),
    "streamer": (streamer, ("sdpa",)),
    "right padding": (right_padding, ("sdpa",)),
    "loss with labels": (labels, ("sdpa",)),
    "bfloat16": (doctor("before the language model", torch.bfloat16), ("sdpa",)),
    "compiled decoding (one graph)": (compiled, ("sdpa",)),
    "nothing left on the model": (doctor("left as it was"), ("sdpa",)),
}
"""Ways of calling: the check, and the backends that it runs on."""


def outcome(name: str, family: str, backend: str) -> tuple[str, str]:
    """Status ("ok", "no", "unsupported", "failed") and detail of one check."""
    check, _ = CALLS[name]
    try:
        with emulated_flash() if backend == "flash" else nullcontext():
            check(family, backend)
    except NotThereError as error:
        return "no", str(error)
    except UnsupportedError as error:
        return "unsupported", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "ok", ""
