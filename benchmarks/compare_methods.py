"""Every method that the bundled model has the signals for, against the controls: two budgets, and two layer averages.

Writes compare_methods.csv (both tables, with a column `budget`) and compare_methods.json (machine, versions, commit,
configuration of each, and which methods are left out and why) into benchmarks/results/. The methods' page reads them.
"""

import csv
import json
import sys
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path

from benchmarks.compare_bundled import RESULTS, run
from tokenprune import strategies
from tokenprune.bundled import load_model
from tokenprune.core.places import InDecoder
from tokenprune.evaluate.methods import CONTROLS, Method
from tokenprune.models import adapter_for
from tokenprune.models.encode.clip import CLIP_SIGNALS
from tokenprune.models.prompt.choose import fit_strategy

LEFT_OUT = {
    "exact_repmax": "a proof per image takes minutes; see the page on how good greedy is",
    "hired_next": "for images in tiles; here an image is one raster",
    "per_tile": "for images in tiles; here an image is one raster",
    "prompt_budget": "shares a budget among several images; each question here has one",
    "pyramiddrop_stage": "a part of pyramiddrop",
    "sparsevlm_stage": "a part of sparsevlm",
    "smallest_norm": "an ablation of mi_alignment, see the results page",
}
# The default layers are told for 32 decoder layers; here there are four.
TEXTS = {"pyramiddrop": "pyramiddrop(layers=(1, 2, 3))"}
KEPT = ("0.222", "0.111")
# The model has four decoder layers: with all tokens in the first, no mean over layers can be less than a quarter.
AVERAGES = ("0.5", "0.333")
BESIDE = ("greedy_repmax", "divprune", "fastervlm")


def methods() -> tuple[list[str], dict[str, str]]:
    """Texts of what is compared, and for everything else the reason."""
    adapter, chosen, left_out = adapter_for(load_model()), [], dict(LEFT_OUT)
    for name in strategies():
        if name in left_out or name in CONTROLS:
            continue
        text = TEXTS.get(name, name)
        try:
            method = Method(text)
            method.strategy(keep=0.5)
        except (ValueError, TypeError):
            left_out[name] = "has no budget that this comparison could sweep"
            continue
        try:
            fit_strategy(method.strategy(keep=0.5), adapter)
        except ValueError as error:
            lacking = CLIP_SIGNALS & set(method.strategy(keep=0.5).needs)
            reason = "needs the CLIP that the vision tower was made from; this one was trained here and has none"
            left_out[name] = reason if lacking else str(error)
        else:
            chosen.append(text)
    return chosen, left_out


def in_decoder(texts: list[str]) -> list[str]:
    """Those that act inside the decoder; where they leave the layer to us, at the first that there can be."""
    found = []
    for text in texts:
        strategy = Method(text).strategy(keep=0.5)
        if isinstance(strategy.place, InDecoder):
            has_layer = "layer" in {field.name for field in fields(strategy)} if is_dataclass(strategy) else False
            found.append(f"{text}(layer=1)" if has_layer and "(" not in text else text)
    return found


def main() -> int:
    """Run both comparisons and put their tables together."""
    chosen, left_out = methods()
    rows: list[dict[str, str]] = []
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for budget, keeps, names in (
            ("kept", KEPT, chosen),
            ("layer-average", AVERAGES, [*in_decoder(chosen), *BESIDE]),
        ):
            words = [word for keep in keeps for word in ("--keep", keep)]
            words += [word for name in names for word in ("--strategy", name)]
            done = run(Path(folder) / budget, "--budget", budget, *words)
            rows += [
                {"budget": budget, **row} for row in csv.DictReader((done / "results.csv").read_text().splitlines())
            ]
            reports[budget] = json.loads((done / "run.json").read_text())
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (RESULTS / "compare_methods.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = json.dumps({"left_out": left_out, "runs": reports}, indent=2, ensure_ascii=False)
    (RESULTS / "compare_methods.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
