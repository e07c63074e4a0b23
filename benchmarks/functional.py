"""llm/functional and sampling beside plain torch: python -m benchmarks.functional [--json FILE]

Times of forward and backward on this machine's CPU in float32; of ``linear_*``, ``columns_*`` and
``draw_*``, which only decoding uses, and of ``product_*`` the forward. ``ratio`` is plain torch's
time over ours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rows import Parser, Row, alternate, report, row, seconds_per_call
from llm.functional.linear import linear, product
from llm.functional.loss import head_loss
from llm.functional.norm import rms_norm
from llm.functional.rotary import rotate
from llm.model.config import GPTConfig
from llm.model.layers import rotary_angles
from llm.sampling.choose import draw, filter_logits
from llm.sampling.options import SamplingOptions

Call = Callable[[], object]
Case = tuple[str, str, Call, Call]  # id, what, ours, plain torch


def learning(function: Callable[[], Tensor], *leaves: Tensor) -> Call:
    """A call of forward and backward of ``function``, with gradients for ``leaves``."""

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        out = function()
        out.backward(torch.ones_like(out))

    return call


def losses() -> list[Case]:
    """The chunked loss beside the full one for several vocabularies, and beside torch's chunked."""
    cases: list[Case] = []
    tokens, width = 1536, 768
    for size in (512, 2048, 4096, 8192, 16384, 50304):
        x = torch.randn(tokens, width, requires_grad=True)
        head = (0.02 * torch.randn(size, width)).requires_grad_()
        targets = torch.randint(size, (tokens,))

        def ours(how: str, x: Tensor = x, head: Tensor = head, y: Tensor = targets) -> Tensor:
            return head_loss(x, head, y, "sum", how)

        def torchs(x: Tensor = x, head: Tensor = head, y: Tensor = targets) -> Tensor:
            options = torch.nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(x, head, y, reduction="sum", options=options)

        chunked = learning(lambda ours=ours: ours("chunked"), x, head)
        what = f"{tokens} tokens, width {width}, vocabulary {size}"
        full = learning(lambda ours=ours: ours("full"), x, head)
        cases.append((f"loss_{size}", f"chunked; full; {what}", chunked, full))
    cases.append(("loss_torch", f"chunked; torch's; {what}", chunked, learning(torchs, x, head)))
    return cases


def elementwise() -> list[Case]:
    """Norm and rotation, at the shapes of model=small and of nanoGPT's CPU command."""
    cases: list[Case] = []
    for B, T, H, D in ((12, 128, 6, 128), (12, 64, 4, 32)):
        x = torch.randn(B, T, H * D, requires_grad=True)
        weight = torch.ones(H * D, requires_grad=True)
        heads = torch.randn(B, T, H, D, requires_grad=True)
        cos, sin = rotary_angles(GPTConfig(head_size=D, block_size=T))

        def turned(q: Tensor = heads, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
            q = q.transpose(1, 2)
            low, high = q.chunk(2, dim=-1)
            return q * cos + torch.cat([-high, low], dim=-1) * sin

        norms = [
            learning(lambda x=x, w=weight: rms_norm(x, w, 1e-6), x, weight),
            learning(lambda x=x, w=weight: F.rms_norm(x, w.shape, w, 1e-6), x, weight),
        ]
        turns = [
            learning(lambda q=heads, c=cos, s=sin: rotate(q.transpose(1, 2), c, s), heads),
            learning(turned, heads),
        ]
        what = f"({B}, {T}, {H} x {D})"
        cases.append((f"rms_norm_{H * D}", what, *norms))
        cases.append((f"rotate_{H * D}", what, *turns))
    return cases


def through(product: Callable[[Tensor, Tensor], Tensor], matrices: list[Tensor], rows: int) -> Call:
    """A call that multiplies rows by all ``matrices`` in turn, so that no cache holds them."""
    inputs = [torch.randn(rows, matrix.shape[1]) for matrix in matrices]

    def call() -> None:
        with torch.inference_mode():
            for x, matrix in zip(inputs, matrices, strict=True):
                product(x, matrix)

    return call


def products() -> list[Case]:
    """Few rows times all matrices of a network with 6 layers of width 384."""
    shapes = [(1152, 384), (384, 384), (1536, 384), (384, 1536)] * 6
    matrices = [torch.randn(shape) for shape in shapes]
    what = "rows times 24 matrices, 42 MB in all"
    return [
        (f"linear_{n}", f"{n} {what}", through(linear, matrices, n), through(F.linear, matrices, n))
        for n in (1, 8, 32, 128, 256)
    ]


def frozen() -> list[Case]:
    """1,024 rows times the matrices of a network of SmolLM2's shape, which fine-tuning freezes."""
    shapes = [(576, 576), (192, 576), (1536, 576), (576, 1536)] * 3
    matrices = [torch.randn(shape) for shape in shapes]
    cases = [
        ("product_1024", "1024 rows times 12 matrices", 1024, matrices),
        ("product_head", "128 rows times a head of 49,152", 128, [torch.randn(49_152, 576)]),
    ]
    return [
        (id, what, through(product, matrices, rows), through(F.linear, matrices, rows))
        for id, what, rows, matrices in cases
    ]


def layouts() -> list[Case]:
    """One row times matrices stored by rows; other: the same matrices stored by columns."""
    cases: list[Case] = []
    for n_embed, count in ((384, 12), (768, 4)):
        shapes = [(3 * n_embed, n_embed), (4 * n_embed, n_embed), (n_embed, 4 * n_embed)] * count
        what = f"1 row times {len(shapes)} matrices of width {n_embed}, by rows; by columns"
        cases.append(layout(f"columns_{n_embed}", what, shapes))
    what = "1 row times a head of GPT-2, by rows; by columns"
    return [*cases, layout("columns_head", what, [(50_304, 768)])]


def layout(id: str, what: str, shapes: list[tuple[int, int]]) -> Case:
    """Both layouts, each divided among the cores in the way that is fastest for it."""
    by_rows = [torch.randn(shape) for shape in shapes]
    by_columns = [matrix.t().contiguous().t() for matrix in by_rows]
    return id, what, through(linear, by_rows, 1), through(divided, by_columns, 1)


def divided(x: Tensor, matrix: Tensor) -> Tensor:
    """x (1, C) @ matrix (N, C).T, with a part of ``matrix`` for each thread."""
    threads = torch.get_num_threads()
    parts = matrix.view(threads, -1, matrix.shape[1])
    return torch.bmm(x.expand(threads, -1, -1), parts.mT)


def draws() -> list[Case]:
    """One draw with top-k and top-p from GPT-2's vocabulary; other: with masks over all of it."""
    logits = 3 * torch.randn(1, 50_257)
    generator = torch.Generator().manual_seed(0)

    options = SamplingOptions(temperature=0.8, top_k=200, top_p=0.95)

    def ours() -> Tensor:
        few, ids = filter_logits(logits, options)
        uniform = torch.rand((1,), generator=generator, dtype=torch.double)
        return ids.gather(1, draw(few, uniform)[:, None])

    def plain() -> Tensor:
        masked = logits / 0.8
        masked = masked.masked_fill(masked < masked.topk(200).values[:, -1:], -torch.inf)
        ordered, order = masked.sort(descending=True)
        shares = ordered.softmax(-1)
        above = shares.cumsum(-1) - shares >= 0.95
        barred = above.scatter(1, order, above)
        uniform = torch.rand((1,), generator=generator, dtype=torch.double)
        return draw(masked.masked_fill(barred, -torch.inf), uniform)

    return [("draw_50257", "top_k=200 top_p=0.95; masks over the vocabulary", ours, plain)]


def measure(case: Case, repeats: int) -> Row:
    """Milliseconds of both, measured in turn."""
    id, what, ours, plain = case
    for call in (ours, plain):
        call()
    pairs = alternate(
        lambda _: 1e3 * seconds_per_call(lambda: void(ours()), 0.5),
        lambda _: 1e3 * seconds_per_call(lambda: void(plain()), 0.5),
        repeats,
    )
    return row(id, f"ms; {what}", pairs, lambda ours, other: other / ours)


def void(_: object) -> None:
    """Drop a result."""


def main() -> None:
    """Measure all and print a table."""
    typed = Parser("llm/functional beside plain torch", repeats=5).parse_args()
    cases = (*products(), *frozen(), *layouts(), *draws(), *elementwise(), *losses())
    report((measure(case, typed.repeats) for case in cases), typed.json)


if __name__ == "__main__":
    main()
