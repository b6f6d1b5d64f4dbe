"""Every setting of the server: one frozen, printable struct.

Leaf module. `settings_sources.resolve()` makes it in the launcher, which hands it as JSON to the
engine and the front: they read neither argv nor environ. A field of `Settings` is a flag of TGI's
launcher; its `Flag` holds help text, environment name and, where a flag has no effect or no
implementation here, the sentence that says so. Next: `settings_sources.py`.
"""

import ipaddress
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

Dtype = Literal["auto", "float16", "bfloat16", "float32"]
KvCacheDtype = Literal["auto", "fp8_e4m3fn", "fp8_e5m2", "int8"]
SECRETS = ("api_key", "hf_token", "ngrok_authtoken")
Quantize = Literal[
    "awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", "bitsandbytes",
    "bitsandbytes-nf4", "bitsandbytes-fp4", "fp8", "int8", "gguf",
]  # fmt: skip
NO_MODEL = ""

NOT_YET = "is not implemented yet; remove the flag"
CHUNKED = "has no effect: prompts are chunked and batched continuously"


@dataclass(frozen=True)
class Flag:
    """How a field of `Settings` is given and documented."""

    help: str
    env: str = ""  # default: upper-case field name; "-": command line only
    short: str = ""
    cli: bool = True  # False: environment only
    repeatable: bool = False  # on the command line; the values are joined by commas
    inert: str = ""  # accepted for compatibility, warned about
    refused: str = ""  # not available: any value but the default ends the start
    hidden: bool = False  # left out of --help: for tests


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved settings of one server, and where each value came from."""

    # model
    model_id: Annotated[
        str, Flag("Hub id or local directory; empty serves the embedded demo model")
    ] = NO_MODEL
    revision: Annotated[str | None, Flag("branch, tag or commit on the Hub")] = None
    dtype: Annotated[Dtype, Flag("type of the weights; auto takes the checkpoint's own")] = "auto"
    trust_remote_code: Annotated[
        bool, Flag("run modelling code from the repository; needs --revision with a commit")
    ] = False
    trust_unpinned_code: Annotated[
        bool, Flag("with --trust-remote-code: run it also where --revision is not a commit")
    ] = False
    quantize: Annotated[
        Quantize | None,
        Flag("quantize weights while they are loaded, or name the scheme that the checkpoint has"),
    ] = None
    kv_cache_dtype: Annotated[
        KvCacheDtype | None, Flag("type of cached keys and values; auto, default: the model's")
    ] = None
    rope_scaling: Annotated[
        Literal["linear", "dynamic"] | None, Flag("override the rotary scaling of the model")
    ] = None
    rope_factor: Annotated[
        float | None, Flag("factor of --rope-scaling; alone it implies linear")
    ] = None
    speculate: Annotated[int | None, Flag("speculated tokens per step", refused=NOT_YET)] = None
    lora_adapters: Annotated[str | None, Flag("LoRA adapters to load", refused=NOT_YET)] = None
    tokenizer_config_path: Annotated[
        str | None, Flag("alternative tokenizer_config.json (chat template)")
    ] = None
    huggingface_hub_cache: Annotated[str | None, Flag("directory of the Hub cache")] = None
    weights_cache_override: Annotated[
        str | None, Flag("directory with weight files, instead of the Hub cache")
    ] = None
    hf_token: Annotated[str | None, Flag("access token of the Hub", cli=False)] = None

    # sharding
    sharded: Annotated[bool | None, Flag("true: shard over all devices; takes true or false")] = (
        None
    )
    num_shard: Annotated[int | None, Flag("tensor-parallel degree: ranks of one engine")] = None
    num_replicas: Annotated[int, Flag("engines beside each other, of --num-shard ranks each")] = 1
    replica_slack: Annotated[
        int, Flag("sequences an engine may have more than the least loaded, for a cached prefix")
    ] = 8
    nnodes: Annotated[int, Flag("machines that the ranks of the engine are spread over")] = 1
    node_rank: Annotated[int, Flag("number of this machine, from 0; machine 0 serves HTTP")] = 0
    master_addr: Annotated[str, Flag("address of machine 0, for the others")] = "localhost"
    master_port: Annotated[
        int, Flag("port of machine 0 for the others; under torchrun MASTER_PORT + 1")
    ] = 29500
    rendezvous_seconds: Annotated[int, Flag("wait of a rank for the others, at start")] = 120
    safe_port_range: Annotated[
        str | None, Flag("ports the server may open", env="SAGEMAKER_SAFE_PORT_RANGE", cli=False)
    ] = None

    # recovery
    standby: Annotated[bool, Flag("keep a second engine process, without weights, at hand")] = False
    stall_seconds: Annotated[
        float | None,
        Flag("silence after which an engine is restarted; default: 30, or 10 of the worst step"),
    ] = None
    recovery_seconds: Annotated[
        float | None,
        Flag("restart after which health checks fail; default: 30, or 3 times the first start"),
    ] = None
    max_restarts: Annotated[int, Flag("restarts of an engine within 10 minutes")] = 10

    # limits of a request
    max_concurrent_requests: Annotated[int, Flag("sequences in flight; 429 beyond")] = 128
    max_best_of: Annotated[int, Flag("largest best_of")] = 2
    max_stop_sequences: Annotated[int, Flag("most stop strings of a request")] = 4
    max_top_n_tokens: Annotated[int, Flag("largest top_n_tokens")] = 5
    max_input_tokens: Annotated[int | None, Flag("longest prompt; default: from the model")] = None
    max_input_length: Annotated[int | None, Flag("old name of --max-input-tokens")] = None
    max_total_tokens: Annotated[
        int | None, Flag("most tokens of prompt and output; default: from the model")
    ] = None
    max_client_batch_size: Annotated[int, Flag("most prompts of a /v1/completions request")] = 4
    payload_limit: Annotated[int, Flag("largest request body, bytes")] = 2_000_000

    # batching
    max_batch_prefill_tokens: Annotated[
        int | None, Flag("token budget of one step; default: by device")
    ] = None
    max_batch_total_tokens: Annotated[
        int | None, Flag("size of the KV pool in tokens; default: measured")
    ] = None
    max_batch_size: Annotated[int | None, Flag("most sequences of one step")] = None
    waiting_served_ratio: Annotated[float, Flag("TGI scheduling hint", inert=CHUNKED)] = 0.3
    max_waiting_tokens: Annotated[int, Flag("TGI scheduling hint", inert=CHUNKED)] = 20
    cuda_graphs: Annotated[
        str | None,
        Flag("sequences of the decode steps that a GPU records, 0: none; default: 1, 2, 4, 8 ..."),
    ] = None
    cuda_memory_fraction: Annotated[float, Flag("share of device memory to use")] = 1.0
    prefix_caching: Annotated[bool, Flag("reuse KV blocks of equal prompts", cli=False)] = True
    block_size: Annotated[int, Flag("tokens per KV block")] = 16
    disable_custom_kernels: Annotated[bool, Flag("use plain torch operations only")] = False

    # output
    disable_grammar_support: Annotated[bool, Flag("refuse guided output")] = False
    enable_prefill_logprobs: Annotated[
        bool, Flag("show log-probabilities of prompt tokens where decoder_input_details asks")
    ] = False
    watermark_gamma: Annotated[float, Flag("share of the vocabulary that a watermark favours")] = (
        0.5
    )
    watermark_delta: Annotated[float, Flag("what a watermark adds to favoured scores")] = 2.0
    max_request_seconds: Annotated[
        float | None, Flag("longest generation; then the next token is the last; default: none")
    ] = None
    max_whole_seconds: Annotated[
        float | None,
        Flag("the same for answers that are not streamed; default: 55 with `serve`, or the above"),
    ] = None
    max_stream_seconds: Annotated[
        float | None, Flag("the same for streams; default: 470 with `serve`, or the above")
    ] = None

    # HTTP
    hostname: Annotated[str, Flag("IP address to listen on")] = "0.0.0.0"
    port: Annotated[int, Flag("HTTP port", short="-p")] = 3000
    validation_workers: Annotated[int, Flag("HTTP worker processes")] = 2
    cors_allow_origin: Annotated[
        str | None, Flag("allowed origin, comma separated list; default any", repeatable=True)
    ] = None
    api_key: Annotated[str | None, Flag("bearer token that generating routes demand")] = None
    compute_type: Annotated[str | None, Flag("x-compute-type header", cli=False)] = None
    graceful_termination_timeout: Annotated[
        int, Flag("seconds to drain after SIGTERM; at most 25 are used", short="-g")
    ] = 90

    # platforms
    batch_transform: Annotated[
        bool, Flag("this is a batch job of SageMaker", env="SAGEMAKER_BATCH", cli=False)
    ] = False
    echo_custom_attributes: Annotated[
        bool, Flag("/invocations repeats the client's custom attributes in its response")
    ] = False
    stateful_sessions: Annotated[
        bool,
        Flag("take sessions", env="SAGEMAKER_ENABLE_STATEFUL_SESSIONS", cli=False),
    ] = False
    session_seconds: Annotated[
        int, Flag("life of a session", env="SAGEMAKER_SESSIONS_EXPIRATION", cli=False)
    ] = 1200
    session_kv_share: Annotated[
        float, Flag("share of the KV pool that open sessions may keep for their next request")
    ] = 0.5
    health_route: Annotated[
        str | None, Flag("path of one more health route", env="AIP_HEALTH_ROUTE", cli=False)
    ] = None
    predict_route: Annotated[
        str | None, Flag("path of one more prediction route", env="AIP_PREDICT_ROUTE", cli=False)
    ] = None
    storage_uri: Annotated[
        str | None, Flag("Vertex AI's model directory", env="AIP_STORAGE_URI", cli=False)
    ] = None
    azureml_model_dir: Annotated[str | None, Flag("Azure's model directory", cli=False)] = None
    messages_api_enabled: Annotated[
        bool, Flag("chats on /invocations", cli=False, inert="is not needed: the body decides")
    ] = False
    cloudwatch_namespace: Annotated[
        str | None,
        Flag("log CloudWatch's embedded metrics each minute, in this namespace; default: none"),
    ] = None

    # operations
    json_output: Annotated[bool, Flag("log JSON lines")] = False
    engine_checks: Annotated[
        bool, Flag("end the engine when an invariant is broken (for tests)", cli=False)
    ] = False
    fault: Annotated[
        str | None, Flag("faults that the engine injects into itself (for tests)", hidden=True)
    ] = None
    log_prompts: Annotated[bool, Flag("log prompt and generated text (for debugging)")] = False
    log_level: Annotated[str, Flag("trace, debug, info, warn or error", cli=False)] = "info"
    env: Annotated[bool, Flag("log the runtime environment at start", env="-", short="-e")] = False
    otlp_endpoint: Annotated[str | None, Flag("OTLP traces", refused=NOT_YET)] = None
    otlp_service_name: Annotated[
        str, Flag("OTLP service name", inert="has no effect without --otlp-endpoint")
    ] = "text-generation-inference.router"
    prometheus_port: Annotated[
        int, Flag("TGI's unused port", inert="has no effect: metrics are on the main port")
    ] = 9000
    shard_uds_path: Annotated[
        str, Flag("TGI's shard sockets", inert="has no effect: sockets live in a private directory")
    ] = ""
    usage_stats: Annotated[
        Literal["on", "off", "no-stack"], Flag("usage statistics", inert="none are ever sent")
    ] = "on"
    ngrok: Annotated[bool, Flag("tunnel", refused="never worked in TGI 3 and is gone")] = False
    ngrok_authtoken: Annotated[str | None, Flag("tunnel", inert="has no effect")] = None
    ngrok_edge: Annotated[str | None, Flag("tunnel", inert="has no effect")] = None

    origins: dict[str, str] = {}  # field -> "--flag", "VARIABLE"; absent: default

    @property
    def listen_address(self) -> str:
        """IP address to bind: `hostname` if it is one.

        Containers set HOSTNAME to their own name, so a name means every address, as in TGI; only
        "localhost" keeps its meaning.
        """
        if self.hostname == "localhost":
            return "127.0.0.1"
        try:
            return str(ipaddress.ip_address(self.hostname))
        except ValueError:
            return "0.0.0.0"

    def seconds_for(self, *, stream: bool) -> float | None:
        """Longest time of a request, from its arrival; None: no limit."""
        own = self.max_stream_seconds if stream else self.max_whole_seconds
        return self.max_request_seconds if own is None else own

    def lines(self) -> list[str]:
        """One printable `name = value (origin)` line per field; secrets are masked."""
        return [
            f"{name} = {_shown(name, getattr(self, name))} ({self.origins.get(name, 'default')})"
            for name in fields()
        ]

    def warnings(self) -> list[str]:
        """A line for every given flag that is accepted but has no effect."""
        return [
            f"{self.origins[name]} {flag.inert}"
            for name, (flag, _) in fields().items()
            if flag.inert and name in self.origins
        ]


class SettingsError(Exception):
    """Unusable settings. `exit_code` 2: syntax, as a shell expects; 1: values that contradict."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TrueOrFalse:
    """Marker type of a switch that takes `true` or `false` on the command line."""


def fields() -> dict[str, tuple[Flag, Any]]:
    """Name of every field to its flag and its type without `| None`, in declaration order."""
    hints = typing.get_type_hints(Settings, include_extras=True)
    found: dict[str, tuple[Flag, Any]] = {}
    for name in Settings.__struct_fields__:
        if typing.get_origin(hints[name]) is not Annotated:
            continue
        kind, flag = typing.get_args(hints[name])
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
            kind = TrueOrFalse if kind is bool else kind  # `bool | None` takes true or false
        found[name] = (flag, kind)
    return found


def _shown(name: str, value: object) -> str:
    if name in SECRETS and value:
        return "***"
    return "unset" if value is None else str(value)
