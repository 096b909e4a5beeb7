"""Words into vectors: descriptions of genes and cell types, encoders, gene tables."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["api", "api_encoders", "cost", "encoders", "gene_tables", "joint_tables", "llm", "ncbi", "published_tables", "tape", "vector_cache", "vector_store"],
    submod_attrs={
        "descriptions": ["describe", "describe_terms", "coverage", "cell_types"],
        "encoders": ["encoder"],
        "gene_tables": ["GeneTable"],
    },
)
