"""circuit-tracer's `circuit_tracer.utils.caching`."""

from circuit_tracer.transcoders.cache import (
    empty_cache,
    get_cache_dir,
    get_cached_path,
    is_cached,
)
from circuit_tracer.transcoders.cache_entries import load_transcoders_from_cache, save_transcoders_to_cache

__all__ = [
    "empty_cache",
    "get_cache_dir",
    "get_cached_path",
    "is_cached",
    "load_transcoders_from_cache",
    "save_transcoders_to_cache",
]
