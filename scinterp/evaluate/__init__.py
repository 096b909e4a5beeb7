"""Numbers from arrays and pictures from tables."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["clustering", "comparisons", "gene_level", "integration", "gene_figures", "metrics", "pl", "vector_agreement", "verdicts"],
    submod_attrs={
        "metrics": ["scores", "score_table", "confusion_matrix", "paired_difference", "embedding_scores"],
        "comparisons": ["compare", "comparison_table"],
        "verdicts": ["verdict"],
        "clustering": ["cluster_scores"],
        "integration": ["integration_scores"],
    },
)
