"""Reference vectors of the baselines and how each core is called on them.

A vector is an .npz file with the inputs and outputs of one run of the authors' code: arrays, and `param_*` entries.
The files are read from the folder `parity` in `$TOKENPRUNE_SHARED`, or in `shared` beside the repository; they are not
part of it. `REPLAYS` maps the beginning of a file's name to a function that calls a library on the inputs and yields
comparisons. The library is either `Cores`, this project's functions, or the module of naive references.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenprune.alignment import alignment_score
from tokenprune.baselines import (
    cdpruner,
    dart,
    divprune,
    fastervlm,
    fastv,
    fitprune,
    hired,
    mustdrop,
    prumerge,
    pyramiddrop,
    sparsevlm,
    tome,
    trim,
    visionzip,
    vispruner,
    vtw,
)
from tokenprune.kernels import top_k
from tokenprune.repmax import greedy_repmax

Array = np.ndarray[Any, Any]
MODULES = (
    cdpruner,
    dart,
    divprune,
    fastervlm,
    fastv,
    fitprune,
    hired,
    mustdrop,
    prumerge,
    pyramiddrop,
    sparsevlm,
    tome,
    trim,
    visionzip,
    vispruner,
    vtw,
)


ELSEWHERE: dict[str, Any] = {"alignment_score": alignment_score, "greedy_repmax": greedy_repmax, "top_k": top_k}
"""The two stages of TrimTokenator stand outside the baselines."""


def folder() -> Path:
    """Where the vectors are, if they are there."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("TOKENPRUNE_SHARED", beside)) / "parity"


def vectors(method: str) -> list[Path]:
    """The files of one method: `<method>_*.npz`, whatever comes after."""
    return sorted(folder().glob(f"{method}_*.npz"))


class Cores:
    """The pure functions of `tokenprune.baselines`, taking and returning NumPy arrays."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def __getattr__(self, name: str) -> Callable[..., Any]:
        places = [vars(module) for module in MODULES if name in module.__all__]
        function = next((place[name] for place in (*places, ELSEWHERE) if name in place), None)
        if function is None:
            raise AttributeError(f"no baseline has a function {name!r}")

        def call(*args: object, **named: object) -> Any:
            tensors = [self._tensor(value) for value in args]
            return _array(function(*tensors, **{key: self._tensor(value) for key, value in named.items()}))

        return call

    def _tensor(self, value: object) -> object:
        if isinstance(value, list):
            return [self._tensor(entry) for entry in value]
        if not isinstance(value, np.ndarray):
            return value
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, tuple | list):
        return [_array(entry) for entry in value]
    return value


@dataclass(frozen=True)
class Check:
    """One comparison: exact unless a tolerance is given (absolute and relative)."""

    name: str
    got: Any
    expected: Any
    tolerance: float = 0.0

    @property
    def holds(self) -> bool:
        got, expected = np.asarray(self.got), np.asarray(self.expected)
        if got.shape != expected.shape:
            return False
        if self.tolerance:
            return bool(np.allclose(got, expected, rtol=self.tolerance, atol=self.tolerance))
        return bool(np.array_equal(got, expected))


class Case:
    """One file: `case["x"]` is an array, `case.param("k")` a parameter, `"x" in case` asks for either."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as archive:
            self.arrays: dict[str, Array] = dict(archive)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def param(self, name: str, default: Any = None) -> Any:
        entry = self.arrays.get(f"param_{name}")
        return default if entry is None else entry.tolist()

    def checks(self, **outputs: tuple[Any, float] | Any) -> Iterator[Check]:
        """A check for each named output that the file holds; (value, tolerance) for one that is not exact."""
        for name, value in outputs.items():
            if name in self:
                got, tolerance = value if isinstance(value, tuple) else (value, 0.0)
                yield Check(name, got, self[name], tolerance)


def mask_of(kept: list[list[int]] | Array, n: int) -> Array:
    mask = np.zeros((len(kept), n), dtype=bool)
    for row, indices in zip(mask, kept, strict=True):
        row[np.asarray(indices)] = True
    return mask


def replay_divprune(case: Case, lib: Any) -> Iterator[Check]:
    x = case["x"]
    keep = divprune.divprune_count(len(x), case.param("ratio"))
    yield Check("k", keep, case.param("k", keep))
    order = lib.divprune(x, keep, official=True)
    yield from case.checks(
        selected_in_order=order, kept_sorted=np.sort(order), distance_row0=(lib.cosine_distance(x)[0], 1e-5)
    )


def replay_cdpruner(case: Case, lib: Any) -> Iterator[Check]:
    embeds, text = case["image_embeds"], case["text_embeds"]
    picks = lib.cdpruner(case["image_features"], embeds, text, case.param("T"), official=True)
    yield from case.checks(
        kept_mask=mask_of(picks, embeds.shape[1]),
        kept_sorted=np.sort(picks, 1),
        selected_in_order_f64=picks,
        relevance_f64=(lib.cdpruner_relevance(embeds, text, official=True), 1e-5),
    )


def replay_fastervlm(case: Case, lib: Any) -> Iterator[Check]:
    kept = lib.fastervlm(case["cls_attention"], case.param("T"))
    yield from case.checks(kept_sorted=kept, kept_mask=mask_of(kept, case["cls_attention"].shape[2]))


def replay_vispruner(case: Case, lib: Any) -> Iterator[Check]:
    attention = case["cls_attention"]
    kept = lib.vispruner(
        attention, case["image_features"], case.param("T"), important_ratio=case.param("important_ratio")
    )
    yield from case.checks(kept_sorted=kept, kept_mask=mask_of(kept, attention.shape[2]))


def replay_visionzip(case: Case, lib: Any) -> Iterator[Check]:
    out, dominant, _ = lib.visionzip(
        case["cls_attention"],
        case["hidden_states"],
        case["key_metric"],
        case.param("dominant"),
        case.param("contextual"),
    )
    yield from case.checks(out_tokens=(out, 1e-5), dominant_index_with_cls=dominant)


def replay_prumerge(case: Case, lib: Any) -> Iterator[Check]:
    made = lib.prumerge(
        case["hidden_states"],
        case["q_cls"],
        case["k"],
        ratio=None if case.param("adaptive") else case.param("fixed_ratio"),
        plus=case.param("plus"),
        official=True,
    )
    outs, centres, counts, ratios = zip(*made, strict=True)
    yield Check("used_ratio", ratios[0], case.param("used_ratio", ratios[0]), 1e-6)
    yield from case.checks(
        out_tokens=(np.stack(outs), 1e-4),
        topk_index_in_order=np.stack([row[:count] for row, count in zip(centres, counts, strict=True)]),
        all_center_index_in_order=np.stack(centres),
    )


def replay_hired_llava15(case: Case, lib: Any) -> Iterator[Check]:
    attention = case["cls_attention_layer22"]
    kept = lib.hired(attention, int(attention.shape[-1] * case.param("rate")))
    yield from case.checks(kept_sorted=kept)


def replay_hired_next(case: Case, lib: Any) -> Iterator[Check]:
    mask, full, sub, budgets = lib.hired_next(
        case["cls_attention_layer22"],
        case["cls_attention_first_layer_full_image"],
        rate=case.param("rate"),
        alpha=case.param("alpha"),
        grid_h=case.param("grid_h"),
        grid_w=case.param("grid_w"),
        official=True,
    )
    yield Check("full_budget", full, case.param("full_budget", full))
    yield Check("sub_budget", sub, case.param("sub_budget", sub))
    yield from case.checks(kept_mask=mask, tile_budgets=budgets)


def replay_trim(case: Case, lib: Any) -> Iterator[Check]:
    k = case.param("k")
    kept, score, ratio = lib.trim(
        case["clip_projected_patches"], case["clip_text"], ratio=None if k == -1 else k, official=True
    )
    yield Check("used_ratio", ratio, case.param("used_ratio", ratio), 1e-6)
    features = case["features"]
    out = lib.with_mean_of_rest(features, kept) if case.param("plus") else features[kept]
    yield from case.checks(kept_sorted=kept, score=(score, 1e-5), out_tokens=(out, 1e-5))


def replay_fastv(case: Case, lib: Any) -> Iterator[Check]:
    row, start, n = case["attn_last_row"], case.param("image_start"), case.param("n_image")
    if "param_keep_ratio" in case:  # the lmms-eval variant
        keep = fastv.fastv_count(n, keep_ratio=case.param("keep_ratio"))
    elif "param_prune_ratio" in case:  # the Hugging Face variant
        keep = fastv.fastv_count(n, prune_ratio=case.param("prune_ratio"))
    else:
        keep = case.param("keep", len(case["keep_index_rel"]) if "keep_index_rel" in case else None)
    yield Check("keep", keep, case.param("keep", keep))
    kept = lib.fastv(row, image_start=start, n_image=n, keep=keep)
    positions = lib.fastv_keep_index(kept, image_start=start, n_image=n, seq_len=case.param("seq_len", row.shape[-1]))
    yield from case.checks(keep_index_rel=kept, keep_index_abs=positions, position_ids_after=positions)


def replay_sparsevlm(case: Case, lib: Any) -> Iterator[Check]:
    start, n, m = case.param("image_start"), case.param("n_image"), case.param("n_text")
    visual, text = case["embeds"][start : start + n], case["embeds"][start + n : start + n + m]
    raters, score = lib.sparsevlm_raters(visual, text)
    yield from case.checks(rater_text_offsets=raters, rater_text_score=(score, 1e-5))
    for stage, layer in enumerate(case.param("layers")):
        attention = case[f"l{layer}_attn_rater_rows_headmean"]
        kept, recycled, _, score = lib.sparsevlm_stage(attention, sparsevlm.SCHEDULES[case.param("retain")][stage])
        merged = lib.recycle(case[f"l{layer}_recycle_features"])
        yield from case.checks(
            **{
                f"l{layer}_score": (score, 1e-5),
                f"l{layer}_keep_index": kept,
                f"l{layer}_recycle_index_desc": recycled,
                f"l{layer}_merged_tokens": (merged, 1e-4),
            }
        )


def replay_pyramiddrop(case: Case, lib: Any) -> Iterator[Check]:
    start, n, after = case.param("image_start"), case.param("n_image"), case.param("n_text_after")
    present = n
    for stage, ratio in enumerate(case.param("ratios")):
        keep = pyramiddrop.pyramiddrop_counts(n, (ratio,))[0]
        query, keys = case[f"s{stage}_query_last"], case[f"s{stage}_keys"][:, : start + present + after]
        score = lib.pyramiddrop_score(query, keys, image_start=start, n_image=present)
        kept = lib.pyramiddrop(query, keys, image_start=start, n_image=present, keep=keep)
        yield from case.checks(**{f"s{stage}_keep_index_rel": kept, f"s{stage}_score_f64": (score, 1e-5)})
        present = keep


def replay_dart(case: Case, lib: Any) -> Iterator[Check]:
    pivots = {"pivot_image": case.param("pivot_image"), "pivot_text": case.param("pivot_text")}
    start, n = case.param("image_start"), case.param("n_image")
    budget, tiles = case.param("max_num_trunction"), case.param("llava_next_retain", -1)
    per_pivot = dart.dart_per_pivot(
        n,
        max_num_trunction=None if budget == -1 else budget,
        reduction_ratio=case.param("reduction_ratio"),
        llava_next_retain=None if tiles == -1 else tiles,
        **pivots,
    )
    yield Check("per_pivot", per_pivot, case.param("per_pivot", per_pivot))
    kept, image, text, order = lib.dart(
        case["normed_hidden"][0],
        case["keys"][0],
        image_start=start,
        n_image=n,
        per_pivot=per_pivot,
        **pivots,
        official=True,
    )
    yield from case.checks(
        retained_rel_sorted=kept,
        retained_abs_sorted=kept + start,
        pivot_image_abs=image,
        pivot_text_abs=text,
        pivot_processing_order_abs=order,
    )


def replay_fitprune(case: Case, lib: Any) -> Iterator[Check]:
    attention, n = case["attn_visual_cols"], case.param("n_image")
    mine, cross = lib.fitprune_scores(attention, n_image=n)
    kept = lib.fitprune(attention, n_image=n, delete=case.param("delete"))
    yield from case.checks(self_score=(mine, 1e-5), cross_score=(cross, 1e-5), kept_sorted=kept)


def replay_mustdrop_filter(case: Case, lib: Any) -> Iterator[Check]:
    kept = lib.mustdrop_filter(
        case["attn_text_to_visual"],
        global_thr=case.param("global_thr"),
        individual_thr=case.param("individual_thr"),
        official=True,
    )
    yield from case.checks(kept_sorted=kept)


def replay_mustdrop_merge(case: Case, lib: Any) -> Iterator[Check]:
    out, size, order, untouched, similarity = lib.mustdrop_merge(
        case["x_with_cls"], threshold=case.param("threshold"), window=case.param("window")
    )
    yield from case.checks(
        out_with_cls=(out, 1e-5),
        out_size=size,
        merged_window_order=order,
        unmerged_index=untouched,
        window_similarity_f64=(similarity, 1e-5),
    )


def replay_tome(case: Case, lib: Any) -> Iterator[Check]:
    r = case.param("r")
    metrics = [case[f"metric_step{step}"] for step in range(len(r))]
    rows, size, group = lib.tome(case["x"], metrics, r, class_token=case.param("class_token"))
    yield from case.checks(out_x=(rows, 1e-5), out_size=size, group_of_input=group)


def replay_trimtokenator(case: Case, lib: Any) -> Iterator[Check]:
    visual, text = case["visual"], case["text"]
    first, keep = (int(case.param(name) * len(visual)) for name in ("stage1_ratio", "keep_ratio"))
    score = lib.alignment_score(visual, text)
    survivors, by_score = lib.top_k(score, first)
    picks = survivors[lib.greedy_repmax(visual[survivors], keep)]
    yield from case.checks(
        alignment=(score, 1e-4),
        stage1_kept_sorted=survivors,
        stage1_by_score=by_score,
        selected_in_order=picks,
        kept_sorted=np.sort(picks),
    )


REPLAYS: dict[str, Callable[[Case, Any], Iterator[Check]]] = {
    "divprune": replay_divprune,
    "cdpruner": replay_cdpruner,
    "fastervlm": replay_fastervlm,
    "vispruner": replay_vispruner,
    "visionzip": replay_visionzip,
    "prumerge": replay_prumerge,  # and prumerge_plus
    "hired_llava15": replay_hired_llava15,
    "hired_next": replay_hired_next,
    "trim": replay_trim,
    "fastv": replay_fastv,  # and fastv_hf
    "sparsevlm": replay_sparsevlm,
    "pyramiddrop": replay_pyramiddrop,
    "dart": replay_dart,
    "fitprune": replay_fitprune,
    "mustdrop_filter": replay_mustdrop_filter,
    "mustdrop_merge": replay_mustdrop_merge,
    "tome": replay_tome,
    "trimtokenator_thirdparty": replay_trimtokenator,
}
