"""The search tree as evidence: enough of it to check the bound again without searching."""

from dataclasses import dataclass, field

from tokenprune.repmax.problem.distances import Array
from tokenprune.repmax.problem.objective import Indices


@dataclass(frozen=True, eq=False)
class Step:
    """One tangent at a node and what it decided.

    Attributes:
        z: (f,) point on the node's free points; its tangent is the bound.
        shift: (f,) diagonal shift from here on; None keeps the one in force.
        ones: points (original numbers) fixed in, because no set without them exceeds the claimed bound.
        zeros: points fixed out, because no set with them does.
    """

    z: Array
    shift: Array | None
    ones: Indices
    zeros: Indices


@dataclass(eq=False)
class Record:
    """A node of the tree: its parent, the branch that leads to it, and its steps.

    The sets of a node are covered by its two children. A child that is missing (search stopped) is bounded by its
    parent's last tangent; so is a node without children.
    """

    parent: int
    point: int
    taken: bool
    steps: list[Step] = field(default_factory=list)
