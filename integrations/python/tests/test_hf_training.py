"""The loss of transformers' models, Goldfish in its collators and Trainers, and whole runs of a Trainer."""

import copy
import functools
import os
import re
import socket
import sys

import formulas
import pytest
import torch
import torch.multiprocessing as mp
from conftest import DTYPES, ROOT, check, values

pytest.importorskip("transformers")

import apertus  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402
from transformers.loss.loss_utils import ForCausalLMLoss  # noqa: E402

import xact  # noqa: E402
import xact.hf  # noqa: E402

GOLDFISH = xact.Goldfish(k=3, h=3)
# Of a document that is longer than the window, Goldfish drops some labels and keeps some.
ROWS, LENGTH = 8, 16


def logits_and_labels(dtype=torch.float32):
    logits = values((3, 7, 11), dtype).requires_grad_()
    labels = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))
    labels[0, :3] = labels[2, -1] = -100
    return logits, labels


CALLS = {
    "mean": {},
    "count": {"num_items_in_batch": 9},
    "count on the device": {"num_items_in_batch": torch.tensor(9)},
    "other arguments of forward": {"output_attentions": False, "cu_seq_lens_q": None},
    "shifted": {"shift_labels": torch.arange(21).view(3, 7) % 11},
    "ignore_index": {"ignore_index": 5},
}


@pytest.mark.parametrize("call", CALLS)
def test_the_loss_is_that_of_transformers(call):
    logits, labels = logits_and_labels()
    if call == "ignore_index":
        labels = labels.clamp(min=0)
    arguments = {"logits": logits, "labels": labels, "vocab_size": 11, **CALLS[call]}
    want = ForCausalLMLoss(**arguments)
    got = xact.hf.loss_function(**arguments)
    assert got.dtype == torch.float32 and got.shape == ()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    for mine, theirs in zip(torch.autograd.grad(got, logits), torch.autograd.grad(want, logits)):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_saves_no_f32_copy_of_the_logits(dtype):
    logits, labels = logits_and_labels(dtype)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        loss = xact.hf.loss_function(logits, labels, 11)
    large = [each for each in saved if each.numel() >= logits.numel() and each.is_floating_point()]
    assert [each.data_ptr() for each in large] == [logits.data_ptr()]
    loss.backward()
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    exact = logits.detach().double().requires_grad_()
    rows, kept = formulas.cross_entropy(exact, shifted)
    mean = rows.sum() / kept.sum()
    check(loss, mean, torch.tensor(4.0), "loss")
    (want,) = torch.autograd.grad(mean, exact)
    check(logits.grad, want, torch.ones_like(want) / kept.sum(), "gradient")
    assert (logits.grad.flatten(0, 1)[~kept] == 0).all() and logits.grad.any()


def test_the_loss_with_a_padded_vocabulary_and_options():
    logits, labels = logits_and_labels()
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    loss = functools.partial(xact.hf.loss_function, z_loss=1e-2, label_smoothing=0.1)
    rows, kept = formulas.cross_entropy(logits.double(), shifted, vocab=11, z_loss=1e-2, label_smoothing=0.1)
    padded = torch.nn.functional.pad(logits, (0, 5), value=50.0)
    torch.testing.assert_close(loss(padded, labels, 11).double(), rows.sum() / kept.sum(), rtol=1e-6, atol=0)


def test_labels_that_are_all_masked():
    logits, labels = logits_and_labels()
    loss = xact.hf.loss_function(logits, torch.full_like(labels, -100), 11)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_the_loss_says_what_is_wrong():
    logits, labels = logits_and_labels()
    with pytest.raises(TypeError, match="labels and shift_labels are None"):
        xact.hf.loss_function(logits, None, 11)
    with pytest.raises(ValueError, match="vocab is 12; it must be from 1 to 11"):
        xact.hf.loss_function(logits, labels, 12)
    with pytest.raises(ValueError, match="is 11, which is neither one of 11 classes"):
        xact.hf.loss_function(logits, labels.masked_fill(labels == 3, 11), 11)


def collate(examples):
    """Rows of equal length; the ids are the labels, less the first, which transformers before 5.0 would count."""
    ids = torch.stack([torch.as_tensor(each["input_ids"]) for each in examples])
    labels = ids.clone()
    labels[:, 0] = -100
    return {"input_ids": ids, "labels": labels}


def batch_of(**tensors):
    """A collator that returns this batch, whatever the examples are."""
    return lambda examples: {name: each.clone() for name, each in tensors.items()}


def dropped(goldfish=GOLDFISH, exempt=None, **tensors):
    """The labels after Goldfish."""
    return xact.hf.GoldfishCollator(goldfish, batch_of(**tensors), exempt=exempt)([])["labels"]


def test_the_collator_drops_what_the_loss_would_drop():
    ids = apertus.ids(5, 40)
    labels = ids.clone()
    labels[1, :10] = -100
    got = dropped(input_ids=ids, labels=labels)
    want = labels.clone()
    want[:, 1:][~GOLDFISH.mask(ids[:, 1:])] = -100
    want[:, 0] = -100
    assert torch.equal(got, want)
    kept = (got[2:, 1:] != -100).double().mean()
    assert 0.5 < kept < 0.8
    exempt = ids[2, 20:30].tolist()
    spared = dropped(input_ids=ids, labels=labels, exempt=exempt)
    is_exempt = torch.isin(labels, torch.tensor(exempt))
    is_exempt[:, 0] = False
    assert torch.equal(spared, torch.where(is_exempt, labels, want)) and not torch.equal(spared, want)


def test_a_document_loses_the_same_labels_wherever_it_is():
    lengths = (20, 1, 13, 2, 28)
    documents = [apertus.ids(1, length, seed=length)[0] for length in lengths]
    alone = [dropped(input_ids=each[None], labels=each[None])[0] for each in documents]
    assert any((each[1:] == -100).any() for each in alone)
    for left in (False, True):
        pads = [((28 - length) * left, (28 - length) * (not left)) for length in lengths]
        padded = [torch.nn.functional.pad(each, pad, value=0) for each, pad in zip(documents, pads)]
        attended = [torch.nn.functional.pad(torch.ones_like(each), pad) for each, pad in zip(documents, pads)]
        ids, attended = torch.stack(padded), torch.stack(attended)
        got = dropped(input_ids=ids, labels=ids.masked_fill(attended == 0, -100), attention_mask=attended)
        for each, want, mask in zip(got, alone, attended):
            assert torch.equal(each[mask == 1][1:], want[1:]), left
    packed, positions = torch.cat(documents)[None], torch.cat([torch.arange(length) for length in lengths])[None]
    got = dropped(input_ids=packed, labels=packed, position_ids=positions)
    for each, want in zip(got[0].split(lengths), alone):
        assert torch.equal(each[1:], want[1:])
    assert not torch.equal(got, dropped(input_ids=packed, labels=packed))


def test_shifted_labels_are_dropped_too():
    ids = apertus.ids(2, 30)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=7)
    collator = xact.hf.GoldfishCollator(GOLDFISH, batch_of(input_ids=ids, labels=ids, shift_labels=shifted))
    batch = collator([])
    assert torch.equal(batch["shift_labels"][:, :-1], batch["labels"][:, 1:])
    assert (batch["shift_labels"][:, -1] == 7).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_decide_as_the_process_itself(method):
    data = [{"input_ids": row, "labels": row} for row in apertus.ids(8, 40)]
    collator = xact.hf.GoldfishCollator(GOLDFISH, torch.utils.data.default_collate)
    want = [collator(data[i : i + 2]) for i in range(0, 8, 2)]
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, collate_fn=collator, num_workers=2, multiprocessing_context=method
    )
    for got, expected in zip(loader, want, strict=True):
        assert torch.equal(got["labels"], expected["labels"])


def test_batches_that_goldfish_cannot_read():
    ids = apertus.ids()
    with pytest.raises(TypeError, match="goldfish is a str"):
        xact.hf.GoldfishCollator("hash64", collate)
    with pytest.raises(TypeError, match="collator is a NoneType"):
        xact.hf.GoldfishCollator(GOLDFISH, None)
    with pytest.raises(ValueError, match="the batch has no labels"):
        dropped(input_ids=ids)
    with pytest.raises(ValueError, match=r"labels is \[3, 19\], and input_ids is \[3, 20\]"):
        dropped(input_ids=ids, labels=ids[:, 1:])
    with pytest.raises(TypeError, match="the batch is a list"):
        xact.hf.GoldfishCollator(GOLDFISH, list)([])
    with pytest.raises(TypeError, match="labels is a list; it must be a torch.Tensor"):
        xact.hf.GoldfishCollator(GOLDFISH, lambda _: {"input_ids": ids, "labels": [1]})([])
    with pytest.raises(TypeError, match="object has no get_batch_samples"):
        xact.hf.add_goldfish(object(), GOLDFISH)


class Data(torch.utils.data.IterableDataset):
    """Rows in a fixed order, again and again."""

    def __iter__(self):
        while True:
            yield from ({"input_ids": row} for row in apertus.ids(ROWS, LENGTH, seed=3))


def trained(folder, goldfish, data, steps, batch, accumulated, seed=0):
    """Runs a Trainer on a patched model; its losses per step, its counts per micro-batch, and the Trainer."""
    model = apertus.model(seed)
    xact.hf.patch(model)
    model.loss_function = xact.hf.loss_function
    losses, counts = [], []

    class Recorded(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            losses.append(loss.item())
            counts.append(int(num_items_in_batch))
            return loss

    trainer = Recorded(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
        train_dataset=data,
        data_collator=xact.hf.GoldfishCollator(GOLDFISH, collate) if goldfish == "collator" else collate,
    )
    if goldfish == "hook":
        xact.hf.add_goldfish(trainer, GOLDFISH)
    trainer.train()
    return [sum(losses[i : i + accumulated]) for i in range(0, len(losses), accumulated)], counts, trainer


def plainly(steps, rows_per_step, goldfish):
    """The same training in PyTorch and transformers alone: the loss, the number of labels of each step, and the model."""
    model = apertus.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = iter(Data())
    losses, counts = [], []
    for _ in range(steps):
        ids = torch.stack([next(data)["input_ids"] for _ in range(rows_per_step)])
        labels = ids[:, 1:].clone()
        if goldfish:
            labels[~GOLDFISH.mask(labels)] = -100
        logits = model(ids).logits[:, :-1]
        count = (labels != -100).sum()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        counts.append(count.item())
    return losses, counts, model


def close(trainer_model, model):
    for (name, want), got in zip(model.named_parameters(), trainer_model.parameters()):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("goldfish", ["collator", "hook", None])
def test_a_trainer_with_accumulation_has_the_losses_of_plain_pytorch(goldfish, tmp_path):
    losses, counts, trainer = trained(tmp_path, goldfish, Data(), steps=3, batch=2, accumulated=2)
    want, labels, model = plainly(3, 4, goldfish)
    assert counts[::2] == counts[1::2] == labels
    assert goldfish is None or all(0.5 < count / (4 * (LENGTH - 1)) < 0.9 for count in labels)
    torch.testing.assert_close(losses, want, rtol=1e-5, atol=0)
    close(trainer.model, model)
    assert losses[-1] < losses[0]
    # Batches of evaluation are whole unless the collator drops labels.
    data = [{"input_ids": row} for row in apertus.ids(4, LENGTH, seed=5)]
    ids = torch.stack([each["input_ids"] for each in data])
    labels = dropped(input_ids=ids, labels=ids) if goldfish == "collator" else ids
    with torch.no_grad():
        exact = copy.deepcopy(trainer.model)(ids, labels=labels).loss.item()
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(exact, rel=1e-5)


def rank(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    data = [{"input_ids": row} for row in apertus.ids(ROWS, LENGTH, seed=3)]
    # A step has all rows, so the order of the sampler does not matter.
    losses, counts, trainer = trained(folder, "collator", data, steps=2, batch=2, accumulated=2)
    assert trainer.args.world_size == 2
    want, labels, model = plainly(2, ROWS, True)
    assert counts == [labels[0]] * 2 + [labels[1]] * 2, (counts, labels)
    # A rank has its share of the sum, times the number of ranks, over which gradients are averaged.
    total = torch.tensor(losses)
    torch.distributed.all_reduce(total)
    torch.testing.assert_close((total / 2).tolist(), want, rtol=1e-5, atol=0)
    close(trainer.accelerator.unwrap_model(trainer.model), model)
    torch.distributed.barrier()
    sys.stdout.flush()
    # As in test_ranks.py: static objects are not destroyed while threads of PyTorch still run.
    os._exit(0)


def test_two_processes_count_the_labels_of_both(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank, (port, str(tmp_path)), nprocs=2)


PAGE = (ROOT / "docs/huggingface.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S))
def test_the_code_of_the_page_runs(block, tmp_path, monkeypatch, activation_tables):
    monkeypatch.chdir(tmp_path)
    apertus.model().save_pretrained("checkpoint")
    dataset = [{"input_ids": row} for row in apertus.ids(8, 16)]
    names = {"checkpoint": "checkpoint", "dataset": dataset, "collator": collate}
    exec(compile(block, "huggingface.md", "exec"), names)
    assert all(each.isfinite().all() for each in names["model"].parameters())
    ours = isinstance(names["model"].model.layers[0].mlp.act_fn, xact.hf.XIELU)
    assert ours == ("xact" in block)
