"""The child: does one Job, says how it goes, decides nothing."""
