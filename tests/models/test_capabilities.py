"""What each family declares is what it does: the rest is refused before anything is computed, with the reason."""

import re
from pathlib import Path

import pytest
import torch

from tests.models.family_oracle import tiny
from tests.models.oracle import named
from tokenprune import Choice, Tokens, prune
from tokenprune.core import places
from tokenprune.core import strategy as core
from tokenprune.core.signals import Signal, signal_named
from tokenprune.models import UnsupportedError, adapter_for, build_prompt
from tokenprune.models.families import registry as families
from tokenprune.models.prompt.choose import fit_strategy
from tokenprune.testing import tiny_families

ALL = tiny_families()
README = Path(__file__).resolve().parents[2] / "README.md"


class Probe(core.Stage):
    """Keeps everything, at a place and with needs that are set on the instance."""

    name = "probe"
    needs: tuple[Signal, ...] = ()
    place: places.Place = places.BeforeDecoder()

    def choose(self, tokens: Tokens) -> Choice:
        return Choice(torch.arange(tokens.n))


def probe(**facts: object) -> Probe:
    strategy = Probe()
    vars(strategy).update(facts)
    return strategy


def test_every_builtin_family_has_a_tiny_model_and_stands_in_the_readme() -> None:
    served = {name for adapter in families._BUILTIN for name in adapter.model_types}
    assert served == set(ALL)
    listed = re.search(r"<!-- families -->\n(.*?)<!-- end of families -->", README.read_text(), re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == served


@pytest.mark.parametrize("family", ALL)
def test_places_that_are_not_declared_are_refused_with_the_reason(family: str) -> None:
    model, _ = tiny(family)
    adapter = adapter_for(model)
    assert "projector" in adapter.sites
    if "decoder" in adapter.sites:
        fit_strategy(probe(place=places.InDecoder(3)), adapter)
    else:
        with pytest.raises(UnsupportedError, match=f"because {adapter.reasons['decoder']}"):
            prune(model, probe(place=places.InDecoder(3)))
    if "tower" not in adapter.sites and "tower" in adapter.reasons:
        with pytest.raises(UnsupportedError, match=f"because {adapter.reasons['tower']}"):
            prune(model, probe(place=places.InTower()))


@pytest.mark.parametrize("family", ALL)
def test_declared_signals_are_supplied_and_others_refused(family: str) -> None:
    model, make_inputs = tiny(family)
    adapter = adapter_for(model)
    inputs = make_inputs(["look at <1> and <0> now"])
    with torch.no_grad():
        tokens = build_prompt(adapter, inputs, adapter.encode(inputs, named(*adapter.signals))).tokens()
    for name in adapter.signals:
        supplied = [getattr(image, name) is not None for image in tokens]
        # Images in one tile have no tiles, those in several no raster.
        assert all(supplied) or (name in ("tiles", "grid") and "tiles" in adapter.signals), name
        assert getattr(tokens[0], name) is None or fit_strategy(probe(needs=(signal_named(name).strict(),)), adapter)
    for name in ("cls_attention", "vision_cls", "grid", "project", "tile_grid"):
        if name in adapter.signals:
            continue
        reason = f"because {adapter.reasons[name]}" if name in adapter.reasons else f"needs Tokens.{name}"
        with pytest.raises(UnsupportedError, match=re.escape(reason)):
            prune(model, probe(needs=(signal_named(name).strict(),)))
    if "cls_attention" not in adapter.signals:
        assert "cls_attention" in adapter.reasons


@pytest.mark.parametrize("family", ALL)
def test_videos_are_taken_or_refused_with_the_reason(family: str) -> None:
    model, make_inputs = tiny(family)
    adapter = adapter_for(model)
    if "pixel_values_videos" in adapter.visual_keys:
        assert "video" not in adapter.reasons
        return
    inputs = {**make_inputs(["look at <0> now"]), "pixel_values_videos": torch.zeros(1, 2, 3, 28, 28)}
    with prune(model, probe()):
        for call in (model.generate, model):
            with pytest.raises(UnsupportedError, match=f"no videos, because {adapter.reasons['video']}"):
                call(**inputs)
