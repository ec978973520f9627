"""The embedded default: pictures drawn here, two small nets trained on them, and one cue planted on purpose."""
