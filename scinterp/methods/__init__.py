"""Methods with one protocol: fit, predict, predict_proba, embed, save, load; and the controls that stand beside them."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["protocol", "certainty", "estimators", "baselines", "genept", "scelmo", "scinterpreter", "label_text", "controls", "queries", "tl"],
    submod_attrs={
        "protocol": ["load"],
        "genept": ["GenePT"],
        "scelmo": ["ScELMo"],
        "scinterpreter": ["ScInterpreter"],
        "label_text": ["LabelText"],
        "controls": ["with_control"],
    },
)
