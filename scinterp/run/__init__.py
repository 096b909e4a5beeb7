"""Experiments: configs, the result table, papermill batches, manifests, the command line."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["results", "experiment", "plans", "stored", "study", "study_report", "embeddings", "unseen", "gene_tasks", "treatment", "perturbation", "describers",
                "gene_function", "notebooks", "annotation", "report", "annotation_page", "doctor", "verify", "cli"],
    submod_attrs={
        "experiment": ["Experiment"],
        "results": ["read_results"],
        "plans": ["load_study"],
        "study": ["run_study", "verify_study"],
        "embeddings": ["load_embeddings", "run_embeddings"],
    },
)
