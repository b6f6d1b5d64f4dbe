"""Sizes of matrices that the formats can hold.

Called by the schemes before any weight is read. Comes in: a matrix by name. Goes out: nothing, or a
`StartupError` with the name, the limit and the value.
"""

from serving.tools.quantize.layers import refuse


def check_sizes(
    name: str, inputs: int, outputs: int, group_size: int, codes: int, inputs_in_words: bool
) -> None:
    """Refuse a matrix whose sides do not fill whole groups and whole words of `codes` codes.

    `inputs_in_words`: codes are packed along the inputs, zeros along the outputs; else both along
    the outputs.
    """
    if inputs % group_size:
        refuse(
            f"{name} has {inputs} inputs, which is no multiple of the group size {group_size}",
            "set --groupsize to a size that divides it",
        )
    for side, size in (("inputs", inputs if inputs_in_words else 0), ("outputs", outputs)):
        if size % codes:
            refuse(
                f"{name} has {size} {side}, which is no multiple of {codes}, the number of codes "
                "that fill whole 32-bit words",
                "set --bits to another width, or quantize a model of another size",
            )
