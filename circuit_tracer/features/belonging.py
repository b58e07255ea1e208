"""Were features built for these transcoders?"""

from __future__ import annotations

from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.fingerprint import VERSION, transcoder_fingerprint
from circuit_tracer.transcoders.base import Transcoders


def of_other_transcoders(features: FeatureFolder, transcoders: Transcoders) -> str | None:
    """What to say if they were not; None if they were, or if nothing says: built by others, or for weights in other numbers."""
    settings = features.manifest.get("settings")
    built = settings if isinstance(settings, dict) else {}
    dtypes = built.get("dtypes")
    same_numbers = isinstance(dtypes, list) and dtypes[-1:] == [str(transcoders.dtype).removeprefix("torch.")]
    if not same_numbers or built.get("fingerprint_version") != VERSION:
        return None
    if built.get("dictionary") == transcoder_fingerprint(transcoders):
        return None
    return (
        f"the features in {features.folder} were built for other transcoders ({built.get('transcoders')}) than those that are "
        "served: their examples and labels say nothing about these. Build them again (circuit-tracer features build)."
    )
