"""The comparison of all methods: nothing registered is left out without a reason."""

from benchmarks.compare_methods import in_decoder, methods
from tokenprune.core.registry import builtin
from tokenprune.evaluate.methods import CONTROLS


def test_every_method_is_compared_or_left_out_with_a_reason() -> None:
    chosen, left_out = methods()
    names = {text.split("(")[0] for text in chosen}
    assert names | set(left_out) | set(CONTROLS) >= set(builtin())
    assert not names & set(left_out)
    assert {"cdpruner", "trim"} <= set(left_out)
    assert all(reason and "\n" not in reason for reason in left_out.values())
    inside = in_decoder(chosen)
    assert {"fastv(layer=1)", "dart(layer=1)", "pyramiddrop(layers=(1, 2, 3))"} <= set(inside)
    assert "greedy_repmax" not in inside
