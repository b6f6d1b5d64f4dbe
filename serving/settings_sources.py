"""From command line and environment to `Settings`, with the origin of each value.

Runs in the launcher, before anything else. Comes in: argv and environ, as arguments. Goes out:
checked `Settings`, or a `SettingsError` that names the flag or the variable. Next:
`settings_checks.py`, then `launch.py`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from serving import __version__
from serving.settings import Flag, Settings, SettingsError, TrueOrFalse, fields
from serving.settings_checks import checked
from serving.settings_platforms import with_platform_defaults

# A platform's name -> our field. They win over the native variables, as in TGI's SageMaker image,
# and the last one over those before it.
PLATFORM_NAMES = {
    "AIP_HTTP_PORT": "port",
    "HF_MODEL_ID": "model_id",
    "HF_MODEL_REVISION": "revision",
    "SM_NUM_GPUS": "num_shard",
    "HF_MODEL_QUANTIZE": "quantize",
    "HF_MODEL_TRUST_REMOTE_CODE": "trust_remote_code",
    "SAGEMAKER_BIND_TO_PORT": "port",
}
# Names that others use for ours. Of several for one field the last one counts; our own name counts
# most, unless it is in the list itself.
FALLBACK_NAMES = {
    "HF_API_TOKEN": "hf_token",
    "HUGGING_FACE_HUB_TOKEN": "hf_token",
    "LWS_LEADER_ADDRESS": "master_addr",  # Kubernetes' LeaderWorkerSet
    "LWS_GROUP_SIZE": "nnodes",
    "LWS_WORKER_INDEX": "node_rank",
    "NNODES": "nnodes",
    "NODE_RANK": "node_rank",
    "PET_NNODES": "nnodes",  # torchrun's own options, as PyTorch jobs set them
    "PET_NODE_RANK": "node_rank",
    "GROUP_WORLD_SIZE": "nnodes",  # what torchrun tells its processes
    "GROUP_RANK": "node_rank",
}
# Says, if it is "True", that torchrun itself listens on MASTER_PORT: we take the port above it.
TORCHRUN_LISTENS = "TORCHELASTIC_USE_AGENT_STORE"
SAGEMAKER_PORT = 8080
GPUS = Path("/proc/driver/nvidia/gpus")  # of the driver: one directory per GPU in the container
PROGRAM = "text-generation-launcher"


def command() -> click.Command:
    """The launcher's command line: every CLI flag of `Settings`, for parsing and `--help`."""
    params: list[click.Parameter] = [click.Argument(["serve"], required=False, nargs=-1)]
    defaults = Settings()
    for name, (flag, kind) in fields().items():
        if not flag.cli:
            continue
        names = [f"--{name.replace('_', '-')}", name] + ([flag.short] if flag.short else [])
        is_switch = kind is bool
        params.append(
            click.Option(
                names,
                type=None if is_switch else _click_type(kind),
                is_flag=is_switch,
                default=None,
                multiple=flag.repeatable,
                hidden=flag.hidden,
                help=_help_text(name, flag, getattr(defaults, name)),
            )
        )
    known = click.Command(
        PROGRAM,
        params=params,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help=(
            "Serve a text generation model over HTTP with TGI's and OpenAI's routes. Every flag "
            "can be given as an environment variable of the name in brackets; the command line "
            "wins. The word `serve` (as SageMaker passes it) selects port 8080 and "
            "SageMaker's limits of size and time."
        ),
    )
    return click.version_option(__version__, "-V", "--version", prog_name=PROGRAM)(known)


def resolve(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from the command line over SageMaker's over native variables over defaults.

    Raises `SettingsError` naming the flag or variable, and `click.exceptions.Exit` for --help
    and --version, which are printed by then.
    """
    parser = command()
    try:
        context = parser.make_context(PROGRAM, list(argv))
    except click.UsageError as error:
        raise SettingsError(error.format_message()) from error
    words = context.params.pop("serve")
    if any(word != "serve" for word in words):
        raise SettingsError(f"unexpected argument '{words[0]}'; only the word 'serve' is known")
    values, origins = _from_environment(environ)
    if origins.get("master_port") == "MASTER_PORT" and environ.get(TORCHRUN_LISTENS) == "True":
        values["master_port"] += 1
        origins["master_port"] = "MASTER_PORT + 1"
    if words and origins.get("port") not in PLATFORM_NAMES:
        values["port"], origins["port"] = SAGEMAKER_PORT, "serve"
    if "HF_MODEL_ID" in origins.values() and "port" not in values:
        values["port"], origins["port"] = SAGEMAKER_PORT, "HF_MODEL_ID"
    for name, value in context.params.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            values[name] = ",".join(value) if isinstance(value, tuple) else value
            origins[name] = "--" + name.replace("_", "-")
    settings = with_platform_defaults(Settings(**values, origins=origins), serve=bool(words))
    return checked(settings, device_count(environ))


def device_count(environ: Mapping[str, str], gpus: Path = GPUS) -> int:
    """Number of GPUs that this process may use; 0 if there are none, or nobody knows."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return _listed(chosen)
    chosen = environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if chosen in ("", "all", "void"):
        return sum(1 for _ in gpus.iterdir()) if gpus.is_dir() else 0
    return 0 if chosen == "none" else _listed(chosen)


def _listed(devices: str) -> int:
    """Entries of a list of devices; CUDA ignores everything from the first invalid one on."""
    names = [name.strip() for name in devices.split(",")]
    return len(list(itertools.takewhile(lambda name: name and name != "-1", names)))


def _click_type(kind: Any) -> "click.ParamType[Any]":
    if get_origin(kind) is Literal:
        return click.Choice(list(get_args(kind)))
    known: dict[Any, click.ParamType[Any]] = {
        TrueOrFalse: click.BOOL,
        int: click.INT,
        float: click.FLOAT,
        str: click.STRING,
    }
    return known[kind]


def _help_text(name: str, flag: Flag, default: object) -> str:
    notes = [] if flag.env == "-" else [f"env {flag.env or name.upper()}"]
    if default not in (None, False, ""):
        notes.append(f"default {default}")
    if flag.inert:
        notes.append(flag.inert)
    if flag.refused:
        notes.append(flag.refused.removesuffix("; remove the flag"))
    return f"{flag.help} [{'; '.join(notes)}]" if notes else flag.help


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    known = fields()
    native = {
        flag.env or name.upper(): name for name, (flag, _) in known.items() if flag.env != "-"
    }
    for variable, name in (FALLBACK_NAMES | native | PLATFORM_NAMES).items():
        if environ.get(variable):  # SDKs pass empty ones for what was not given
            values[name] = _parse_variable(variable, environ[variable], *known[name])
            origins[name] = variable
    return values, origins


def _parse_variable(variable: str, text: str, flag: Flag, kind: Any) -> object:
    """TGI reads booleans as `true` or `false`; those without a flag are read as `1` or `0` too, and
    in any case of letters, as platforms and their SDKs write them."""
    if kind in (bool, TrueOrFalse):
        spellings = {"true": True, "false": False} | ({} if flag.cli else {"1": True, "0": False})
        spelled = text if flag.cli else text.lower()
        if spelled not in spellings:
            raise SettingsError(f"invalid value '{text}' for {variable}: expected true or false")
        return spellings[spelled]
    try:
        value: object = _click_type(kind).convert(text, None, None)
    except click.BadParameter as error:
        raise SettingsError(f"invalid value '{text}' for {variable}: {error.message}") from error
    return value
