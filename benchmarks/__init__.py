"""One file per question, each against a named peer in one run; results/ holds what was measured and where."""
