"""Comparisons with other people's code. A package, so that its file names may repeat those of other folders."""
