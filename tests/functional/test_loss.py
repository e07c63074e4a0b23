"""The chunked loss is the plain one, in value and gradient, with less memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.functional import IGNORED
from llm.functional.loss import has_wide_sums, head_loss, wide_product
from llm.functional.sizes import CHUNK, LARGE_VOCABULARY
from llm.model.gpt import GPT

C, V = 24, 70
SHAPE: dict[str, Any] = {
    "n_layer": 2, "n_embed": 32, "head_size": 16, "block_size": 64, "vocab_size": V,
}  # fmt: skip


def problem(n: int, ignored: str = "some") -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(n)
    x = torch.randn(n, C, generator=random, requires_grad=True)
    head = torch.randn(V, C, generator=random, requires_grad=True)
    targets = torch.randint(V, (n,), generator=random)
    targets[torch.rand(n, generator=random) < {"none": 0, "some": 0.3, "all": 1}[ignored]] = IGNORED
    return x, head, targets


def plain(x: Tensor, head: Tensor, targets: Tensor, reduction: str) -> Tensor:
    logits = (x @ head.T).float()
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)


def with_gradients(loss: Callable[[], Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The loss, and the gradients of three times the loss."""
    value = loss()
    return value.detach(), *torch.autograd.grad(3 * value, inputs)


PRODUCTS = (
    torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.mkldnn._linear_pointwise.default,
)  # fmt: skip


@pytest.mark.parametrize("how", ["chunked", "full"])
def test_ignored_targets_get_no_logits(how: str) -> None:
    class Products(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in PRODUCTS:
                self.rows += len(args[0])
            return func(*args, **kwargs or {})

    x, head, targets = problem(6 * CHUNK, "some")
    with torch.no_grad(), Products() as products:
        head_loss(x, head, targets, "sum", how)
    counted = int((targets != IGNORED).sum())
    whole_chunks = -(-counted // CHUNK) * CHUNK  # oneDNN's last chunk is filled up
    assert products.rows in (counted, whole_chunks) and whole_chunks < 6 * CHUNK


@pytest.mark.parametrize("how", ["chunked", "full"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("n", [1, CHUNK, 2 * CHUNK + 37])
def test_loss_and_gradients_are_those_of_plain_torch(n: int, reduction: str, how: str) -> None:
    x, head, targets = problem(n, "none" if n == 1 else "some")
    wanted = with_gradients(lambda: plain(x, head, targets, reduction), x, head)
    found = with_gradients(lambda: head_loss(x, head, targets, reduction, how), x, head)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["chunked", "full"])
@pytest.mark.parametrize(("reduction", "wanted"), [("sum", 0.0), ("mean", torch.nan)])
def test_if_all_targets_are_ignored_a_mean_is_nan_as_in_torch_and_gradients_are_0(
    how: str, reduction: str, wanted: float
) -> None:
    x, head, targets = problem(CHUNK + 3, "all")
    loss, *gradients = with_gradients(lambda: head_loss(x, head, targets, reduction, how), x, head)
    torch.testing.assert_close(loss, torch.tensor(wanted), equal_nan=True)
    assert not any(gradient.any() for gradient in gradients)  # any() is true for NaN


@pytest.fixture(params=["cpu", "gpu"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunked loss on a CPU, and as on a GPU: 16-bit products with sums in float32."""

    def wide_product(x: Tensor, y: Tensor) -> Tensor:
        assert x.dtype == y.dtype != torch.float32
        return x.float() @ y.float()

    if request.param == "gpu":
        monkeypatch.setattr("llm.functional.loss.has_wide_sums", lambda device: True)
        monkeypatch.setattr("llm.functional.loss.wide_product", wide_product)


def test_torch_has_products_of_16_bits_in_float32_for_a_gpu() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.empty(3, 3, dtype=dtype, device="meta")
        assert wide_product(x, x).dtype == torch.float32
    assert not has_wide_sums(torch.device("cpu"))


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("scale", [2.0**10, 2.0**16])
def test_under_float16_no_more_gradients_are_lost_than_with_all_logits_at_once(
    scale: float,
) -> None:
    random = torch.Generator().manual_seed(0)
    n, width, vocabulary = 2 * CHUNK, 16, 5000
    x = torch.randn(n, width, generator=random, requires_grad=True)
    head = (2 * torch.randn(vocabulary, width, generator=random)).requires_grad_()
    targets = torch.randint(100, (n,), generator=random)  # the other ids never occur
    lost, errors = {}, {}
    exact = torch.autograd.grad(plain(x, head, targets, "mean"), (x, head))
    for how in ("full", "chunked"):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = head_loss(x, head, targets, "sum", how) / n
        found = [gradient / scale for gradient in torch.autograd.grad(scale * loss, (x, head))]
        lost[how] = int((found[1] == 0).sum()), int((found[1] == 0).all(dim=1).sum())
        errors[how] = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    assert lost["full"][0] > 0  # some gradients are too small
    assert lost["chunked"] <= lost["full"]
    for chunked, full in zip(errors["chunked"], errors["full"], strict=True):
        assert chunked <= 1.1 * full


@pytest.mark.usefixtures("products")
def test_the_gradient_of_a_bfloat16_head_is_as_good_as_with_all_logits_at_once() -> None:
    random = torch.Generator().manual_seed(0)
    n = 64 * CHUNK
    x = torch.randn(n, C, generator=random).bfloat16().requires_grad_()
    head = torch.randn(V, C, generator=random).bfloat16().requires_grad_()
    targets = torch.randint(V, (n,), generator=random)
    wide = x.detach().float(), head.detach().float().requires_grad_()
    (exact,) = torch.autograd.grad(plain(*wide, targets, "mean"), wide[1])
    errors = {}
    for how in ("full", "chunked"):
        (found,) = torch.autograd.grad(head_loss(x, head, targets, "mean", how), head)
        assert found.dtype == torch.bfloat16
        errors[how] = float((found.float() - exact).norm() / exact.norm())
    assert errors["chunked"] <= 1.1 * errors["full"]


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("rows", [7, 70, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_head_may_be_summed_in_any_number_of_parts(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.functional.loss.ROWS", rows)
    x, head, targets = problem(2 * CHUNK + 37)
    x, head = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, head))
    wanted = with_gradients(lambda: plain(x.float(), head.float(), targets, "sum"), x, head)
    found = with_gradients(lambda: head_loss(x, head, targets, "sum", "chunked"), x, head)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(found, wanted, strict=True):
        assert (one.float() - other.float()).norm() <= tolerance * other.float().norm()


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 1024.0)])
def test_16_bit_products_and_a_loss_scale_come_out_near_float32(
    dtype: torch.dtype, scale: float
) -> None:
    x, head, targets = problem(2 * CHUNK + 37)
    wanted = with_gradients(lambda: plain(x, head, targets, "mean"), x, head)
    with torch.autocast("cpu", dtype=dtype):
        loss = head_loss(x, head, targets, "mean", "chunked")
    assert loss.dtype == torch.float32
    (scale * loss).backward()
    for tensor, gradient in zip((x, head), wanted[1:], strict=True):
        assert tensor.grad is not None and tensor.grad.dtype == torch.float32
        error = (tensor.grad / scale - gradient / 3).norm() / (gradient / 3).norm()
        assert error < (0.02 if dtype == torch.bfloat16 else 0.003)
    assert loss.item() == pytest.approx(wanted[0].item(), rel=0.01)


def test_a_frozen_head_or_input_gets_no_gradient() -> None:
    x, head, targets = problem(CHUNK + 1)
    for learning, frozen in ((x, head), (head, x)):
        frozen.requires_grad_(False)
        wanted = with_gradients(lambda: plain(x, head, targets, "sum"), learning)
        found = with_gradients(lambda: head_loss(x, head, targets, "sum", "chunked"), learning)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        frozen.requires_grad_(True)


def test_a_second_backward_pass_scales_with_its_own_incoming_gradient() -> None:
    x, head, targets = problem(4)
    loss = head_loss(x, head, targets, "sum", "chunked")
    first = torch.autograd.grad(2 * loss, (x, head), retain_graph=True)
    first = tuple(gradient.clone() for gradient in first)  # the second pass changes them in place
    second = torch.autograd.grad(6 * loss, (x, head))
    torch.testing.assert_close([3 * gradient for gradient in first], list(second))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_network_learns_the_same_with_either_loss(tied: bool) -> None:
    gradients = []
    tokens = torch.randint(V, (5, 64), generator=torch.Generator().manual_seed(0))
    for how in ("full", "chunked"):
        torch.manual_seed(0)
        model = GPT(**SHAPE, tie_embeddings=tied, loss=how)
        model(tokens, tokens.roll(-1, 1)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


class Shapes(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returned."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return out


@pytest.mark.parametrize(
    ("how", "vocab_size", "chunked"),
    [
        ("full", LARGE_VOCABULARY, False),
        ("chunked", 70, True),
        ("auto", LARGE_VOCABULARY - 1, False),
        ("auto", LARGE_VOCABULARY, True),
    ],
)
@pytest.mark.parametrize("learning", [True, False], ids=["training", "evaluation"])
def test_no_tensor_holds_the_logits_of_more_than_a_chunk(
    how: str, vocab_size: int, chunked: bool, learning: bool
) -> None:
    n = 3 * CHUNK
    x, head = torch.randn(n, 4, requires_grad=True), torch.randn(vocab_size, 4, requires_grad=True)
    with Shapes() as shapes, torch.set_grad_enabled(learning):
        loss = head_loss(x, head, torch.zeros(n, dtype=torch.long), "sum", how)
        if learning:
            loss.backward()
    assert shapes.largest == (CHUNK if chunked else n) * vocab_size


def test_evaluation_computes_no_gradients() -> None:
    x, head, targets = problem(2 * CHUNK)
    with torch.no_grad(), torch.profiler.profile() as profile:
        loss = head_loss(x, head, targets, "sum", "chunked")
    names = ("aten::mm", "mkldnn::_linear_pointwise")
    products = [event for event in profile.events() if event.name in names]
    assert len(products) == 2 and not loss.requires_grad  # one for each chunk


def test_onednn_compiles_kernels_for_one_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def counted(x: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(x))
        return x @ weight.t()

    monkeypatch.setattr("llm.functional.loss.prefers_onednn", lambda x: True)
    monkeypatch.setattr("llm.functional.loss.product", counted)
    x, head, targets = problem(2 * CHUNK + 3, "none")
    found = with_gradients(lambda: head_loss(x, head, targets, "mean", "chunked"), x, head)
    expected = with_gradients(lambda: plain(x, head, targets, "mean"), x, head)
    torch.testing.assert_close(found, expected)
    assert rows == [CHUNK] * 6, "logits of three chunks, the last of 3 rows, and their gradients"
