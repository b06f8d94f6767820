"""A Google Cloud for one machine: state, validation, operations and side effects."""
