"""Every tensor that a spec needs: checkpoint name to full shape.

Compared with the checkpoint's headers before anything is loaded, so that a wrong checkpoint fails
in milliseconds with all its faults named. Used by `weights.py` and by the tiny-model maker. No
torch.
"""

from serving.models.spec import (
    AttentionSpec,
    DecoderSpec,
    HeadNormSpec,
    LatentSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
    WeightNames,
)

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(spec: DecoderSpec, names: WeightNames) -> Shapes:
    """Name (with `.weight`/`.bias`) to unsharded shape of every tensor of the model."""
    shapes = _ends(spec, names)
    for i in range(len(spec.layers)):
        shapes |= _LayerShapes(spec, names, i).all()
    return shapes


def _ends(spec: DecoderSpec, names: WeightNames) -> Shapes:
    """Embeddings, head, and what lies before the first and behind the last layer."""
    embedding = spec.embedding
    width = embedding.width or spec.hidden
    shapes: Shapes = {f"{names.embedding}.weight": (spec.vocab_size, width)}
    if not spec.head.tied:
        shapes[f"{names.head}.weight"] = (spec.vocab_size, width)
    if spec.head.bias:
        shapes[f"{names.head}.bias"] = (spec.vocab_size,)
    if embedding.width:
        shapes[f"{names.project_in}.weight"] = (spec.hidden, width)
        shapes[f"{names.project_out}.weight"] = (width, spec.hidden)
    if embedding.positions:
        rows = embedding.positions + embedding.position_offset
        shapes[f"{names.positions}.weight"] = (rows, spec.hidden)
    if embedding.norm is not None:
        shapes |= _norm(names.embedding_norm, spec.hidden, embedding.norm)
    if spec.final_norm:
        shapes |= _norm(names.final_norm, spec.hidden, spec.norm)
    return shapes


class _LayerShapes:
    """Shapes of one layer."""

    def __init__(self, spec: DecoderSpec, names: WeightNames, i: int) -> None:
        self._spec, self._names, self._i = spec, names, i

    def all(self) -> Shapes:
        """Every tensor of the layer."""
        attention, layer = self._spec.attention, self._spec.layers[self._i]
        shapes = self._norms()
        if attention.latent is None:
            shapes |= self._attention(attention)
        else:
            shapes |= self._latent(attention, attention.latent)
        if isinstance(layer.mlp, MoeSpec):
            return shapes | self._moe(layer.mlp)
        names = self._names
        return shapes | self._mlp(layer.mlp, names.gate, names.up, names.gate_up, names.down)

    def _norms(self) -> Shapes:
        spec, names = self._spec, self._names
        inputs = [names.attention_norm, names.mlp_norm]
        if spec.form == "parallel" and not spec.mlp_norm:
            inputs.pop()
        if not spec.input_norms:
            inputs = []
        outputs = [names.attention_output_norm, names.mlp_output_norm] if spec.output_norms else []
        shapes: Shapes = {}
        for name in inputs + outputs:
            shapes |= _norm(self._name(name), spec.hidden, spec.norm)
        return shapes

    def _attention(self, spec: AttentionSpec) -> Shapes:
        hidden, names = self._spec.hidden, self._names
        query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        shapes = self._linear(names.attention_out, hidden, query, spec.out_bias)
        if names.qkv:
            shapes |= self._linear(names.qkv, query + 2 * key, hidden, spec.qkv_bias)
        elif names.key_value:
            shapes |= self._linear(names.query, query, hidden, spec.qkv_bias)
            shapes |= self._linear(names.key_value, 2 * key, hidden, spec.qkv_bias)
        else:
            for name, rows in ((names.query, query), (names.key, key), (names.value, key)):
                shapes |= self._linear(name, rows, hidden, spec.qkv_bias)
        if spec.head_norm is not None:
            shapes |= self._head_norm(names.query_norm, spec.heads, spec.head_norm)
            shapes |= self._head_norm(names.key_norm, spec.kv_heads, spec.head_norm)
        return shapes

    def _head_norm(self, name: str, heads: int, spec: HeadNormSpec) -> Shapes:
        dim = self._spec.attention.head_dim
        shape: tuple[int, ...] = (dim,)
        if spec.over == "all":
            shape = (heads * dim,)
        elif spec.per_head and "{h}" not in name:
            shape = (heads, dim)
        each = range(heads) if "{h}" in name else [0]
        kinds = ("weight", "bias") if spec.norm.bias else ("weight",)
        return {f"{name.format(i=self._i, h=h)}.{kind}": shape for h in each for kind in kinds}

    def _latent(self, attention: AttentionSpec, spec: LatentSpec) -> Shapes:
        hidden, names, heads = self._spec.hidden, self._names, attention.heads
        query = heads * (spec.plain_dim + spec.rotated_dim)
        shapes: Shapes = {}
        if spec.query_rank:
            shapes |= self._linear(names.query_down, spec.query_rank, hidden, False)
            shapes |= _norm(self._name(names.query_down_norm), spec.query_rank, spec.norm)
            shapes |= self._linear(names.query_up, query, spec.query_rank, False)
        else:
            shapes |= self._linear(names.query, query, hidden, False)
        up = heads * (spec.plain_dim + spec.value_dim)
        return (
            shapes
            | self._linear(names.latent_down, spec.rank + spec.rotated_dim, hidden, False)
            | _norm(self._name(names.latent_norm), spec.rank, spec.norm)
            | self._linear(names.latent_up, up, spec.rank, False)
            | self._linear(names.attention_out, hidden, heads * spec.value_dim, attention.out_bias)
        )

    def _mlp(self, spec: MlpSpec, gate: str, up: str, gate_up: str, down: str) -> Shapes:
        hidden, inner = self._spec.hidden, spec.intermediate
        shapes = self._linear(down, hidden, inner, spec.bias)
        if gate_up and spec.gated:
            return shapes | self._linear(gate_up, 2 * inner, hidden, spec.bias)
        if spec.gated:
            shapes |= self._linear(gate, inner, hidden, spec.bias)
        return shapes | self._linear(up, inner, hidden, spec.bias)

    def _moe(self, spec: MoeSpec) -> Shapes:
        names, hidden, inner = self._names, self._spec.hidden, spec.expert.intermediate
        shapes: Shapes = {f"{self._name(names.router)}.weight": (spec.experts, hidden)}
        if spec.router_bias:
            shapes[f"{self._name(names.router)}.bias"] = (spec.experts,)
        if spec.score_bias:
            shapes[self._name(names.score_bias)] = (spec.experts,)
        if names.stacked_gate:
            for name in (names.stacked_gate, names.stacked_up, names.stacked_down):
                shapes[self._name(name)] = (spec.experts * inner, hidden)
        else:
            for e in range(spec.experts):
                for name in (names.expert_gate, names.expert_up):
                    shapes[f"{name.format(i=self._i, e=e)}.weight"] = (inner, hidden)
                shapes[f"{names.expert_down.format(i=self._i, e=e)}.weight"] = (hidden, inner)
        if spec.shared is not None:
            shapes |= self._mlp(
                spec.shared, names.shared_gate, names.shared_up, "", names.shared_down
            )
            if spec.shared_gate:
                shapes[f"{self._name(names.shared_weight)}.weight"] = (1, hidden)
        return shapes

    def _name(self, template: str) -> str:
        return template.format(i=self._i)

    def _linear(self, template: str, outputs: int, inputs: int, bias: bool) -> Shapes:
        name = self._name(template)
        shape = (inputs, outputs) if self._names.transposed else (outputs, inputs)
        weight: Shapes = {f"{name}.weight": shape}
        return weight | {f"{name}.bias": (outputs,)} if bias else weight


def _norm(name: str, size: int, spec: NormSpec) -> Shapes:
    weight: Shapes = {f"{name}.weight": (size,)} if spec.weight else {}
    return weight | {f"{name}.bias": (size,)} if spec.bias else weight
