"""Naive float64 references of the baselines' cores: plain loops, written from the rules in words, sharing no code.

Every function has the name and the arguments of the core it stands beside, takes NumPy arrays and returns NumPy arrays.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def best(scores: Array, k: int, allowed: list[int] | None = None) -> list[int]:
    """Indices of the k largest scores, best first; the lowest index wins a tie."""
    pool = range(len(scores)) if allowed is None else allowed
    return sorted(pool, key=lambda i: (-scores[i], i))[:k]


def cosine(a: Array, b: Array) -> float:
    length = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return 0.0 if length == 0 else float(np.sum(a * b) / length)


def cosines(a: Array, b: Array) -> Array:
    a, b = a.astype(np.float64), b.astype(np.float64)

    def rows(x: Array) -> Array:
        norms = np.sqrt((x * x).sum(1))
        return np.array([row / norm if norm > 0 else row for row, norm in zip(x, norms, strict=True)]).reshape(x.shape)

    return rows(a) @ rows(b).T


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def quartile_outliers(values: Array) -> int:
    """Values above Q3 + 1.5 IQR, quartiles by linear interpolation between order statistics."""
    ordered = sorted(values.ravel().tolist())

    def quantile(q: float) -> float:
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    limit = quantile(0.75) + 1.5 * (quantile(0.75) - quantile(0.25))
    return sum(value > limit for value in ordered)


def cosine_distance(x: Array) -> Array:
    return 1 - cosines(x, x)


def divprune(x: Array, keep: int, *, official: bool = False) -> Array:
    distance = cosine_distance(x)
    n = len(x)
    if n == 1:
        return np.array([0])
    nearest_other = [sorted(distance[:, j])[1] for j in range(n)]
    if not official:
        nearest_other = [min(distance[i, j] for i in range(n) if i != j) for j in range(n)]
    picked = [best(np.array(nearest_other), 1)[0]]
    closest = distance[picked[0]].copy()
    while len(picked) < keep:
        pool = list(range(n)) if official else [i for i in range(n) if i not in picked]
        picked.append(best(closest, 1, pool)[0])
        for i in range(n):
            closest[i] = min(closest[i], distance[picked[-1], i])
    return np.array(picked)


def cdpruner_relevance(image_embeds: Array, text_embeds: Array, *, official: bool = False) -> Array:
    raw = np.stack([-cosines(tile, text_embeds).mean(1) for tile in image_embeds])
    if official:
        return np.asarray((raw - raw.min() + 1e-6) / (raw.max() - raw.min()))
    out = []
    for row in raw:
        spread = row.max() - row.min()
        out.append(np.ones_like(row) if spread == 0 else (row - row.min() + 1e-6) / spread)
    return np.stack(out)


def cdpruner(
    image_features: Array, image_embeds: Array, text_embeds: Array, keep: int, *, official: bool = False
) -> Array:
    """Greedy by definition: the next pick has the largest Schur complement given the picked ones, solved anew."""
    relevance = cdpruner_relevance(image_embeds, text_embeds, official=official)
    picks = []
    for features, r in zip(image_features, relevance, strict=True):
        kernel = r[:, None] * cosines(features, features) * r[None, :]
        order: list[int] = []
        for _ in range(keep):
            gain = kernel.diagonal().copy()
            if order:
                across = kernel[order]
                gain -= (across * np.linalg.solve(kernel[np.ix_(order, order)], across)).sum(0)
            order.append(best(gain, 1, [i for i in range(len(r)) if i not in order])[0])
        picks.append(order)
    return np.array(picks)


def fastervlm(cls_attention: Array, keep: int) -> Array:
    return np.array([sorted(best(tile.astype(np.float64).mean(0), keep)) for tile in cls_attention])


def vispruner(cls_attention: Array, image_features: Array, keep: int, *, important_ratio: float = 0.5) -> Array:
    rows = []
    for attention, features in zip(cls_attention, image_features, strict=True):
        ranked = best(attention.astype(np.float64).mean(0), attention.shape[1])
        first = int(keep * important_ratio)
        important, rest = ranked[:first], ranked[first:]
        likeness = cosines(features, features)
        want = keep - first
        if want == 0:
            rest = []
        while len(rest) > want:
            a, b = rest[::2], rest[1::2]
            drop = min(8, len(rest) - want, len(a))
            score = [max(likeness[i, j] for j in b) for i in a]
            falling = best(np.array(score), len(a))
            rest = [a[i] for i in falling[drop:]] + b
        rows.append(sorted(important + rest))
    return np.array(rows)


def visionzip(
    cls_attention: Array, hidden_states: Array, key_metric: Array, dominant: int, contextual: int
) -> tuple[Array, Array, Array]:
    outs, dominants, targets = [], [], []
    for attention, states, keys in zip(cls_attention, hidden_states.astype(np.float64), key_metric, strict=True):
        ranked = best(attention.astype(np.float64).sum(0), dominant - 1)
        rest = [i for i in range(attention.shape[1]) if i not in ranked]
        count = min(contextual, len(rest))
        step = max(1, len(rest) // count) if count else 1
        target = [rest[j * step] for j in range(count)]
        groups: dict[int, list[int]] = {i: [] for i in target}
        for i in rest:
            if count and i not in groups:
                likeness = [cosine(keys[i + 1].astype(np.float64), keys[j + 1].astype(np.float64)) for j in target]
                groups[target[best(np.array(likeness), 1)[0]]].append(i)
        merged = [
            states[i + 1] + (np.mean([states[j + 1] for j in groups[i]], axis=0) if groups[i] else 0) for i in target
        ]
        outs.append(np.stack([states[0]] + [states[i + 1] for i in sorted(ranked)] + merged))
        dominants.append([0] + [i + 1 for i in ranked])
        targets.append(target)
    return np.stack(outs), np.array(dominants), np.array(targets, dtype=np.int64).reshape(len(outs), -1)


def prumerge(
    hidden_states: Array,
    q_cls: Array,
    k: Array,
    *,
    ratio: float | None = None,
    plus: bool = False,
    official: bool = False,
) -> list[tuple[Array, Array, int, float]]:
    n, width = k.shape[1] - 1, k.shape[2]
    weights = [
        softmax(np.array([float(np.sum(q * row)) for row in keys]) / np.sqrt(width))[1:]
        for q, keys in zip(q_cls.astype(np.float64), k.astype(np.float64), strict=True)
    ]
    results = []
    for a, states, keys in zip(weights, hidden_states.astype(np.float64), k.astype(np.float64), strict=True):
        features, keys = states[1:], keys[1:]
        if ratio is not None:
            share, count = ratio, int(n * ratio)
        elif official:
            share = quartile_outliers(np.stack(weights)) / (n * len(weights))
            count = int(n * share)
        else:
            count = quartile_outliers(a)
            share = max(count, 1) / n
        if not official:
            count = max(count, 1)
        by_attention = best(a, count)
        if official:
            centres = program_centres(by_attention, n, share, plus=plus, fixed=ratio is not None, images=len(weights))
            out = program_merge(features, keys, a, centres)
        else:
            centres = list(by_attention)
            if plus and ratio is None:
                step = max(int(int(1 / share) / 3), 1)
                centres += [i for i in range(0, n, step) if i not in centres]
            elif plus:
                step = int(1 / share)
                centres += [i for i in range(int(step / 2), n, step) if i not in centres]
            likeness = cosines(keys, keys)
            out = []
            for c in centres:
                near = best(likeness[c], min(32, n - 1), [i for i in range(n) if i != c])
                out.append(features[c] + sum((a[i] * features[i] for i in near), np.zeros_like(features[c])))
            left = [i for i in range(n) if i not in centres]
            out.append(sum((a[i] * features[i] for i in left), np.zeros_like(features[0])))
        results.append((np.stack(out), np.array(centres, dtype=np.int64), len(by_attention), share))
    return results


def program_centres(
    by_attention: list[int], n: int, share: float, *, plus: bool, fixed: bool, images: int
) -> list[int]:
    """The list of centres that PruMerge's program makes of one image; ValueError where it stops."""
    if not plus:
        return by_attention
    if not fixed and images > 1:
        raise ValueError("the raster of counted outliers is one list, which cannot be joined to several images")
    if share == 0:
        raise ZeroDivisionError("1 / share")
    step = int(1 / share) if fixed else int(int(1 / share) / 3)
    if step == 0:
        raise ValueError("a raster of step 0")
    raster = []
    place = int(step / 2) if fixed else 0
    while place < 575:
        raster.append(place)
        place += step
    if fixed and len(raster) != len(by_attention):
        raise ValueError("the program's list has twice as many places as there are centres by attention")
    centres = list(by_attention)
    for place in raster:
        if place >= n:
            raise ValueError("no such patch")
        if fixed or place not in by_attention:
            centres.append(place)
    return centres


def program_merge(features: Array, keys: Array, a: Array, centres: list[int]) -> list[Array]:
    """PruMerge's program on one image: a token for each entry of the list of centres, then the last one."""
    n = len(features)
    numbers = list(range(n))
    for c in centres:
        numbers[c] = 0
    complement = sorted(numbers)[len(centres) :]
    likeness = cosines(keys, keys)
    out = []
    for position, c in enumerate(centres):
        pool = centres[:position] + centres[position + 1 :] + complement
        if len(pool) < 32:
            raise ValueError("fewer than 32 candidates")
        token = features[c].copy()
        for place in best(np.array([likeness[c][other] for other in pool]), 32):
            token += a[pool[place]] * features[pool[place]]
        out.append(token)
    last = np.zeros_like(features[0])
    for i in complement:
        last += a[i] * features[i]
    return [*out, last]


def hired(cls_attention: Array, keep: int) -> Array:
    return np.array(sorted(best(cls_attention.astype(np.float64).sum(0), keep)))


def hired_next(
    cls_attention: Array,
    cls_attention_first_layer: Array,
    *,
    rate: float,
    alpha: float,
    grid_h: int,
    grid_w: int,
    official: bool = False,
) -> tuple[Array, int, int, Array]:
    tiles, _, n = cls_attention.shape
    total = int(tiles * n * rate)
    full = min(int(total * alpha), n)
    sub = min(total - full, (tiles - 1) * n)
    marked = best(cls_attention_first_layer.astype(np.float64).sum(0), int(n * (1 - alpha)))
    counts = [0] * (tiles - 1)
    side = round(n**0.5)
    for i in marked:
        if official:
            part = i * (tiles - 1) // n
        else:
            row, column = divmod(i, side)
            part = (row * grid_h // side) * grid_w + column * grid_w // side
        counts[part] += 1
    # The program's own precision decides where a product is truncated.
    budgets = [min(n, int(np.float32(count) / np.float32(max(1, len(marked))) * np.float32(sub))) for count in counts]
    mask = np.zeros((tiles, n), dtype=bool)
    for tile, budget in enumerate([full, *budgets]):
        mask[tile, best(cls_attention[tile].astype(np.float64).sum(0), budget)] = True
    return mask, full, sub, np.array(budgets)


def trim(
    clip_projected_patches: Array, clip_text: Array, *, ratio: float | None = None, official: bool = False
) -> tuple[Array, Array, float]:
    text = clip_text.astype(np.float64)
    score = softmax(-np.array([float(np.sum(patch * text)) for patch in clip_projected_patches.astype(np.float64)]))
    n = len(score)
    count = quartile_outliers(score) if ratio is None else int(n * ratio)
    share = count / n if ratio is None else ratio
    count = int(n * share) if official else max(1, count)
    return np.array(sorted(best(score, count)), dtype=np.int64), score, share


def with_mean_of_rest(features: Array, kept: Array) -> Array:
    rest = [i for i in range(len(features)) if i not in kept.tolist()]
    rows = [features[i].astype(np.float64) for i in kept]
    if rest:
        rows.append(np.mean([features[i].astype(np.float64) for i in rest], axis=0))
    return np.stack(rows)


def fastv(attn_last_row: Array, *, image_start: int, n_image: int, keep: int) -> Array:
    score = attn_last_row.astype(np.float64).mean(0)
    kept = best(score, keep, list(range(image_start, image_start + n_image)))
    return np.array(sorted(i - image_start for i in kept))


def fastv_keep_index(kept: Array, *, image_start: int, n_image: int, seq_len: int) -> Array:
    inside = {image_start + i for i in kept.tolist()}
    image = range(image_start, image_start + n_image)
    return np.array([i for i in range(seq_len) if i not in image or i in inside])


def pyramiddrop_score(query_last: Array, keys: Array, *, image_start: int, n_image: int) -> Array:
    heads, width = query_last.shape
    rows = []
    for head in range(heads):
        k = keys[head * keys.shape[0] // heads].astype(np.float64)
        rows.append(softmax(k @ query_last[head].astype(np.float64) / np.sqrt(width)))
    return np.asarray(np.mean(rows, axis=0)[image_start : image_start + n_image])


def pyramiddrop(query_last: Array, keys: Array, *, image_start: int, n_image: int, keep: int) -> Array:
    return np.array(sorted(best(pyramiddrop_score(query_last, keys, image_start=image_start, n_image=n_image), keep)))


def dart(
    normed_hidden: Array,
    keys: Array,
    *,
    image_start: int,
    n_image: int,
    per_pivot: int,
    pivot_image: int = 4,
    pivot_text: int = 4,
    official: bool = False,
) -> tuple[Array, Array, Array, list[int]]:
    norms = np.abs(keys.astype(np.float64)).sum((0, 2))
    image = list(range(image_start, image_start + n_image))
    first = best(norms, pivot_image, image)
    second = best(norms, pivot_text, list(range(image_start + n_image, len(norms))))
    turns = list(set(first + second)) if official else first + second
    h = normed_hidden.astype(np.float64)
    kept = set(first)
    for pivot in turns:
        likeness = [cosine(h[pivot], h[i]) for i in range(len(h))]
        kept |= set(best(-np.array(likeness), per_pivot, [i for i in image if i not in kept]))
    return np.array(sorted(i - image_start for i in kept)), np.array(first), np.array(second), turns


def sparsevlm_raters(visual: Array, text: Array) -> tuple[Array, Array]:
    products = visual.astype(np.float64) @ text.astype(np.float64).T
    score = np.mean([softmax(row) for row in products], axis=0)
    raters = [j for j in range(len(score)) if score[j] > score.mean()]
    return np.array(raters or range(len(score))), score


def sparsevlm_stage(attn_rater_rows_headmean: Array, keep: int) -> tuple[Array, Array, None, Array]:
    score = attn_rater_rows_headmean.astype(np.float64).mean(0)
    n = len(score)
    keep = min(keep, n - 1)
    ranked = best(score, n)
    return np.array(sorted(ranked[:keep])), np.array(ranked[keep : keep + int(0.3 * (n - keep)) + 1]), None, score


def recycle(features: Array, *, clusters: int | None = None) -> Array:
    x = features.astype(np.float64)
    m, width = x.shape
    c = int(m / 10) + 1 if clusters is None else clusters
    distance = np.array([[np.sqrt(np.sum((a - b) ** 2) / width) for b in x] for a in x])
    density = [np.exp(-np.mean(np.sort(distance[i])[:c] ** 2)) for i in range(m)]
    score = []
    for i in range(m):
        denser = [j for j in range(m) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        score.append(density[i] * (min(distance[i, j] for j in denser) if denser else distance.max()))
    centres = best(np.array(score), c)
    groups: list[list[int]] = [[] for _ in range(c)]
    for i in range(m):
        near = centres.index(i) if i in centres else best(np.array([-distance[i, j] for j in centres]), 1)[0]
        groups[near].append(i)
    return np.stack([x[group].sum(0) / (len(group) + 1e-6) for group in groups])


def fitprune_scores(attn_visual_cols: Array, *, n_image: int) -> tuple[Array, Array]:
    strongest = attn_visual_cols.astype(np.float64).max(0)
    return strongest[:n_image].sum(0) / n_image, strongest[n_image:].sum(0)


def fitprune(attn_visual_cols: Array, *, n_image: int, delete: int) -> Array:
    mine, cross = fitprune_scores(attn_visual_cols, n_image=n_image)
    return np.array(sorted(best(mine * cross, n_image - delete)))


def mustdrop_filter(
    attn_text_to_visual: Array, *, global_thr: float, individual_thr: float, official: bool = False
) -> Array:
    a = attn_text_to_visual.astype(np.float64).mean(0)
    total = a.sum()
    kept = [i for i in range(a.shape[1]) if not (a[:, i].sum() < global_thr * total and a[:, i].max() < individual_thr)]
    return np.array(kept if kept or official else best(a.sum(0), 1), dtype=np.int64)


def mustdrop_merge(x_with_cls: Array, *, threshold: float, window: int) -> tuple[Array, Array, Array, Array, Array]:
    x = x_with_cls.astype(np.float64)
    side = round((len(x) - 1) ** 0.5)
    across = side // window
    members = [
        [(wr * window + r) * side + wc * window + c for r in range(window) for c in range(window)]
        for wr in range(across)
        for wc in range(across)
    ]
    similarity = []
    for group in members:
        pairs = [cosine(x[1 + i], x[1 + j]) for i in group for j in group if i != j]
        similarity.append(np.mean(pairs) if pairs else 0.0)
    merged = [w for w in best(np.array(similarity), len(members)) if similarity[w] >= threshold]
    gone = {i for w in merged for i in members[w]}
    rest = [i for i in range(side * side) if i not in gone]
    rows = [x[0]] + [x[[1 + i for i in members[w]]].mean(0) for w in merged] + [x[1 + i] for i in rest]
    sizes = [1] + [window * window] * len(merged) + [1] * len(rest)
    whole = (np.array(merged, dtype=np.int64), np.array(rest, dtype=np.int64), np.array(similarity))
    return np.stack(rows), np.array(sizes), *whole


def tome(x: Array, metrics: list[Array], r: list[int], *, class_token: bool = False) -> tuple[Array, Array, Array]:
    groups: list[list[int]] = [[i] for i in range(len(x))]
    for metric, merges in zip(metrics, r, strict=True):
        n = len(groups)
        merges = max(0, min(merges, (n - class_token) // 2))
        if merges == 0:
            continue
        likeness = cosines(metric, metric)
        a, b = list(range(0, n, 2)), list(range(1, n, 2))
        link = {i: best(likeness[i], 1, b)[0] for i in a}
        strength = {i: -np.inf if class_token and i == 0 else likeness[i, link[i]] for i in a}
        falling = sorted(a, key=lambda i: (-strength[i], i))
        source, stay = falling[:merges], falling[merges:]
        if class_token:
            stay = sorted(stay)
        grown = {j: list(groups[j]) for j in b}
        for i in source:
            grown[link[i]] += groups[i]
        groups = [groups[i] for i in stay] + [grown[j] for j in b]
    rows = np.stack([x[group].astype(np.float64).mean(0) for group in groups])
    of = np.empty(len(x), dtype=np.int64)
    for place, group in enumerate(groups):
        of[group] = place
    return rows, np.array([len(group) for group in groups]), of


def alignment_score(visual: Array, text: Array) -> Array:
    """Minus the mean squared distance to the text embeddings."""
    v, t = visual.astype(np.float64), text.astype(np.float64)
    return np.array([-np.mean([np.sum((token - word) ** 2) for word in t]) for token in v])


def top_k(scores: Array, k: int) -> tuple[Array, Array]:
    order = best(scores, k)
    return np.array(sorted(order)), np.array(order)


def greedy_repmax(x: Array, k: int) -> Array:
    """First the lowest mean cosine, then the lowest mean cosine to those picked."""
    likeness = cosines(x, x)
    picked = best(-likeness.mean(1), 1)
    total = likeness[picked[0]].copy()
    while len(picked) < k:
        picked.append(best(-total / len(picked), 1, [i for i in range(len(x)) if i not in picked])[0])
        total += likeness[picked[-1]]
    return np.array(picked)
