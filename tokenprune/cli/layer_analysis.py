"""What `tokenprune analyze redundancy --layers` prints and draws."""

from collections.abc import Sequence

from tokenprune.analysis import NO_CONTROLS, Controls, analyse_layers
from tokenprune.analysis.intervals import show
from tokenprune.cli.answer_analyses import Request
from tokenprune.cli.outcome import Outcome, Table, new_figure, numbers

DRAWN = ("mean_cosine", "neighbours", "rank_share")


def layers(request: Request) -> Outcome:
    """Redundancy in front of every decoder layer, without and with confounders controlled."""
    settings = (NO_CONTROLS, Controls())
    reports = analyse_layers(request.loaded, request.samples, settings, tau=request.args.tau, watch=request.watch)
    figure = new_figure(4.6 * len(DRAWN), 3.7 * len(reports))
    axes = figure.subplots(len(reports), len(DRAWN), squeeze=False)
    tables: list[Table] = []
    rows: list[Sequence[object]] = [("controls", "layer", "measure", "side", "value", "low", "high", "images")]
    for line, report in zip(axes, reports, strict=True):
        for ax, measure in zip(line, DRAWN, strict=True):
            report.plot(ax, measure=measure)
        for measure in DRAWN:
            title = f"{measure.replace('_', ' ')} per layer, {report.controls.label} (tau {request.args.tau:g})"
            body = [
                [str(number), *(show(side[measure]) for side in (layer.visual, layer.text, layer.difference))]
                for number, layer in enumerate(report.layers)
            ]
            tables.append((title, ("layer", "visual", "text", "difference"), body))
        for number, layer in enumerate(report.layers):
            for side, means in (("visual", layer.visual), ("text", layer.text), ("difference", layer.difference)):
                rows.extend((report.controls.label, number, name, side, *numbers(mean)) for name, mean in means.items())
    last = reports[-1]
    images = len(last.layers[0].ids)
    return Outcome(
        title="Does redundancy change inside the language model?",
        tables=tables,
        files={"layers.csv": rows},
        figures={"layers.png": figure},
        notes={
            "layers.png": "Means with 95% intervals over images. Above: tokens as they are; below: all confounders "
            "taken out. Layer 0 is what enters the language model."
        },
        images=images,
        findings=[f"With all confounders taken out ({last.controls.label}), {images} images:", *last.explanation],
        facts={"tau": request.args.tau, "questions": len(request.samples)},
    )
