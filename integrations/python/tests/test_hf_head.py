"""A head that computes the loss of a model of transformers without its logits."""

import copy

import pytest
import torch
from conftest import DTYPES

pytest.importorskip("transformers")

import apertus  # noqa: E402
from transformers import (  # noqa: E402
    ApertusForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import xact.hf  # noqa: E402
import xact.torch as xt  # noqa: E402


def fused(model, **options):
    model = copy.deepcopy(model)
    xact.hf.fuse_head(model, **options)
    return model


def gradients(model, ids, labels, **more):
    """The loss, and the gradients of all parameters, in f64."""
    model.zero_grad()
    loss = model(ids, labels=labels, use_cache=False, **more).loss
    loss.backward()
    return loss.detach().double(), {name: each.grad.double() for name, each in model.named_parameters()}


def batch():
    ids = apertus.ids()
    labels = ids.clone()
    labels[0, 3:9] = -100
    labels[2] = -100
    return ids, labels


@pytest.mark.parametrize("more", [{}, {"num_items_in_batch": 57}, {"num_items_in_batch": torch.tensor(57)}])
def test_loss_and_gradients_are_those_of_transformers(more):
    """In f32, within the roundings of the longest sums."""
    theirs = apertus.model()
    loss, want = gradients(theirs, *batch(), **more)
    ours, got = gradients(fused(theirs), *batch(), **more)
    torch.testing.assert_close(ours, loss, rtol=2e-6, atol=0)
    for name in want:
        error = (got[name] - want[name]).norm() / want[name].norm()
        assert error < 1e-4, (name, error)
    with pytest.raises(ValueError, match="max_bytes is 1000"):
        gradients(fused(theirs, max_bytes=1000), *batch())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_training_forward_computes_no_logits(dtype, monkeypatch):
    model = fused(apertus.model(dtype=dtype))
    ids, labels = batch()
    widths = []
    linear = torch.nn.functional.linear

    def recorded(x, weight, bias=None):
        widths.append(weight.shape[0])
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    output = model(ids, labels=labels)
    assert apertus.VOCAB not in widths and widths
    assert output.logits is None and "logits" not in output and output.loss.isfinite()
    loss, *rest = model(ids, labels=labels, use_cache=False, return_dict=False)
    assert loss.item() == output.loss.item() and rest[0] is None
    # A forward without labels, and one in evaluation, have logits.
    assert model(ids).logits.shape == (*ids.shape, apertus.VOCAB)
    model.eval()
    output = model(ids, labels=labels)
    assert output.logits.shape == (*ids.shape, apertus.VOCAB) and apertus.VOCAB in widths
    want = xact.hf.loss_function(output.logits, labels, apertus.VOCAB)
    assert output.loss.item() == want.item()


def test_options_of_the_loss():
    theirs, (ids, labels) = apertus.model(), batch()
    options = {"z_loss": 1e-3, "label_smoothing": 0.1}
    for kind in ("train", "eval"):
        model = getattr(fused(theirs, **options), kind)()
        shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        want = xt.cross_entropy(theirs(ids).logits, shifted, **options)
        torch.testing.assert_close(model(ids, labels=labels).loss, want, rtol=2e-6, atol=0)
    # The second call sets them anew, and adds nothing.
    xact.hf.fuse_head(model.train())
    assert len(model._forward_hooks) == 1
    want = theirs(ids, labels=labels).loss
    torch.testing.assert_close(model(ids, labels=labels).loss, want, rtol=2e-6, atol=0)


def test_checkpoints_and_generation_do_not_change(tmp_path):
    theirs = apertus.model()
    ours = fused(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.save_pretrained(tmp_path)
    loaded = ApertusForCausalLM.from_pretrained(tmp_path)
    for (name, want), got in zip(theirs.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(got, want), name
    ids = apertus.ids(rows=2, length=5)
    how = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(ours.eval().generate(ids, **how), theirs.eval().generate(ids, **how))


def test_an_error_in_a_forward_leaves_the_head_as_it_was():
    model = fused(apertus.model())
    ids, labels = batch()
    with pytest.raises(ValueError):
        model(ids, labels=labels[:, :-1])
    assert model(ids).logits.shape[-1] == apertus.VOCAB
    model(ids, labels=labels).loss.backward()


def test_tied_embeddings_get_both_gradients():
    sizes = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    torch.manual_seed(1)
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    loss, want = gradients(theirs, *batch())
    ours, got = gradients(fused(theirs), *batch())
    assert list(got) == list(want) and not any("lm_head" in name for name in want)
    torch.testing.assert_close(ours, loss, rtol=2e-6, atol=0)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_compiled_model_has_the_same_loss_and_gradients():
    model = fused(apertus.model())
    loss, want = gradients(model, *batch())
    compiled = torch.compile(model)
    ids, labels = batch()
    model.zero_grad()
    ours = compiled(ids, labels=labels, use_cache=False).loss
    ours.backward()
    torch.testing.assert_close(ours.detach().double(), loss, rtol=2e-6, atol=0)
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad.double(), want[name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_trainer_trains_and_evaluates(tmp_path):
    rows = [{"input_ids": row, "labels": row} for row in apertus.ids(8, 20, seed=3)]
    losses = []
    for make in (lambda model: model, fused):
        trainer = Trainer(
            model=make(apertus.model()),
            args=TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=2,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                optim="sgd",
                learning_rate=0.1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,
            eval_dataset=rows,
        )
        loss = trainer.train().training_loss
        losses.append([loss, trainer.evaluate()["eval_loss"]])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


def of_llama(change):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    change(model)
    return model


def with_bias(model):
    model.lm_head = torch.nn.Linear(8, 9)


def with_forward(model):
    model.lm_head.forward = model.lm_head.forward


def gemma():
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    return GemmaForCausalLM(GemmaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1))


REFUSED = {
    "a type that may change its logits": (gemma, "type 'gemma'"),
    "no language model": (lambda: apertus.model().model, "lm_head is None"),
    "no model of transformers": (lambda: torch.nn.Linear(2, 2), "type None"),
    "a bias": (lambda: of_llama(with_bias), "without a bias"),
    "a forward of its own": (lambda: of_llama(with_forward), "forward of its own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_fused_is_left_as_it_was(case):
    make, message = REFUSED[case]
    model = make()
    before = {name: set(vars(each)) for name, each in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        xact.hf.fuse_head(model)
    assert {name: set(vars(each)) for name, each in model.named_modules()} == before
    assert not model._forward_hooks and not model._forward_pre_hooks
    with pytest.raises(TypeError, match="torch.nn.Module"):
        xact.hf.fuse_head("model")
