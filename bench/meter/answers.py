"""What the model answers: greedy, to its own end of sequence, the same prompts for every cell.

The prompts go through as one left-padded batch with its mask, since these passes are not timed; for
the same reason sdpa is not pinned to a backend here: some refuse any mask. Everything that a
model's own generation_config could slip in (sampling, penalties) is set explicitly.
"""

import torch
import yaml
from transformers import GenerationConfig

from bench.config.cell import Cell
from bench.engine.transformers.load import Subject
from bench.paths import PROMPT_SETS
from bench.record.measurement import Sample


def answer_samples(cell: Cell, subject: Subject) -> tuple[Sample, ...]:
    """One answer a prompt. The subject must have a tokenizer."""
    tokenizer = subject.tokenizer
    assert tokenizer is not None, "samples need a tokenizer"
    prompts: list[str] = yaml.safe_load(
        PROMPT_SETS[str(cell.quality.prompts)].read_text(encoding="utf-8")
    )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is not None:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            for chat in chats
        ]
    else:
        texts = prompts
    has_markers = tokenizer.chat_template is not None
    batch = tokenizer(
        texts, return_tensors="pt", padding=True, add_special_tokens=not has_markers
    ).to(subject.model.device)
    eos = subject.model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=cell.quality.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.inference_mode():
        out = subject.model.generate(**batch, generation_config=config)
    answers = out[:, batch["input_ids"].shape[1] :].tolist()
    return tuple(
        _sample(prompt, ids, ends, subject) for prompt, ids in zip(prompts, answers, strict=True)
    )


def _sample(prompt: str, ids: list[int], ends: set[int], subject: Subject) -> Sample:
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    kept = ids if stop is None else ids[:stop]
    assert subject.tokenizer is not None
    return Sample(
        prompt,
        subject.tokenizer.decode(kept, skip_special_tokens=True),
        tuple(kept),
        stop is not None,
    )
