"""Do two scores rank the tokens alike?"""

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Spearman's rank correlation; NaN when one side is constant or there are fewer than two values.

    Examples:
        >>> import torch
        >>> rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([-5.0, 0.0, 1.0]))
        1.0
    """
    first, second = a.double().cpu().numpy(), b.double().cpu().numpy()
    if len(first) < 2 or np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return float("nan")
    return float(spearmanr(first, second).statistic)
