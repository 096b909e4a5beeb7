"""Methods with one protocol: fit, predict, predict_proba, embed; and the controls that stand beside them."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["protocol", "baselines", "genept", "scelmo", "backbones", "scinterpreter", "controls"],
    submod_attrs={
        "genept": ["GenePT"],
        "scelmo": ["ScELMo"],
        "scinterpreter": ["ScInterpreter"],
        "controls": ["with_control"],
    },
)
