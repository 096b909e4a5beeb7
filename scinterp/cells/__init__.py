"""Cells one can trust: named datasets, identifiers, splits, normalisation and gene ranking."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["audit", "datasets", "downloads", "files", "identifiers", "joint", "labels", "matrices", "nomenclature", "normalise", "preflight", "published", "recipes", "screens", "splits", "two_species"])
