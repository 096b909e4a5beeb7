"""Methods with one protocol: fit, predict, predict_proba, embed, save, load; and the controls that stand beside them."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["protocol", "certainty", "estimators", "baselines", "products", "genept", "scelmo", "adaptor", "treatment", "perturbation", "latent_shift",
                "backbones", "gene_order", "reader", "training", "scinterpreter", "hybrid", "gene_contributions", "label_text", "controls", "queries", "tl"],
    submod_attrs={
        "protocol": ["load"],
        "genept": ["GenePT", "SentenceGenePT"],
        "scelmo": ["ScELMo"],
        "adaptor": ["TunedScELMo"],
        "treatment": ["treat"],
        "scinterpreter": ["ScInterpreter", "ScReader", "preset"],
        "hybrid": ["ScInterpreterHybrid"],
        "gene_contributions": ["contributions"],
        "label_text": ["LabelText"],
        "controls": ["with_control"],
    },
)
