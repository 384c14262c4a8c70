"""What a run costs, measured: time by stage, memory, keys and values, floating-point operations, rooflines."""

from tokenprune.evaluate.cost.counted import counted_flops, disagreement
from tokenprune.evaluate.cost.flops import CONVENTION, Flops, decode_flops, layer_lengths, prefill_flops
from tokenprune.evaluate.cost.kv import LayerCache, cache_layers, kv_bytes
from tokenprune.evaluate.cost.memory import Peak, peak_memory
from tokenprune.evaluate.cost.shapes import DecoderShape, TowerShape
from tokenprune.evaluate.cost.timing import Spread, spread, time_call

__all__ = [
    "CONVENTION",
    "DecoderShape",
    "Flops",
    "LayerCache",
    "Peak",
    "Spread",
    "TowerShape",
    "cache_layers",
    "counted_flops",
    "decode_flops",
    "disagreement",
    "kv_bytes",
    "layer_lengths",
    "peak_memory",
    "prefill_flops",
    "spread",
    "time_call",
]
