"""Pretrain the pocket model from scratch: one seeded command.

    python -m tools.pocket.pretrain --out build/pocket

writes the tokenizer, the tokenised corpus, checkpoints (a killed run goes on
where it was) and at the end ``<out>/model`` with ``training_log.jsonl``.
About half an hour on two cores; minutes on a GPU.
"""

from __future__ import annotations

import json
import shutil
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from helpers.base import LabError
from tools.pocket.corpus import iter_corpus

SEED = 20260101
VOCAB_SIZE = 1024
BLOCK = 512
SHARDS = 64
HIDDEN, LAYERS, HEAD_DIM = 192, 6, 32
BATCH, STEPS, LEARNING_RATE = 4, 5500, 2e-3  # blocks a step, steps, peak


def build_tokenizer(folder: Path, n_texts: int = 20_000):
    """Train the tokenizer on the first documents, or load it."""
    from transformers import AutoTokenizer

    from tools.pocket.tokenizer import train_tokenizer

    if not (folder / "tokenizer.json").is_file():
        docs = islice(iter_corpus(SEED), n_texts)
        texts = (part for p, _, s in docs for part in (p, s))
        train_tokenizer(texts, VOCAB_SIZE).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _make_shard(job: tuple[str, int, int]) -> np.ndarray:
    """Token ids of one shard: documents in the chat template, in a row."""
    folder, shard, n_tokens = job
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    chunks, total = [], 0
    docs = iter_corpus(SEED + 1 + shard)
    while total < n_tokens:
        texts = [
            tokenizer.apply_chat_template(
                [
                    {"role": "user", "content": problem},
                    {"role": "assistant", "content": solution},
                ],
                tokenize=False,
            )
            for problem, _, solution in islice(docs, 256)
        ]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        chunks += [np.array(row, np.uint16) for row in ids]
        total += sum(map(len, ids))
    return np.concatenate(chunks)[:n_tokens]


def build_corpus(folder: Path, tokenizer_dir: Path, n_tokens: int):
    """Tokenised corpus as blocks, shape (n_blocks, BLOCK), from cache."""
    from tqdm.auto import tqdm

    path = folder / f"corpus-{n_tokens}.npy"
    if not path.is_file():
        per_shard = -(-n_tokens // SHARDS)
        jobs = [(str(tokenizer_dir), i, per_shard) for i in range(SHARDS)]
        with get_context("spawn").Pool(2) as pool:
            shards = pool.imap(_make_shard, jobs)
            parts = list(tqdm(shards, total=SHARDS, desc="corpus"))
        flat = np.concatenate(parts)
        np.save(path, flat[: len(flat) // BLOCK * BLOCK].reshape(-1, BLOCK))
    return np.load(path)


def build_model(tokenizer):
    """A Llama of about 2.9 M parameters, tied embeddings, head_dim 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD_DIM,
        num_key_value_heads=HIDDEN // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=BLOCK,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


class Blocks:
    """The corpus as a map-style data set of next-token examples."""

    def __init__(self, blocks: np.ndarray):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ids = self.blocks[index].astype(np.int64)
        return {"input_ids": ids, "labels": ids}


def train(out: Path, steps: int) -> Path:
    """Run the whole pretraining; returns the folder of the final model."""
    import torch
    from transformers import Trainer, TrainingArguments, set_seed

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(out / "tokenizer")
    blocks = build_corpus(out, out / "tokenizer", steps * BATCH * BLOCK)
    set_seed(SEED)
    model = build_model(tokenizer)
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=200,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=50,
        save_steps=500,
        save_total_limit=2,
        report_to="none",
        seed=SEED,
        data_seed=SEED,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Blocks(blocks)
    )
    resume = any((out / "checkpoints").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resume)
    return save_model(model, tokenizer, trainer.state.log_history, out)


def save_model(model, tokenizer, history: list[dict], out: Path) -> Path:
    """Save in bfloat16 (half the size) with the tokenizer and the log."""
    import torch

    folder = out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with open(folder / "training_log.jsonl", "w", encoding="utf-8") as file:
        for entry in history:
            file.write(json.dumps(entry) + "\n")
    return folder


def main(
    out: Annotated[Path, typer.Option(help="working folder")] = Path(
        "build/pocket"
    ),
    steps: Annotated[int, typer.Option(min=1)] = STEPS,
) -> None:
    """Train tokenizer and model; prints where they are."""
    try:
        print("model:", train(out, steps))
    except LabError as error:
        raise SystemExit(f"{error}") from None


if __name__ == "__main__":
    typer.run(main)
