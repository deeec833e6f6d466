"""The conformance kit's options, known to every pytest that starts in this folder (comparison/conformance)."""

pytest_plugins = ["comparison.conformance.plugin"]
