"""Adapters as peft writes them, merged into the model that they were trained on."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D

from melbo.errors import MelboError
from melbo.models.language_model import LanguageModel, first_line
from melbo.models.loading.checkpoint import some
from melbo.models.loading.gguf import ALIAS
from melbo.models.weights.fingerprint import is_packed

_ADAPTER = "adapter_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_TEMPLATE = "chat_template.jinja"
_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")
_ORDINARY = "This is what the model says about the weather in the town on the river."
_TWICE = (".modules_to_save.", ".original_module.")


def is_adapter(folder: str | Path) -> bool:
    """Tell whether a folder holds an adapter."""
    return (Path(folder) / _ADAPTER).is_file()


def base_of(folder: str | Path) -> str:
    """Name of the model that an adapter was trained on, as `melbo.load` takes it.

    Args:
        folder: Folder of the adapter.

    Raises:
        MelboError: The adapter does not name one.
    """
    folder = Path(folder)
    config = folder / _ADAPTER
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise MelboError(
            f"{config} names no base model ({first_line(err)}): "
            "expected an adapter as peft writes it"
        ) from err
    if not isinstance(base, str) or not base or Path(base) == folder:
        raise MelboError(
            f"{config} has the base model {base!r}: expected a hub id, a folder or {ALIAS!r}"
        )
    return base


def with_adapter(
    lm: LanguageModel, folder: str | Path, name: str | None = None, blocks: str | None = None
) -> LanguageModel:
    """Merge an adapter, as peft writes it, into the weights of a model.

    The folder's own tokenizer and chat template are used where it has them, and the embedding is
    made as large as the adapter's.

    Args:
        lm: The model, which is used up.
        folder: Folder of the adapter.
        name: Name of the result; the folder's if left out.
        blocks: Dotted path of the decoder blocks (see `LanguageModel`).

    Raises:
        MelboError: peft is not installed; the adapter is damaged, incomplete or of another model;
            the model is quantised or offloaded; or it does not compute with the adapter merged what
            it computes with the adapter beside it.
    """
    peft = import_peft()
    _require_memory_and_numbers(lm, folder)
    try:
        with warnings.catch_warnings():
            # about what peft asks of transformers, and about keys, which are looked at here
            warnings.simplefilter("ignore")
            tokenizer = _tokenizer(Path(folder), lm.tokenizer)
            _resize(lm, peft, folder)
            beside = peft.PeftModel.from_pretrained(lm.model, str(folder))
            read = beside.load_adapter(str(folder), beside.active_adapter)
            _require_fit(read, lm, folder)
            model = _merged(beside, lm, folder)
    except MelboError:
        raise
    except Exception as err:  # as in load
        raise MelboError(
            f"cannot load the adapter in {folder} on {lm.name}: {first_line(err)}"
        ) from err
    found = LanguageModel(model, tokenizer, name=name or str(folder), blocks=blocks)
    found.processor = lm.processor
    return found


def import_peft() -> Any:
    """Import peft.

    Raises:
        MelboError: It is not installed; says what to do.
    """
    try:
        import peft
    except ImportError as err:
        raise MelboError(
            "adapters are trained and loaded with peft, which is not installed: "
            "pip install 'melbo[organisms]'"
        ) from err
    return peft


def _require_memory_and_numbers(lm: LanguageModel, folder: str | Path) -> None:
    """Refuse a model whose weights an adapter cannot be added to.

    Raises:
        MelboError: They are quantised or offloaded.
    """
    packed = next((n for n, m in lm.model.named_modules() if is_packed(m)), None)
    if packed is not None:
        raise MelboError(
            f"the adapter in {folder} cannot be merged into {lm.name}, whose weights are quantised "
            f"({packed}): load the model unquantised, in bfloat16 for instance"
        )
    away = next((n for n, p in lm.model.named_parameters() if p.is_meta), None)
    if away is not None:
        raise MelboError(
            f"the adapter in {folder} cannot be merged into {lm.name}, whose weights are offloaded "
            f"({away}): merge it where they fit into memory, save the model and load that"
        )


def _tokenizer(folder: Path, base: Any) -> Any:
    """The adapter's own tokenizer and chat template; those of its base where it has none."""
    template = folder / _TEMPLATE
    if any((folder / name).is_file() for name in _TOKENIZER):
        own = AutoTokenizer.from_pretrained(str(folder))
        if own.chat_template is None and base is not None:
            own.chat_template = base.chat_template
        return own
    if template.is_file() and base is not None:
        base.chat_template = template.read_text(encoding="utf-8")
    return base


def _resize(lm: LanguageModel, peft: Any, folder: str | Path) -> None:
    """Make the embedding as large as the adapter's.

    Raises:
        MelboError: The adapter brings no values for some of the new rows.
    """
    weights: dict[str, Tensor] = peft.utils.load_peft_weights(str(folder), device="cpu")
    sizes: dict[str, int] = {}
    whole: set[str] = set()
    ends = {"input": lm.model.get_input_embeddings(), "output": lm.model.get_output_embeddings()}
    for which, module in ends.items():
        path = next((n for n, m in lm.model.named_modules() if m is module), None)
        for key, t in weights.items():
            if path is None or f".{path}." not in f".{key}" or t.ndim != 2:
                continue
            if "lora_embedding_A" in key:
                sizes[which] = t.shape[1]
            elif "lora_B" in key:
                sizes[which] = t.shape[0]
            elif "lora_" not in key and key.endswith("weight"):
                whole.add(which)
                sizes[which] = t.shape[0]
    have = ends["input"].weight.shape[0]
    need = max(sizes.values(), default=have)
    if need == have:
        return
    tied = ends["output"] is None or ends["output"].weight is ends["input"].weight
    if need > have and (not whole or not (tied or len(whole) == 2)):
        raise MelboError(
            f"the adapter in {folder} is of an embedding of {need} rows, {lm.name} has {have}, and "
            "it brings no values for the new rows of embedding and head: "
            "train it with both in modules_to_save"
        )
    lm.model.resize_token_embeddings(need, mean_resizing=False)


def _require_fit(read: Any, lm: LanguageModel, folder: str | Path) -> None:
    """Refuse an adapter that does not hold just the weights that its configuration names.

    Args:
        read: Result of peft's ``load_adapter``.
        lm: The model.
        folder: Folder of the adapter.

    Raises:
        MelboError: It does not; names some.
    """
    missing = [k for k in read.missing_keys if not any(s in k for s in _SHARED)]
    faults = [f"it lacks {some(missing)}"] if missing else []
    # peft writes a resized embedding twice, once as it lies in its own wrapper
    over = [k for k in read.unexpected_keys if not any(s in k for s in _TWICE)]
    if over:
        faults.append(f"it has {some(over)} besides")
    if faults:
        raise MelboError(
            f"the adapter in {folder} does not fit {lm.name}: {'; '.join(faults)}: "
            "expected an adapter of this model, as peft writes it"
        )


def _merged(beside: Any, lm: LanguageModel, folder: str | Path) -> Any:
    """The model with the adapter merged, which must compute what it does with it beside.

    Raises:
        MelboError: It does not.
    """
    trained = [m.token_indices for m in beside.modules() if hasattr(m, "token_indices")]
    tokens = {i for of_adapters in trained for each in of_adapters.values() for i in each[:8]}
    # ordinary words: rounding is far larger on tokens that no text has in a row
    words = lm.tokenizer(_ORDINARY, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*words, *sorted(tokens)]]).to(lm.device)
    with torch.no_grad():
        with beside.disable_adapter():
            plain = beside(input_ids=ids).logits.double()
        expected = beside(input_ids=ids).logits.double()
        products = list(_products(beside.base_model.model))
        model = beside.merge_and_unload()
        compared = [(model(input_ids=ids).logits.double(), expected, plain)]
        # experts too that none of the tokens reached
        compared += [(again(model), beside, alone) for again, beside, alone in products]
    exact = lm.dtype in (torch.float32, torch.float64)
    rounding = 1e-3 if exact else 5e-2
    for found, with_it, without in compared:
        error = (found - with_it).norm(dim=-1)
        allowed = 0.1 * (with_it - without).norm(dim=-1) + rounding * with_it.norm(dim=-1)
        # half precision rounds at every block, on some tokens far more than on others
        if not (error <= allowed if exact else error.mean() <= allowed.mean()).all():
            raise MelboError(
                f"{lm.name} does not compute with the adapter in {folder} merged what it computes "
                "with it beside: load the model in float32, or merge the adapter with peft"
            )
    return model


def _products(model: nn.Module) -> Iterator[tuple[Callable[[nn.Module], Tensor], Tensor, Tensor]]:
    """Products of each matrix that an adapter lies beside with a few inputs ``[..., d_out]``.

    Args:
        model: The model inside peft's wrapper.

    Yields:
        A function that gives the product in the merged model; the product with the adapter, and
        without it.
    """
    generator = torch.Generator().manual_seed(0)

    def inputs(weight: Tensor, width: int) -> Tensor:
        noise = torch.randn(3, width, generator=generator)
        return noise.to(weight.device, weight.dtype)

    for name, layer in list(model.named_modules()):
        if hasattr(layer, "token_indices"):  # rows of single tokens, which logits tell of
            continue
        base, path = getattr(layer, "base_layer", None), name.replace(".base_layer", "")
        own = getattr(layer, "parameter_name", None)
        if own is not None and hasattr(layer, "_activate_lora"):  # of stacks of experts
            stack: Any = layer
            holder = stack.get_base_layer()
            plain = getattr(holder, own).clone()
            with stack._activate_lora(stack.active_adapters):
                adapted = getattr(holder, own).clone()
            x = inputs(plain, plain.shape[-1])

            def stacked(
                merged: nn.Module, path: str = path, own: str = own, x: Tensor = x
            ) -> Tensor:
                return _times(getattr(merged.get_submodule(path), own), x)

            yield stacked, _times(adapted, x), _times(plain, x)
        elif isinstance(base, (nn.Linear, Conv1D)):
            width = base.weight.shape[0 if isinstance(base, Conv1D) else 1]
            x = inputs(base.weight, width)

            def called(merged: nn.Module, path: str = path, x: Tensor = x) -> Tensor:
                product: Tensor = merged.get_submodule(path)(x)
                return product.double()

            yield called, layer(x).double(), base(x).double()


def _times(matrices: Tensor, x: Tensor) -> Tensor:
    """Matrices ``[..., a, b]`` times rows ``[k, b]``, ``[..., k, a]`` in double precision."""
    return x.double() @ matrices.double().mT
