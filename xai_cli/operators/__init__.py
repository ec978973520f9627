"""What happens operator by operator: seeing every `torch` call of a forward pass in order, whoever makes it."""
