"""Every tensor that a spec needs: checkpoint name to full shape.

Compared with the checkpoint's headers before anything is loaded, so that a wrong checkpoint fails
in milliseconds with all its faults named. Used by `weights.py` and by the tiny-model maker. No
torch.
"""

from serving.models.spec import DecoderSpec, WeightNames

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(spec: DecoderSpec, names: WeightNames) -> Shapes:
    """Name (with `.weight`/`.bias`) to unsharded shape of every tensor of the model."""
    shapes: Shapes = {
        f"{names.embedding}.weight": (spec.vocab_size, spec.hidden),
        f"{names.final_norm}.weight": (spec.hidden,),
    }
    if not spec.tied_head:
        shapes[f"{names.head}.weight"] = (spec.vocab_size, spec.hidden)
    for layer in range(spec.layers):
        for name, shape in _layer_shapes(spec, names).items():
            shapes[name.format(i=layer)] = shape
    return shapes


def _layer_shapes(spec: DecoderSpec, names: WeightNames) -> Shapes:
    attention, mlp = spec.attention, spec.mlp
    query = attention.heads * attention.head_dim
    key = attention.kv_heads * attention.head_dim
    shapes: Shapes = {
        f"{names.attention_norm}.weight": (spec.hidden,),
        f"{names.mlp_norm}.weight": (spec.hidden,),
        **_linear(names.query, query, spec.hidden, attention.qkv_bias),
        **_linear(names.key, key, spec.hidden, attention.qkv_bias),
        **_linear(names.value, key, spec.hidden, attention.qkv_bias),
        **_linear(names.attention_out, spec.hidden, query, attention.out_bias),
        **_linear(names.gate, mlp.intermediate, spec.hidden, mlp.bias),
        **_linear(names.up, mlp.intermediate, spec.hidden, mlp.bias),
        **_linear(names.down, spec.hidden, mlp.intermediate, mlp.bias),
    }
    if attention.qk_norm:
        shapes[f"{names.query_norm}.weight"] = (attention.head_dim,)
        shapes[f"{names.key_norm}.weight"] = (attention.head_dim,)
    return shapes


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> Shapes:
    weight: Shapes = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight
