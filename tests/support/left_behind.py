"""What a run could leave on a model's modules: nothing may be there that was not there before."""

from __future__ import annotations

from torch import nn


def left_behind(model: nn.Module) -> list[str]:
    """Hooks on modules, calls and forward methods of a module's own. Not counted: the hooks with which transformers collects
    hidden states, which it leaves there once they have been asked for.
    """
    found = []
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        found += [f"{name}: {hook}" for hook in hooks if "output_capturing" not in getattr(hook, "__name__", "")]
        found += [f"{name}: {own}" for own in ("forward", "_call_impl", "_compiled_call_impl") if own in vars(module)]
    return found
