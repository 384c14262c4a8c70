"""What `tokenprune analyze cases` prints and writes."""

from collections.abc import Sequence
from itertools import chain

from tokenprune.analysis.cases import Case, Told, case_slide, most_changed, study_cases
from tokenprune.cli.answer_analyses import Request
from tokenprune.cli.outcome import Outcome
from tokenprune.core.text import parse

DEFAULT_STRATEGIES = ("random", "uniform_grid", "greedy_repmax", "trim_tokenator", "divprune", "fastv")


def cases(request: Request) -> Outcome:
    """The most changed or the chosen samples, side by side."""
    args, loaded = request.args, request.loaded
    strategies = list(request.strategies) or [parse(f"{name}(keep=0.111)") for name in DEFAULT_STRATEGIES]
    samples = list(request.samples)
    if args.sample:
        by_id = {sample.id: sample for sample in samples}
        unknown = [name for name in args.sample if name not in by_id]
        if unknown:
            some = ", ".join(list(by_id)[:3])
            raise ValueError(f"--sample {unknown[0]}: no such id among {len(by_id)} samples, which begin with {some}")
        samples = [by_id[name] for name in args.sample]
    studied = study_cases(loaded, samples, strategies, max_new_tokens=args.max_new_tokens, watch=request.watch)
    shown = studied if args.sample else most_changed(studied, args.cases)
    names = [repr(strategy) for strategy in strategies]
    header = ("sample", "question", "references", "strategy", "answer", "correct", "as_dense", "kept", "tokens_in")
    rows = [(*header, "mean_log_probability", "tokens", "probabilities"), *chain(*(_rows(case) for case in studied))]
    return Outcome(
        title="What pruning changed, answer by answer",
        tables=[
            ("Answers", ["Sample", "Question", "Reference", "dense", *names], [_line(case) for case in shown]),
        ],
        files={"cases.csv": rows},
        figures={},
        galleries={"cases": [case_slide(loaded, case) for case in shown]},
        notes={
            "cases": "Number after a word: its probability in percent, shaded the more the less sure. Underlined: not "
            f"in the dense answer. ⏎ ends an answer. {_order(len(shown), len(studied), chosen=bool(args.sample))}",
            "cases.csv": "All samples that ran, also those that are not shown.",
        },
        images=len(studied),
        findings=[
            f"{name}: another answer than dense on {sum(case.changed[place] for case in studied)} of {len(studied)} "
            "samples."
            for place, name in enumerate(names)
        ],
        strategies=names,
        facts={"max_new_tokens": args.max_new_tokens, "samples": [case.sample.id for case in shown]},
    )


def _order(shown: int, ran: int, *, chosen: bool) -> str:
    if chosen:
        return "The samples were chosen by their ids."
    return (
        f"Shown: the {shown} of {ran} samples that changed most, by the number of other answers, then by the largest "
        "shift of the mean log probability. They are the worst cases, not typical ones."
    )


def _line(case: Case) -> list[str]:
    answers = [f"{one.answer or '(nothing)'}{' *' if changed else ''}" for one, changed in _told(case)]
    return [case.sample.id, case.sample.question, case.sample.answers[0], *answers]


def _told(case: Case) -> "list[tuple[Told, bool]]":
    return list(zip((case.dense, *case.told), (False, *case.changed), strict=True))


def _rows(case: Case) -> "list[Sequence[object]]":
    return [
        (
            case.sample.id,
            case.sample.question,
            " | ".join(case.sample.answers),
            one.strategy,
            one.answer,
            one.correct,
            not changed,
            one.tokens_in if one.kept is None else len(one.kept),
            one.tokens_in,
            f"{one.log_probability:.5f}",
            " ".join(repr(token) for token in one.tokens),
            " ".join(f"{p:.4f}" for p in one.probabilities),
        )
        for one, changed in _told(case)
    ]
