"""Reference posteriors that ship with the package: problems, artefacts and what a run needs to be compared with them."""
