"""What a cut is and does, whoever asks for it: its damage, its closed-form refit, and cutting without data."""
