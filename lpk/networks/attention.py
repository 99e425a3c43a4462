"""PyTorch's modules of attention, taken apart into the layers and functions that they are made of."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from lpk.networks.plain import is_plain


def taken_apart(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module returns for proxies of its arguments, computed from its linear layers; None where it is no module
    of attention, or does more than that: masks, weights of attention that are returned, other orders."""
    if is_plain(module, nn.MultiheadAttention):
        same = len(args) == 3 and args[0] is args[1] is args[2]
        if same and kwargs == {"need_weights": False} and _is_simple(module):
            return _self_attention(module, args[0]), None
    elif is_plain(module, nn.TransformerEncoderLayer):
        if len(args) == 1 and _without_masks(kwargs) and _is_simple(module.self_attn):
            return _encoder_layer(module, args[0])
    elif is_plain(module, nn.TransformerEncoder):
        layers: Any = module.layers
        if len(args) == 1 and _without_masks(kwargs) and all(type(m) is nn.TransformerEncoderLayer for m in layers):
            x = args[0]
            for layer in layers:
                x = layer(x)
            return x if module.norm is None else module.norm(x)
    return None


def _without_masks(kwargs: dict[str, Any]) -> bool:
    return all(value is None or value is False for value in kwargs.values())


def _is_simple(module: nn.MultiheadAttention) -> bool:
    """Whether queries, keys and values come from one product, samples are first, and nothing is added."""
    plain = is_plain(module, nn.MultiheadAttention) and module.bias_k is None and not module.add_zero_attn
    return plain and module.batch_first and module._qkv_same_embed_dim


def _self_attention(module: nn.MultiheadAttention, x: Any) -> Any:
    parts = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    heads = (module.num_heads, module.head_dim)
    query, key, value = (parts[i].unflatten(-1, heads).transpose(-3, -2) for i in range(3))
    attended = F.scaled_dot_product_attention(query, key, value).transpose(-3, -2).flatten(-2)
    return F.linear(attended, module.out_proj.weight, module.out_proj.bias)


def _encoder_layer(module: nn.TransformerEncoderLayer, x: Any) -> Any:
    if module.norm_first:
        x = x + _self_attention(module.self_attn, module.norm1(x))
        return x + _fed_forward(module, module.norm2(x))
    x = module.norm1(x + _self_attention(module.self_attn, x))
    return module.norm2(x + _fed_forward(module, x))


def _fed_forward(module: nn.TransformerEncoderLayer, x: Any) -> Any:
    activation: Any = module.activation
    return module.linear2(activation(module.linear1(x)))
