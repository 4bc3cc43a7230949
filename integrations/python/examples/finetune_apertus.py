"""Fine-tunes a small Apertus on the CPU or a CUDA device, with transformers' Trainer and the kernels of xact.

    python finetune_apertus.py [--steps 60] [--seed 0] [--output runs/apertus] [--resume] [--plain] [--width 256] [--layers 4]

The data are sentences of a random grammar, so nothing is downloaded. To train your own model, replace `model` and `sentences`
by `AutoModelForCausalLM.from_pretrained(...)` and your dataset; what is of xact are four lines, marked below. Runs with the
same seed have the same losses. `--resume` continues from the last checkpoint in the output folder as if it had never
stopped. `--plain` leaves xact out, to compare: the last line has the tokens per second after the first three steps.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import ApertusConfig, ApertusForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

import xact
import xact.hf

VOCAB, LENGTH, BATCH, ACCUMULATED = 4096, 128, 4, 2


def sentences(count, seed):
    """Rows of ids in which eight ids may follow each id."""
    generator = torch.Generator().manual_seed(seed)
    follows = torch.randint(1, VOCAB, (VOCAB, 8), generator=generator)
    choice = torch.randint(8, (count, LENGTH), generator=generator)
    rows = torch.randint(1, VOCAB, (count, 1), generator=generator)
    for t in range(1, LENGTH):
        rows = torch.cat([rows, follows[rows[:, -1], choice[:, t]].unsqueeze(1)], dim=1)
    return [{"input_ids": row} for row in rows]


def collate(examples):
    """The ids are their own labels; the model shifts them."""
    ids = torch.stack([each["input_ids"] for each in examples])
    return {"input_ids": ids, "labels": ids.clone()}


class Speed(TrainerCallback):
    """Measures the tokens per second after the first steps, in which memory is allocated and kernels are loaded."""

    def __init__(self, tokens_per_step, ignored=3):
        self.tokens, self.ignored, self.steps = tokens_per_step, ignored, 0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1
        self.now = time.perf_counter()
        if self.steps == self.ignored:
            self.begun = self.now

    def tokens_per_second(self):
        timed = self.steps - self.ignored
        return timed * self.tokens / (self.now - self.begun) if timed > 0 else float("nan")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/apertus"))
    parser.add_argument("--save-steps", type=int, default=20)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args(argv)
    last = get_last_checkpoint(args.output) if args.resume and args.output.exists() else None
    if args.resume and last is None:
        parser.error(f"{args.output} has no checkpoint to resume from")

    set_seed(args.seed)
    if not args.plain:
        xact.hf.patch()  # xact: models that are built from here on have our xIELU
    model = ApertusForCausalLM(
        ApertusConfig(
            vocab_size=VOCAB,
            hidden_size=args.width,
            intermediate_size=4 * args.width,
            num_hidden_layers=args.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            dtype="float32",
        )
    )
    collator = collate
    if not args.plain:
        model.loss_function = xact.hf.loss_function  # xact: no f32 copy of the logits
        goldfish = xact.Goldfish(k=4, h=13)  # xact: drops a quarter of the labels from the loss ...
        collator = xact.hf.GoldfishCollator(goldfish, collate)  # xact: ... in the workers, before they are counted
    speed = Speed(LENGTH * BATCH * ACCUMULATED)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.output),
            max_steps=args.steps,
            save_steps=args.save_steps,
            logging_steps=10,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATED,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            report_to=[],
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=args.seed,
        ),
        train_dataset=sentences(2048, args.seed),
        data_collator=collator,
        callbacks=[speed],
    )
    trainer.train(resume_from_checkpoint=last)
    print(f"{'transformers alone' if args.plain else 'with xact'}: {speed.tokens_per_second():.0f} tokens/s")
    return trainer


if __name__ == "__main__":
    main()
