"""Apertus of transformers with our xIELU: checkpoints, losses, gradients, generation, compilation, and bad input."""

import copy
import subprocess
import sys

import pytest
import torch
from conftest import DTYPES, XIELU

pytest.importorskip("transformers")

import apertus  # noqa: E402
from transformers import ApertusForCausalLM, LlamaConfig, LlamaForCausalLM, activations  # noqa: E402

import xact.hf  # noqa: E402
import xact.torch as xt  # noqa: E402

pytestmark = pytest.mark.usefixtures("activation_tables")


def activation_of(model, layer=0):
    return model.model.layers[layer].mlp.act_fn


def patched(model, **options):
    model = copy.deepcopy(model)
    xact.hf.patch(model, **options)
    return model


def gradients(model, ids):
    """The loss, and the gradients of all parameters, in f64."""
    model.zero_grad()
    # A cache changes the layout of keys and values, and so the order of sums.
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach().double(), {name: each.grad.double() for name, each in model.named_parameters()}


def distance(got, exact):
    """The largest relative error of a gradient, in the norm of the tensor."""
    return max(((got[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact)


def test_importing_xact_hf_does_not_import_transformers():
    code = "import sys, xact.hf; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_models_built_and_loaded_after_patch_have_our_xielu(tmp_path):
    theirs = apertus.model()
    theirs.save_pretrained(tmp_path)
    xact.hf.patch()
    for made in (ApertusForCausalLM(apertus.config()), ApertusForCausalLM.from_pretrained(tmp_path)):
        assert all(isinstance(activation_of(made, layer), xact.hf.XIELU) for layer in range(2))
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    llama = LlamaForCausalLM(LlamaConfig(**sizes, hidden_act="xielu"))
    assert isinstance(activation_of(llama), xact.hf.XIELU)


@pytest.mark.parametrize("dtype", DTYPES)
def test_checkpoints_load_strictly_in_both_directions(dtype, tmp_path):
    theirs = apertus.model(dtype=dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    # Before 5.0, transformers loads the scalars in bf16 in some cases.
    want = ApertusForCausalLM.from_pretrained(tmp_path / "theirs", dtype=dtype).state_dict()
    xact.hf.patch()
    ours, report = ApertusForCausalLM.from_pretrained(tmp_path / "theirs", dtype=dtype, output_loading_info=True)
    assert isinstance(activation_of(ours), xact.hf.XIELU) and not any(report.values()), report
    ours.save_pretrained(tmp_path / "ours")
    again, report = ApertusForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    for state in (ours.state_dict(), again.state_dict()):
        assert list(state) == list(want)
        for name, each in state.items():
            assert each.dtype == want[name].dtype and torch.equal(each, want[name]), name
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_a_patched_model_keeps_its_parameters():
    model = apertus.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = dict(model.named_parameters())
    xact.hf.patch(model)
    for name, each in model.named_parameters():
        assert each is before[name]
    assert activation_of(model).training and not activation_of(patched(apertus.model().eval())).training
    model(apertus.ids(), labels=apertus.ids()).loss.backward()
    alpha = activation_of(model).alpha_p
    was = alpha.item()
    optimizer.step()
    assert alpha.item() == pytest.approx(was - 0.1 * alpha.grad.item()) and alpha.grad.item() != 0


@pytest.mark.parametrize("alphas", XIELU[:2])
@pytest.mark.parametrize("eps_gradient", ["analytic", "autograd"])
def test_loss_and_gradients_are_those_of_transformers(alphas, eps_gradient):
    """In f32, within the roundings of the longest way through the model: one for each addend of each sum on it.

    No input of an activation is between eps and 0, so both gradients of the clamp are the same.
    """
    theirs, ids = apertus.model(alphas=alphas), apertus.ids()
    inputs = []
    for layer in range(2):
        activation_of(theirs, layer).register_forward_hook(lambda module, given, result: inputs.append(given[0]))
    loss, want = gradients(theirs, ids)
    assert not any(((x <= 0) & (x >= -1e-6)).any() for x in inputs)
    ours = patched(apertus.model(alphas=alphas), eps_gradient=eps_gradient)
    # Two layers, each with sums over the width five times and once over the inner width; forward and back; then the logits.
    roundings = 2 * 2 * (5 * 32 + 48) + 32 + apertus.VOCAB
    bound = roundings * 2.0**-24
    got_loss, got = gradients(ours, ids)
    assert abs(got_loss - loss) <= bound * loss
    assert distance(got, want) <= bound


def test_between_eps_and_0_autograd_is_that_of_the_clamped_formula():
    x = torch.tensor([-9e-7, -1e-7, -0.0, 0.0, -2e-6, 1e-7])
    theirs = activations.XIELUActivation(dtype=torch.float32)
    holder = torch.nn.Sequential(theirs)

    def derivative(module):
        given = x.clone().requires_grad_()
        return torch.autograd.grad(module(given).sum(), given)[0]

    want = derivative(holder)
    torch.testing.assert_close(derivative(patched(holder, eps_gradient="autograd")), want, rtol=1e-6, atol=0)
    analytic = derivative(patched(holder))
    inside = (x <= 0) & (x >= -1e-6)
    torch.testing.assert_close(analytic[~inside], want[~inside], rtol=1e-6, atol=0)
    # The clamp's constant part leaves -alpha_n + beta of the derivative, the ideal one is beta.
    torch.testing.assert_close(analytic[inside], torch.full((4,), 0.5), rtol=1e-5, atol=0)
    torch.testing.assert_close(want[inside], torch.full((4,), 0.5 - 0.8), rtol=1e-5, atol=0)


@pytest.mark.parametrize("alphas", XIELU[:2])
def test_in_bf16_it_is_closer_to_f64_than_transformers(alphas):
    """The gradient of all parameters as one vector. Most of its error is that of the products, which both have."""
    errors = {"theirs": 0.0, "ours": 0.0}
    for seed in range(8):
        theirs, ids = apertus.model(seed, alphas, torch.bfloat16), apertus.ids(seed=seed)
        _, exact = gradients(copy.deepcopy(theirs).double(), ids)
        scale = sum(each.square().sum() for each in exact.values())
        for name, model in (("theirs", theirs), ("ours", patched(theirs))):
            _, got = gradients(model, ids)
            errors[name] += sum((got[each] - exact[each]).square().sum() for each in exact) / scale
    assert errors["ours"] < errors["theirs"]


class Within(torch.nn.Module):
    """An activation in bf16 in a model of f64."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return self.activation(x.bfloat16().to(self.activation.alpha_p.dtype)).double()


@pytest.mark.parametrize("alphas", XIELU[:2])
def test_where_only_the_activation_is_bf16_the_gradient_of_each_matrix_is_closer(alphas):
    errors = {"theirs": {}, "ours": {}}
    for seed in range(8):
        model, ids = apertus.model(seed, alphas).double(), apertus.ids(seed=seed)
        for layer in model.model.layers:
            layer.mlp.act_fn = Within(layer.mlp.act_fn.bfloat16())
        _, exact = gradients(copy.deepcopy(model).double(), ids)
        for name, each in (("theirs", model), ("ours", patched(model))):
            for key, got in gradients(each, ids)[1].items():
                if got.dim() == 2:
                    error = (got - exact[key]).square().sum().item()
                    errors[name][key] = errors[name].get(key, 0.0) + error
    ratios = {key: (errors["ours"][key] / theirs) ** 0.5 for key, theirs in errors["theirs"].items()}
    assert max(ratios.values()) < 1, ratios


def test_the_clamp_is_that_of_the_checkpoint(tmp_path):
    theirs = apertus.model()
    for layer in range(2):
        activation_of(theirs, layer).eps.fill_(-0.5)
        activation_of(theirs, layer).beta.fill_(0.25)
    theirs.save_pretrained(tmp_path)
    ids = apertus.ids()
    with torch.no_grad():
        want, unlike = theirs(ids).logits, apertus.model()(ids).logits
        assert not torch.allclose(want, unlike, rtol=1e-2)
        xact.hf.patch()
        # No eager call comes before the compiled one, which must read the buffers itself.
        compiled = torch.compile(ApertusForCausalLM.from_pretrained(tmp_path), backend="eager", fullgraph=True)
        for model in (ApertusForCausalLM.from_pretrained(tmp_path), compiled, patched(theirs)):
            torch.testing.assert_close(model(ids).logits, want, rtol=1e-4, atol=1e-4)


def test_the_clamp_follows_its_buffer():
    x = torch.tensor([-0.25])
    module = xt.nn.XIELU(eps=-1e-6)
    ideal = xt.xielu(x, module.alpha_p, module.alpha_n)
    assert torch.allclose(module(x), ideal, rtol=1e-6)
    steps = (lambda: module.eps.fill_(-0.5), lambda: setattr(module, "eps", torch.tensor(-1.0)))
    for value, change in zip((-0.5, -1.0), steps):
        change()
        want = xt.xielu(x, module.alpha_p, module.alpha_n, eps=value)
        assert torch.equal(module(x), want) and torch.equal(copy.deepcopy(module)(x), want)
        assert not torch.allclose(want, ideal, rtol=1e-2)


def test_ideal_has_no_clamp_and_the_same_state_dict():
    theirs = apertus.model()
    ours = patched(theirs, ideal=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    activation, x = activation_of(ours), torch.tensor([-1e-7, 0.0])
    assert torch.equal(activation(x), xt.xielu(x, activation.alpha_p, activation.alpha_n))
    assert activation(x)[1] == 0 != activation_of(patched(theirs))(x)[1]
    xact.hf.patch(ours)
    assert activation_of(ours) is activation and not activation.ideal


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("alpha", DTYPES)
def test_scalars_of_another_type_than_x(x, alpha):
    """A model that is built for another type than its config says mixes the two."""
    x = torch.linspace(-3, 3, 7, dtype=x)
    module = xact.hf.XIELU(dtype=alpha)
    y = module(x)
    y.sum().backward()
    beta, eps = float(module.beta), float(module.eps)
    want = xt.xielu(x, module.alpha_p.float(), module.alpha_n.float(), beta=beta, eps=eps)
    assert y.dtype == x.dtype and torch.equal(y, want)
    assert module.alpha_p.grad.dtype == alpha


def test_generate_gives_the_same_tokens():
    theirs, prompt = apertus.model(), apertus.ids(2, 5)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    want = theirs.generate(prompt, **options)
    assert want.shape == (2, 17) and torch.equal(patched(theirs).generate(prompt, **options), want)


def test_a_compiled_model_has_the_same_loss_and_gradients():
    model, ids = patched(apertus.model()), apertus.ids()
    model.loss_function = xact.hf.loss_function
    loss, want = gradients(model, ids)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    got = compiled(ids, labels=ids).loss
    got.backward()
    torch.testing.assert_close(got.detach().double(), loss, rtol=1e-6, atol=0)
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad.double(), want[name], rtol=1e-4, atol=1e-6, msg=name)


def test_gradient_checkpointing_changes_no_bit():
    model, ids = patched(apertus.model()), apertus.ids()
    model.train()
    loss, want = gradients(model, ids)
    model.gradient_checkpointing_enable()
    got_loss, got = gradients(model, ids)
    assert got_loss == loss
    for name, each in got.items():
        assert torch.equal(each, want[name]), name


class Refused:
    """Models that patch refuses, each with what the error says."""

    def no_xielu():
        return torch.nn.Sequential(torch.nn.Linear(2, 2)), "has no xIELU"

    def another_xielu():
        class FastXIELU(torch.nn.Module):
            pass

        model = apertus.model()
        model.model.layers[1].mlp.act_fn = FastXIELU()
        return model, "layers.1.mlp.act_fn is a test_hf.*FastXIELU, which is unknown"

    def mixed_devices():
        model = apertus.model()
        activation = activation_of(model, 1)
        activation.alpha_n = torch.nn.Parameter(activation.alpha_n.to("meta"))
        return model, "layers.1.mlp.act_fn has its scalars on several devices: .*alpha_n on meta"

    def a_forward_of_its_own():
        model = apertus.model()
        activation = activation_of(model, 1)
        activation.forward = lambda x: x
        return model, "layers.1.mlp.act_fn has a forward of its own"

    def another_state():
        model = apertus.model()
        activation_of(model, 1).gamma = torch.nn.Parameter(torch.ones(1))
        return model, "layers.1.mlp.act_fn has the state .*gamma"

    def an_activation_alone():
        return activations.XIELUActivation(), "model is itself an activation"


@pytest.mark.parametrize("case", [name for name in vars(Refused) if not name.startswith("_")])
def test_a_model_that_cannot_be_patched_is_left_as_it_was(case):
    model, says = vars(Refused)[case]()
    before = {name: (module, type(module)) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=says):
        xact.hf.patch(model)
    assert {name: (module, type(module)) for name, module in model.named_modules()} == before


def test_patch_says_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match="eps_gradient is 'exact'"):
        xact.hf.patch(eps_gradient="exact")
    with pytest.raises(TypeError, match="model is a str"):
        xact.hf.patch("swiss-ai/Apertus-8B-2509")
    with monkeypatch.context() as changed:
        changed.delattr(activations, "ACT2CLS")
        with pytest.raises(RuntimeError, match="has no activations.ACT2CLS; xact.hf.patch knows 4.56 to"):
            xact.hf.patch(apertus.model())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers .*pip install 'xact-kernels\[hf\]'"):
        xact.hf.patch()


@pytest.fixture
def installed(monkeypatch):
    """install_xielu has been called; afterwards it is as if it had not been."""
    assert "xielu" not in sys.modules
    xact.hf.install_xielu()
    yield
    for name in ("xielu", "xielu.ops"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.undo()
    for name in ("xielu", "xielu.ops"):
        sys.modules.pop(name, None)
    del torch.classes.xielu.XIELU


def test_transformers_finds_us_as_the_package_xielu(installed):
    """transformers makes the object with an activation, and calls it for CUDA tensors; here it is called directly."""
    theirs = activations.XIELUActivation(dtype=torch.bfloat16)
    for shape in ((4,), (2, 4), (3, 2, 4), (2, 3, 2, 4)):
        x = torch.randn(shape, dtype=torch.float32).requires_grad_()
        want = xt.xielu(x, theirs.alpha_p.float(), theirs.alpha_n.float(), eps=theirs._eps_scalar)
        y = theirs._xielu_cuda_fn(x)
        torch.testing.assert_close(y, want, rtol=0, atol=0)
        y.sum().backward()
        assert x.grad is not None and theirs.alpha_p.grad is not None
    copied = copy.deepcopy(theirs)
    assert torch.equal(copied._xielu_cuda_fn(x), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_servers_find_us_as_the_package_xielu(dtype, installed):
    """vLLM and SGLang make the same object, and pass the parameters as they are, bf16 beside any x."""
    import xielu.ops  # noqa: F401

    made = torch.classes.xielu.XIELU()
    alpha_p, alpha_n = (torch.tensor([value], dtype=torch.bfloat16) for value in (0.25, -1.0))
    x = torch.linspace(-3, 3, 24, dtype=dtype).view(2, 3, 4)
    with torch.inference_mode():
        y = made.forward(x, alpha_p, alpha_n, 0.5, -1e-6, False)
    assert torch.equal(y, xt.xielu(x, alpha_p.float(), alpha_n.float(), beta=0.5, eps=-1e-6))
    xact.hf.install_xielu()
    assert torch.classes.xielu.XIELU is type(made)


def test_an_installed_package_xielu_is_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "xielu").mkdir()
    (tmp_path / "xielu/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="package xielu is installed"):
        xact.hf.install_xielu()
    assert "xielu" not in sys.modules
