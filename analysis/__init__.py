"""What a study found: reads the ledger; starts no Ray and trains nothing."""
