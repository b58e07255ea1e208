"""Model and transcoders of a command: named, checked and opened in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from circuit_tracer.cli.completion import DEVICES, DICTIONARIES, words
from circuit_tracer.errors import InputError, warn
from circuit_tracer.progress import doing

if TYPE_CHECKING:
    import torch

    from circuit_tracer.models.parts import ModelParts
    from circuit_tracer.replacement_model import ReplacementModel
    from circuit_tracer.transcoders.base import Transcoders

Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        help="Which of several dictionaries, as width=16k,l0=small; facets: width, l0, affine, expansion, k, path. The end of "
        "a name says it too: org/repo:width=16k.",
    ),
]
InputShift = Annotated[
    bool | None,
    typer.Option(
        "--input-shift/--no-input-shift",
        help="Whether older EleutherAI transcoders subtract b_dec from their input.  [default: measured]",
    ),
]
LazyDecoder = Annotated[bool, typer.Option("--lazy-decoder/--no-lazy-decoder", help="Leave decoders on disk.")]

InputHook = Annotated[
    str | None,
    typer.Option(
        "--feature-input-hook",
        help="Where transcoders read (mlp.hook_in, ...), if their files do not say.",
        metavar="HOOK",
    ),
]
OutputHook = Annotated[
    str | None,
    typer.Option(
        "--feature-output-hook",
        help="Where transcoders write (mlp.hook_out, ...), if their files do not say.",
        metavar="HOOK",
    ),
]


Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of the model on the hub; -m org/name@revision says it too."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", autocompletion=words(*DEVICES), help="cpu, cuda, cuda:1, mps; default: the best there is."
    ),
]
NumberFormat = Literal["float32", "bfloat16", "float16", "float64", "fp32", "bf16", "fp16", "fp64"]
Bos = Annotated[
    bool, typer.Option("--bos/--no-bos", help="Put a special token in front of prompts that begin with none.")
]


@dataclass(frozen=True)
class LanguageModelOptions:
    """Which model, where, in which numbers, for commands that need no transcoders."""

    model: Annotated[str | None, typer.Option("-m", "--model", help="Hugging Face id, folder or .gguf file.")] = None
    revision: Revision = None
    demo: Annotated[bool, typer.Option("--demo", help="Use the small model that ships with the package.")] = False
    device: Device = None
    dtype: Annotated[
        NumberFormat, typer.Option("--dtype", help="Number format of the model; sums are in float32 or better.")
    ] = "float32"
    bos: Bos = True

    def __post_init__(self) -> None:
        if self.demo == (self.model is not None):
            raise InputError("name the model with -m, or use --demo for the one that ships with the package (not both)")
        if self.demo and self.revision is not None:
            raise InputError("the demo's model ships with the package and has no --revision; leave it out")

    def open(self) -> tuple[Any, Any]:
        """(transformers model, tokenizer)."""
        with loading():
            from circuit_tracer.demo import MODEL
            from circuit_tracer.models.loading import load_language_model, present, resolve_device, resolve_dtype

            device = present(resolve_device("cpu" if self.demo and self.device is None else self.device))
            return load_language_model(self.model or MODEL, device, resolve_dtype(self.dtype), revision=self.revision)


@dataclass(frozen=True)
class ModelOptions:
    """Which model and transcoders, where, in which numbers. What is missing or contradicts itself is an InputError."""

    transcoder_set: Annotated[
        str | None,
        typer.Option(
            "-t",
            "--transcoder-set",
            autocompletion=words(*DICTIONARIES),
            help="Transcoders, or autoencoders: folder, or Hugging Face org/repo/folder@revision (or --demo); neurons: the "
            "model's own.",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", help="Hugging Face id, folder or .gguf file; default: what the transcoders name."
        ),
    ] = None
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            help="Dictionary of attention outputs: a folder of autoencoders at attn.hook_z or hook_attn_out, or of Lorsa. Its "
            "features are nodes too.",
        ),
    ] = None
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            help="Transcoders of what those of -t leave, stacked on them: a folder, or a checkpoint with transcoder adapters.",
        ),
    ] = None
    elsewhere: Annotated[
        Literal["neurons"] | None,
        typer.Option(
            "--elsewhere", help="What stands for the MLPs of layers without transcoders; default: error nodes."
        ),
    ] = None
    revision: Revision = None
    demo: Annotated[
        bool,
        typer.Option(
            "--demo", help="Use the small model and transcoder that ship with the package (or -t neurons of it)."
        ),
    ] = False
    device: Device = None
    dtype: Annotated[
        NumberFormat,
        typer.Option("--dtype", help="Number format of model and transcoders; sums are in float32 or better."),
    ] = "float32"
    lazy_encoder: Annotated[bool, typer.Option("--lazy-encoder/--no-lazy-encoder", help="Leave encoders on disk.")] = (
        False
    )
    lazy_decoder: LazyDecoder = True
    select: Select = None
    input_shift: InputShift = None
    feature_input_hook: InputHook = None
    feature_output_hook: OutputHook = None
    bos: Bos = True

    required: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.demo and self.transcoder_set is not None and not self.of_neurons:
            raise InputError(
                f"--demo brings its own model and transcoder, and -t names {self.transcoder_set}: leave one out (--demo "
                "-t neurons takes the model's neurons instead of its transcoder)"
            )
        if self.required and not self.given:
            raise InputError(
                "name the transcoders with -t (folder, hub id, or neurons with -m MODEL), or use --demo for the small model "
                "that ships with the package"
            )
        if self.demo and self.model is not None:
            raise InputError(f"--demo brings its own model, and -m names {self.model}: leave one out")
        if self.model is not None and self.transcoder_set is None:
            raise InputError(
                "-m names the model that transcoders read: name them with -t (--demo brings its own model)"
            )
        if self.transcoder_set is None and (self.select is not None or self.input_shift is not None):
            raise InputError("--select and --input-shift say something of the transcoders of -t: name them")
        if self.demo and (self.feature_input_hook or self.feature_output_hook):
            raise InputError(
                "the demo's transcoder has its hooks; leave --feature-input-hook and --feature-output-hook out"
            )
        if self.demo and self.revision is not None:
            raise InputError("the demo's model ships with the package and has no --revision; leave it out")
        if self.demo and self.device not in (None, "cpu"):
            raise InputError(f"the demo's model is small and runs on the cpu; leave --device {self.device} out")

    @property
    def given(self) -> bool:
        """Whether transcoders are named at all."""
        return self.demo or self.transcoder_set is not None

    @property
    def shipped(self) -> bool:
        """Whether features are those of the dictionary that ships with the package, whose labels are known."""
        return self.demo and not self.of_neurons

    @property
    def transcoders(self) -> str:
        """Folder or hub id of the transcoders."""
        from circuit_tracer.demo import TRANSCODER

        return TRANSCODER if self.shipped else str(self.transcoder_set)

    @property
    def of_neurons(self) -> bool:
        """Whether the model's own neurons stand for transcoders."""
        from circuit_tracer.transcoders.neurons import NEURONS

        return self.transcoder_set == NEURONS

    def require_without(self, *names: str) -> None:
        """Raise InputError where an option about other dictionaries is given, of which a command makes nothing."""
        if given := [f"--{name}" for name in names if getattr(self, name) is not None]:
            raise InputError(
                f"{' and '.join(given)} would have no effect here: graphs have such features; leave it out"
            )

    def model_name(self, config: dict[str, Any]) -> str:
        """What -m says, or the configuration of the transcoders."""
        from circuit_tracer.demo import MODEL

        name = MODEL if self.demo else self.model or config.get("model_name")
        if not name and self.of_neurons:
            raise InputError(
                "neurons are a model's own: name the model with -m (Hugging Face id, folder or .gguf file), or use --demo"
            )
        if not name:
            raise InputError(f"the transcoders {self.transcoders} do not name their model; name it with -m")
        return str(name)

    def _require_no_files(self) -> None:
        """Refuse options that say something of a dictionary's files, where neurons are traced."""
        given = {
            "--feature-input-hook": self.feature_input_hook,
            "--feature-output-hook": self.feature_output_hook,
            "--select": self.select,
            "--input-shift": self.input_shift is not None,
            "--lazy-encoder": self.lazy_encoder,
            "--adapter": self.adapter,
            "--elsewhere": self.elsewhere,
        }
        if idle := [option for option, value in given.items() if value]:
            raise InputError(f"neurons are the model's own and have no files; leave {' and '.join(idle)} out")

    def place(self) -> tuple[torch.device, torch.dtype]:
        """Where weights go, and as what."""
        from circuit_tracer.models.loading import present, resolve_device, resolve_dtype

        return present(resolve_device("cpu" if self.demo else self.device)), resolve_dtype(self.dtype)

    def dictionary(self, name: str) -> tuple[Transcoders, dict[str, Any]]:
        """The transcoders or autoencoders of a folder or hub id, with their config; hooks that are given are those of -t
        alone.
        """
        from circuit_tracer.transcoders.loading import load_dictionary

        device, dtype = self.place()
        named = name == self.transcoders
        return load_dictionary(
            name,
            device,
            dtype,
            self.lazy_encoder,
            self.lazy_decoder,
            select=self.select,
            input_shift=self.input_shift,
            feature_input_hook=self.feature_input_hook if named else None,
            feature_output_hook=self.feature_output_hook if named else None,
        )

    def language_model(self, name: str) -> tuple[ModelParts, Any]:
        """The model by itself, checked, with its tokenizer."""
        with loading():
            from circuit_tracer.models.loading import load_language_model
            from circuit_tracer.models.parts import bind
            from circuit_tracer.models.verify import verify

            model, tokenizer = load_language_model(name, *self.place(), revision=self.revision)
            parts = bind(model, name)
            verify(parts)
            return parts, tokenizer

    def open(self, traces: bool = False) -> ReplacementModel:
        """The model with the transcoders. traces: not with autoencoders, said before the model is loaded."""
        with loading():
            return self._open(traces)

    def _open(self, traces: bool) -> ReplacementModel:
        from circuit_tracer.replacement_model import ReplacementModel
        from circuit_tracer.transcoders.attention import load_attention
        from circuit_tracer.transcoders.building import NO_TRANSCODER
        from circuit_tracer.transcoders.neurons import NEURONS, NOT_MONOSEMANTIC
        from circuit_tracer.transcoders.stacked import stacked

        device, dtype = self.place()
        attention = None if self.attention is None else load_attention(self.attention, device, dtype)
        how: dict[str, Any] = {"device": device, "dtype": dtype, "attention": attention, "revision": self.revision}
        load = ReplacementModel.from_pretrained_and_transcoders
        if self.of_neurons:
            self._require_no_files()
            typer.echo(NOT_MONOSEMANTIC, err=True)
            model = load(self.model_name({}), NEURONS, **how)
        else:
            transcoders, config = self.dictionary(self.transcoders)
            if traces and transcoders.is_autoencoder:
                raise InputError(
                    f"{self.transcoders} is a sparse autoencoder at {transcoders.feature_input_hook}: {NO_TRANSCODER}"
                )
            if self.adapter is not None:
                transcoders = stacked(transcoders, self.adapter, device=device, dtype=dtype)
            model = load(self.model_name(config), transcoders, elsewhere=self.elsewhere, **how)
        model.prepend_bos = self.bos
        return model


@dataclass(frozen=True)
class HookOptions:
    """Where transcoders of a folder stand in the model, for commands that look at their files."""

    feature_input_hook: InputHook = None
    feature_output_hook: OutputHook = None
    select: Select = None
    input_shift: InputShift = None

    def dictionary(self, name: str) -> tuple[Transcoders, dict[str, Any]]:
        """Transcoders or autoencoders, left on disk and in the numbers of their files, with their config."""
        from circuit_tracer.transcoders.loading import load_dictionary

        return load_dictionary(
            name,
            device="cpu",
            dtype=None,
            lazy_encoder=True,
            feature_input_hook=self.feature_input_hook,
            feature_output_hook=self.feature_output_hook,
            select=self.select,
            input_shift=self.input_shift,
        )


def warn_of_unknown_words(given: Mapping[str, Any]) -> None:
    """Say which words of a command's prompts the demo's model does not know, if that is the model."""
    if not given.get("demo") or given.get("chat"):
        return
    said = [
        given.get(name) or () for name in ("prompt", "clean", "corrupted", *(["source"] if given.get("take") else []))
    ]
    texts: list[str] = [each for text in said for each in ([text] if isinstance(text, str) else text)]
    if not texts:
        return
    from circuit_tracer.demo.words import about_unknown, unknown_words

    if unknown := [word for text in texts for word in unknown_words(text)]:
        warn(f"the demo's small world does not know {about_unknown(unknown)}. What is not known is read as <unk>")


@contextmanager
def loading() -> Iterator[None]:
    """Inside, a model is loaded, and is said to be."""
    with doing("loading"):
        quiet_loading()
        yield


def quiet_loading() -> None:
    """No bars of transformers while weights are loaded: the line that shows progress says what is done."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
