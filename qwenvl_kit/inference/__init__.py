"""Generate answers: engine, scheduler, KV slots, sampler, and the protocols of backends and model runners."""

from qwenvl_kit.inference.backend import Backend, BackendSpec, Control, RequestQueue, RunControl

__all__ = ["Backend", "BackendSpec", "Control", "RequestQueue", "RunControl"]
