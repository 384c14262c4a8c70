"""Hidden states and their redundancy against what transformers itself hands out."""

import pytest
import torch
from matplotlib.figure import Figure

from tests.unit.analysis.clouds import bundled_model
from tests.unit.evaluate.tiny import tiny_loaded, tiny_samples
from tokenprune import Tokens
from tokenprune.analysis import (
    NO_CONTROLS,
    AnalysedImage,
    Controls,
    LayerStates,
    analyse_layers,
    analyse_redundancy,
    measure_redundancy,
    stream_layers,
)
from tokenprune.evaluate import bundled_samples
from tokenprune.evaluate.batches import processed
from tokenprune.models import adapter_for
from tokenprune.models.prompt.dense import is_placeholder
from tokenprune.testing.tiny.families import tiny_families, tiny_model


def states_of(inputs: dict[str, torch.Tensor]) -> list[LayerStates]:
    found: list[LayerStates] = []
    stream_layers(tiny_loaded().model, inputs, found.append)
    return found


def test_states_are_those_that_transformers_hands_out() -> None:
    loaded, (sample, *_) = tiny_loaded(), tiny_samples(1)
    inputs = processed(loaded.processor, [sample])
    found = states_of(inputs)
    with torch.no_grad():
        wanted = loaded.model.model(**inputs, output_hidden_states=True).hidden_states
    visual = inputs["input_ids"][0] == loaded.model.config.image_token_id
    assert [states.layer for states in found] == list(range(len(wanted)))
    *inner, last = found
    for states, hidden in zip(inner, wanted, strict=False):
        torch.testing.assert_close(states.visual, hidden[0, visual])
        torch.testing.assert_close(states.text, hidden[0, ~visual])
    with torch.no_grad():  # transformers gives the last one behind the final norm
        torch.testing.assert_close(loaded.model.model.language_model.norm(last.visual), wanted[-1][0, visual])
    words = inputs["input_ids"][0, ~visual].tolist()
    assert found[0].distinct.tolist() == [i for i, word in enumerate(words) if word not in words[:i]]


@pytest.mark.parametrize("family", tiny_families())
def test_every_family_gives_the_states_that_its_layers_get(family: str) -> None:
    model, make_inputs = tiny_model(family)
    inputs = make_inputs(["what is in <0> now what"])
    found: list[LayerStates] = []
    stream_layers(model, dict(inputs), found.append)
    with torch.no_grad():
        wanted = model.model(**inputs, output_hidden_states=True).hidden_states
    visual = is_placeholder(inputs["input_ids"], adapter_for(model))[0]
    assert [states.layer for states in found] == list(range(len(wanted)))
    torch.testing.assert_close(found[0].visual, wanted[0][0, visual])
    # Text alone further in: Qwen3-VL adds to the visual tokens between layers, behind what transformers hands out.
    for states, hidden in zip(found[:-1], wanted, strict=False):
        torch.testing.assert_close(states.text, hidden[0, ~visual])
    assert len(found[0].distinct) < len(found[0].text)  # "what" stands twice


def test_nothing_is_left_on_the_model_and_text_alone_is_refused() -> None:
    loaded, samples = tiny_loaded(), tiny_samples(2)
    layers = loaded.model.model.language_model.layers

    def stop(states: LayerStates) -> None:
        raise KeyError(states.layer)

    with pytest.raises(KeyError):
        stream_layers(loaded.model, processed(loaded.processor, samples[:1]), stop)
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
    with pytest.raises(ValueError, match="0 visual and 2 text tokens"):
        states_of({"input_ids": torch.tensor([[20, 21]])})
    with pytest.raises(ValueError, match="one prompt at a time"):
        states_of(processed(loaded.processor, samples))


def test_in_front_of_the_first_layer_it_is_the_redundancy_of_what_enters() -> None:
    loaded, samples = tiny_loaded(), tiny_samples(4)
    settings = (NO_CONTROLS, Controls())
    reports = analyse_layers(loaded, samples, settings, tau=0.5)
    images = []
    for sample in samples:
        states = states_of(processed(loaded.processor, [sample]))[0]
        images.append(AnalysedImage(id=sample.id, tokens=Tokens(states.visual, text=states.text)))
    for report, wanted in zip(reports, analyse_redundancy(images, settings, tau=0.5), strict=True):
        assert report.layers[0].visual == wanted.visual
        # Equal words have equal embeddings there, so dropping copies and taking first places is the same set of rows.
        assert report.layers[0].text["mean_cosine"].value == pytest.approx(wanted.text["mean_cosine"].value)
        assert len(report.layers) == 3


def test_a_repeated_word_counts_once_at_every_layer() -> None:
    loaded, samples = tiny_loaded(), tiny_samples(3)
    states = [states_of(processed(loaded.processor, [sample]))[0] for sample in samples]
    words = [len(one.text) for one in states]
    distinct = [len(one.distinct) for one in states]
    assert words != distinct  # the template repeats some
    once, every = analyse_layers(loaded, samples, (Controls(equal_counts=False), NO_CONTROLS))
    assert [layer.text["tokens"].value for layer in once.layers] == [pytest.approx(sum(distinct) / 3)] * 3
    assert [layer.text["tokens"].value for layer in every.layers] == [pytest.approx(sum(words) / 3)] * 3


def test_the_bundled_model_layer_by_layer() -> None:
    loaded, samples = bundled_model(), bundled_samples(3)
    raw, full = analyse_layers(loaded, samples, (NO_CONTROLS, Controls(draws=2)))
    (own,) = analyse_layers(loaded, samples[:1], (NO_CONTROLS,))
    with torch.no_grad():
        inputs = processed(loaded.processor, samples[:1])
        hidden = loaded.model.model(**inputs, output_hidden_states=True).hidden_states[2][0]
    visual = hidden[inputs["input_ids"][0] == loaded.model.config.image_token_id]
    assert own.layers[2].visual["mean_cosine"].value == pytest.approx(measure_redundancy(visual).mean_cosine, abs=1e-6)
    assert len(raw.layers) == len(loaded.model.model.language_model.layers) + 1
    assert full.layers[3].difference["mean_cosine"].units == 3
    ax = Figure().subplots()
    assert full.plot(ax, measure="rank_share") is ax
    assert any("behind the last layer" in text for text in full.explanation)
