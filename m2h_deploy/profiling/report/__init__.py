"""Tables, charts and pages of bench results."""
