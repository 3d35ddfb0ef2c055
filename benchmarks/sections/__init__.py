"""What is measured, a file a section: `run(subject)` gives what docs/benchmarks.json holds of it."""
