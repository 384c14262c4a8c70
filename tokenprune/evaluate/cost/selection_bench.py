"""What choosing costs: a batch in one call, image by image, as a plain loop, and the matrix product beneath it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenprune.core.strategy import PruningStrategy
from tokenprune.core.tokens import Tokens
from tokenprune.evaluate.cost.roofline import Roofline
from tokenprune.evaluate.cost.timing import Spread, time_call


@dataclass(frozen=True, kw_only=True)
class Size:
    """One problem: `batch` images of n tokens of width d, of which k are kept."""

    n: int
    k: int
    d: int
    batch: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n or min(self.d, self.batch) < 1:
            raise ValueError(
                f"Size: need 1 <= k <= n and positive d and batch, got n={self.n}, k={self.k}, d={self.d}, "
                f"batch={self.batch}"
            )

    @classmethod
    def parse(cls, text: str) -> "Size":
        """From "576:64:4096:32", that is n:k:d:batch.

        Raises:
            ValueError: when it cannot be read.

        Examples:
            >>> Size.parse("576:64:4096:32")
            Size(n=576, k=64, d=4096, batch=32)
        """
        try:
            n, k, d, batch = (int(part) for part in text.split(":"))
        except ValueError:
            raise ValueError(f"--size must be n:k:d:batch like 576:64:4096:32, got {text!r}") from None
        return cls(n=n, k=k, d=d, batch=batch)


def random_images(size: Size, *, dtype: torch.dtype, device: torch.device, text: int = 64) -> list[Tokens]:
    """Noise with what strategies that act before the language model on tokens and text alone ask for."""
    generator = torch.Generator(device=device).manual_seed(0)
    side = max(rows for rows in range(1, int(size.n**0.5) + 1) if size.n % rows == 0)

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, size.d, device=device, generator=generator).to(dtype)

    words = noise(text)
    question = torch.arange(text, device=device) >= text // 2
    return [
        Tokens(noise(size.n), text=words, question=question, grid=(side, size.n // side), key=number)
        for number in range(size.batch)
    ]


def plain_loop(x: Float[Tensor, "n d"], k: int) -> Int[Tensor, " k"]:
    """Greedy RepMax as it is usually written: a Python loop that reads every pick back from the device.

    The start is the token with the lowest mean cosine similarity; every further pick has the lowest sum of similarities
    to those already kept.
    """
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    similarity = unit @ unit.T
    kept = [int(similarity.mean(dim=1).argmin().item())]
    left = [i for i in range(len(x)) if i != kept[0]]
    while len(kept) < k:
        best = int(similarity[left][:, kept].mean(dim=1).argmin().item())
        kept.append(left.pop(best))
    return torch.tensor(kept, device=x.device)


def lower_bound(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n"]:
    """The matrix product that every method on pairwise similarities needs."""
    return torch.bmm(x, x.mT)


def selection_rows(
    sizes: Sequence[Size],
    strategies: Callable[[int], Sequence[PruningStrategy]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    roofline: Roofline,
    seconds: float = 3.0,
    skip: Callable[[Size, str], bool] = lambda size, name: False,
) -> Iterator[dict[str, Any]]:
    """One row per size and method, times in milliseconds per image.

    The method "matrix product" is `lower_bound` in float32 over the whole batch; "plain loop" is `plain_loop`, image by
    image. Every strategy runs as `select_batch` over all images (`ms`) and as `select` one image after another
    (`single_ms`).

    Args:
        sizes: problems.
        strategies: from a number of tokens to keep to what is timed.
        device: where the tokens are.
        dtype: of the tokens.
        roofline: of the device in float32, the precision of all scores.
        seconds: limit of one measurement.
        skip: rows that are there already.
    """
    for size in sizes:
        images = random_images(size, dtype=dtype, device=device)
        stacked = torch.stack([tokens.visual for tokens in images]).float()
        product = [stacked]

        def timed(work: Callable[[], object], images: int = size.batch) -> tuple[float, Spread]:
            found = time_call(work, device, warmup=1, repeats=20, seconds=seconds)
            return found.median / images, found

        def row(method: str, each: float, found: Spread, size: Size = size, **more: Any) -> dict[str, Any]:  # noqa: ANN401
            floor = roofline.milliseconds(2 * size.n**2 * size.d, 4 * size.n * (size.d + size.n))
            return {
                **vars(size),
                "method": method,
                "ms": each,
                "ms_q25": found.low / size.batch,
                "ms_q75": found.high / size.batch,
                "product_floor_ms": floor,
                **more,
            }

        bound = timed(lambda product=product: lower_bound(product[0]))  # type: ignore[misc]
        if not skip(size, "matrix product"):
            yield row("matrix product", *bound)
        if not skip(size, "plain loop"):
            loop = timed(lambda images=images, k=size.k: [plain_loop(t.visual, k) for t in images])  # type: ignore[misc]
            yield row("plain loop", *loop, times_product=loop[0] / bound[0])
        for strategy in strategies(size.k):
            if skip(size, repr(strategy)):
                continue
            batched = timed(lambda s=strategy, images=images: s.select_batch(images))  # type: ignore[misc]
            single = timed(lambda s=strategy, images=images: [s.select(t) for t in images])  # type: ignore[misc]
            ratio = batched[0] / bound[0]
            yield row(repr(strategy), *batched, times_product=ratio, single_ms=single[0])
