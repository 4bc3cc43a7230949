"""A tiny Apertus, and its batches, for several tests."""

import torch
from transformers import ApertusConfig, ApertusForCausalLM

VOCAB = 97


def config(**more):
    options = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "rope_scaling": None,
        "rope_theta": 1e4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return ApertusConfig(**(options | more))


def model(seed=0, alphas=None, dtype=torch.float32):
    """A random model, with weights of a size at which all parts of the activation matter."""
    torch.manual_seed(seed)
    made = ApertusForCausalLM(config())
    with torch.no_grad():
        for name, each in made.named_parameters():
            if each.dim() == 2:
                each.normal_(std=0.2)
            elif alphas is not None and "alpha" in name:
                each.fill_(alphas[name.endswith("alpha_n")])
    return made.to(dtype)


def ids(rows=3, length=20, seed=0):
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
