"""Products with all experts at once against a loop over experts, in float64."""

from dataclasses import dataclass, replace

import pytest
import torch
from random_weights import random_weight

from serving.kernels.codebooks import E4M3, E5M2, FP4, INT4, INT8, NF4, Codebook
from serving.kernels.coded_matmul import round_trip_int8
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.expert_choice import fault_of
from serving.kernels.gpu import grouped_matmul, tiles
from serving.kernels.gpu.grouped_matmul import TritonGroupedMatmul
from serving.kernels.stacked_weight import StackedWeight

# Relative to the norm of the result: weights and results are rounded to the type.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
CUDA = torch.device("cuda")
BOOKS = [INT4, NF4, FP4, INT8, E4M3, E5M2]


@dataclass(frozen=True)
class Experts:
    """Matrices of some experts: plain in float64, and as the product reads them."""

    plain: torch.Tensor  # [experts, out, in]
    stored: torch.Tensor | StackedWeight
    rounds: bool = False

    @classmethod
    def of(cls, weights: list[CodedWeight]) -> "Experts":
        stack = StackedWeight.like(weights[0], len(weights))
        for expert, weight in enumerate(weights):
            assert stack.reason_not(weight) is None
            stack.put(expert, weight)
        plain = torch.stack([weight.dequantize().double() for weight in weights])
        return cls(plain, stack, weights[0].quantizes_activations)

    def check(self, experts: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
        """Both directions with the chosen experts [tokens, chosen]."""
        device = self.plain.device
        product = TritonGroupedMatmul(self.stored, dtype)
        routing = product.route(experts)
        pairs, inputs = experts.numel(), self.plain.shape[2]
        order = experts.flatten().sort(stable=True).indices
        x = torch.randn(len(experts), inputs, device=device).to(dtype)
        inner = torch.randn(pairs, inputs, device=device).to(dtype)
        weights = torch.rand(experts.shape, device=device)
        self._check(product.gather(x, routing), x[order // experts.shape[1]], experts, order)
        found = product.scatter(inner, routing, weights)
        assert found.shape == (*experts.shape, self.plain.shape[1])
        self._check(found.flatten(0, 1)[order], inner, experts, order, weights.flatten()[order])

    def _check(
        self,
        found: torch.Tensor,
        rows: torch.Tensor,
        experts: torch.Tensor,
        order: torch.Tensor,
        factors: torch.Tensor | None = None,
    ) -> None:
        """Rows that are sorted by expert, one after the other."""
        wide = round_trip_int8(rows.float()).double() if self.rounds else rows.double()
        chosen = experts.flatten()[order].tolist()
        parts = [self.plain[expert] @ row for expert, row in zip(chosen, wide, strict=True)]
        expected = torch.stack(parts)
        if factors is not None:
            expected *= factors.double()[:, None]
        error = (found.double() - expected).norm()
        assert found.dtype == rows.dtype
        assert error <= TOLERANCE[rows.dtype] * expected.norm()


def plain(
    count: int, outputs: int, inputs: int, device: str, dtype: torch.dtype = torch.float32
) -> Experts:
    weight = torch.randn(count, outputs, inputs, device=device).to(dtype)
    return Experts(weight.double(), weight)


def coded(
    book: Codebook, count: int, outputs: int, columns: int, group: int, device: str,
    offsets: bool = False, rounds: bool = False,
) -> Experts:  # fmt: skip
    return Experts.of([
        random_weight(
            book, outputs, columns, group, offsets, quantizes_activations=rounds, device=device
        )
        for _ in range(count)
    ])  # fmt: skip


def some(tokens: int, chosen: int, count: int, device: str) -> torch.Tensor:
    """Different experts for each token."""
    return torch.rand(tokens, count, device=device).topk(chosen, -1).indices


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("book", BOOKS, ids=str)
def test_every_codebook(book: Codebook, tokens: int, device: str) -> None:
    experts = coded(book, 3, 24, 192, 64, device, offsets=book is INT4)
    experts.check(some(tokens, 2, 3, device), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_quantized_experts_of_other_types(dtype: torch.dtype, device: str) -> None:
    coded(NF4, 3, 24, 128, 32, device, offsets=True).check(some(3, 2, 3, device), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 40, 100])
def test_plain_experts_with_every_tile(tokens: int, dtype: torch.dtype, device: str) -> None:
    plain(3, 40, 72, device, dtype).check(some(tokens, 2, 3, device), dtype)


@pytest.mark.parametrize("tokens", [40, 100])
def test_quantized_experts_with_every_tile(tokens: int, device: str) -> None:
    coded(INT4, 3, 40, 64, 32, device, offsets=True).check(some(tokens, 2, 3, device))


@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (3, 3), (5, 1)])
@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (33, 70)])
def test_edges_of_tiles(
    outputs: int, inputs: int, tokens: int, count: int, chosen: int, device: str
) -> None:
    plain(count, outputs, inputs, device).check(some(tokens, chosen, count, device))


@pytest.mark.parametrize("group", [6, 48])
@pytest.mark.parametrize("tokens", [1, 6])
def test_every_size_of_groups(group: int, tokens: int, device: str) -> None:
    coded(INT4, 3, 18, 288, group, device, offsets=True).check(some(tokens, 2, 3, device))


@pytest.mark.parametrize("expert", [0, 3, 6])
@pytest.mark.parametrize("tokens", [16, 17])
def test_all_tokens_to_one_expert(tokens: int, expert: int, device: str) -> None:
    experts = torch.full((tokens, 1), expert, device=device)
    plain(7, 20, 24, device).check(experts)


def test_a_token_that_has_an_expert_twice(device: str) -> None:
    plain(3, 20, 24, device).check(torch.tensor([[1, 1]], device=device))


@pytest.mark.parametrize("tokens", [1, 40])
def test_activations_of_8_bits(tokens: int, device: str) -> None:
    experts = coded(INT8, 3, 36, 160, 160, device, rounds=True)
    experts.check(some(tokens, 2, 3, device), torch.bfloat16)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_columns_in_an_order_of_each_expert(tokens: int, rounds: bool, device: str) -> None:
    book = INT8 if rounds else INT4
    orders = [torch.cat([torch.randperm(60), torch.tensor([7, 7, 0, 59])]) for _ in range(4)]
    weights = [
        random_weight(book, 20, 64, 64 if rounds else 16, order=order, quantizes_activations=rounds)
        for order in orders
    ]
    experts = Experts.of([weight.to(torch.device(device)) for weight in weights])
    experts.check(some(tokens, 2, 4, device))


@pytest.mark.parametrize(("few", "many"), [(2, 12), (20, 40)])
def test_a_token_does_not_depend_on_the_others(few: int, many: int, device: str) -> None:
    product = TritonGroupedMatmul(torch.randn(4, 24, 80, device=device), torch.float32)
    x, experts = torch.randn(many, 80, device=device), some(many, 2, 4, device)
    weights = torch.rand(many, 2, device=device)

    def run(tokens: int) -> torch.Tensor:
        routing = product.route(experts[:tokens])
        inner = torch.empty(tokens * 2, 24, device=device)
        inner[routing.order] = product.gather(x[:tokens], routing)
        rows = x[:tokens].repeat_interleave(2, 0)[routing.order]
        outer = product.scatter(rows, routing, weights[:tokens])
        return torch.cat([inner.view(tokens, -1), outer.view(tokens, -1)], 1)

    assert torch.equal(run(many)[:few], run(few))


def test_no_tokens(device: str) -> None:
    product = TritonGroupedMatmul(torch.randn(4, 24, 80, device=device), torch.float32)
    experts = torch.empty(0, 2, dtype=torch.int64, device=device)
    routing = product.route(experts)
    assert product.gather(torch.empty(0, 80, device=device), routing).shape == (0, 24)
    found = product.scatter(torch.empty(0, 80, device=device), routing, experts.float())
    assert found.shape == (0, 2, 24)


def test_activations_that_are_not_contiguous(device: str) -> None:
    product = TritonGroupedMatmul(torch.randn(4, 24, 80, device=device), torch.float32)
    routing = product.route(some(3, 2, 4, device))
    x = torch.randn(3, 160, device=device)[:, ::2]
    assert torch.equal(product.gather(x, routing), product.gather(x.contiguous(), routing))


def test_warm_up_runs_every_tile(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    product = TritonGroupedMatmul(torch.randn(4, 24, 80, device=device), torch.float32)
    seen = []
    monkeypatch.setattr(product, "_multiply", lambda x, routing, factors, tile: seen.append(tile))
    product.warm_up()
    assert seen == [tile for _, tile in tiles.EXPERTS_SINGLE]


def test_many_rows_go_to_torch_where_it_is_built(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.bfloat16
    if device == "cpu":
        monkeypatch.setattr(grouped_matmul, "_torch_runs", lambda weight: True)
    experts = plain(2, 32, 64, device, dtype)
    product = TritonGroupedMatmul(experts.stored, dtype)
    tokens = 2 * grouped_matmul.TORCH_ROWS
    if product._torch is None:
        pytest.skip("torch's product waits for this device")
    seen = []
    monkeypatch.setattr(product, "_multiply", lambda *_: seen.append(1))
    product.gather(
        torch.randn(tokens + 1, 64, device=device).to(dtype),
        product.route(some(tokens + 1, 1, 2, device)),
    )
    assert not seen
    product.gather(
        torch.randn(tokens, 64, device=device).to(dtype), product.route(some(tokens, 1, 2, device))
    )
    assert seen
    experts.check(some(tokens + 1, 1, 2, device), dtype)


@pytest.mark.parametrize("is_plain", [False, True])
def test_the_proof_before_use(is_plain: bool, device: str) -> None:
    like = torch.empty(8, 8) if is_plain else random_weight(INT4, 8, 16, 4, offsets=True)
    fault = fault_of(TritonGroupedMatmul, like, 2, torch.bfloat16, torch.device(device))
    assert fault is None


def test_reasons_against(monkeypatch: pytest.MonkeyPatch) -> None:
    reason_not = TritonGroupedMatmul.reason_not
    weight = torch.randn(20, 64)
    assert reason_not(weight, torch.float16, torch.device("cpu")) == "no kernel for device 'cpu'"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert reason_not(weight, torch.float16, CUDA) is None
    assert reason_not(weight, torch.float64, CUDA) == "no kernel for torch.float64"
    rounding = random_weight(INT8, 20, 64, 64, quantizes_activations=True)
    assert reason_not(rounding, torch.float16, CUDA) is None
    assert reason_not(replace(rounding, quantizes_activations=False), torch.float16, CUDA) is None
    floats = random_weight(E4M3, 20, 64, 64, quantizes_activations=True)
    assert reason_not(floats, torch.float16, CUDA) == "8-bit activations, and codes are fp8 e4m3"
    grouped = random_weight(INT8, 20, 64, 32, quantizes_activations=True)
    assert "not one scale per output" in str(reason_not(grouped, torch.float16, CUDA))
