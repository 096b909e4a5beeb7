"""Package metadata comes from `settings.ini`, the file nbdev itself reads."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(root / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def words(key):
    return cfg.get(key, "").split()


def shipped(link):
    "Files behind the committed links `_files -> ../data` and `_nbs -> ../nbs`, which the wheel carries"
    base = root / "scinterp"
    return [str(p.relative_to(base)) for p in sorted((base / link).rglob("*"))
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(base).parts)]


setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"],
    license="Apache-2.0", keywords=words("keywords"),
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"]},
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["scinterp", "scinterp.*"]),
    package_data={"scinterp": shipped("_files") + shipped("_nbs")},
    install_requires=words("requirements"), extras_require={extra: words(f"{extra}_requirements") for extra in ("dev", "published", "census", "tune", "clusters", "scvi", "perturbation")},
    entry_points={"console_scripts": words("console_scripts"),
                  "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
