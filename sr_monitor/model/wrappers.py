"""Look past what DDP, `torch.compile`, FSDP, PEFT, accelerate and DeepSpeed put around a model.

They are known by class names and attributes, as nothing is imported that the caller did not.

    root = unwrap(model)   # the module to call
    core = core_of(root)   # the language model to ask about itself
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from sr_monitor.model.hooks import forward_replaced

_ONLY_AROUND = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_FSDP1 = "FullyShardedDataParallel"
_FSDP2 = "FSDPModule"


def class_names(thing: object) -> set[str]:
    """Return the names of its class and of all that this class derives from."""
    return {kind.__name__ for kind in type(thing).__mro__}


def unwrap(model: nn.Module) -> nn.Module:
    """Take off wrappers that add only communication or compilation (DDP, `torch.compile`)."""
    while type(model).__name__ in _ONLY_AROUND:
        model = model.get_submodule(_ONLY_AROUND[type(model).__name__])
    return model


def inside_fsdp1(module: nn.Module) -> nn.Module:
    """Return the module that FSDP1 has wrapped; any other module is returned as it is."""
    wrapper: Any = module
    inner: nn.Module = wrapper.module if _FSDP1 in class_names(module) else module
    return inner


def core_of(root: nn.Module) -> nn.Module:
    """Return the model below FSDP1 and PEFT, whose wrappers have to stay in the call."""
    core: Any = inside_fsdp1(root)
    if core is not root:
        core = unwrap(core)
    inner: nn.Module = core.get_base_model() if hasattr(core, "get_base_model") else core
    return inner


def must_be_called(module: nn.Module) -> bool:
    """Whether the modules inside run only through this one: it gathers their weights."""
    return bool(class_names(module) & {_FSDP1, _FSDP2, "DeepSpeedEngine"})


class CalledThrough(nn.Module):
    """A model inside a larger module, run by calling the `root` that shards the larger one.

    During a call, the forward of `outer` is the model's; hooks that gather weights run as in
    training.
    """

    def __init__(self, root: nn.Module, outer: nn.Module, model: nn.Module) -> None:
        """`root` is `outer` or a wrapper around it; `outer` holds `model`."""
        super().__init__()
        self.root = root
        self._inner = (outer, model)  # in a tuple: not registered a second time

    def get_base_model(self) -> nn.Module:
        """Return the model itself; PEFT's wrappers have the same method."""
        return core_of(self._inner[1])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model through `root`."""
        outer, model = self._inner
        with forward_replaced(outer, model):
            return self.root(*args, **kwargs)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP or ZeRO-3 gathers the weights in a forward, so that all have to run it."""
    shards = any(class_names(module) & {_FSDP1, _FSDP2} for module in model.modules())
    return shards or is_partitioned(model)


def is_partitioned(model: nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO-3 has taken the weights apart."""
    return any(hasattr(weight, "ds_id") for weight in model.parameters())


@contextmanager
def resharded_afterwards(model: nn.Module) -> Iterator[None]:
    """Have FSDP2 modules that hold their shards hold them again at the end.

    After a forward without a backward, the outermost one would keep its whole weights.
    """
    # Not told by the weights: those of a tensor-parallel module are DTensors when gathered, too.
    sharded: list[Any] = [
        module
        for module in model.modules()
        if _FSDP2 in class_names(module) and all(group.is_sharded for group in fsdp2_groups(module))
    ]
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def fsdp1_placements(module: Any) -> list[Any]:
    """Return how the weights in a flat parameter of FSDP1 were spread before it took them."""
    handle = module._handle if _FSDP1 in class_names(module) else None
    extensions = () if handle is None else handle.flat_param._param_extensions
    return [spec for spec in extensions if spec is not None]


def fsdp2_groups(module: Any) -> list[Any]:
    """Return the groups of weights that FSDP2 gathers for this module; none of another module."""
    if _FSDP2 not in class_names(module):
        return []
    state = module._get_fsdp_state()
    groups: list[Any] | None = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch 2.11 and older have one at most
        groups = [group for group in [state._fsdp_param_group] if group is not None]
    return groups


def execution_device(root: nn.Module) -> torch.device:
    """Return where accelerate's hooks bring weights that are kept on disk or in another memory."""
    hooks = (getattr(module, "_hf_hook", None) for module in root.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((device for device in devices if device is not None), "meta"))


@contextmanager
def without_autocast_patch(root: nn.Module) -> Iterator[None]:
    """Run the model's own forward where accelerate has put one with autocast in its place."""
    with ExitStack() as stack:
        for module in root.modules():
            original = vars(module).get("_original_forward")
            if original is not None:
                stack.enter_context(forward_replaced(module, original))
        yield


@contextmanager
def without_mixed_precision(model: nn.Module) -> Iterator[None]:
    """Make FSDP gather weights and pass inputs in the precision they are stored in."""
    with ExitStack() as stack:
        for module in model.modules():
            names = class_names(module)
            if _FSDP2 in names:
                stack.enter_context(_fsdp2_policy_lifted(module))
            elif _FSDP1 in names:
                stack.enter_context(_fsdp1_policy_lifted(module))
        yield


@contextmanager
def _fsdp1_policy_lifted(module: Any) -> Iterator[None]:
    """Use FSDP1's own switch for full precision in eval mode; it casts buffers as well."""
    handle = module._handle
    holders = [each for each in (module, handle) if each is not None]
    before = [each._use_full_prec_in_eval for each in holders]
    buffers = [(buffer, buffer.data) for buffer in module.buffers()]
    try:
        for each in holders:
            each._use_full_prec_in_eval = True
        yield
    finally:
        # The outermost module keeps what it gathered; the next measurement would find old weights.
        if (
            handle is not None
            and handle.uses_sharded_strategy
            and hasattr(handle.flat_param, "_local_shard")
        ):
            handle.reshard(free_unsharded_flat_param=True)
        for each, value in zip(holders, before, strict=True):
            each._use_full_prec_in_eval = value
        for buffer, data in buffers:
            buffer.data = data


@contextmanager
def _fsdp2_policy_lifted(module: Any) -> Iterator[None]:
    """Lift the policy of an FSDP2 module, and set aside what it gathered under that policy."""
    state = module._get_fsdp_state()
    policy, plain = state._mp_policy, type(state._mp_policy)()
    groups = fsdp2_groups(module)
    weights = [weight for group in groups for weight in group.fsdp_params]
    module.reshard()
    gathered = [(each.all_gather_outputs, vars(each).get("_unsharded_param")) for each in weights]
    try:
        state._mp_policy = plain
        for group in groups:
            group.mp_policy = plain
        for weight in weights:
            _set_gathered(weight, [], None, plain)
        yield
    finally:
        module.reshard()
        state._mp_policy = policy
        for group in groups:
            group.mp_policy = policy
        for weight, (outputs, whole) in zip(weights, gathered, strict=True):
            _set_gathered(weight, outputs, whole, policy)


def _set_gathered(weight: Any, outputs: list[Any], whole: Any, policy: Any) -> None:
    """Swap the memory that an FSDP2 weight is gathered into, and apply the policy to it."""
    weight.all_gather_outputs = outputs
    vars(weight).pop("_unsharded_param", None)
    if whole is not None:
        weight._unsharded_param = whole
    weight.init_dtype_attrs(policy)
