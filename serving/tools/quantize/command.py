"""`text-generation-server quantize`: the command line.

Runs by hand. Comes in: a model and calibration text. Goes out: a directory with a GPTQ or AWQ
checkpoint. torch and transformers are imported when there is something to do. Next: `run.py`.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click
import msgspec

from serving.errors import StartupError
from serving.models.hub_download import HubModel
from serving.models.remote_code import check_remote_code
from serving.settings import Settings
from serving.telemetry import configure_logging
from serving.tools.options import hub_options, local_checkpoint, log_options

if TYPE_CHECKING:
    from serving.tools.quantize.run import Scheme

log = logging.getLogger(__name__)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line, as click has parsed it."""

    model_id: str
    output_dir: Path
    scheme: Literal["gptq", "awq"]
    calibration: Path | None
    samples: int
    sequence_length: int
    seed: int
    bits: int
    groupsize: int
    sym: bool | None
    act_order: bool
    percdamp: float
    mse: bool
    clip: bool
    revision: str | None
    trust_remote_code: bool
    trust_unpinned_code: bool
    device: str | None
    upload_to_model_id: str | None
    huggingface_hub_cache: str | None
    hf_token: str | None
    logger_level: str
    json_output: bool


@click.command("quantize")
@click.argument("model_id")
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.option(
    "--scheme",
    type=click.Choice(["gptq", "awq"]),
    default="gptq",
    show_default=True,
    help="gptq: any decoder; awq: layers of Llama's shape, 4 bits with zero points",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="required: text of the kind that matters; paragraphs or lines, or .jsonl with `text`",
)
@click.option("--samples", default=128, show_default=True, help="sequences of calibration text")
@click.option(
    "--sequence-length",
    default=2048,
    show_default=True,
    help="tokens of a sequence; no more than the model's context",
)
@click.option("--seed", default=0, show_default=True, help="order of the calibration documents")
@click.option(
    "--bits",
    type=click.Choice(["2", "3", "4", "8"]),
    default="4",
    show_default=True,
    help="bits of a weight; awq: 4",
)
@click.option(
    "--groupsize",
    type=click.Choice(["-1", "32", "64", "128"]),
    default="128",
    show_default=True,
    help="input channels that share a scale; -1, gptq only: all of a row",
)
@click.option(
    "--sym/--no-sym",
    default=None,
    help="symmetric grids or zero points; default: gptq symmetric, awq zero points",
)
@click.option("--act-order", is_flag=True, help="gptq: channels with the largest inputs first")
@click.option(
    "--percdamp",
    default=0.01,
    show_default=True,
    help="gptq: share of the Hessian's mean diagonal that is added to it",
)
@click.option("--mse", is_flag=True, help="gptq: search the range with the least squared error")
@click.option(
    "--clip/--no-clip", default=True, show_default=True, help="awq: search the ranges of the grids"
)
@click.option("--device", help="torch device of the computation; default: cuda if there is one")
@click.option("--revision", help="branch, tag or commit on the Hub")
@click.option("--trust-remote-code", is_flag=True, help="run the repository's modelling code")
@click.option("--trust-unpinned-code", is_flag=True, help="... even if --revision is not a commit")
@click.option(
    "--upload-to-model-id", help="refused: upload OUTPUT_DIR with `hf upload` when it is made"
)
@hub_options
@log_options
def quantize(**given: Any) -> None:
    """Write the model MODEL_ID, a Hub id or a directory, to OUTPUT_DIR with quantized weights.

    The matrices of the decoder layers are quantized one layer after the other; embeddings, head,
    norms and routers stay as they are.
    """
    options = msgspec.convert(given, Options, strict=False)
    configure_logging("quantize", options.logger_level, options.json_output)
    _check(options)
    if options.calibration is None:
        _refuse(
            "no calibration text is given, and none is downloaded",
            "set --calibration to a text file, or to a .jsonl file with a `text` field",
        )
    settings = Settings(
        model_id=options.model_id,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        trust_unpinned_code=options.trust_unpinned_code,
    )
    if options.trust_remote_code:
        check_remote_code(settings)
    model = HubModel(
        options.model_id,
        options.revision,
        options.hf_token,
        options.huggingface_hub_cache,
        code=options.trust_remote_code,
    )
    _run(options, local_checkpoint(model), options.calibration)
    log.info("the quantized checkpoint is in %s", options.output_dir)


def _run(options: Options, source: Path, text: Path) -> None:
    # Imported here: torch and transformers are slow to import, and the other commands do without.
    import torch

    from serving.tools.quantize import calibration, layers, run

    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        _refuse(f"--device is {options.device}", "set it to cpu, cuda or cuda:N")
    own_code = options.trust_remote_code
    documents = calibration.read_documents(text)
    model = layers.LayeredModel(source, device, own_code)
    scheme = _scheme(options, model.model_type)
    longest = getattr(model.text_config, "max_position_embeddings", None)
    length = min(options.sequence_length, longest or options.sequence_length)
    tokenizer = calibration.load_tokenizer(source, own_code)
    sequences = calibration.calibration_sequences(
        documents, tokenizer, options.samples, length, options.seed
    )
    _check_vocabulary(int(sequences.max()), model.text_config.vocab_size)
    log.info("calibrating with %d sequences of %d tokens", *sequences.shape)
    run.quantize_checkpoint(model, source, options.output_dir, scheme, sequences)


def _scheme(options: Options, model_type: str) -> "Scheme":
    from serving.tools.quantize.awq_scheme import awq_for
    from serving.tools.quantize.gptq_scheme import GptqScheme

    if options.scheme == "awq":
        return awq_for(model_type, options.groupsize, options.clip)
    symmetric = options.sym is not False
    return GptqScheme(
        options.bits, options.groupsize, symmetric, options.act_order, options.percdamp, options.mse
    )


def _check(options: Options) -> None:
    """Refuse what contradicts itself or cannot be done, before anything is downloaded."""
    if options.upload_to_model_id is not None:
        _refuse(
            "--upload-to-model-id is not supported",
            f"leave it out, then run `hf upload {options.upload_to_model_id} {options.output_dir}`",
        )
    for name in ("samples", "sequence_length"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            _refuse(f"--{flag} is {getattr(options, name)}", "set it to 1 or more")
    if not 0 < options.percdamp < 1:
        _refuse(f"--percdamp is {options.percdamp}", "set it to a number between 0 and 1")
    if options.scheme == "awq":
        _check_awq(options)
    made = [path.name for path in _model_files(options.output_dir)]
    if made:
        _refuse(
            f"{options.output_dir} holds a model already ({made[0]})",
            "give a directory that is empty or does not exist",
        )


def _check_vocabulary(largest: int, size: int) -> None:
    if largest >= size:
        _refuse(
            f"the tokenizer gives token id {largest}, and the model has {size} tokens",
            "put the tokenizer of this model beside its weights",
        )


def _check_awq(options: Options) -> None:
    wrong = {
        f"--bits {options.bits}": options.bits != 4,
        f"--groupsize {options.groupsize}": options.groupsize == -1,
        "--sym": options.sym is True,
        "--act-order": options.act_order,
        "--mse": options.mse,
    }
    for flag, is_given in wrong.items():
        if is_given:
            _refuse(f"awq has no {flag}", "leave it out, or use --scheme gptq")


def _model_files(directory: Path) -> list[Path]:
    return sorted([*directory.glob("config.json"), *directory.glob("*.safetensors")])


def _refuse(cause: str, remedy: str) -> NoReturn:
    raise StartupError("quantization", cause, remedy)
