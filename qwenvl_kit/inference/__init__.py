"""What runs a model, behind one seam: requests are pulled, results come out. Backends never see frames or URLs."""

from qwenvl_kit.inference.backend import Backend, BackendSpec, Control, RequestQueue

__all__ = ["Backend", "BackendSpec", "Control", "RequestQueue"]
