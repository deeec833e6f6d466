"""Write codemeta.json and .zenodo.json from CITATION.cff and pyproject.toml, which say it once.

python scripts/citation.py
"""

import argparse
import json
import tomllib
from pathlib import Path

import yaml

from common.files import ROOT


def pages(root: Path = ROOT) -> dict[Path, str]:
    """The text of both files by path."""
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    authors = [author["name"] for author in citation["authors"]]
    papers = [_address(paper) for paper in citation["references"]]
    codemeta = {
        "@context": "https://w3id.org/codemeta/3.0",
        "@type": "SoftwareSourceCode",
        "name": citation["title"],
        "description": project["description"],
        "version": citation["version"],
        "license": f"https://spdx.org/licenses/{citation['license']}",
        "author": [{"@type": "Organization", "name": name} for name in authors],
        "programmingLanguage": "Python",
        "runtimePlatform": f"Python {project['requires-python']}",
        "softwareRequirements": project["dependencies"],
        "dateModified": str(citation["date-released"]),
        "keywords": citation["keywords"],
        "referencePublication": [
            {"@type": "ScholarlyArticle", "name": paper["title"], "url": address}
            for paper, address in zip(citation["references"], papers, strict=True)
        ],
    }
    zenodo = {
        "title": citation["title"],
        "description": project["description"],
        "version": citation["version"],
        "upload_type": "software",
        "license": citation["license"],
        "access_right": "open",
        "creators": [{"name": name} for name in authors],
        "keywords": citation["keywords"],
        "publication_date": str(citation["date-released"]),
        "related_identifiers": [
            {"identifier": address, "relation": "cites", "resource_type": "publication-article"} for address in papers
        ],
    }
    return {root / "codemeta.json": _text(codemeta), root / ".zenodo.json": _text(zenodo)}


def _address(paper: dict) -> str:
    return f"https://doi.org/{paper['doi']}" if "doi" in paper else paper["url"]


def _text(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path, text in pages().items():
        path.write_text(text)
