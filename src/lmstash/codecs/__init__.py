"""VALUES <-> BYTES: tensors, records, dtype policies, compression."""
