"""Where tokens should merge: schedules, what they save and what they harm."""
