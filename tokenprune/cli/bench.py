"""`tokenprune bench`: what choosing costs, and what pruning saves, as wall clock on this machine."""

from cyclopts import App

from tokenprune.cli.bench_common import MachineOptions
from tokenprune.cli.bench_model import ModelBenchOptions, run_model
from tokenprune.cli.bench_selection import SelectionOptions, run_selection
from tokenprune.cli.options import JsonFlag

_EPILOGUE = """\
examples:
  tokenprune bench selection
  tokenprune bench model --config tiny
  tokenprune bench model --config llava-1.5-7b --random-weights --device cuda --static-cache --compile

Rows go into a CSV file as they are measured; a stopped run goes on where it was.
"""
app = App(
    name="bench",
    help="Measure speed and memory. Speed does not depend on what weights mean, so nothing is downloaded.",
    help_epilogue=_EPILOGUE,
)


@app.command(help_epilogue="")
def selection(
    *,
    what: SelectionOptions = SelectionOptions(),
    machine: MachineOptions = MachineOptions(),
    json: JsonFlag = False,
) -> int:
    """Time strategies on tokens of noise.

    All images in one call, one image after another, a plain loop, and the matrix product that pairwise methods need.
    """
    return run_selection(what, machine, json=json)


@app.command(help_epilogue="")
def model(
    *,
    what: ModelBenchOptions = ModelBenchOptions(),
    machine: MachineOptions = MachineOptions(),
    json: JsonFlag = False,
) -> int:
    """Time a whole model with random weights, dense against pruned, stage by stage.

    Vision, selection, prefill and decoding, with peak memory, keys and values held, bounds, and from where on pruning
    pays.
    """
    return run_model(what, machine, json=json)
