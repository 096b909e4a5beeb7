"""Words into vectors: descriptions of genes and cell types, encoders, gene tables."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["encoders", "gene_tables"],
    submod_attrs={
        "descriptions": ["describe", "cell_types"],
        "encoders": ["encoder"],
        "gene_tables": ["GeneTable"],
    },
)
