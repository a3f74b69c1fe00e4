"""The values and rules of receiver: no input or output, no clock of its own."""
