"""What the commands do: train, evaluate, predict, export and describe; kgarden/cli parses and prints."""
