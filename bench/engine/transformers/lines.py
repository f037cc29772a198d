"""What one types to load a cell's model: what ``load`` does, as text."""

from collections import defaultdict
from pathlib import Path

from bench.config.cell import Cell, Model
from bench.engine.transformers.own.cache import packed_place
from bench.engine.transformers.schemes import SCHEMES, TORCH_NAMES, packs


def loading_lines(cell: Cell, folder: str | None) -> str:
    """Python that leaves the model of a resolved cell in ``model``.

    Empty for quantized random weights and where layers differ, which takes more.

    Args:
        folder: with the files of a model that comes from no hub; None: of the hub, or random.
    """
    if packs(cell.quant) and cell.model.weights != "random" and folder is not None:
        return _packed_lines(cell, Path(folder))
    if packs(cell.quant) or cell.quant.layers:
        return ""
    configuration = SCHEMES[cell.quant.scheme].configuration(cell.quant, cell.device)
    named = cell.quant.dtype
    dtype = "'auto'" if named == "saved" else f"torch.{TORCH_NAMES[named]}"
    settings = [f"dtype={dtype}", f"attn_implementation={cell.attn.implementation!r}"]
    names = defaultdict(list, transformers=["AutoModelForCausalLM"])  # by module
    before = []
    if cell.model.weights == "random":
        if configuration is not None:
            return ""
        names["transformers"].insert(0, "AutoConfig")
        before = [f"config = AutoConfig.{_configuration(cell.model)}"]
        call, settings = "from_config", ["config", *settings]
    else:
        source = [repr(folder)] if folder is not None else _on_hub(cell.model)
        call, settings = "from_pretrained", [*source, *settings]
        settings.append(f"device_map={cell.device!r}")
        if configuration is not None:
            for part in configuration.parts():
                names[part.module].append(part.name)
            settings.append(f"quantization_config={configuration}")
    return "\n".join(
        [
            "import torch",
            *(f"from {module} import {', '.join(used)}" for module, used in names.items()),
            *_attention(cell),
            "",
            *_threads(cell),
            *before,
            f"model = AutoModelForCausalLM.{call}(",
            *(f"    {setting}," for setting in settings),
            ").eval()",
        ]
    )


def _attention(cell: Cell) -> list[str]:
    if not cell.attn.packs_queries:
        return []
    return [
        "from bench.engine.transformers import attention",
        "from transformers import AttentionInterface",
        "",
        'AttentionInterface.register("sdpa", attention.packed)',
    ]


def _threads(cell: Cell) -> list[str]:
    return [f"torch.set_num_threads({cell.threads})"] if cell.device == "cpu" else []


def _packed_lines(cell: Cell, folder: Path) -> str:
    """Of weights of our own, which this package has packed and reads."""
    quant = cell.quant
    layers = f", layers={dict(quant.layers)!r}" if quant.layers else ""
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "import torch",
            f"from bench.config.cell import {'LayerQuant, ' if layers else ''}Quant",
            "from bench.engine.transformers.own.packing import load_packed",
            "from bench.engine.transformers.own.siblings import join",
            *_attention(cell),
            "",
            *_threads(cell),
            f"quant = Quant({quant.name!r}, {quant.scheme!r}, {quant.dtype!r},"
            f" {dict(quant.parameters)!r}{layers})",
            f"packed = Path({str(packed_place(quant, folder))!r})",
            f"model = load_packed(packed, quant, {cell.attn.implementation!r}, {cell.device!r})",
            "model.eval()",
            "join(model)",
        ]
    )


def _configuration(model: Model) -> str:
    """The call of AutoConfig that gives the configuration of random weights."""
    if model.config is None and model.architecture is not None:
        architecture = dict(model.architecture)
        given = [repr(architecture.pop("model_type"))]
        given += [f"{name}={value!r}" for name, value in architecture.items()]
        return f"for_model({', '.join(given)})"
    source = model.config or model.path
    given = [repr(source)] if source is not None else _on_hub(model)
    return f"from_pretrained({', '.join(given)})"


def _on_hub(model: Model) -> list[str]:
    revision = [] if model.revision is None else [f"revision={model.revision!r}"]
    return [repr(model.repo), *revision]
