"""Language models that read single cells, with the controls that say whether the language mattered.

`import scinterp as si` is quick: torch, scanpy and the rest load when something that needs them is used.
"""
import lazy_loader

__version__ = "0.0.1"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["cells", "text", "methods", "evaluate", "run"],
    submod_attrs={
        "core": ["InputError", "DataError", "ModelError"],
        "cells": ["datasets"],
        "cells.preflight": ["preflight"],
        "text": ["GeneTable"],
        "methods": ["baselines", "tl", "GenePT", "ScELMo", "ScInterpreter", "ScReader", "ScInterpreterHybrid", "LabelText", "contributions", "preset", "treat", "with_control"],
        "evaluate": ["pl"],
    },
)
